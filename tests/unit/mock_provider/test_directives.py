import pytest

from edgeproxy.mock_provider.directives import (
    FLAGS,
    NUMBERS,
    Behaviour,
    Fault,
    FaultKind,
    behaviour_of,
)


@pytest.mark.parametrize("model", ["gpt-mock", "gpt-5.6", "gpt-mock:", "claude-3.5-haiku", "meta/llama-4"])
def test_a_name_without_directives_is_an_ordinary_answer(model: str) -> None:
    assert behaviour_of(model) == Behaviour()


def test_directives_are_joined_by_dots() -> None:
    behaviour = behaviour_of("gpt-5.6:chunks-20.interval-ms-50.cut-after-3.half")
    assert behaviour == Behaviour(chunks=20, interval_ms=50, fault=Fault(FaultKind.CUT, 3), half=True)


def test_the_unit_may_be_left_out() -> None:
    assert behaviour_of("m:interval-7.first-byte-9") == behaviour_of("m:interval-ms-7.first-byte-ms-9")


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_every_flag_is_a_field(flag: str) -> None:
    assert getattr(behaviour_of(f"m:{flag}"), flag.replace("-", "_")) is True


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_every_number_is_a_field_and_bounded(name: str) -> None:
    lowest, highest, _ = NUMBERS[name]
    for number in (lowest, highest):
        assert getattr(behaviour_of(f"m:{name}-{number}"), name.replace("-", "_")) == number
    with pytest.raises(ValueError, match=f"{name} takes a number from {lowest} to {highest}"):
        behaviour_of(f"m:{name}-{highest + 1}")


@pytest.mark.parametrize("kind", list(FaultKind))
def test_every_fault_has_a_place(kind: FaultKind) -> None:
    assert behaviour_of(f"m:{kind}-0").fault == Fault(kind, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        "chunk-3",
        "chunks-3-4",
        "cache-write-2h-1",
        "chunks",
        "chunks-x",
        "status-200",
        "cut-after",
        "TOOL",
        "cut-after-9999999",
    ],
)
def test_a_typing_mistake_is_an_error(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"unknown directive|takes a number"):
        behaviour_of(f"m:{wrong}")


def test_a_recording_keeps_the_dots_of_its_name() -> None:
    assert behaviour_of("recording:anthropic/01-text.sse") == Behaviour(recording="anthropic/01-text.sse")
    assert behaviour_of("recording:openai/a.json:split.cut-after-2") == Behaviour(
        recording="openai/a.json", split=True, fault=Fault(FaultKind.CUT, 2)
    )


def test_what_follows_the_first_requests_is_healthy() -> None:
    behaviour = behaviour_of("m:status-503.cut-after-1.no-head.garbage.first-2.chunks-9").healthy()
    assert behaviour == Behaviour(chunks=9, first=2)
