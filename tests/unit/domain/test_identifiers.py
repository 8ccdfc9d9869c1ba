import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeproxy.domain.identifiers import RANDOM_BITS, uuid7, uuid7_floor, uuid7_ms

TIMES = st.integers(0, 2**48 - 1)
RANDOM = st.integers(0, 2**RANDOM_BITS - 1)


@given(TIMES, RANDOM)
def test_an_id_is_a_uuid_of_version_7_and_gives_its_time_back(now_ms, bits):
    text = uuid7(now_ms, bits)
    value = uuid.UUID(text)
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)
    assert uuid7_ms(text) == now_ms


@given(TIMES, RANDOM, TIMES, RANDOM)
def test_ids_sort_as_their_times_do(one_ms, one_bits, other_ms, other_bits):
    one, other = uuid7(one_ms, one_bits), uuid7(other_ms, other_bits)
    if one_ms != other_ms:
        assert (one < other) == (one_ms < other_ms)
    else:
        assert (one < other) == (one_bits < other_bits)
        assert (one == other) == (one_bits == other_bits)


@given(TIMES.filter(bool), RANDOM)
def test_the_floor_parts_what_came_before_from_what_came_after(at_ms, bits):
    floor = uuid7_floor(at_ms)
    assert uuid7(at_ms - 1, bits) < floor <= uuid7(at_ms, bits)
    assert uuid7_ms(floor) == at_ms


def test_every_random_bit_counts_and_no_more():
    assert len({uuid7(1, 1 << bit) for bit in range(RANDOM_BITS)} | {uuid7(1, 0)}) == RANDOM_BITS + 1
    assert uuid7(1, 1 << RANDOM_BITS) == uuid7(1, 0)


def test_the_example_of_the_standard():
    # RFC 9562, appendix A.6
    assert uuid7(0x017F22E279B0, 0xCC3 << 62 | 0x18C4DC0C0C07398F) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@pytest.mark.parametrize("now_ms", [-1, 2**48, 2**64])
def test_a_time_that_does_not_fit_is_refused(now_ms):
    with pytest.raises(ValueError, match="1970 to 10889"):
        uuid7(now_ms, 0)


GOOD = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Zq7-not-an-id",
        "Zq7x" * 8,
        GOOD.upper(),
        GOOD.replace("-", ""),
        "{" + GOOD + "}",
        "urn:uuid:" + GOOD,
        " " + GOOD,
        GOOD + "\n",
        GOOD.replace("22e2", "2_e2"),
        GOOD.replace("0", "\u0660"),
        GOOD[:-1],
        str(uuid.uuid4()),
        str(uuid.uuid1()),
        str(uuid.UUID(int=0)),
        GOOD.replace("-98", "-c8"),
    ],
)
def test_what_is_no_id_of_ours_is_refused_without_repeating_it(text):
    with pytest.raises(ValueError, match=r"not a UUID") as caught:
        uuid7_ms(text)
    assert not text or text not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@given(st.text(max_size=40))
def test_no_text_but_an_id_has_a_time(text):
    with pytest.raises(ValueError, match="not a UUID"):
        uuid7_ms(text)
