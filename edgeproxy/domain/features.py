"""What hides its bill from a gateway, by name: refused unless the operator allows it and says what it is taken to cost.

Pure: names and reasons. Which requests use them is known by `providers`; who may, by `config`.
"""

from enum import StrEnum


class Feature(StrEnum):
    """One thing that providers offer and whose usage cannot be read, or not bounded, where it is asked for."""

    BATCHES = "batches"
    FILES = "files"
    BACKGROUND = "background"
    STORED_CONTEXT = "stored_context"

    @property
    def reason(self) -> str:
        """Why it is refused, as the start of a sentence."""
        return _REASONS[self]


_REASONS = {
    Feature.BATCHES: "Batches report their usage only when their results are fetched, perhaps by somebody else",
    Feature.FILES: "Files are kept at the provider, where every key of this gateway could read them",
    Feature.BACKGROUND: "A background response is answered before it has used anything, and bills later",
    Feature.STORED_CONTEXT: "Context that is stored at the provider lets a short request bill a long conversation",
}
