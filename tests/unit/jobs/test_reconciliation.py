"""Redis loses what it knew, in every way in which that happens; what PostgreSQL has is there again before it opens."""

import asyncio
import json
import random
import shutil
from dataclasses import replace

import pytest

from edgeproxy.control import reconciliation as verbs
from edgeproxy.control.keys import create_key, delete_key, revoke_key
from edgeproxy.control.ledger import credit
from edgeproxy.domain.keys import KeyStatus
from edgeproxy.domain.limits import Amounts
from edgeproxy.domain.reservations import LimitReason, Outcome, ReserveStatus
from edgeproxy.domain.usage import encode_event
from edgeproxy.embedded.placement import place
from edgeproxy.embedded.redis import EmbeddedRedis
from edgeproxy.errors import OperatorError, StoreUnavailable
from edgeproxy.hotstate import keyspace, scripts
from edgeproxy.hotstate.epochs import Epoch, Epochs, Standing
from edgeproxy.hotstate.rebuilding import Rebuilding
from edgeproxy.jobs import reconciliation as module
from edgeproxy.jobs.reconciliation import Reconciler
from edgeproxy.store.database import connect

PARTITIONS = 4


@pytest.fixture
def placed(data_dir):
    placed = place(data_dir)
    placed.make_runtime()
    yield placed
    placed.remove_runtime()


@pytest.fixture
def server(data_dir, placed):
    """A Redis of the test's own, to be stopped and set back."""
    server = EmbeddedRedis(data_dir, placed)
    yield server
    server.stop()


@pytest.fixture
def redis_url(server):
    return server.start()


@pytest.fixture
def file(server, placed, tmp_path, redis):
    """Keep a copy of what Redis has written, and start it once more from that, or from nothing."""
    folder, kept = placed.stores / "redis", tmp_path / "kept"

    class File:
        async def keep(self):
            await self._stop()
            shutil.copytree(folder, kept)
            server.start()

        async def restore(self):
            await self.lose(kept)

        async def lose(self, instead=None):
            await self._stop()
            owner, group = folder.owner(), folder.group()
            shutil.rmtree(folder)
            if instead:
                shutil.copytree(instead, folder)
                for path in (folder, *folder.rglob("*")):
                    shutil.chown(path, owner, group)
            server.start()

        async def _stop(self):
            server.stop()
            await redis.connection_pool.disconnect()

    return File()


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch):
    monkeypatch.setattr(module, "ANNOUNCE_S", 0.0)


@pytest.fixture
def reconciler(control, flusher, metrics):
    return Reconciler(control, flusher, metrics)


@pytest.fixture
def epochs(control):
    return Epochs(control.caller, PARTITIONS)


@pytest.fixture
def settle(control):
    """Settle a request that was reserved before."""

    async def settle(key, event):
        record = key.record(PARTITIONS)
        amounts, raw = event.usage.amounts, encode_event(event)
        arguments = scripts.settle_args(
            record.partition, event.id, [scripts.scope_of(record)], Outcome.POST, amounts, raw
        )
        return scripts.decode_settle(await control.caller.run("settle", arguments)).status

    return settle


@pytest.fixture
def agree(control, flusher, rows):
    """Check that both stores have the same totals of a key, and that nothing of it is open; return these totals."""

    async def agree(key, *, opened=0):
        await flusher.flush_once()
        counted = await control.publishing.inspect(key.record(PARTITIONS))
        stored = await rows("SELECT requests, input_tokens, output_tokens FROM usage_totals WHERE key_id = $1", key.id)
        assert counted.totals == (Amounts(*stored[0].values()) if stored else Amounts())
        assert counted.open == opened
        assert len(await Rebuilding(control.caller).opened(key.record(PARTITIONS).partition)) == opened
        return counted

    return agree


async def is_open(epochs):
    return {standing.is_open for standing in await epochs.look()}


async def admitted(request_with, key):
    """How many more requests are admitted until one is refused."""
    count = 0
    while not hasattr(reply := await request_with(key), "reason"):
        count += 1
    assert (reply.status, reply.reason) == (ReserveStatus.REFUSED, LimitReason.WINDOW)
    return count


def gauge(metrics, name):
    return metrics.registry.get_sample_value(f"edgeproxy_{name}")


def logged(capfd):
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]


async def test_an_empty_first_start_opens_at_once(reconciler, epochs, metrics, redis):
    assert await is_open(epochs) == {False}
    assert await reconciler.open_once() == PARTITIONS
    assert await is_open(epochs) == {True}
    assert (await epochs.look())[2].epoch.run_ids == ((await redis.info("server"))["run_id"],)
    assert gauge(metrics, "partitions_closed") == 0
    assert await reconciler.open_once() == 0


@pytest.mark.parametrize("way", ["emptied", "lost"])
async def test_a_redis_that_knows_nothing_gets_back_what_was_counted(
    control, reconciler, epochs, request_with, agree, redis, file, way
):
    key = (await create_key(control, name="k", limits=["requests=10/1h"], concurrency=3)).key
    idle = (await create_key(control, name="idle")).key
    assert await reconciler.open_once() == PARTITIONS
    for _ in range(4):
        await request_with(key)
    before = await agree(key)
    if way == "emptied":
        await redis.flushall()
    else:
        await file.lose()
    assert await is_open(epochs) == {False}
    assert await reconciler.open_once() == PARTITIONS
    after = await agree(key)
    assert after.totals == before.totals
    assert (await control.publishing.read_record(key.digest)).version == 1
    assert await control.publishing.inspect(idle.record(PARTITIONS)) is not None
    assert await admitted(request_with, key) == 6
    assert (await agree(key)).windows[0].used == 10


async def test_what_waits_in_the_stream_of_a_server_that_was_restarted_is_stored_and_counted_once(
    control, reconciler, request_with, agree, redis, file, rows
):
    key = (await create_key(control, name="k", limits=["requests=10/1h"])).key
    for _ in range(3):
        await request_with(key)
    await redis.delete(keyspace.state(key.record(PARTITIONS).partition, key.id))
    await file.keep()
    assert await reconciler.open_once() == PARTITIONS
    assert len(await rows("SELECT * FROM usage_events")) == 3
    assert (await agree(key)).totals.requests == 3
    assert await admitted(request_with, key) == 7


async def test_an_older_file_gets_back_what_happened_since(
    control, reconciler, request_with, settle, agree, redis, file
):
    key = (await create_key(control, name="k", limits=["requests=10/1h", "tokens=1000/1m"])).key
    other = (await create_key(control, name="other", limits=["requests=5/1h"])).key
    await request_with(other)
    await request_with(key)
    ended, waits = [await request_with(key, settle=False) for _ in range(2)]
    await agree(key, opened=2)
    await file.keep()
    await settle(key, ended)
    for _ in range(3):
        await request_with(key)
    then = await agree(key, opened=1)
    revoked = (await create_key(control, name="since")).key
    await file.restore()
    assert (await control.publishing.inspect(key.record(PARTITIONS))).totals.requests == 1
    assert await reconciler.open_once() == PARTITIONS

    after = await agree(key, opened=1)
    assert after.totals == then.totals == Amounts(5, 65, 35)
    assert [window.used for window in after.windows] == [6, 120]
    assert await settle(key, ended) == 4  # it was cancelled: the corrections find that its event is stored
    await settle(key, waits)
    assert (await agree(key)).totals.requests == 6
    assert await admitted(request_with, key) == 4
    assert (await agree(other)).totals.requests == 1
    assert await control.publishing.read_record(revoked.digest) is not None
    assert await redis.zcard(keyspace.leases(key.record(PARTITIONS).partition)) == 0


async def test_an_older_file_brings_no_deleted_key_back(
    control, reconciler, request_with, redis, file, rows, capfd, monkeypatch
):
    monkeypatch.setattr("edgeproxy.hotstate.rebuilding._NAMES", 2)
    deleted, revoked, kept = [(await create_key(control, name=name)).key for name in ("deleted", "revoked", "kept")]
    shared = replace(kept.record(PARTITIONS), id="provider:p")
    await control.publishing.publish_state(shared)
    await request_with(deleted)
    await file.keep()
    await delete_key(control, "deleted")
    await revoke_key(control, "revoked")
    await file.restore()
    assert await control.publishing.read_record(deleted.digest) is not None
    assert await reconciler.open_once() == PARTITIONS
    assert await control.publishing.read_record(deleted.digest) is None
    assert (await request_with(deleted)).status is ReserveStatus.UNPUBLISHED
    assert (await request_with(revoked)).status in (ReserveStatus.STALE, ReserveStatus.DISABLED)
    assert (await control.publishing.read_record(revoked.digest)).status is KeyStatus.REVOKED
    assert await control.publishing.inspect(shared) is not None
    assert await control.publishing.inspect(kept.record(PARTITIONS)) is not None
    assert [line["count"] for line in logged(capfd) if line["event"] == "unknown_keys_erased"] == [1]
    assert await rows("SELECT * FROM usage_events") == []


async def test_a_complete_file_is_left_as_it_is(control, reconciler, epochs, request_with, redis, file, capfd, rows):
    key = (await create_key(control, name="k", limits=["requests=10/1h"])).key
    await reconciler.open_once()
    event = await request_with(key, settle=False)
    await request_with(key)
    partition = key.record(PARTITIONS).partition
    names = [keyspace.state(partition, key.id), keyspace.reservation(partition, event.id)]
    before = await redis.mget(names)
    await file.keep()
    assert await is_open(epochs) == {False}, "it has another run id"
    capfd.readouterr()
    assert await reconciler.open_once() == PARTITIONS
    assert await redis.mget(names) == before
    assert [(line["event"], line["count"]) for line in logged(capfd)] == [("partitions_opened", PARTITIONS)]
    assert len(await rows("SELECT * FROM usage_events")) == 1


async def test_where_postgresql_is_the_older_one_redis_keeps_what_it_has_and_that_is_told(
    control, reconciler, request_with, redis, rows, flusher, file, metrics, capfd
):
    key = (await create_key(control, name="k", limits=["requests=10/1h"])).key
    for _ in range(3):
        await request_with(key)
    await flusher.flush_once()
    await rows("TRUNCATE usage_events, usage_daily, usage_totals")
    name = keyspace.state(key.record(PARTITIONS).partition, key.id)
    before = await redis.get(name)
    await file.keep()
    assert await reconciler.open_once() == PARTITIONS
    assert await redis.get(name) == before
    assert gauge(metrics, "drift_keys") == 1
    assert [line["key_id"] for line in logged(capfd) if line["event"] == "key_drifts"] == [key.id]
    assert not (await verbs.reconcile(control, [key.id], repair=True)).left
    await reconciler.watch_once()
    assert gauge(metrics, "drift_keys") == 0


async def test_with_postgresql_away_nothing_opens(control, flusher, metrics, migrated_url, epochs):
    await create_key(control, name="k")
    pool = await connect(migrated_url)
    await pool.close()
    with pytest.raises(StoreUnavailable, match="postgresql"):
        await Reconciler(replace(control, database=pool), flusher, metrics).open_once()
    assert await is_open(epochs) == {False}
    assert gauge(metrics, "partitions_closed") == PARTITIONS


@pytest.mark.parametrize(("setting", "wrong"), [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")])
async def test_a_redis_that_does_not_keep_what_it_is_told_is_not_opened(reconciler, epochs, redis, setting, wrong):
    await redis.config_set(setting, wrong)
    with pytest.raises(OperatorError, match=setting):
        await reconciler.open_once()
    assert await is_open(epochs) == {False}


async def test_a_server_that_is_restarted_meanwhile_is_not_opened_by_what_was_seen_before(
    reconciler, epochs, file, monkeypatch
):
    cancel = module.cancel_stored

    async def restart_then_cancel(control, partition):
        monkeypatch.undo()
        await file.keep()
        return await cancel(control, partition)

    monkeypatch.setattr(module, "cancel_stored", restart_then_cancel)
    assert await reconciler.open_once() == 0
    assert await is_open(epochs) == {False}
    assert await reconciler.open_once() == PARTITIONS
    assert await is_open(epochs) == {True}


async def test_a_settle_that_comes_in_between_makes_the_rebuilding_start_over(
    control, reconciler, request_with, settle, agree, redis, monkeypatch
):
    key = (await create_key(control, name="k", limits=["requests=10/1h"])).key
    record = key.record(PARTITIONS)
    await request_with(key)
    await agree(key)
    events = [await request_with(key, settle=False) for _ in range(3)]
    state = await redis.get(keyspace.state(record.partition, key.id))
    behind = state.replace(b"\x01\x0d\x07", b"\x00\x0d\x07", 1)  # one request fewer than was stored
    assert behind != state
    await redis.set(keyspace.state(record.partition, key.id), behind)
    rebuild, left = Rebuilding.rebuild, list(events[:2])

    async def settle_then_rebuild(self, states):
        if left:
            await settle(key, left.pop())
        return await rebuild(self, states)

    monkeypatch.setattr(Rebuilding, "rebuild", settle_then_rebuild)
    assert await reconciler.open_once() == PARTITIONS
    assert not left
    assert (await agree(key, opened=1)).totals.requests == 3
    await settle(key, events[2])
    assert (await agree(key)).windows[0].used == 4


@pytest.mark.parametrize("there", ["nothing", "another layout"])
async def test_a_settle_that_finds_no_state_is_not_missed_by_the_rebuilding(
    control, reconciler, request_with, settle, agree, redis, monkeypatch, there
):
    key = (await create_key(control, name="k", limits=["requests=10/1h"])).key
    events = [await request_with(key, settle=False) for _ in range(2)]
    name = keyspace.state(key.record(PARTITIONS).partition, key.id)
    state = await redis.getdel(name)
    if there == "another layout":
        await redis.set(name, b"\x01" + state[1:])
    rebuild, left = Rebuilding.rebuild, [events[0]]

    async def settle_then_rebuild(self, states):
        if left:
            await settle(key, left.pop())
        return await rebuild(self, states)

    monkeypatch.setattr(Rebuilding, "rebuild", settle_then_rebuild)
    assert await reconciler.open_once() == PARTITIONS
    assert (await agree(key, opened=1)).totals.requests == 1
    await settle(key, events[1])
    assert (await agree(key)).windows[0].used == 2


async def test_a_key_that_never_holds_still_keeps_its_partition_closed(
    control, reconciler, epochs, request_with, redis, monkeypatch
):
    key = (await create_key(control, name="k")).key
    await request_with(key)
    partition = key.record(PARTITIONS).partition
    name = keyspace.state(partition, key.id)
    behind = (await redis.get(name)).replace(b"\x01\x0d\x07", b"\x00\x0d\x07", 1)
    await redis.set(name, behind)
    rebuild = Rebuilding.rebuild

    async def change_then_rebuild(self, states):
        await redis.append(name, b"\x00")
        return await rebuild(self, states)

    with monkeypatch.context() as patched:
        patched.setattr(Rebuilding, "rebuild", change_then_rebuild)
        assert await reconciler.open_once() == PARTITIONS - 1
        assert not (await epochs.look())[partition].is_open
    assert await reconciler.open_once() == 1


async def test_what_ends_while_it_opens_is_counted_once_and_no_limit_is_passed(
    control, reconciler, request_with, settle, agree, redis
):
    keys = [(await create_key(control, name=f"k{n}", limits=["requests=20/1h"])).key for n in range(6)]
    chosen = random.Random(5)
    opened = [(key, await request_with(key, settle=False)) for key in keys for _ in range(15)]
    for key in keys:
        record = key.record(PARTITIONS)
        state = await redis.get(keyspace.state(record.partition, key.id))
        await redis.set(keyspace.state(record.partition, key.id), b"\x01" + state[1:])  # as an older layout
    chosen.shuffle(opened)

    async def end_all():
        for key, event in opened:
            await settle(key, event)
            await asyncio.sleep(chosen.random() / 200)

    async with asyncio.TaskGroup() as group:
        group.create_task(end_all())
        while await reconciler.open_once():
            await redis.delete(*(keyspace.epoch(partition) for partition in range(PARTITIONS)))
            if not sum([await redis.zcard(keyspace.leases(partition)) for partition in range(PARTITIONS)]):
                break
    await reconciler.open_once()
    for key in keys:
        assert (await agree(key)).totals.requests == 15
        assert await admitted(request_with, key) == 5


async def test_a_balance_is_what_was_credited_without_what_was_used_and_is_held(
    control, reconciler, request_with, settle, agree, redis
):
    key = (await create_key(control, name="k", prepaid=True)).key
    await credit(control, key.id, 100)
    await request_with(key)
    await agree(key)
    await credit(control, key.id, 50)
    await redis.flushall()
    assert await reconciler.open_once() == PARTITIONS
    assert (await agree(key)).balance == 130
    event = await request_with(key, settle=False)
    await redis.delete(
        keyspace.state(key.record(PARTITIONS).partition, key.id), *map(keyspace.epoch, range(PARTITIONS))
    )
    assert await reconciler.open_once() == PARTITIONS
    counted = await agree(key, opened=1)
    assert (counted.balance, counted.held, counted.ledger) == (130, 20, 2)
    await settle(key, event)
    counted = await agree(key)
    assert (counted.balance, counted.held) == (110, 0)
    assert not (await verbs.reconcile(control)).found


async def test_counters_of_an_older_layout_are_made_anew_and_those_of_a_newer_one_are_not_touched(
    control, reconciler, epochs, request_with, agree, redis
):
    key = (await create_key(control, name="k", limits=["requests=10/1h"])).key
    await request_with(key)
    await agree(key)
    partition = key.record(PARTITIONS).partition
    name = keyspace.state(partition, key.id)
    state = await redis.get(name)
    await redis.set(name, b"\x03" + state[1:])
    with pytest.raises(OperatorError, match="newer version"):
        await reconciler.open_once()
    assert await redis.get(name) == b"\x03" + state[1:]
    assert not (await epochs.look())[partition].is_open
    await redis.set(name, b"\x01" + state[1:])
    await reconciler.open_once()
    assert await is_open(epochs) == {True}
    assert (await agree(key)).windows[0].used == 1


async def test_the_epochs_of_open_partitions_name_each_others_servers(reconciler, epochs, monkeypatch):
    written = {}

    async def look(self):
        return [
            Standing(0, "a", Epoch(("a", "gone"), 1)),
            Standing(1, "b", Epoch(("b",), 2)),
            Standing(2, "b", Epoch(("a", "b"), 3)),
            Standing(3, "c", Epoch(("a", "b"), 4)),
        ]

    async def write(self, epochs):
        written.update(epochs)

    async def unmoved(*_, **__):
        return None

    monkeypatch.setattr(Epochs, "look", look)
    monkeypatch.setattr(Epochs, "write", write)
    monkeypatch.setattr(Reconciler, "_open", unmoved)
    assert await reconciler.open_once() == 0
    opened = {0: Epoch(("a", "b"), 1), 1: Epoch(("a", "b"), 2)}  # c is not open, so nobody names it
    assert written == opened | {3: Epoch((), 0)}


async def test_records_that_lie_on_another_server_come_back_before_anything_opens(
    control, reconciler, epochs, redis, monkeypatch
):
    keys = [(await create_key(control, name=f"k{n}")).key for n in range(8)]
    await reconciler.open_once()
    await redis.delete(*(keyspace.key_record(key.digest) for key in keys))
    real = await epochs.look()
    standings = [*real[:3], Standing(3, "another", None)]

    async def look(self):
        return standings

    monkeypatch.setattr(Epochs, "look", look)
    await reconciler.open_once()
    assert all([await control.publishing.read_record(key.digest) for key in keys])


async def test_drift_is_noticed_a_few_keys_at_a_time_and_only_records_are_put_right(
    control, reconciler, request_with, redis, flusher, metrics, monkeypatch, capfd
):
    monkeypatch.setattr(module, "WATCHED", 3)
    keys = [(await create_key(control, name=f"k{n}")).key for n in range(5)]
    for key in keys:
        await request_with(key)
    await flusher.flush_once()
    record = keys[4].record(PARTITIONS)
    name = keyspace.state(record.partition, keys[4].id)
    state = await redis.get(name)
    await reconciler.open_once()
    await redis.set(name, state.replace(b"\x01\x0d\x07", b"\x00\x0d\x07", 1))
    await redis.delete(keyspace.key_record(keys[0].digest))
    capfd.readouterr()
    seen = []
    for _ in range(4):
        await reconciler.watch_once()
        seen.append(gauge(metrics, "drift_keys"))
    assert seen == [0, 1, 1, 1]
    assert [line["key_id"] for line in logged(capfd)] == [keys[4].id], "told once"
    assert await control.publishing.read_record(keys[0].digest) is not None
    assert await redis.get(name) != state
    await redis.set(name, state)
    for _ in range(2):
        await reconciler.watch_once()
    assert gauge(metrics, "drift_keys") == 0


async def test_a_partition_that_is_closed_is_not_watched(control, reconciler, redis, metrics):
    await create_key(control, name="k")
    await redis.flushall()
    await reconciler.watch_once()
    assert gauge(metrics, "drift_keys") == 0


async def test_nothing_opens_before_workers_could_tell_what_they_have_open(
    control, reconciler, epochs, redis, monkeypatch
):
    monkeypatch.setattr(module, "ANNOUNCE_S", 1.5)
    assert await reconciler.open_once() == PARTITIONS, "there is no key, so nothing can be open"
    key = (await create_key(control, name="k", limits=["requests=10/1h"])).key
    record = key.record(PARTITIONS)
    await redis.flushdb()
    assert await reconciler.open_once() == 0
    assert await control.publishing.inspect(record) is not None, "what is told next finds it"
    arguments = scripts.reserve_args(
        record.partition, "r", [scripts.scope_of(record)], Amounts(1, 2, 3), 30_000, b"{}", announce=True
    )
    assert scripts.decode_reserve(await control.caller.run("reserve", arguments)).status is ReserveStatus.ADMITTED
    async with asyncio.timeout(20):
        while not await reconciler.open_once():
            await asyncio.sleep(0.1)
    assert (await control.publishing.inspect(record)).open == 1


async def test_an_epoch_of_what_is_closed_names_no_server_it_could_move_to(control, reconciler, epochs, monkeypatch):
    await epochs.write({0: Epoch(("another", "third"), 5)})

    async def away(*_):
        raise StoreUnavailable("postgresql")

    monkeypatch.setattr(module, "all_keys", away)
    with pytest.raises(StoreUnavailable):
        await reconciler.open_once()
    assert (await epochs.look())[0].epoch == Epoch((), 0)
