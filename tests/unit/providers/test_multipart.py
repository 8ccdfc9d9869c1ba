import time
import tracemalloc
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.policy import HTTP
from itertools import pairwise

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeproxy.errors import INVALID_FIELD, GatewayError
from edgeproxy.providers.multipart import FormScanner

BOUNDARY = "----form-7d3a0"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
MODEL = b'Content-Disposition: form-data; name="model"'
FILE = b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg'
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_[]0123456789", min_size=1, max_size=12).filter(lambda name: name != "model")
MODELS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.isprintable)
CUTS = st.lists(st.integers(0, 10_000), max_size=8)


def form(*parts, boundary=BOUNDARY, preamble=b"", end=b"--\r\n"):
    """A form of (head, content) pairs."""
    mark = b"--" + boundary.encode()
    body = b"".join(b"%b\r\n%b\r\n\r\n%b\r\n" % (mark, head, content) for head, content in parts)
    return preamble + body + mark + end


def cut(body, cuts):
    at = sorted({0, len(body), *(each % (len(body) + 1) for each in cuts)})
    return [body[start:end] for start, end in pairwise(at)]


def scan(pieces, content_type=TYPE, **bounds):
    scanner = FormScanner(content_type, **bounds)
    for piece in pieces:
        scanner.feed(piece)
    scanner.end()
    return scanner


def outcome(pieces, content_type=TYPE):
    """What becomes of a form; the same for all ways to cut it."""
    try:
        scanner = scan(pieces, content_type)
    except GatewayError as error:
        return error.message if error.kind is INVALID_FIELD else error
    return scanner.model, scanner.model_span


def refused(body, content_type=TYPE):
    """Why a form is refused, however it comes."""
    reasons = {outcome([body], content_type), outcome([bytes([byte]) for byte in body], content_type)}
    assert len(reasons) == 1
    reason = reasons.pop()
    return reason if isinstance(reason, str) else None


# --- forms as they should be


def test_the_model_is_found_wherever_the_form_is_cut():
    body = form((FILE, b"\x00\xff--\r\n--" + BOUNDARY[:-1].encode()), (MODEL, b"whisper-1"), (b"x: y\r\n" + FILE, b""))
    for at in range(len(body) + 1):
        scanner = scan([body[:at], body[at:]])
        start, end = scanner.model_span
        assert (scanner.found, scanner.model, body[start:end]) == (True, "whisper-1", b"whisper-1")
    assert outcome([bytes([byte]) for byte in body]) == outcome([body])


def test_the_model_is_known_before_the_file_has_come():
    body = form((MODEL, b"whisper-1"), (FILE, b"sound"))
    scanner = FormScanner(TYPE)
    before, after = body.split(b"Content-Type: audio")
    scanner.feed(before)
    assert scanner.found
    scanner.feed(b"Content-Type: audio" + after)
    scanner.end()
    assert scanner.model == "whisper-1"


def test_the_model_is_not_believed_before_its_end():
    scanner = FormScanner(TYPE)
    scanner.feed(form((MODEL, b"gpt-4o"), end=b"").rpartition(b"\r\n--")[0])
    assert not scanner.found
    scanner.feed(b"-transcribe\r\n--" + BOUNDARY.encode())
    assert (scanner.found, scanner.model) == (True, "gpt-4o-transcribe")


@pytest.mark.parametrize(
    "head",
    [
        b'content-disposition:form-data;name="model"',
        b"CONTENT-DISPOSITION: Form-Data ; NAME=model",
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"; x=y;',
        b'Content-Disposition: form-data;\r\n name="model"\r\nContent-Transfer-Encoding: 8BIT',
    ],
)
def test_headers_are_read_whatever_their_case_order_and_quotes(head):
    assert scan([form((head, b"m"))]).model == "m"


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('Multipart/Form-Data; charset=utf-8; Boundary="a b=c"', "a b=c"),
        ("multipart/form-data;boundary=x", "x"),
        (f"multipart/form-data; boundary={'z' * 70}", "z" * 70),
        ("multipart/form-data; boundary='()+_,-./:=?", "'()+_,-./:=?"),
    ],
)
def test_a_boundary_may_be_quoted_or_not(content_type, boundary):
    body = form((FILE, b"sound"), (MODEL, b"m"), boundary=boundary, preamble=b"This is a form.\r\n")
    assert scan([body], content_type).model == "m"


def test_a_file_may_have_a_name_with_a_character_set():
    head = b"Content-Disposition: form-data; name=file; filename*=UTF-8''%C3%A4.mp3"
    assert scan([form((head, b"sound"), (MODEL, b"m"))]).model == "m"


def test_much_may_follow_the_form():
    assert scan([form((MODEL, b"m"), end=b"--\r\n" + bytes(5000))]).model == "m"


def test_text_behind_a_boundary_is_refused():
    body = form((FILE, b"sound"), (MODEL, b"m"))
    assert refused(body.replace(BOUNDARY.encode() + b"\r\n", BOUNDARY.encode() + b" x\r\n", 1)) is not None


def test_space_behind_a_boundary_and_text_around_the_form_are_allowed():
    body = form((FILE, b""), (MODEL, b"m"), preamble=b"\r\npre\n--amble\r\n", end=b"-- \r\nand that was it")
    assert scan([body.replace(BOUNDARY.encode() + b"\r\n", BOUNDARY.encode() + b" \t\r\n")]).model == "m"


@given(
    model=MODELS,
    fields=st.lists(st.tuples(NAMES, st.text("ab -=\t", max_size=30)), max_size=4),
    place=st.integers(0, 4),
    boundary=st.text("abcXYZ019-_", min_size=8, max_size=70),
    preamble=st.sampled_from([None, "", "a form"]),
    cuts=CUTS,
)
def test_forms_of_the_email_package_are_understood(model, fields, place, boundary, preamble, cuts):
    whole = MIMEMultipart("form-data", boundary=boundary)
    whole.preamble, whole.epilogue = preamble, ""
    place = min(place, len(fields))
    for name, content in [*fields[:place], ("model", model), *fields[place:]]:
        part = Message()
        part.add_header("Content-Disposition", "form-data", name=name)
        part.set_payload(content.encode().decode("ascii", "surrogateescape"))
        whole.attach(part)
    head, _, body = whole.as_bytes(policy=HTTP).partition(b"\r\n\r\n")
    content_type = head.decode().partition("Content-Type: ")[2].partition("\r\nMIME")[0].replace("\r\n", "")
    scanner = scan(cut(body, cuts), content_type)
    assert (scanner.model, body[slice(*scanner.model_span)]) == (model, model.encode())


@given(model=MODELS, sound=st.binary(max_size=300), name=st.text(max_size=20), cuts=CUTS)
def test_forms_of_an_http_client_are_understood(model, sound, name, cuts):
    name = name.replace("\\", "/")
    files = {"file": (f"{name}.mp3", sound, "audio/mpeg")}
    request = httpx2.Request("POST", "http://a/", data={"model": model, "language": "en"}, files=files)
    scanner = scan(cut(request.read(), cuts), request.headers["content-type"])
    assert scanner.model == model


# --- forms that are refused


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        f"multipart/form-data; boundary={'z' * 71}",
        'multipart/form-data; boundary="x "',
        "multipart/form-data; boundary=ü",
        'multipart/form-data; boundary="x',
        r'multipart/form-data; boundary="x\"y"',
        "multipart/form-data; boundary=x; boundary=y",
        "multipart/form-data; boundary*=utf-8''x",
        "multipart/form-data; boundary*0=x; boundary*1=y",
        "multipart/form-data, multipart/form-data; boundary=x",
    ],
)
def test_a_content_type_without_a_certain_boundary_is_refused(content_type):
    with pytest.raises(GatewayError) as raised:
        FormScanner(content_type)
    assert raised.value.kind is INVALID_FIELD


def test_a_form_without_a_model_is_refused_at_its_end():
    assert "no field 'model'" in refused(form((FILE, b"sound"), (MODEL.replace(b"model", b"Model"), b"m")))
    assert "no field 'model'" in refused(form())


@pytest.mark.parametrize("cut_off", [1, 3, 4, 30, 80])
def test_a_form_that_is_cut_short_is_refused(cut_off):
    assert "cut short" in refused(form((MODEL, b"m"), (FILE, b"sound"), end=b"--")[:-cut_off])
    assert "cut short" in refused(b"")


def test_a_second_model_is_refused_however_late_it_comes():
    body = form((MODEL, b"cheap"), (FILE, b"sound" * 10_000), (b"Content-Disposition: form-data; name=model", b"dear"))
    assert "twice" in refused(body)
    scanner = FormScanner(TYPE)
    with pytest.raises(GatewayError):
        scanner.feed(body)
    assert scanner.model == "cheap"


@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\r\n"])
def test_a_second_model_behind_other_line_ends_is_refused(newline):
    hidden = form((MODEL, b"dear"), end=b"").replace(b"\r\n", newline)
    assert refused(form((MODEL, b"cheap"), (FILE, b"sound" + newline + hidden))) is not None
    assert refused(form((MODEL, b"cheap"), (FILE + newline + MODEL, b"dear"))) is not None


@pytest.mark.parametrize(
    "content",
    [b"a--" + BOUNDARY.encode(), b"a\r\n--" + BOUNDARY.encode() + b"x", b"\r\n--" + BOUNDARY.encode() + b"\r\nx"],
)
def test_a_boundary_where_no_part_can_begin_is_refused(content):
    assert refused(form((MODEL, b"m"), (FILE, content))) is not None
    assert refused(form((MODEL, b"m"), end=b"--\r\n" + content)) is not None


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"Content-Type: text/plain",
        b"Content-Disposition: form-data",
        b'Content-Disposition: attachment; name="model"',
        b'Content-Disposition form-data; name="model"',
        MODEL + b"; name=other",
        MODEL + b"\r\n" + MODEL,
        MODEL + b"; filename=m.txt",
        MODEL + b"; filename*=utf-8''m.txt",
        MODEL + b"\r\nContent-Transfer-Encoding: base64",
        MODEL + b"\nX: y",
        MODEL + b"\r\nX: \0",
        b'Content-Disposition: form-data; name="mod\\el"',
        b"Content-Disposition: form-data; name*=utf-8''model",
        b'Content-Disposition: form-data; x="\\"; name=model; y=\\""; name="z"',
        b'Content-Disposition: form-data; name="z"; filename="\\"; y="x"',
        FILE + b"\r\nno colon",
        b'Content-Disposition: form-data; name="model',
        b'Content-Disposition: form-data; name="x"; filename="--' + BOUNDARY.encode() + b'"',
    ],
)
def test_headers_that_another_parser_may_read_otherwise_are_refused(head):
    reason = refused(form((head, b"other"), (MODEL, b"m")))
    assert reason is not None
    assert "twice" not in reason
    assert refused(form((MODEL, b"m"), (head, b"other"))) is not None


@pytest.mark.parametrize("model", [b"", b"a\nb", b"a\0", b"\xff", b"a\x7f", "a\u2028b".encode(), b"m" * 1025])
def test_a_model_that_is_no_plain_short_text_is_refused(model):
    assert "'model'" in refused(form((MODEL, model)))


def test_the_longest_model_passes():
    assert scan([form((MODEL, b"m" * 1024))]).model == "m" * 1024
    body = form((MODEL, b"mmmm"))
    assert [scan([piece], max_field_bytes=4).model for piece in [body]] == ["mmmm"]
    with pytest.raises(GatewayError, match="invalid_field"):
        scan([bytes([byte]) for byte in body], max_field_bytes=3)


def test_headers_without_an_end_are_refused_early():
    scanner = FormScanner(TYPE)
    scanner.feed(b"--" + BOUNDARY.encode() + b"\r\n" + b"X" * 8190)
    with pytest.raises(GatewayError) as raised:
        scanner.feed(b"X")
    assert "too long" in raised.value.message


def test_there_may_be_many_parts_but_not_any_number():
    assert scan([form((MODEL, b"m"), *[(FILE, b"")] * 199)]).model == "m"
    assert "more parts" in refused(form((MODEL, b"m"), *[(FILE, b"")] * 200))


def test_no_refusal_quotes_the_form():
    for body in (form((MODEL, b"secret\0")), form((b"secret", b"")), form((MODEL, b"m"), (MODEL, b"secret"))):
        assert "secret" not in refused(body)


@given(body=st.binary(max_size=200), cuts=CUTS)
@example(body=form((MODEL, b"m")), cuts=[1, 2, 3])
def test_garbage_ends_in_a_refusal_and_nothing_else(body, cuts):
    for whole in (body, form((FILE, body), (MODEL, b"m")), form((MODEL, b"m"), (body, b""), preamble=body)):
        assert outcome(cut(whole, cuts)) == outcome([whole])


# --- bounds


def test_a_large_file_is_not_held():
    scanner = FormScanner(TYPE)
    scanner.feed(form((MODEL, b"m"), (FILE, b""), end=b"").rpartition(b"\r\n--")[0])
    chunk = bytes(2**16)
    tracemalloc.start()
    for _ in range(500):
        scanner.feed(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(chunk)
    assert len(scanner._held) < 100


@pytest.mark.parametrize(
    "content",
    [
        b"\r\n--" + BOUNDARY[:-1].encode(),
        b"-",
        b"\r\n",
    ],
)
def test_no_content_makes_it_slow(content):
    body = form((MODEL, b"m"), (FILE, content * (2_000_000 // len(content))))
    for size in (2**16, 64):
        began = time.process_time()
        scan([body[at : at + size] for at in range(0, len(body), size)])
        assert time.process_time() - began < 3


def test_no_headers_make_it_slow():
    long = FILE + b"\r\nX: " + b"\r\n " * 2600
    body = form((MODEL, b"m"), *[(long, b"sound")] * 199)
    began = time.process_time()
    scan([body[at : at + 8] for at in range(0, len(body), 8)])
    assert time.process_time() - began < 5
