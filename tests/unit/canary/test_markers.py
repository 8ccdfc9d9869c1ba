import pytest

from edgeproxy.canary.markers import TEXT_LENGTH, Kind, Markers


def test_every_text_is_another_and_tells_what_it_stands_for():
    markers = Markers()
    texts = [markers.content("system"), markers.decoy("file"), markers.secret("secret", ("secrets/",))]
    assert len(set(texts)) == 3
    assert all(len(text) == TEXT_LENGTH and text.isalnum() for text in texts)
    assert [markers.of(text) for text in texts] == markers.planted
    assert [marker.kind for marker in markers.planted] == [Kind.CONTENT, Kind.DECOY, Kind.SECRET]
    assert [markers.count(kind) for kind in Kind] == [1, 1, 1]


def test_a_text_is_known_in_the_middle_of_others_and_in_any_case():
    markers = Markers()
    text = markers.content("system")
    assert markers.of(f"xx{text.upper()}yy") is markers.planted[0]


def test_what_is_no_text_of_this_run_is_of_nobody():
    markers, others = Markers(), Markers()
    text = markers.content("system")
    for wrong in ("", "nothing", others.content("other"), text[:-1], markers.tag + "!!!!!", markers.tag):
        assert markers.of(wrong) is None


def test_a_secret_of_32_bytes_begins_with_a_text():
    markers = Markers()
    digits = markers.hex_secret("pepper", ("secrets/",))
    assert len(digits) == 64
    assert markers.of(bytes.fromhex(digits).decode("latin-1")) is markers.planted[0]


def test_two_runs_have_nothing_in_common():
    assert len({Markers().tag for _ in range(100)}) == 100


def test_two_texts_are_never_alike(monkeypatch: pytest.MonkeyPatch):
    drawn = iter("a" * 16 + "b" * 5 + "b" * 5 + "c" * 5)
    monkeypatch.setattr("secrets.choice", lambda _: next(drawn))
    markers = Markers()
    assert markers.content("one") != markers.content("other")
