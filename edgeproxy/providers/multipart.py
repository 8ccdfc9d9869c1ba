"""Finds the model's name in a multipart form (RFC 7578) while the form comes, wherever the network cut it.

Sans-I/O: it is fed what arrives and holds next to nothing of it, least of all the file. It changes nothing, so the
provider parses the same form with a parser of its own. That is why it is strict: a form in which two parsers could see
two different models, by loose line ends, a boundary in the wrong place, a name with escapes, or by naming a model
twice, is refused. The name can be found before the end of the form; what comes after is scanned all the same, so keep
feeding, and send the end on only once `end` has agreed.
"""

import re
from collections.abc import Callable

from edgeproxy.errors import INVALID_FIELD, GatewayError

_MAX_HEAD_BYTES = 8192  # of the headers of one part
_MAX_PARTS = 200  # ten times what any form of this API has
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046, 5.1.1
_KIND = re.compile(r"\s*([^\s;]+)\s*", re.ASCII)
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"([^"]*)"|([^\s;"]*))\s*', re.ASCII)
_NO_PARAMETER = re.compile(r"(?:;\s*)*", re.ASCII)
_FOLD = re.compile(r"\r\n[ \t]+")
_STRAY = re.compile(r"[\x00-\x08\n-\x1a\x1c-\x1f]")  # a browser escapes all of these in a name, and no other
_PLAIN_ENCODINGS = ("7bit", "8bit", "binary")


class FormScanner:
    """Is fed a form piece by piece; `model` and `model_span` (of all that was fed) are set once it is `found`.

    A client could name a second model behind the first, and a provider might take the last: so scanning goes on to the
    end, for no more than one search of each piece for the boundary. All raise GatewayError (400), without any content.
    """

    def __init__(self, content_type: str, max_field_bytes: int = 1024) -> None:
        self.found = False
        self.model = ""
        self.model_span = (0, 0)
        self._mark = b"--" + _boundary(content_type)
        self._max_field_bytes = max_field_bytes
        # A boundary belongs to the line end before it; the first one may have none, so that one is put there.
        self._held = bytearray(b"\r\n")
        self._at = -len(self._held)  # where what is held begins
        self._new = 0  # how much of it had been searched before the last piece came
        self._parts = 0
        self._in_model = False
        self._closed = False
        self._step: Callable[[], bool] = self._content

    def feed(self, chunk: bytes) -> None:
        """Scan `chunk`."""
        self._new = len(self._held)
        self._held += chunk
        while self._step():
            pass

    def end(self) -> None:
        """The form is over: say so if it should not be."""
        if not self._closed:
            raise GatewayError(INVALID_FIELD, "The form is cut short: its last boundary is missing.")

    def _content(self) -> bool:
        """Look for the next boundary: behind the text before the form, a part's content, or the form. Whether found."""
        at = self._held.find(self._mark)
        if self._in_model and (at if at >= 0 else len(self._held)) > self._max_field_bytes + len(self._mark) + 2:
            raise _too_long()
        if at < 0:
            if not self._in_model:  # a boundary may lie across the cut, and the line end before it
                self._drop(max(0, len(self._held) - len(self._mark) - 1))
            return False
        if self._closed or self._held[max(0, at - 2) : at] != b"\r\n":
            raise GatewayError(INVALID_FIELD, "The form has its boundary where no part can begin.")
        if self._in_model:
            self._take_model(at - 2)
        self._drop(at + len(self._mark))
        self._step = self._boundary_end
        return True

    def _boundary_end(self) -> bool:
        """Tell a boundary between parts from the last one."""
        if len(self._held) < 2:
            return False
        self._step = self._head
        if self._held.startswith(b"--"):
            if not self.found:
                raise GatewayError(INVALID_FIELD, "The form has no field 'model'.")
            self._drop(2)
            self._in_model, self._closed = False, True
            self._step = self._content
        return True

    def _head(self) -> bool:
        """Read the headers of a part, once they are whole. The line end of the boundary stands before them."""
        end = self._held.find(b"\r\n\r\n", max(0, self._new - 3))
        if (end if end >= 0 else len(self._held)) > _MAX_HEAD_BYTES:
            raise GatewayError(INVALID_FIELD, "The headers of a part of the form are too long.")
        if end < 0:
            return False
        if self._mark in self._held[:end]:
            raise _unreadable()
        self._in_model = _is_model(self._held[:end].decode("latin-1"))
        self._parts += 1
        if self._in_model and self.found:
            raise GatewayError(INVALID_FIELD, "The form has the field 'model' twice. Send it once.")
        if self._parts > _MAX_PARTS:
            raise GatewayError(INVALID_FIELD, "The form has more parts than can be checked. Send less.")
        self._drop(end + 4)
        self._step = self._content
        return True

    def _take_model(self, size: int) -> None:
        if size > self._max_field_bytes:
            raise _too_long()
        try:
            model = self._held[:size].decode()
        except UnicodeDecodeError:
            model = ""
        if not model.isprintable() or not model:
            raise GatewayError(INVALID_FIELD, "The field 'model' is empty, or is no plain text.")
        self.found, self.model, self.model_span = True, model, (self._at, self._at + size)

    def _drop(self, size: int) -> None:
        del self._held[:size]
        self._at += size
        self._new = max(0, self._new - size)


def _too_long() -> GatewayError:
    return GatewayError(INVALID_FIELD, "The field 'model' is too long.")


def _unreadable() -> GatewayError:
    return GatewayError(INVALID_FIELD, "The headers of a part of the form cannot be read without doubt.")


def _boundary(content_type: str) -> bytes:
    """Return the boundary that a form's content type names. Raises GatewayError."""
    kind, parameters = _parameters(content_type)
    boundary = parameters.get("boundary", "")
    if kind != "multipart/form-data" or _BOUNDARY.fullmatch(boundary) is None:
        message = "The request must be a form: send 'Content-Type: multipart/form-data' with a boundary."
        raise GatewayError(INVALID_FIELD, message)
    return boundary.encode()


def _is_model(head: str) -> bool:
    """Whether the headers of a part are those of the model's field. Raises GatewayError when they leave a doubt."""
    padding, *lines = _FOLD.sub(" ", head).split("\r\n")
    headers = [(name.strip().lower(), value) for name, colon, value in (line.partition(":") for line in lines) if colon]
    dispositions = [value for name, value in headers if name == "content-disposition"]
    stray = _STRAY.search("".join([padding, *lines])) is not None
    if padding.strip(" \t") or stray or len(headers) < len(lines) or len(dispositions) != 1:
        raise _unreadable()
    kind, parameters = _parameters(dispositions[0])
    if kind != "form-data" or "\\" in parameters.get("name", "\\"):
        raise _unreadable()
    if parameters["name"] != "model":
        return False
    encodings = [value.strip().lower() for name, value in headers if name == "content-transfer-encoding"]
    if "filename" in parameters or "filename*" in parameters or not set(encodings).issubset(_PLAIN_ENCODINGS):
        raise GatewayError(INVALID_FIELD, "The field 'model' must be plain text, not a file.")
    return True


def _parameters(value: str) -> tuple[str, dict[str, str]]:
    r"""Return what a header says and its parameters, names in lower case; ("", {}) when it can be read in two ways.

    So can a name that stands twice, one in pieces or with a character set (RFC 2231; of a file's name it is usual),
    and a `\"`: a quote to some parsers, an end to others. Forms write `%22`.
    """
    kind = _KIND.match(value)
    if kind is None:
        return "", {}
    found: dict[str, str] = {}
    at = kind.end()
    while (parameter := _PARAMETER.match(value, at)) is not None:
        name, at = parameter[1].lower(), parameter.end()
        if name in found or ("*" in name and name != "filename*"):
            return "", {}
        found[name] = parameter[2] if parameter[2] is not None else parameter[3]
    if '\\"' in value or _NO_PARAMETER.fullmatch(value, at) is None:
        return "", {}
    return kind[1].lower(), found
