"""The names of a Redis: which are taken, which are refused without a part of them, and what they stand for."""

import pytest

from edgeproxy.domain.redis_addresses import check_redis, is_cluster, node_address, redis_addresses


@pytest.mark.parametrize(
    ("address", "nodes"),
    [
        ("redis://u:p@a:1/0", ["redis://u:p@a:1/0"]),
        ("unix://:p@/run/redis.sock?db=1", ["unix://:p@/run/redis.sock?db=1"]),
        ("unix:///run/a+cluster:b.sock", ["unix:///run/a+cluster:b.sock"]),
        ("redis+cluster://a", ["redis://a"]),
        ("redis+cluster://:p%40@a:1,[::1]:2", ["redis://:p%40@a:1", "redis://:p%40@[::1]:2"]),
        ("rediss+cluster://u:p@a:1,b:2,c:3", ["rediss://u:p@a:1", "rediss://u:p@b:2", "rediss://u:p@c:3"]),
    ],
)
def test_an_address_stands_for_its_nodes(address: str, nodes: list[str]) -> None:
    check_redis(address)
    assert redis_addresses(address) == nodes
    assert is_cluster(address) is (len(nodes) > 1 or address.startswith("redis+"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "must be embedded, redis://"),
        ("http://:secret@a:1", "must be embedded, redis://"),
        ("unix+cluster://:secret@/run/redis.sock", "must be embedded"),
        ("redis://:secret@[::1", "is not a usable address"),
        ("redis://:secret@a:port", "is not a usable address"),
        ("redis://:secret@a:0", "is not a usable address"),
        ("redis+cluster://:secret@a:1,b:port", "is not a usable address"),
        *(
            (f"redis+cluster://:secret@{hosts}", "redis+cluster://USER:PASSWORD@HOST:PORT")
            for hosts in ("", "a:1,", ",a:1", "a:1/0", "a:1/0,b:1", "a:1?db=0", "a:1#x")
        ),
    ],
)
def test_what_names_no_redis_is_refused_without_a_part_of_it(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|is not|names)") as caught:
        check_redis(address)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_every_node_of_a_cluster_takes_the_same_login() -> None:
    assert node_address("rediss://u:p%2F@a:1", "10.0.0.7", 7001) == "rediss://u:p%2F@10.0.0.7:7001"
    assert node_address("redis://a:1", "2001:db8::7", 7001) == "redis://[2001:db8::7]:7001"
