"""An exact log of everything that a partition in Redis was told, and what has to be true of its answers.

Nothing here counts as the program does. Each window has a list of all charges, with their times; what it may hold is a
sum over that list. After every operation the answers, sums, totals, balances and events are held against it:

- I1: whenever a request is admitted, what was used in (t - W, t], it included, is at most the limit, in every window.
- I2: whenever one is refused, usage over (t - (B + 1) w, t] and its cost exceed the limit; or cap or balance say no.
- Retry-after is exact: refused one millisecond before, admitted then.
- I3, I4: every charge, refund and late excess is in the bucket that it belongs to: sums are equal after each step.
- I5, I6: a reservation resolves once; open requests, holds, totals, balance, last use and events follow it.

Times are those of a window's own clock, which does not go back: it is the latest time at which it was charged.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

from edgeproxy.domain.keys import KeyId, KeyRecord, KeyStatus, Mode
from edgeproxy.domain.limits import NEVER_FITS, Amounts, Dimension, Limit
from edgeproxy.domain.reservations import (
    NO_TIME_HELPS,
    WHATEVER_HOLDS,
    HeartbeatStatus,
    KeyUsage,
    KeyVersion,
    LedgerStatus,
    LimitReason,
    Outcome,
    PublishStatus,
    ReapStatus,
    ReserveReply,
    ReserveStatus,
    SettleStatus,
)
from edgeproxy.hotstate import keyspace
from tests.lua.in_redis import ADMITTED, PartitionInRedis, record_of

KEYS = (KeyId("key"), KeyId("account"))
LEASE_MS = 30_000
BEGIN_MS = 1_700_000_000_000


@dataclass(slots=True)
class Charge:
    request_id: str
    at_ms: int
    in_bucket_of_ms: int  # where it is counted: not at_ms where another window's buckets were taken over
    counted: int
    used: int


@dataclass(slots=True)
class Window:
    limit: Limit
    since: int
    shaped: int
    seen_ms: int = 0
    charges: list[Charge] = field(default_factory=list)  # in its buckets
    owed: list[Charge] = field(default_factory=list)  # that it has to count as long as they are not older than W

    def live(self, now_ms: int) -> list[Charge]:
        width = self.limit.bucket_ms
        oldest = max(now_ms, self.seen_ms) // width - self.limit.buckets
        return [charge for charge in self.charges if charge.in_bucket_of_ms // width >= oldest]

    def used(self, now_ms: int) -> int:
        return sum(charge.counted for charge in self.live(now_ms))

    def charge(self, request_id: str, now_ms: int, amount: int) -> None:
        self.seen_ms = max(self.seen_ms, now_ms)
        charge = Charge(request_id, self.seen_ms, self.seen_ms, amount, amount)
        self.charges = [*self.live(self.seen_ms), charge]
        self.owed.append(charge)

    def used_at_last(self) -> int:
        """What was really used in (t - W, t], where t is the time of the last charge."""
        return sum(charge.used for charge in self.owed if charge.at_ms > self.seen_ms - self.limit.window_ms)

    def taken_over(self, limit: Limit, version: int, seen_ms: int) -> "Window":
        def moved(charge: Charge) -> Charge:
            ends_ms = (charge.in_bucket_of_ms // self.limit.bucket_ms + 1) * self.limit.bucket_ms - 1
            return replace(charge, in_bucket_of_ms=min(ends_ms, seen_ms))

        window = Window(limit, self.since, version, seen_ms, [moved(charge) for charge in self.charges])
        window.charges = window.live(seen_ms)
        window.owed = [moved(each) for each in self.owed if each.at_ms > seen_ms - self.limit.window_ms]
        return window


@dataclass(slots=True)
class Key:
    record: KeyRecord
    windows: list[Window] = field(default_factory=list)
    seen_ms: int = 0
    open: int = 0
    held: int = 0
    credited: int = 0
    ledger: int = 0
    totals: list[int] = field(default_factory=lambda: [0, 0, 0])
    last_used_ms: int = 0

    @property
    def balance(self) -> int:
        return self.credited - self.totals[1] - self.totals[2]


@dataclass(slots=True)
class Request:
    amounts: Amounts
    versions: dict[KeyId, int]
    lease_ends_ms: int
    state: str = "pending"
    so_far: tuple[int, int] = (0, 0)


class ExactLog:
    """Drives a partition in Redis with random operations; any wrong answer is an AssertionError.

    `late_excess`: requests may use more than they reserved, requests are announced, keys observe, entries correct.
    Without it a balance never falls below 0.
    """

    def __init__(self, in_redis: PartitionInRedis, chance: Random, *, late_excess: bool) -> None:
        self.in_redis = in_redis
        self.chance = chance
        self.late_excess = late_excess
        self.now_ms = BEGIN_MS
        self.keys: dict[KeyId, Key] = {}
        self.requests: dict[str, Request] = {}
        self.events: list[bytes] = []
        self.corrections: list[bytes] = []
        self.met: Counter[str] = Counter()  # by name: members of two enums are equal when their numbers are
        for key_id in KEYS:
            self.publish(key_id)

    def play(self, operations: int) -> None:
        weights = {
            "reserve": 24,
            "settle": 16,
            "step": 18,
            "reap": 3,
            "heartbeat": 2,
            "credit": 2,
            "again": 1,
            "publish": 1,
        }
        if self.late_excess:
            weights["adjust"] = 2
        for name in self.chance.choices([*weights], [*weights.values()], k=operations):
            getattr(self, name)()
            self.check()
        self.check_streams()

    # --- Operations -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        self.now_ms += self.chance.choice([0, 1, 1, 16, 17, 18, 50, 51, 117, 400, 1_037, 3_050, 30_000, -30, -700])

    def publish(self, key_id: KeyId | None = None) -> None:
        key_id = key_id or self.chance.choice(KEYS)
        key = self.keys.get(key_id)
        version = key.record.version + self.chance.choice([1, 1, 1, 1, 0]) if key else 1
        record = record_of(
            KeyVersion(key_id, version),
            *self.limits(key.record.limits if key else ()),
            cap=self.chance.choice([None, 2]),
            mode=self.chance.choice([Mode.ENFORCE] * 3 + [Mode.OBSERVE] * self.late_excess),
            prepaid=key.record.prepaid if key else self.chance.random() < 0.5,
        )
        status = self.in_redis.publish(record, self.now_ms)
        if key and version <= key.record.version:
            assert status is PublishStatus.KEPT
            return
        assert status is PublishStatus.PUBLISHED
        key = self.keys.setdefault(key_id, Key(record))
        key.record, key.seen_ms = record, max(key.seen_ms, self.now_ms)
        old = {window.limit.id: window for window in key.windows}
        key.windows = [self.window_of(key, limit, old) for limit in record.limits]

    def limits(self, old: tuple[Limit, ...]) -> list[Limit]:
        """Other limits, or the same ones with another length or amount."""
        kinds = [(dimension, window_ms) for dimension in Dimension for window_ms in (1_000, 3_000, 7_000)]
        chosen = self.chance.sample(kinds, self.chance.randrange(4))
        if old and self.chance.random() < 0.6:
            chosen = [(limit.dimension, self.chance.choice([1_000, 3_000, 7_000])) for limit in old]
        return [
            Limit(dimension, self.chance.randrange(1, 12 if dimension is Dimension.REQUESTS else 60), window_ms)
            for dimension, window_ms in dict.fromkeys(chosen)
        ]

    def window_of(self, key: Key, limit: Limit, old: dict[str, Window]) -> Window:
        if limit.id in old:
            old[limit.id].limit = limit
            return old[limit.id]
        wanted = {each.id for each in key.record.limits}
        gone = [each for name, each in old.items() if name not in wanted and each.limit.dimension is limit.dimension]
        if not gone:
            return Window(limit, key.record.version, key.record.version)
        most = max(gone, key=lambda window: sum(charge.counted for charge in window.charges))
        return most.taken_over(limit, key.record.version, key.seen_ms)

    def reserve(self) -> None:
        request_id, announce = f"r{len(self.requests)}", self.late_excess and self.chance.random() < 0.05
        scopes = self.chance.choice([KEYS[:1], KEYS[:1], KEYS[1:], KEYS])
        keys = [self.keys[key_id] for key_id in scopes]
        known = [KeyVersion(key.record.id, key.record.version) for key in keys]
        amounts = Amounts(1, self.chance.randrange(6), self.chance.randrange(12))
        if self.chance.random() < 0.04:
            stale = [KeyVersion(each.key_id, each.version - 1) for each in known]
            assert self.in_redis.reserve(request_id, stale, amounts, self.now_ms).status is ReserveStatus.STALE
        if self.chance.random() < 0.04:
            known = [KeyVersion(each.key_id, WHATEVER_HOLDS) for each in known]
        reply = self.in_redis.reserve(request_id, known, amounts, self.now_ms, b"note", announce=announce)
        objections = [] if announce else [each for key in keys for each in self.objections(key, amounts)]
        enforced = [each for each in objections if each[0].record.mode is Mode.ENFORCE]
        expected = ReserveStatus.REFUSED if enforced else ReserveStatus.OBSERVED
        assert reply.status is (expected if objections else ReserveStatus.ADMITTED)
        self.met.update([repr(reply.status), repr(reply.reason)])
        self.check_reason(reply, keys, enforced or objections, amounts)
        if reply.status is ReserveStatus.REFUSED:
            if reply.reason is LimitReason.WINDOW and reply.retry_ms != NEVER_FITS:
                self.check_retry(known, amounts, reply.retry_ms)
            self.check_levels(reply, keys)
            return
        versions = {key.record.id: key.record.version for key in keys}
        self.requests[request_id] = Request(amounts, versions, self.now_ms + LEASE_MS)
        for key in keys:
            self.charge(key, request_id, amounts)
            for window in key.windows:
                assert window.used_at_last() <= window.limit.amount or announce or key.record.mode is Mode.OBSERVE, "I1"
        self.check_levels(reply, keys)

    def charge(self, key: Key, request_id: str, amounts: Amounts) -> None:
        key.open += 1
        key.held += amounts.of(Dimension.TOKENS) if key.record.prepaid else 0
        key.seen_ms = max(key.seen_ms, self.now_ms)
        for window in key.windows:
            window.charge(request_id, self.now_ms, amounts.of(window.limit.dimension))

    def settle(self) -> None:
        request_id = self.some_request()
        request = self.requests.get(request_id)
        outcome = self.chance.choice([Outcome.POST, Outcome.POST, Outcome.VOID, Outcome.CANCEL])
        actual = self.actual(request)
        event = b"%s %s" % (outcome.encode(), request_id.encode()) if self.chance.random() < 0.9 else b""
        status = self.in_redis.settle(request_id, outcome, actual, event, self.now_ms).status
        self.met[repr(status)] += 1
        is_news = request is not None and request.state == "released" and outcome is Outcome.POST
        if request is None or request.state == "reaped" or is_news:
            assert status is (SettleStatus.REAPED if request else SettleStatus.UNKNOWN)
            self.corrections += [event] if event and outcome is not Outcome.CANCEL else []
            return
        if request.state != "pending":
            assert status is SettleStatus.DUPLICATE, "I5"
            return
        assert status is SettleStatus.RESOLVED
        used = {Outcome.POST: actual, Outcome.VOID: Amounts(requests=1), Outcome.CANCEL: Amounts()}[outcome]
        self.resolve(request_id, used, was_used=outcome is not Outcome.CANCEL)
        self.requests[request_id].state = "resolved" if outcome is Outcome.POST else "released"
        self.events += [event] if event and outcome is not Outcome.CANCEL else []

    def reap(self) -> None:
        request_id = self.some_request()
        request = self.requests.get(request_id)
        if request and request.state == "pending":  # at the edge of its lease, if it may be awaited
            self.now_ms = max(self.now_ms, request.lease_ends_ms - self.chance.choice([0, 0, 1]))
        actual = self.actual(request)
        status = self.in_redis.reap(request_id, actual, b"reap " + request_id.encode(), self.now_ms)
        self.met[repr(status)] += 1
        if request is None or request.state != "pending":
            assert status is (ReapStatus.DUPLICATE if request else ReapStatus.UNKNOWN)
        elif request.lease_ends_ms > self.now_ms:
            assert status is ReapStatus.ALIVE
        else:
            assert status is ReapStatus.RESOLVED
            self.resolve(request_id, actual, was_used=True)
            request.state = "reaped"
            self.events.append(b"reap " + request_id.encode())

    def resolve(self, request_id: str, used: Amounts, *, was_used: bool) -> None:
        request = self.requests[request_id]
        request.state = "resolved"
        for key_id, version in request.versions.items():
            key = self.keys[key_id]
            key.open -= 1
            key.held -= request.amounts.of(Dimension.TOKENS) if key.record.prepaid else 0
            key.seen_ms = max(key.seen_ms, self.now_ms)
            key.last_used_ms = max(key.last_used_ms, self.now_ms if was_used else 0)
            add(key.totals, (used.requests, used.input_tokens, used.output_tokens))
            for window in key.windows:
                reserved, actual = (each.of(window.limit.dimension) for each in (request.amounts, used))
                charges = [charge for charge in window.charges if charge.request_id == request_id]
                for charge in (charge for charge in window.owed if charge.request_id == request_id):
                    charge.used = min(reserved, actual)
                if actual < reserved and window.shaped <= version:
                    for charge in charges:
                        charge.counted = actual
                elif actual > reserved and window.since <= version:
                    window.charge(f"{request_id} late", self.now_ms, actual - reserved)

    def heartbeat(self) -> None:
        request_id = self.some_request()
        request = self.requests.get(request_id)
        told = Amounts(0, self.chance.randrange(9), self.chance.randrange(9))
        status = self.in_redis.heartbeat(request_id, told, self.now_ms)
        if request is None or request.state != "pending":
            assert status is HeartbeatStatus.UNKNOWN
            return
        assert status is HeartbeatStatus.RENEWED
        request.lease_ends_ms = self.now_ms + LEASE_MS
        request.so_far = (
            max(request.so_far[0], told.input_tokens),
            max(request.so_far[1], told.output_tokens),
        )
        pending = self.in_redis.examine(request_id)
        assert pending is not None
        assert (pending.so_far.input_tokens, pending.so_far.output_tokens) == request.so_far
        assert (pending.reserved, pending.note) == (request.amounts, b"note")
        assert [scope.version for scope in pending.scopes] == list(request.versions.values())

    def credit(self) -> None:
        key, tokens = self.keys[self.chance.choice(KEYS)], self.chance.randrange(80)
        if self.entry(key, lambda seq: self.in_redis.credit(key.record.id, seq, tokens)):
            key.credited += tokens

    def adjust(self) -> None:
        key = self.keys[self.chance.choice(KEYS)]
        differences = (self.chance.randrange(2), self.chance.randrange(-3, 9), self.chance.randrange(-3, 9))
        if not self.entry(key, lambda seq: self.in_redis.adjust(key.record.id, seq, differences, self.now_ms)):
            return
        add(key.totals, differences)
        key.seen_ms = max(key.seen_ms, self.now_ms)
        for window in key.windows:
            if (amount := Amounts(*differences).of(window.limit.dimension)) > 0:
                window.charge("", self.now_ms, amount)

    def entry(self, key: Key, apply) -> bool:
        seq = key.ledger + self.chance.choice([1, 1, 1, 0, 2])
        expected = {0: LedgerStatus.DUPLICATE, 1: LedgerStatus.APPLIED, 2: LedgerStatus.GAP}[seq - key.ledger]
        key.ledger += expected is LedgerStatus.APPLIED
        assert apply(seq) == (expected, key.ledger)
        return expected is LedgerStatus.APPLIED

    def again(self) -> None:
        """A reserve that is repeated changes nothing, whatever became of the first."""
        request_id = self.some_request()
        if request_id in self.requests:
            key = self.keys[KEYS[0]]
            known = [KeyVersion(key.record.id, key.record.version)]
            reply = self.in_redis.reserve(request_id, known, Amounts(1, 1, 1), self.now_ms)
            assert reply.status is ReserveStatus.DUPLICATE, "I5"
            self.in_redis._reserved[request_id] = [
                KeyVersion(key_id, version) for key_id, version in self.requests[request_id].versions.items()
            ]

    def some_request(self) -> str:
        """Mostly an open one; else one that is resolved, or that there never was."""
        pending = [request_id for request_id, request in self.requests.items() if request.state == "pending"]
        if pending and self.chance.random() < 0.85:
            return self.chance.choice(pending)
        return self.chance.choice([*self.requests, "never"])

    def actual(self, request: Request | None) -> Amounts:
        reserved = request.amounts if request else Amounts(1, 5, 5)
        if self.late_excess and self.chance.random() < 0.4:
            return Amounts(1, self.chance.randrange(12), self.chance.randrange(24))
        used = self.chance.randrange(reserved.input_tokens + 1), self.chance.randrange(reserved.output_tokens + 1)
        return Amounts(1, *used)

    # --- What has to be true --------------------------------------------------------------------------------------

    def objections(self, key: Key, amounts: Amounts) -> list[tuple[Key, LimitReason, Window | None]]:
        """Everything that speaks against a request, from the log alone."""
        found: list[tuple[Key, LimitReason, Window | None]] = [
            (key, LimitReason.WINDOW, window)
            for window in key.windows
            if window.used(self.now_ms) + amounts.of(window.limit.dimension) > window.limit.amount
        ]
        if key.record.prepaid and key.balance - key.held < amounts.of(Dimension.TOKENS):
            found.append((key, LimitReason.BALANCE, None))
        if key.record.concurrency is not None and key.open >= key.record.concurrency:
            found.append((key, LimitReason.CONCURRENCY, None))
        return found

    def check_reason(self, reply: ReserveReply, keys: list[Key], objections, amounts: Amounts) -> None:
        if not objections:
            assert (reply.reason, reply.retry_ms) == (LimitReason.NONE, 0)
            return
        reasons = {reason for _, reason, _ in objections}
        if reply.reason is not LimitReason.WINDOW:
            expected = LimitReason.BALANCE if LimitReason.BALANCE in reasons else LimitReason.CONCURRENCY
            assert (reply.reason, reply.retry_ms) == (expected, NO_TIME_HELPS)
            assert (keys[reply.position], reply.reason, None) in objections
            assert reply.reason is LimitReason.BALANCE or reasons == {LimitReason.CONCURRENCY}
            return
        window = [window for key in keys for window in key.windows][reply.position]
        assert any(each is window for _, _, each in objections)
        cost, limit = amounts.of(window.limit.dimension), window.limit
        assert (reply.retry_ms == NEVER_FITS) == (cost > limit.amount)
        assert reply.retry_ms == NEVER_FITS or LimitReason.BALANCE not in reasons
        since_ms = max(window.seen_ms, self.now_ms) - (limit.buckets + 1) * limit.bucket_ms
        assert sum(each.counted for each in window.charges if each.in_bucket_of_ms > since_ms) + cost > limit.amount, (
            "I2"
        )

    def check_levels(self, reply: ReserveReply, keys: list[Key]) -> None:
        """What an answer tells a client of its limits is what is left now."""
        windows = [window for key in keys for window in key.windows]
        left = [max(window.limit.amount - window.used(self.now_ms), 0) for window in windows]
        assert [level.remaining for level in reply.windows] == left
        first = keys[0]
        assert reply.balance == (first.balance - first.held if first.record.prepaid else None)

    def check_retry(self, known: list[KeyVersion], amounts: Amounts, retry_ms: int) -> None:
        """Try it, on a copy: what is admitted here is taken back without a trace."""
        client, number = self.in_redis.client, self.in_redis.number
        names = [name for scope in map(self.in_redis.scope, known) for name in (scope.state, scope.ring)]
        saved = {name: client.dump(name) for name in names}
        early = self.in_redis.reserve("probe", known, amounts, self.now_ms + retry_ms - 1)
        assert early.status is ReserveStatus.REFUSED, "retry-after is too long"
        then = self.in_redis.reserve("probe", known, amounts, self.now_ms + retry_ms)
        assert then.status in ADMITTED or then.reason is LimitReason.CONCURRENCY, "retry-after is too short"
        client.delete(*names, keyspace.reservation(number, "probe"))
        client.zrem(keyspace.leases(number), "probe")
        for name, dump in saved.items():
            if dump is not None:
                client.restore(name, 0, dump)

    def check(self) -> None:
        for key in self.keys.values():
            usage = self.in_redis.inspect(key.record.id, self.now_ms)
            assert usage is not None
            self.check_key(key, usage)
        pending = [request for request in self.requests.values() if request.state == "pending"]
        assert self.in_redis.pending() == len(pending)

    def check_key(self, key: Key, usage: KeyUsage) -> None:
        assert (usage.version, usage.status, usage.mode) == (key.record.version, KeyStatus.ACTIVE, key.record.mode)
        assert [each.used for each in usage.windows] == [each.used(self.now_ms) for each in key.windows], "I3"
        assert usage.open == key.open
        assert usage.totals == Amounts(*key.totals)
        assert (usage.balance, usage.held, usage.ledger) == (key.balance, key.held, key.ledger)
        assert usage.last_used_ms == key.last_used_ms
        assert self.late_excess or not key.record.prepaid or usage.balance >= usage.held >= 0
        for window, told in zip(key.windows, usage.windows, strict=True):
            assert told.used >= sum(
                charge.used
                for charge in window.owed
                if charge.at_ms > max(self.now_ms, window.seen_ms) - window.limit.window_ms
            ), "I1"

    def check_streams(self) -> None:
        assert self.in_redis.events == self.events, "I5"
        assert self.in_redis.corrections == self.corrections


def add(totals: list[int], amounts: tuple[int, int, int]) -> None:
    for place, amount in enumerate(amounts):
        totals[place] += amount
