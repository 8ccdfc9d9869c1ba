import inspect
import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from edgeproxy.domain.keys import KeyId
from edgeproxy.hotstate import keyspace

KEY = KeyId("01890000-0000-7000-8000-000000000000")
PARTITIONS = st.integers(0, 63)
IDS = st.uuids().map(str)


def names(partition, key_id, request_id):
    """The name of everything that lies in a partition."""
    return {
        "state": keyspace.state(partition, KeyId(key_id)),
        "ring": keyspace.ring(partition, KeyId(key_id)),
        "reservation": keyspace.reservation(partition, request_id),
        "leases": keyspace.leases(partition),
        "events": keyspace.events(partition),
        "refusals": keyspace.refusals(partition),
        "corrections": keyspace.corrections(partition),
        "epoch": keyspace.epoch(partition),
    }


def test_names_are_what_they_were():
    assert names(7, KEY, "r") == {
        "state": f"{{p07}}:state:{KEY}",
        "ring": f"{{p07}}:ring:{KEY}",
        "reservation": "{p07}:reservation:r",
        "leases": "{p07}:leases",
        "events": "{p07}:events",
        "refusals": "{p07}:refusals",
        "corrections": "{p07}:corrections",
        "epoch": "{p07}:epoch",
    }
    assert keyspace.key_record("ab") == "key:ab"
    assert keyspace.INSTALL == "install"


def test_every_name_of_a_partition_is_looked_at_here():
    made = {name for name, _ in inspect.getmembers(keyspace, inspect.isfunction)}
    assert made == {*names(0, "k", "r"), "key_record"}


@given(PARTITIONS, IDS, IDS)
def test_everything_of_a_partition_lies_on_one_node_of_a_cluster(partition, key_id, request_id):
    slots = {key_slot(name.encode()) for name in names(partition, key_id, request_id).values()}
    assert slots == {key_slot(f"p{partition:02d}".encode())}


@pytest.mark.parametrize("one", range(0, 64, 7))
def test_partitions_share_no_name(one):
    for other in range(64):
        if other != one:
            assert not set(names(one, "k", "r").values()) & set(names(other, "k", "r").values())


@given(PARTITIONS, IDS)
def test_no_two_things_share_a_name(partition, some_id):
    made = [*names(partition, some_id, some_id).values(), keyspace.key_record(some_id), keyspace.INSTALL]
    assert all(one != other for one, other in combinations(made, 2))
    assert all(re.fullmatch(r"[a-z0-9{}:-]+", name) for name in made)
