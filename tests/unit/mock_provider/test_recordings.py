from pathlib import Path

import orjson
import pytest

from edgeproxy.mock_provider.exchange import Tokens
from edgeproxy.mock_provider.recordings import read_recording

EVENTS = [b"event: a\ndata: {}\n\n", b"data: 1\r\n\r\n", b"data: tail"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    provider = tmp_path / "acme"
    provider.mkdir()
    (provider / "01-text.sse").write_bytes(b"".join(EVENTS))
    (provider / "02-bare.json").write_bytes(b'{"a":\n\n1}')
    (provider / "03-array.json.gz").write_bytes(b"\x1f\x8b\n\nnot really")
    (tmp_path / "outside.json").write_bytes(b"{}")
    expected = {"input_total": 12, "input_uncached": 7, "cache_read": 3, "cache_write": 2, "output": 9, "reasoning": 4}
    index = {
        "fixtures": [
            {
                "file": "01-text.sse",
                "http_status": 203,
                "response_headers": {"content-type": "text/event-stream"},
                "expected": expected,
            },
            {"file": "03-array.json.gz", "http_status": 200, "response_headers": {}, "expected": None},
        ]
    }
    (provider / "index.json").write_bytes(orjson.dumps(index))
    return tmp_path


def test_status_headers_and_tokens_come_from_the_index(folder: Path) -> None:
    recording = read_recording(folder, "acme/01-text.sse")
    assert (recording.status, recording.content_type, recording.gzipped) == (203, "text/event-stream", False)
    assert recording.tokens == Tokens(7, 3, 2, 5, 4)


def test_a_stream_is_cut_at_its_events_and_loses_no_byte(folder: Path) -> None:
    assert read_recording(folder, "acme/01-text.sse").events() == EVENTS


def test_a_file_without_an_entry_is_an_ordinary_answer(folder: Path) -> None:
    recording = read_recording(folder, "acme/02-bare.json")
    assert (recording.status, recording.content_type, recording.tokens) == (200, "application/json", Tokens())


def test_a_compressed_body_stays_as_it_travelled(folder: Path) -> None:
    recording = read_recording(folder, "acme/03-array.json.gz")
    assert recording.gzipped
    assert recording.content_type == "application/json"
    assert recording.events() == [recording.body]


@pytest.mark.parametrize(
    "name",
    ["", "acme", "acme/", "acme/none.sse", "../outside.json", "acme/../outside.json", "/etc/passwd", "acme/.hidden"],
)
def test_nothing_outside_the_folder_is_read(folder: Path, name: str) -> None:
    with pytest.raises(LookupError):
        read_recording(folder, name)


def test_the_recordings_beside_the_checkout_can_be_read() -> None:
    recordings = Path(__file__).parents[4] / "shared" / "recordings"
    if not recordings.is_dir():
        pytest.skip("no recordings beside the checkout")
    files = [path for path in recordings.glob("*/*") if path.name != "index.json"]
    assert files
    for path in files:
        recording = read_recording(recordings, f"{path.parent.name}/{path.name}")
        assert b"".join(recording.events()) == path.read_bytes()
