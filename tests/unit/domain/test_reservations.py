"""The words of reservations: who may leave which state, and the note that a gateway leaves behind."""

import pytest

from edgeproxy.domain.keys import KeyId
from edgeproxy.domain.reservations import TRANSITIONS, Note, Outcome, ReservationState, decode_note, encode_note


def test_only_a_pending_reservation_leaves_its_state():
    assert {state for state, _ in TRANSITIONS} == {ReservationState.PENDING}
    assert {outcome for _, outcome in TRANSITIONS} == set(Outcome)


class TestNote:
    @pytest.mark.parametrize("model", ["", "claude-*", 'a"b\\c\u00e9'])
    def test_what_is_written_is_read(self, model):
        assert decode_note(encode_note(KeyId("k_1"), model)) == Note(KeyId("k_1"), model)

    @pytest.mark.parametrize(
        "raw",
        [
            *(b"", b"{", b"[]", b"null", b"\xff", b'{"holder":"k"}', b'{"holder":"k","model":"m","x":1}'),
            *(b'{"holder":1,"model":"m"}', b'{"holder":"k","model":null}'),
        ],
    )
    def test_anything_else_is_no_note(self, raw):
        with pytest.raises(ValueError, match=r".+"):
            decode_note(raw)
