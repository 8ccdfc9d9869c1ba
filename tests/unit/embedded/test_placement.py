"""Where the stores lie and as whom they run: as ourselves, or as root under an account that is there already."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from edgeproxy.embedded.placement import STORES_ELSEWHERE, Account, can_enter, make_data_dir, make_passable, place
from edgeproxy.errors import OperatorError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as somebody else")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@pytest.fixture
def closed(data_dir: Path) -> Path:
    """A data directory below a folder that nobody but its owner may enter, as in root's home."""
    folder = data_dir / "home"
    folder.mkdir(mode=0o700)
    return make_data_dir(folder / "data")


def modes(*paths: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in paths]


def test_a_data_directory_is_made_with_its_parents(data_dir: Path):
    made = make_data_dir(data_dir / "a b" / "c")
    assert made.is_dir()
    assert made.is_absolute()
    assert modes(made) == [0o711 if os.geteuid() == 0 else 0o700]
    assert make_data_dir(made) == made


def test_a_data_directory_that_cannot_be_made_is_one_line(data_dir: Path):
    (data_dir / "file").write_text("")
    with pytest.raises(OperatorError, match="cannot use data_dir"):
        make_data_dir(data_dir / "file" / "data")


@as_user
def test_a_data_directory_of_somebody_else_is_one_line(data_dir: Path):
    data_dir.chmod(0o500)
    with pytest.raises(OperatorError, match="belongs to another user"):
        make_data_dir(data_dir)
    data_dir.chmod(0o700)


@as_user
def test_an_ordinary_user_runs_the_servers_as_themselves_in_the_data_directory(data_dir: Path):
    placed = place(data_dir)
    assert placed.account is None
    assert placed.run_as == {}
    assert placed.stores == data_dir


@as_root
def test_root_runs_the_servers_as_an_account_that_is_there_already(data_dir: Path):
    before = Path("/etc/passwd").read_bytes()
    placed = place(data_dir)
    assert placed.account is not None
    assert pwd.getpwuid(placed.account.uid).pw_name in ("edgeproxy", "postgres", "nobody")
    assert placed.run_as == {"user": placed.account.uid, "group": placed.account.gid, "extra_groups": []}
    assert placed.stores == data_dir
    assert Path("/etc/passwd").read_bytes() == before


@as_root
def test_stores_lie_elsewhere_when_the_account_cannot_enter_and_no_mode_is_changed(closed: Path, data_dir: Path):
    before = modes(closed.parent, closed)
    shared = data_dir / "shared"
    placed = place(closed, shared)
    assert placed.stores.parent == shared
    assert placed.account is not None
    assert can_enter(placed.stores, placed.account)
    assert (placed.stores / "belongs_to").read_text().strip() == str(closed)
    assert modes(closed.parent, closed) == before
    assert place(closed, shared) == placed, "decided once"
    closed.parent.chmod(0o711)
    assert place(closed, shared) == placed, "also when the account could enter by now"


@as_root
def test_stores_that_are_missing_elsewhere_are_not_made_anew(closed: Path, data_dir: Path):
    (closed / STORES_ELSEWHERE).write_text(f"{data_dir}/gone\n")
    with pytest.raises(OperatorError, match="backup"):
        place(closed, data_dir)


@as_root
def test_stores_that_cannot_be_entered_any_more_are_not_left_behind(closed: Path, data_dir: Path):
    (closed / "postgres").mkdir()
    os.chown(closed / "postgres", 65534, 65534)
    with pytest.raises(OperatorError, match="uid 65534"):
        place(closed, data_dir)


@as_root
def test_existing_stores_go_on_running_as_their_owner(data_dir: Path):
    (data_dir / "redis").mkdir()
    os.chown(data_dir / "redis", 1, 1)
    assert place(data_dir).account == Account(1, 1)


@as_root
def test_a_shared_folder_that_cannot_be_made_is_one_line(closed: Path, data_dir: Path):
    (data_dir / "shared").write_text("in the way")
    with pytest.raises(OperatorError, match="cannot write"):
        place(closed, data_dir / "shared")


def test_a_socket_in_the_runtime_folder_has_a_short_address_whatever_the_data_directory(data_dir: Path):
    deep = make_data_dir(data_dir / ("long name " * 20) / ("longer " * 20))
    placed = place(deep)
    assert len(os.fsencode(placed.sockets / ".s.PGSQL.5432")) < 100
    assert place(deep).sockets == placed.sockets
    assert place(data_dir).sockets != placed.sockets


def test_the_runtime_folder_is_private_and_goes_again(data_dir: Path):
    placed = place(data_dir)
    placed.make_runtime()
    placed.make_runtime()
    assert modes(placed.runtime, placed.sockets) == [0o700 if placed.account is None else 0o711, 0o700]
    (placed.sockets / "left").write_text("")
    placed.remove_runtime()
    assert not placed.runtime.exists()


def test_a_runtime_folder_that_is_not_ours_is_refused(data_dir: Path):
    placed = place(data_dir)
    placed.runtime.symlink_to(data_dir)
    try:
        with pytest.raises(OperatorError, match="remove it"):
            placed.make_runtime()
    finally:
        placed.runtime.unlink()


def test_files_of_the_account_are_private_and_replace_links_instead_of_following_them(data_dir: Path):
    placed = place(data_dir)
    folder = placed.own_folder(data_dir / "redis")
    (data_dir / "victim").write_text("precious")
    (folder / "redis.conf").symlink_to(data_dir / "victim")
    path = placed.own_file(folder / "redis.conf", "port 0\n")
    assert (data_dir / "victim").read_text() == "precious"
    assert path.read_text() == "port 0\n"
    assert modes(path) == [0o600]
    assert path.stat().st_uid == (os.geteuid() if placed.account is None else placed.account.uid)


def test_a_folder_that_is_there_keeps_its_mode(data_dir: Path):
    (data_dir / "kept").mkdir(mode=0o700)
    make_passable(data_dir / "kept")
    make_passable(data_dir / "made" / "below")
    assert modes(data_dir / "kept", data_dir / "made" / "below") == [0o700, 0o711]
