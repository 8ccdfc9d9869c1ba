from pathlib import Path

from edgeproxy.canary import decoys
from edgeproxy.canary.markers import Markers
from edgeproxy.canary.places import Search


def test_every_decoy_is_found_in_its_own_file_and_is_no_leak(tmp_path: Path):
    markers = Markers()
    names = decoys.write(tmp_path, markers)
    search = Search(markers)
    search.folder(decoys.AREA, tmp_path)
    assert search.decoys(decoys.AREA) == names
    assert len(names) == len(list(tmp_path.iterdir()))
    assert {find.place for find in search.finds} == {str(path) for path in tmp_path.iterdir()}
    assert not search.leaks()
