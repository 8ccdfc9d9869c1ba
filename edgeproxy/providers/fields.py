"""Reads the few fields that a dialect needs, out of requests (strictly) and out of answers (never failing).

What is read of a request decides what it is charged, so anything ambiguous is refused; an answer is only ever read, so
whatever is no figure counts as none.
"""

import re
from collections.abc import Sequence
from typing import TypeGuard

import orjson

from edgeproxy.errors import INVALID_FIELD, INVALID_JSON, GatewayError
from edgeproxy.providers.body import ambiguous_member

# A long run of base64 is a picture or a document: billed by its content, not by its letters. It is looked for only
# where a run begins: from each of its letters, it would take minutes for a body of runs that are a little too short.
# Both alphabets: the JSON form of protocol buffers takes either, and Google's own client writes the one for URLs.
_BASE64_RUN = re.compile(rb"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{2048,}+")
_TOKENS_PER_ATTACHMENT = 1600  # a large picture, by the providers' own formulas
_BYTES_PER_TOKEN = 4  # English prose and JSON; an estimate is corrected when the answer is known

# More than any answer uses; what claims to be more is no count. All counts of one answer, each as large as this, still
# add up to less than 2**53, beyond which Redis would not be exact.
MAX_COUNT = 2**50


def read_object(body: bytes, members: Sequence[str]) -> dict[str, object]:
    """Return the JSON object in `body`. Raises GatewayError when it is none, or says one of `members` twice.

    A member that stands twice would let the gateway read one value and the provider another.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise GatewayError(INVALID_JSON) from None
    if not isinstance(value, dict):
        raise GatewayError(INVALID_JSON)
    name = ambiguous_member(body, members)
    if name is not None:
        raise GatewayError(INVALID_FIELD, f"The field '{name}' stands twice in the request. Send it once.")
    return value


def text_member(value: dict[str, object], name: str) -> str:
    """Return a required, non-empty string. Raises GatewayError."""
    member = value.get(name)
    if not isinstance(member, str) or not member:
        raise GatewayError(INVALID_FIELD, f"The field '{name}' is missing or is not a string.")
    return member


def flag_member(value: dict[str, object], name: str) -> bool:
    """Return an optional boolean; absent and null are false. Raises GatewayError."""
    member = value.get(name)
    if member is None:
        return False
    if not isinstance(member, bool):
        raise GatewayError(INVALID_FIELD, f"The field '{name}' must be true or false.")
    return member


def count_member(value: dict[str, object], name: str) -> int | None:
    """Return an optional whole number, 0 to 2**53; absent and null are None. Raises GatewayError."""
    member = value.get(name)
    if member is None:
        return None
    if not isinstance(member, int) or isinstance(member, bool) or not 0 <= member <= 2**53:
        raise GatewayError(INVALID_FIELD, f"The field '{name}' must be a whole number that is not negative.")
    return member


def list_member(value: dict[str, object], name: str) -> list[object]:
    """Return a required list. Raises GatewayError."""
    member = value.get(name)
    if not isinstance(member, list):
        raise GatewayError(INVALID_FIELD, f"The field '{name}' is missing or is not a list.")
    return member


def estimate_input_tokens(body: bytes) -> int:
    """Return about how many input tokens a body is: a quarter of its bytes, attachments at a flat rate."""
    size, attachments = len(body), 0
    if b"base64" in body or b"inlineData" in body or b"inline_data" in body:  # one stands beside every attachment
        for run in _BASE64_RUN.finditer(body):
            size -= run.end() - run.start()
            attachments += 1
    return size // _BYTES_PER_TOKEN + attachments * _TOKENS_PER_ATTACHMENT + 1


def estimate_output_tokens(deltas: int, size: int, framing: int) -> int:
    """Return a lower bound of the tokens in a stream's deltas, which have `size` bytes in all, `framing` each at least.

    One token each, more when they are long. Framing differs a little between events, so it is taken generously.
    """
    return max(deltas, (size - deltas * framing) // _BYTES_PER_TOKEN)


def is_count(value: object) -> TypeGuard[int]:
    """Whether a provider reported a count of tokens: a whole number, 0 to MAX_COUNT."""
    return type(value) is int and 0 <= value <= MAX_COUNT  # a boolean is none


def count(value: object, name: str) -> int:
    """Return a count that a provider reported in member `name`; 0 for anything that is not one."""
    number = value.get(name) if isinstance(value, dict) else None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return number if type(number) is int and 0 <= number <= MAX_COUNT else 0


def has_count(value: dict[str, object], name: str) -> bool:
    """Whether a provider reported a count in member `name`, be it 0."""
    return count(value, name) > 0 or value.get(name) == 0


def names_in(rows: object, member: str = "") -> tuple[str, ...]:
    """Return the models that a list of a request names: its strings, or those in `member` of its objects."""
    found = rows if isinstance(rows, list) else []
    if member:
        found = [row.get(member) for row in found if isinstance(row, dict)]
    return tuple(name for name in found if isinstance(name, str) and name)
