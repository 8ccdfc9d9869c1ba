import base64

import pytest

from edgeproxy.canary.forms import forms

TEXT = b"q7w2xk9m4zt0v5bn"
WHOLE = TEXT + b"00042"


def read(data: bytes) -> set[tuple[str, bytes]]:
    """The forms in which the text is found, and what is read there."""
    folded = data.lower()
    found = ((form, folded.find(form.needle)) for form in forms(TEXT, len(WHOLE)))
    return {(form.name, form.read(data, at)) for form, at in found if at >= 0}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text", WHOLE),
        ("text", WHOLE.upper()),
        ("utf-16", WHOLE.decode().encode("utf-16-le")),
        ("utf-16", WHOLE.decode().encode("utf-16-be")),
        ("utf-32", WHOLE.decode().encode("utf-32-le")),
        ("utf-32", WHOLE.decode().encode("utf-32-be")),
        ("hex", WHOLE.hex().encode()),
        ("hex", WHOLE.hex().upper().encode()),
        ("percent", b"".join(b"%%%02X" % each for each in WHOLE)),
        ("\\u", b"".join(b"\\u%04x" % each for each in WHOLE)),
        ("\\x", b"".join(b"\\x%02X" % each for each in WHOLE)),
        ("octal", b"".join(b"\\%03o" % each for each in WHOLE)),
        *(("base64", base64.b64encode(bytes(offset) + WHOLE + b"more")) for offset in range(6)),
        *(("base64", base64.urlsafe_b64encode(b"\xff" * offset + WHOLE)) for offset in range(3)),
    ],
)
def test_a_text_is_found_in_every_form_and_read(name: str, data: bytes):
    for around in (b"", b"before it, ", bytes(50)):
        found = read(around + data + b' "behind it"')
        assert {each for each, _ in found} == {name}
        assert all(WHOLE in text or WHOLE in text.lower() for _, text in found)


@pytest.mark.parametrize("cut", range(1, len(TEXT)))
@pytest.mark.parametrize("between", [b"\0", b"\x80", b"\x00\x00"])
def test_a_text_that_is_cut_once_is_found_and_read(cut: int, between: bytes):
    found = read(b"text: " + WHOLE[:cut] + between + WHOLE[cut:] + b" behind")
    assert {name for name, _ in found} == {"text"}
    assert any(WHOLE in text for _, text in found)


def test_every_ninth_byte_of_another_does_not_hide_it():
    """So does PostgreSQL compress: a byte of its own before every eight that stay as they are."""
    for phase in range(8):
        data = b"\0".join([WHOLE[:phase], *(WHOLE[at : at + 8] for at in range(phase, len(WHOLE), 8))])
        assert {name for name, _ in read(data)} == {"text"}


def test_bytes_that_are_no_text_are_found_raw_in_hex_and_in_base64():
    secret = bytes(range(200, 232))
    for name, data in (("text", secret), ("hex", secret.hex().encode()), ("base64", base64.b64encode(b"x" + secret))):
        assert any(form.name == name and form.needle in data.lower() for form in forms(secret))


def test_other_texts_are_not_found():
    assert not read(b"".join(bytes([each]) * 20 for each in range(256)))
    assert not read(TEXT[:7] + b"-" + TEXT[9:])


def test_what_is_not_whole_reads_as_nothing_and_raises_nothing():
    for form in forms(TEXT, len(WHOLE)):
        assert WHOLE not in form.read(form.needle, 0)
        assert WHOLE not in form.read(form.needle + b"\xff" * 60, 0)
