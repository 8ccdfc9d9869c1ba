from pathlib import Path

import orjson
import pytest

from edgeproxy.mock_provider.exchange import Tokens
from edgeproxy.mock_provider.recordings import read_recording, slices

EVENTS = [b"event: a\ndata: {}\n\n", b"data: 1\r\n\r\n", b"data: tail"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    provider = tmp_path / "acme"
    provider.mkdir()
    (provider / "01-text.sse").write_bytes(b"".join(EVENTS))
    (provider / "02-bare.json").write_bytes(b'{"a":\n\n1}')
    (provider / "03-array.json.gz").write_bytes(b"\x1f\x8b\n\nnot really")
    (tmp_path / "outside.json").write_bytes(b"{}")
    (provider / "04-two.json").write_bytes(b"{}")
    expected = {"input_total": 12, "input_uncached": 7, "cache_read": 3, "cache_write": 2, "output": 9, "reasoning": 4}
    split = {"big": {"input_uncached": 1, "output": 2}, "small": {"input_uncached": 3, "output": 4}}
    index = {
        "fixtures": [
            {
                "file": "01-text.sse",
                "http_status": 203,
                "response_headers": {
                    "content-type": "text/event-stream",
                    "x-request-id": "r",
                    "transfer-encoding": "chunked",
                },
                "expected_model": "acme-1",
                "expected": expected | {"cache_write_1h": 1, "provider_cost_usd": "0.0000000011"},
            },
            {
                "file": "03-array.json.gz",
                "http_status": 200,
                "response_headers": {"content-encoding": "gzip", "content-type": "application/json; charset=UTF-8"},
                "expected": None,
            },
            {
                "file": "04-two.json",
                "expected_model": "big",
                "expected": {"input_uncached": 4, "output": 6, "reasoning": 1, "per_model": split},
            },
        ]
    }
    (provider / "index.json").write_bytes(orjson.dumps(index))
    return tmp_path


def test_status_headers_and_tokens_come_from_the_index(folder: Path) -> None:
    recording = read_recording(folder, "acme/01-text.sse")
    assert recording.status == 203
    assert recording.headers == {"content-type": "text/event-stream", "x-request-id": "r"}
    assert recording.bill == {"acme-1": Tokens(7, 3, 2, 5, 4, cache_write_1h=1, cost_nanos=2)}


def test_what_is_billed_at_two_models_is_kept_apart(folder: Path) -> None:
    bill = read_recording(folder, "acme/04-two.json").bill
    assert bill == {"big": Tokens(1, output=1, reasoning=1), "small": Tokens(3, output=4)}


def test_a_stream_is_cut_at_its_events_and_loses_no_byte(folder: Path) -> None:
    assert read_recording(folder, "acme/01-text.sse").pieces() == EVENTS


def test_a_file_without_an_entry_is_an_ordinary_answer(folder: Path) -> None:
    recording = read_recording(folder, "acme/02-bare.json")
    assert (recording.status, recording.headers) == (200, {"content-type": "application/json"})
    assert recording.bill == {"recording": Tokens()}


def test_a_compressed_body_stays_as_it_travelled(folder: Path) -> None:
    recording = read_recording(folder, "acme/03-array.json.gz")
    assert recording.headers == {"content-type": "application/json; charset=UTF-8", "content-encoding": "gzip"}
    assert len(recording.pieces()) == 4
    assert b"".join(recording.pieces()) == recording.body


def test_slices_lose_no_byte() -> None:
    assert [b"".join(slices(b"0123456789"[:size])) for size in range(11)] == [
        b"0123456789"[:size] for size in range(11)
    ]


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
        assert b"".join(recording.pieces()) == path.read_bytes()
        assert recording.bill
