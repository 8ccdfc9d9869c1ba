"""Durable -> hot: the entries of a key's ledger, one at a time, each once.

Entries are numbered, and the state of a key knows the last one that it was given: a repeated one changes nothing, and
one that would skip another is refused. In which order they come, and what to do about a gap, is the caller's.
"""

from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.reservations import LedgerStatus
from edgeproxy.errors import OperatorError
from edgeproxy.hotstate import scripts
from edgeproxy.hotstate.calling import Caller
from edgeproxy.hotstate.publishing import FOREIGN_LAYOUT


class HotLedger:
    """The ledger as far as Redis has it.

    Both methods return what became of the entry and the number of the last one that the state has. They hold also when
    Redis has no memory left, and may be repeated after any failure. Raise StoreUnavailable, and OperatorError when the
    counters are not readable.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def credit(self, partition: int, key_id: KeyId, seq: int, tokens: int) -> tuple[LedgerStatus, int]:
        """Add tokens to a balance."""
        return await self._run("credit", scripts.credit_args(partition, key_id, seq, tokens))

    async def adjust(
        self, partition: int, key_id: KeyId, seq: int, requests: int, input_tokens: int, output_tokens: int
    ) -> tuple[LedgerStatus, int]:
        """Correct what was settled by signed differences."""
        arguments = scripts.adjust_args(partition, key_id, seq, requests, input_tokens, output_tokens)
        return await self._run("adjust", arguments)

    async def _run(self, name: str, arguments: scripts.Arguments) -> tuple[LedgerStatus, int]:
        status, seq = scripts.decode_ledger(await self._caller.run(name, arguments))
        if status is LedgerStatus.LAYOUT:
            raise OperatorError(FOREIGN_LAYOUT)
        return status, seq
