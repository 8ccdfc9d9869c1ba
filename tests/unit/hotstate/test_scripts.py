"""Sources, arguments and replies of the scripts. What they do inside Redis is in tests/lua."""

import hashlib
import re
from dataclasses import replace
from importlib import resources

import pytest

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode
from edgeproxy.domain.limits import MAX_AMOUNT, Amounts, Dimension, Limit, parse_limits
from edgeproxy.domain.reservations import (
    ChargedScope,
    ExamineStatus,
    HeartbeatStatus,
    KeyUsage,
    LedgerStatus,
    LimitReason,
    Outcome,
    Pending,
    PublishStatus,
    ReapStatus,
    RebuildStatus,
    RebuiltState,
    ReserveReply,
    ReserveStatus,
    SettleReply,
    SettleStatus,
    WindowLevel,
    WindowUsage,
)
from edgeproxy.hotstate import scripts

SCOPE = scripts.Scope("k", "{p07}:state:k", "{p07}:ring:k", 3)
ACCOUNT = scripts.Scope("a", "{p07}:state:a", "{p07}:ring:a", 5)
LUA = resources.files("edgeproxy.hotstate") / "lua"
STATUSES = {
    "reserve": ReserveStatus,
    "settle": SettleStatus,
    "heartbeat": HeartbeatStatus,
    "examine": ExamineStatus,
    "reap": ReapStatus,
    "credit": LedgerStatus,
    "adjust": LedgerStatus,
    "publish": PublishStatus,
    "rebuild": RebuildStatus,
    "record": PublishStatus,
    "erase": scripts.EraseStatus,
    "inspect": scripts.InspectStatus,
    "refusal": scripts.RefusalStatus,
}
WITHOUT_STATUS = {"epoch", "keeping", "names"}  # they answer with what they found
SHARED = {"ring", "reservation", "resolve", "ledger"}


def record(*limits: str, concurrency: int | None = None, status=KeyStatus.ACTIVE, **options) -> KeyRecord:
    return KeyRecord(KeyId("k"), 3, status, 7, parse_limits(limits), concurrency, None, (), **options)


class TestSources:
    def test_every_file_is_a_script_or_the_shared_part(self):
        files = {path.name.removesuffix(".lua") for path in LUA.iterdir()}
        assert files == {*scripts.NAMES, *SHARED}
        assert set(scripts.load()) == set(scripts.NAMES) == {*STATUSES, *WITHOUT_STATUS}

    @pytest.mark.parametrize("name", scripts.NAMES)
    def test_redis_is_given_the_whole_source(self, name):
        script = scripts.load()[name]
        assert script.sha1 == hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()
        assert "--" not in script.source
        text = (LUA / f"{name}.lua").read_text()
        for included, a_line in (
            ("ring", "local function advance"),
            ("resolve", "local function refund"),
            ("reservation", "local function write_tombstone"),
            ("ledger", "local function write_entry"),
        ):
            assert (a_line in script.source) == (f"\n-- include {included}\n" in text)

    def test_scripts_of_another_folder_are_read_in_the_place_of_ours(self, tmp_path):
        for path in LUA.iterdir():
            (tmp_path / path.name).write_text(path.read_text().replace("'ZADD'", "'ZADDS'"))
        mutated, ours = scripts.load(tmp_path), scripts.load()
        assert {name for name in scripts.NAMES if mutated[name] != ours[name]} == {"reserve", "heartbeat"}

    @pytest.mark.parametrize("name", scripts.NAMES)
    def test_the_header_tells_keys_arguments_and_reply(self, name):
        header = (LUA / f"{name}.lua").read_text().split("\nlocal ")[0]
        assert header.startswith(f"-- {name}.lua: ")
        assert [word for word in re.findall(r"^-- ([A-Z]+) ", header, re.MULTILINE) if word != "A"] == [
            "KEYS",
            "ARGV",
            "REPLY",
        ]

    @pytest.mark.parametrize("name", STATUSES)
    def test_header_source_and_enum_name_the_same_statuses(self, name):
        text = (LUA / f"{name}.lua").read_text()
        in_header = {(word, int(number)) for number, word in re.findall(r"^--   (\d) ([A-Z]+)", text, re.MULTILINE)}
        names, numbers = next(
            (names.split(", "), numbers.split(", "))
            for names, numbers in re.findall(r"^local ([A-Z_, ]+) = ([\d, ]+)$", text, re.MULTILINE)
        )
        in_source = {(name.removeprefix("FOREIGN_"), int(number)) for name, number in zip(names, numbers, strict=True)}
        mirrored = {(status.name, status.value) for status in STATUSES[name]}
        if name == "record":  # has no layout
            mirrored.discard(("LAYOUT", 6))
        assert in_header == in_source == mirrored

    @pytest.mark.parametrize("path", list(LUA.iterdir()), ids=lambda path: path.name)
    def test_measured_traps_are_avoided(self, path):
        text = path.read_text()
        code = "\n".join(line.split("--")[0] for line in text.splitlines())
        assert not text.startswith("#!")  # Redis 6.2 does not read it
        assert "tostring" not in code  # gives 14 digits
        for left, right in re.findall(r"(\S+) \.\. (\S+)", code):  # gives a number 14 digits, too
            assert (left, right) in {("ARGV[1]", "':'"), ("'\\n'", "field")}

    @pytest.mark.parametrize("name", scripts.NAMES)
    def test_no_line_is_too_long_to_be_read(self, name):
        assert [line for line in (LUA / f"{name}.lua").read_text().splitlines() if len(line) > 120] == []


class TestReserve:
    def test_arguments(self):
        arguments = scripts.reserve_args(7, "r", [SCOPE, ACCOUNT], Amounts(1, 20, 300), 30_000, b"note")
        assert arguments == (
            6,
            "{p07}:reservation:r",
            "{p07}:leases",
            "{p07}:state:k",
            "{p07}:ring:k",
            "{p07}:state:a",
            "{p07}:ring:a",
            "",
            "r",
            30_000,
            1,
            20,
            300,
            "admit",
            b"note",
            3,
            5,
        )
        again = scripts.reserve_args(7, "r", [SCOPE], Amounts(), 1, b"", announce=True, now_ms=9)
        assert (again[5], again[11]) == (9, "announce")

    @pytest.mark.parametrize(
        "amounts", [Amounts(-1, 0, 0), Amounts(1, -1, 5), Amounts(1, 5, -1), Amounts(1, MAX_AMOUNT, 1)]
    )
    def test_what_cannot_be_counted_exactly_is_refused(self, amounts):
        with pytest.raises(ValueError, match="an amount lies between"):
            scripts.reserve_args(7, "r", [SCOPE], amounts, 30_000, b"")
        with pytest.raises(ValueError, match="an amount lies between"):
            scripts.settle_args(7, "r", [SCOPE], Outcome.POST, amounts, b"e")
        with pytest.raises(ValueError, match="an amount lies between"):
            scripts.reap_args(7, "r", [SCOPE], amounts, b"e")

    def test_replies(self):
        assert scripts.decode_reserve([1, 99, 0, 0, 0, b"", 5, 600, 0, 7]) == ReserveReply(
            ReserveStatus.ADMITTED, 99, windows=(WindowLevel(5, 600), WindowLevel(0, 7))
        )
        assert scripts.decode_reserve([0, 99, 2, 1, -2, -40]) == ReserveReply(
            ReserveStatus.REFUSED, 99, LimitReason.CONCURRENCY, 1, -2, balance=-40
        )
        assert scripts.decode_reserve([7, 99, 3, 0, -2, 0]).status is ReserveStatus.OBSERVED
        assert scripts.decode_reserve([4, 99]) == ReserveReply(ReserveStatus.STALE, 99)

    @pytest.mark.parametrize(
        "reply", [[], [1], [8, 99], [1, 99, 0], [1, 99, 0, 0, 5], [1, 99, 0, 0, 0, b"", 5], [0, 99, 4, 0, 0, b""]]
    )
    def test_anything_else_is_no_reply(self, reply):
        with pytest.raises((ValueError, IndexError)):
            scripts.decode_reserve(reply)


class TestSettle:
    def test_arguments(self):
        assert scripts.settle_args(7, "r", [SCOPE], Outcome.VOID, Amounts(1, 2, 3), b"e", now_ms=9) == (
            6,
            "{p07}:reservation:r",
            "{p07}:leases",
            "{p07}:events",
            "{p07}:corrections",
            "{p07}:state:k",
            "{p07}:ring:k",
            9,
            "r",
            "void",
            1,
            2,
            3,
            b"e",
        )

    def test_reply(self):
        assert scripts.decode_settle([3, 99]) == SettleReply(SettleStatus.UNKNOWN, 99)
        with pytest.raises(ValueError, match="5"):
            scripts.decode_settle([5, 99])


class TestOpenRequests:
    def test_heartbeat(self):
        beats = [scripts.Beat("r", 1, 2), scripts.Beat("s", 3, 4)]
        assert scripts.heartbeat_args(7, 30_000, beats) == (
            *(3, "{p07}:leases", "{p07}:reservation:r", "{p07}:reservation:s"),
            *("", 30_000, "r", 1, 2, "s", 3, 4),
        )
        assert scripts.decode_heartbeat([99, 1, 3]) == [HeartbeatStatus.RENEWED, HeartbeatStatus.UNKNOWN]

    def test_examine(self):
        assert scripts.examine_args(7, "r") == (1, "{p07}:reservation:r")
        reply = [1, 99, 1, 20, 30, 4, 5, b"note", 3, 2, b"a/1000", 7, b"b/1000", 8, 6, 0]
        assert scripts.decode_examine(reply) == Pending(
            99,
            Amounts(1, 20, 30),
            Amounts(0, 4, 5),
            b"note",
            (ChargedScope(3, {"a/1000": 7, "b/1000": 8}), ChargedScope(6, {})),
        )
        assert scripts.decode_examine([2]) is scripts.decode_examine([3]) is None
        with pytest.raises(ValueError, match="zip"):
            scripts.decode_examine([1, 99, 1, 20, 30, 4, 5, b"note", 3, 2, b"a/1000"])

    def test_reap(self):
        assert scripts.reap_args(7, "r", [SCOPE], Amounts(1, 2, 3), b"e", now_ms=9) == (
            *(5, "{p07}:reservation:r", "{p07}:leases", "{p07}:events", "{p07}:state:k", "{p07}:ring:k"),
            *(9, "r", 1, 2, 3, b"e"),
        )
        assert scripts.decode_reap([5]) is ReapStatus.ALIVE


class TestLedger:
    def test_arguments(self):
        assert scripts.credit_args(7, KeyId("k"), 4, -50) == (1, "{p07}:state:k", 4, -50)
        assert scripts.adjust_args(7, KeyId("k"), 4, 1, -2, 3) == (2, "{p07}:state:k", "{p07}:ring:k", "", 4, 1, -2, 3)
        assert scripts.decode_ledger([4, 17]) == (LedgerStatus.GAP, 17)

    @pytest.mark.parametrize("difference", [MAX_AMOUNT + 1, -MAX_AMOUNT - 1])
    def test_what_cannot_be_counted_exactly_is_refused(self, difference):
        with pytest.raises(ValueError, match="an amount lies between"):
            scripts.credit_args(7, KeyId("k"), 1, difference)
        with pytest.raises(ValueError, match="an amount lies between"):
            scripts.adjust_args(7, KeyId("k"), 1, 0, difference, 0)


class TestPublish:
    def test_arguments(self):
        arguments = scripts.publish_args(record("requests=5/1m", "output_tokens=9/30d", concurrency=4))
        assert arguments == (
            *(2, "{p07}:state:k", "{p07}:ring:k", "", 3, 1, 4, 1, 0),
            *("requests/60000", 1, 1_000, 60, 5),
            *("output_tokens/2592000000", 4, 21_600_000, 120, 9),
        )
        revoked = record(status=KeyStatus.REVOKED, mode=Mode.OBSERVE, prepaid=True)
        assert scripts.publish_args(revoked, now_ms=9)[3:] == (9, 3, 2, -1, 2, 1)

    def test_limits_that_cannot_hold_together_are_refused(self):
        limit = Limit(Dimension.TOKENS, 5, 60_000)
        twice = KeyRecord(KeyId("k"), 1, KeyStatus.ACTIVE, 7, (limit, limit), None, None, ())
        with pytest.raises(ValueError, match="two limits for tokens per 1m"):
            scripts.publish_args(twice)

    def test_the_record_is_written_under_the_digest(self):
        number, name, version, raw = scripts.record_args(record(), "abc")
        assert (number, name, version) == (1, "key:abc", 3)
        assert b'"version":3' in raw

    def test_reply(self):
        assert scripts.decode_publish([2]) is PublishStatus.KEPT


class TestRebuild:
    STATE = RebuiltState(
        record=record("requests=5/1m", "tokens=9/1m", concurrency=4, prepaid=True),
        open=2,
        held=30,
        last_used_ms=99,
        totals=Amounts(6, 7, 8),
        balance=-10,
        ledger=3,
        windows=(((100, 1), (160, 2)), ()),
    )

    def test_arguments(self):
        assert scripts.rebuild_args(7, b"packed", self.STATE) == (
            *(2, "{p07}:state:k", "{p07}:ring:k", b"packed", 3, 1, 4, 1, 1),
            *(2, 30, 99, 6, 7, 8, -10, 3),
            *("requests/60000", 1, 1_000, 60, 5, 2, 100, 1, 160, 2),
            *("tokens/60000", 2, 1_000, 60, 9, 0),
        )
        assert scripts.decode_rebuild([2]) is RebuildStatus.CHANGED

    @pytest.mark.parametrize("buckets", [((160, 1), (100, 2)), ((100, 1), (100, 2)), ((100, 1), (161, 2))])
    def test_buckets_that_are_not_one_ring_are_refused(self, buckets):
        with pytest.raises(ValueError, match="oldest first"):
            scripts.rebuild_args(7, b"", replace(self.STATE, windows=(buckets, ())))
        with pytest.raises(ValueError, match="zip"):
            scripts.rebuild_args(7, b"", replace(self.STATE, windows=((),)))


class TestInspect:
    def test_arguments(self):
        assert scripts.inspect_args(7, KeyId("k")) == (2, "{p07}:state:k", "{p07}:ring:k", "")

    def test_reply(self):
        reply = [1, 3, 2, 10, 20, 30, 99, 4, 2, 1, -5, 6, 7, b"tokens/60000", 100, 120, 500, b"requests/1000", 5, 1, 0]
        assert scripts.decode_inspect(reply) == KeyUsage(
            version=3,
            status=KeyStatus.REVOKED,
            totals=Amounts(10, 20, 30),
            last_used_ms=99,
            open=4,
            mode=Mode.OBSERVE,
            prepaid=True,
            balance=-5,
            held=6,
            ledger=7,
            windows=(
                WindowUsage(Limit(Dimension.TOKENS, 100, 60_000), 120, 0, 500),
                WindowUsage(Limit(Dimension.REQUESTS, 5, 1_000), 1, 4, 0),
            ),
        )

    def test_an_unpublished_key_and_a_foreign_layout(self):
        assert scripts.decode_inspect([3]) is None
        with pytest.raises(ValueError, match="incompatible version"):
            scripts.decode_inspect([6])


def test_erase_and_refusal():
    assert scripts.erase_args(7, KeyId("k")) == (3, "{p07}:state:k", "{p07}:ring:k", "{p07}:refusals", "k")
    assert scripts.decode_erase([0]) is scripts.EraseStatus.ABSENT
    assert scripts.refusal_args(7, KeyId("k"), 429) == (1, "{p07}:refusals", "", "k", 429, scripts.MAX_REFUSAL_ROWS)
    assert scripts.decode_refusal([1]) is scripts.RefusalStatus.COUNTED


def test_a_scope_is_made_of_a_record():
    assert scripts.scope_of(record()) == SCOPE


def test_a_command_calls_the_script_by_its_digest():
    script = scripts.Script("x", "return 1", "e0e1f9")
    assert script.command((1, "k")) == ("EVALSHA", "e0e1f9", 1, "k")
