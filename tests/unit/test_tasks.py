import asyncio
import gc
import json
import weakref

import pytest

from edgeproxy import tasks

SECRET = "Zq7-text-of-a-library"


async def fail():
    raise LookupError(SECRET)


async def test_a_task_has_its_name_and_gives_its_result():
    async def work():
        return 7

    task = tasks.spawn("adding", work())
    assert task.get_name() == "adding"
    assert await task == 7


async def test_a_task_that_nobody_holds_is_kept_until_it_ends():
    begun, done = asyncio.Event(), asyncio.Event()

    async def work():
        begun.set()
        # Only the task itself holds this future, and only the future holds the task: one cycle, and all of it garbage
        # if nobody else keeps the task.
        future = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(future))
        await future
        done.set()

    waiting = []
    reference = weakref.ref(tasks.spawn("forgotten", work()))
    await begun.wait()
    gc.collect()
    assert reference() is not None
    waiting[0]().set_result(None)
    await asyncio.wait_for(done.wait(), 5)
    await asyncio.sleep(0)
    gc.collect()
    assert reference() is None


async def test_a_failure_is_told_by_its_type_alone(capsys):
    task = tasks.spawn("flush", fail())
    await asyncio.wait([task])
    await asyncio.sleep(0)
    written = capsys.readouterr()
    assert SECRET not in written.out + written.err
    row = json.loads(written.err)
    assert (row["event"], row["task"], row["error"]) == ("task_failed", "flush", "LookupError")


async def test_the_owner_still_gets_the_exception():
    with pytest.raises(LookupError, match=SECRET):
        await tasks.spawn("flush", fail())


async def test_a_cancelled_task_is_no_failure(capsys):
    task = tasks.spawn("flush", asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert task.cancelled()
    assert capsys.readouterr().err == ""


async def test_a_mistake_in_a_callback_is_told_by_its_type_alone(capsys):
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(tasks.report)

    def callback(_):
        raise LookupError(SECRET)

    loop.call_soon(callback, SECRET)
    await asyncio.sleep(0.01)
    written = capsys.readouterr()
    assert SECRET not in written.out + written.err
    row = json.loads(written.err)
    assert (row["event"], row["error"]) == ("callback_failed", "LookupError")


async def test_a_report_without_an_exception_tells_no_text_either(capsys):
    tasks.report(asyncio.get_running_loop(), {"message": SECRET, "handle": SECRET})
    written = capsys.readouterr().err
    assert SECRET not in written
    assert json.loads(written)["event"] == "callback_failed"


async def test_a_failure_that_its_owner_awaits_is_the_owners_to_tell(capsys):
    async def fail():
        raise ValueError("Zq7")

    task = tasks.spawn("awaited", fail(), is_awaited=True)
    with pytest.raises(ValueError, match="Zq7"):
        await task
    assert capsys.readouterr().err == ""


async def test_a_task_of_a_block_ends_with_the_block(capsys):
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with tasks.running("beside", work()) as task:
        assert task.get_name() == "beside"
        await asyncio.sleep(0)
        assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), 5)
    assert capsys.readouterr().err == ""
