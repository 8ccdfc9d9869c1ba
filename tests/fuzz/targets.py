"""What the fuzzer runs: one function for each kind of input, and the inputs that it starts from.

The first bytes of an input choose the case, the rest is the body: so whatever the fuzzer makes is an input.
"""

from collections.abc import Callable, Iterator

from edgeproxy.providers import sse
from tests.fuzz.invariants import (
    FORM_TYPE,
    GEMINI_MODEL,
    KINDS,
    PATHS,
    Answer,
    check_any_answer,
    check_error_body,
    check_form,
    check_path,
    check_request,
)
from tests.support.recordings import REQUEST, WIDE, Recording, all_recordings

SIZES = ((), (1,), (7, 1, 64), (100,), (4096,), (3, 1000))
ENCODINGS = ("", "", "", "gzip", "deflate", "br", "identity")
BOUNDS = (WIDE, WIDE, WIDE, 4096, 64)
METHODS = ("POST", "GET", "HEAD", "DELETE", "PATCH", "PUT")
HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"anthropic-version": "2023-06-01"},
    {"x-goog-api-key": "k"},
    {"upgrade": "websocket"},
)
MOST_BYTES = 8 * 1024  # so long an input is tried: more than most lines that have usage, and soon done with
SHORT = 6  # events that are left of a recorded stream: the first and the last


def answers(data: bytes) -> None:
    """An answer of a provider: which operation, content type, pieces and encoding, then its bytes."""
    path, kind, size, encoding, bound = (data[:5] + bytes(5))[:5]
    answer = Answer(
        PATHS[path % len(PATHS)],
        KINDS[kind % len(KINDS)],
        SIZES[size % len(SIZES)],
        asks=size >= 128,
        encoding=ENCODINGS[encoding % len(ENCODINGS)],
        max_bytes=BOUNDS[bound % len(BOUNDS)],
    )
    check_any_answer(answer, data[5:])
    check_error_body(data[5:])


def requests(data: bytes) -> None:
    """A request of a client: which operation, then its body."""
    check_request(PATHS[data[0] % len(PATHS)] if data else PATHS[0], data[1:])


def forms(data: bytes) -> None:
    """A form: in which pieces, then its bytes."""
    check_form(FORM_TYPE, data[1:], SIZES[data[0] % len(SIZES)] if data else ())


def paths(data: bytes) -> None:
    """A request line: method and headers, then path and query."""
    method, headers = (data[:2] + bytes(2))[:2]
    path, _, query = data[2:].decode("utf-8", "surrogateescape").partition("?")
    check_path(METHODS[method % len(METHODS)], "/" + path, query, HEADERS[headers % len(HEADERS)])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "answers": answers,
    "requests": requests,
    "forms": forms,
    "paths": paths,
}


def seeds(target: str) -> Iterator[bytes]:
    """Inputs that are as they should be, for the fuzzer to spoil."""
    return {"answers": _answers, "requests": _requests, "forms": _forms, "paths": _paths}[target]()


def _answers() -> Iterator[bytes]:
    """Every recorded answer, as the operation that gave it."""
    for recording in all_recordings():
        model = recording.route.model
        path = recording.route.path.replace("{model}", GEMINI_MODEL) if model else recording.path
        kind = next(name for name in (*KINDS, "application/json") if recording.headers[0][1].startswith(name))
        for size in (0, 130):
            yield (bytes([PATHS.index(path), KINDS.index(kind), size, 0, 0]) + _shortened(recording))[:MOST_BYTES]


def _shortened(recording: Recording) -> bytes:
    events = sse.events(recording.body) if recording.headers[0][1] == KINDS[0] else [recording.body]
    return b"".join(events if len(events) <= SHORT else events[: SHORT // 2] + events[-SHORT // 2 :])


def _requests() -> Iterator[bytes]:
    """For every operation a request with all members that any of them reads."""
    body = (
        b'{"model":"m","stream":true,"messages":[{"role":"user","content":"one"}],"prompt":["a",[1,2]],"input":"x",'
        b'"contents":[{"parts":[{"text":"a"}]}],"content":{"parts":[]},"requests":[{"model":"models/m"}],'
        b'"max_tokens":7,"max_completion_tokens":9,"max_output_tokens":3,"n":2,"best_of":3,"background":false,'
        b'"stream_options":{"include_usage":false},"fallbacks":[{"max_tokens":9}],"thread":null,"instructions":"i",'
        b'"prompt_cache_options":{"ttl":"12h"},"generationConfig":{"maxOutputTokens":"7","candidateCount":2.0},'
        b'"cached_content":null,"output_format":"gif","frame_count":4,"stream_format":"sse","ttl":"1h",'
        b'"inlineData":"QUJD","conversation":null,"previous_response_id":null}'
    )
    plain = repr(REQUEST | {"stream": True}).replace("'", '"').replace("True", "true").encode()
    for number in range(len(PATHS)):
        for text in (body, plain, body.replace(b'"prompt"', b'"pr\\u006fmpt"'), b"[" * 100, b'{"model":"m","model":1}'):
            yield bytes([number]) + text


def _forms() -> Iterator[bytes]:
    """Forms with the model before and behind the file, and with what a form should not have."""
    model = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
    file = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    sound = file + b"RIFF\x00\x01--X\r\n--\r\n\r\n"
    for size in range(len(SIZES)):
        for text in (model + sound + b"--XX--\r\n", sound + model + b"--XX--", b"preamble\r\n" + model, model + model):
            yield bytes([size]) + text


def _paths() -> Iterator[bytes]:
    """Every path that is served, and some that are not."""
    more = ("/v1/models", "/v1/models/m", "/v1beta/models/a%2Fb:generateContent?alt=sse&key=k", "/v1/files/f/content")
    for path in (*PATHS, *more, "/v1beta/cachedContents/x:y", "/upload/v1beta/files", "/v1/responses/r/cancel?a=b%00"):
        for method in range(2):
            yield bytes([method, 0]) + path[1:].encode()
