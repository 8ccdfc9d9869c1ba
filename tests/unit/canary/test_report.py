import json

import pytest

from edgeproxy.canary.markers import Kind, Marker
from edgeproxy.canary.places import Find
from edgeproxy.canary.report import Report

TEXT = "q7w2xk9m4zt0v5bn00001"
LEAK = Find("logs", "output/stderr", 17, "hex", Marker(Kind.CONTENT, "openai chat: prompt", TEXT))
PIECE = Find("logs", "output/stderr", 99, "text", None)


def report(leaks: tuple[Find, ...] = (), missed: tuple[str, ...] = (), not_read: tuple[str, ...] = ()) -> Report:
    return Report(
        acts=["success"],
        statuses={200: 5, 0: 1},
        planted=3,
        secrets=2,
        decoys=1,
        reached=7,
        areas={"logs": (2, 1000), "metrics": (1, 24)},
        leaks=leaks,
        at_home=2,
        missed=missed,
        not_read=not_read,
        not_understood=["a.zst: compressed with zstd"],
        seconds=1.25,
    )


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (report(), 0),
        (report((LEAK,)), 1),
        (report((LEAK,), ("plain",), ("x",)), 1),
        (report(missed=("plain",)), 2),
        (report(not_read=("x: denied",)), 2),
    ],
)
def test_the_exit_status_says_whether_something_was_found_and_whether_that_is_sure(told: Report, status: int):
    assert told.exit_status == status
    assert told.to_json()["verdict"] in "\n".join(told.lines())


def test_a_find_is_told_with_its_place_and_never_with_its_text():
    told = report((LEAK, PIECE))
    text = "\n".join(told.lines())
    assert "FOUND: output/stderr, byte 17, as hex: openai chat: prompt" in text
    assert "FOUND: output/stderr, byte 99, as text: a piece of one of the texts" in text
    assert TEXT not in text + json.dumps(told.to_json())
    assert told.to_json()["found"][0] == {
        "area": "logs",
        "place": "output/stderr",
        "offset": 17,
        "form": "hex",
        "what": "openai chat: prompt",
    }


def test_what_was_searched_is_told_in_both_forms():
    told = report()
    text = "\n".join(told.lines())
    for part in (
        "5 with 200",
        "1 closed without one",
        "1,000 bytes",
        "1,024 bytes",
        "zstd",
        "through to the provider: 7",
    ):
        assert part in text
    assert told.to_json()["bytes"] == 1024


def test_a_long_list_is_cut_for_people_only():
    told = report((LEAK,) * 200)
    assert sum(line.startswith("FOUND") for line in told.lines()) == 51
    assert len(told.to_json()["found"]) == 200
