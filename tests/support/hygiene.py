"""The corpus of malformed and ambiguous requests in tests/fixtures/hygiene; README.md there tells how it is written."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "fixtures" / "hygiene"
FILES = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))
JSON = b'{"model": "gpt-mock", "messages": [{"role": "user", "content": "one two three"}]}'
EVIL_JSON = JSON.replace(b"gpt-mock", b"gpt-evil")

_MACRO = re.compile(r"\{(get|post|chunked|whole|evil|json|key|n|h|e|eh)([+-]\d)?\}|\{([^{}]*)\*(\d+)\}")
_ALWAYS_CLOSE = ("408", "426", "431", "501")


@dataclass(frozen=True)
class Case:
    """What one connection sends, and what has to come of it."""

    place: str
    answers: tuple[str, ...]
    rule: str  # "" where the table does not refuse it
    closes: bool
    data: bytes

    @property
    def sent(self) -> int:
        """How many requests the provider gets."""
        return self.answers.count("sent")


def cases(name: str, secret: str) -> Iterator[Case]:
    """Yield the cases of a file, with a key in them."""
    words = _words(secret)
    for number, line in enumerate((FOLDER / f"{name}.txt").read_text().splitlines(), 1):
        if line.startswith("#"):
            continue
        outcome, _, text = line.partition(" | ")
        *expected, rule = outcome.split()
        answers = tuple(expected[0].split(","))
        closes = rule != "-" or "close" in expected or answers[-1] in _ALWAYS_CLOSE
        yield Case(f"{name}.txt:{number}", answers, rule.strip("-"), closes, _bytes(text, words))


def whole(secret: str, body: bytes) -> bytes:
    """An ordinary request."""
    return _bytes(f"{{post}}Content-Length: {len(body)}\\r\\n\\r\\n", _words(secret)) + body


def _words(secret: str) -> dict[str, bytes]:
    words = {
        "key": secret.encode(),
        "get": b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        "post": b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n" % secret.encode(),
        "json": JSON,
    }
    words["chunked"] = words["post"] + b"Transfer-Encoding: chunked\r\n\r\n"
    words["whole"] = words["post"] + b"Content-Length: %d\r\n\r\n%b" % (len(JSON), JSON)
    words["evil"] = words["post"] + b"Content-Length: %d\r\n\r\n%b" % (len(EVIL_JSON), EVIL_JSON)
    return words


def _bytes(text: str, words: dict[str, bytes]) -> bytes:
    parts, position = [], 0
    for macro in _MACRO.finditer(text):
        parts.append(_unescaped(text[position : macro.start()]))
        position = macro.end()
        name, shift = macro[1], int(macro[2] or 0)
        if name in ("n", "h"):
            parts.append(b"%d" % len(JSON) if name == "n" else b"%x" % (len(JSON) + shift))
        elif name in ("e", "eh"):
            parts.append((b"%d" if name == "e" else b"%x") % len(words["evil"]))
        elif name:
            parts.append(words[name][shift:])
        else:
            parts.append(_unescaped(macro[3]) * int(macro[4]))
    return b"".join((*parts, _unescaped(text[position:])))


def _unescaped(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")
