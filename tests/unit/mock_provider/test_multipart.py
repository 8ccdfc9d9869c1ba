import pytest

from edgeproxy.mock_provider.multipart import form_fields

TYPE = "multipart/form-data; boundary=frontier"
FILE = (
    b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n\r\n'
)
MODEL = b'--frontier\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
END = b"--frontier--\r\n"


def test_fields_are_read_and_of_a_file_its_name_and_size() -> None:
    body = FILE + b"\x00\xff\r\n\r\n--front\r\n" + b"\r\n" + MODEL + END
    assert form_fields(body, TYPE) == {"file.name": "a.mp3", "file.bytes": "15", "model": "whisper-1"}


def test_the_boundary_may_be_quoted() -> None:
    assert form_fields(MODEL + END, 'Multipart/Form-Data; charset=x; Boundary="frontier"') == {"model": "whisper-1"}


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/mixed; boundary=frontier", "multipart/form-data"])
def test_another_type_is_no_form(kind: str) -> None:
    with pytest.raises(ValueError, match="not a form"):
        form_fields(MODEL + END, kind)


@pytest.mark.parametrize(
    "body", [b"", b"{}", MODEL, MODEL + b"--frontier\r\n", b"x" + MODEL + END, b"x\r\n" + MODEL + END]
)
def test_a_form_that_was_cut_or_changed_is_noticed(body: bytes) -> None:
    with pytest.raises(ValueError, match="cut short"):
        form_fields(body, TYPE)


def test_a_part_without_content_is_noticed() -> None:
    with pytest.raises(ValueError, match="no content"):
        form_fields(b'--frontier\r\nContent-Disposition: form-data; name="model"\r\n' + END, TYPE)
