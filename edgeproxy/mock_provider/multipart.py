"""The fields of a multipart form, read from memory: a form that a gateway passed on must still be one.

Strict about the frame and sparing about the rest: of a file only its size and its name remain.
"""

import re
from collections.abc import Iterator

_BOUNDARY = re.compile(r'boundary="?([^";]{1,70})"?', re.IGNORECASE)
_PARAMETER = re.compile(rb'\b(name|filename)="([^"\r\n]*)"')


def form_fields(body: bytes, content_type: str) -> dict[str, str]:
    """Return the form's fields; of a file, `<name>.name` and `<name>.bytes`. Raises ValueError when it is no form."""
    match = _BOUNDARY.search(content_type) if content_type.lower().startswith("multipart/form-data") else None
    if not match:
        raise ValueError("you must provide a model parameter: the body is not a form")
    found: dict[str, str] = {}
    for head, content in _parts(body, b"--" + match[1].encode()):
        parameters = {key.decode(): value.decode("utf-8", "replace") for key, value in _PARAMETER.findall(head)}
        name = parameters.get("name", "")
        if "filename" in parameters:
            found[f"{name}.name"] = parameters["filename"]
            found[f"{name}.bytes"] = str(len(content))
        else:
            found[name] = content.decode("utf-8", "replace")
    return found


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Head and content of each part. Raises ValueError when the form does not end as it should."""
    preamble, *parts = (b"\r\n" + body).split(b"\r\n" + delimiter)
    if not parts or preamble or not parts.pop().startswith(b"--"):
        raise ValueError("the form is cut short")
    for part in parts:
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank:
            raise ValueError("a part of the form has no content")
        yield head, content
