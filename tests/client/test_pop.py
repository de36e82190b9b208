"""Pop consumers against a real broker, under Trio and asyncio, and from threads."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import anyio
import pytest

import trimq
from tests.client.test_with_broker import BACKENDS, Names, run, until
from trimq import blocking
from trimq.errors import BadRequest


@BACKENDS
def test_consumers_share_one_queue_and_nothing_comes_twice(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("jobs"), fresh("workers")
        seen: Counter[bytes] = Counter()
        workers: set[int] = set()
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            async with anyio.create_task_group() as nursery:

                async def work(number: int) -> None:
                    async with trimq.connect(namesrv) as mine, mine.pop(topic, group=group) as jobs:
                        async for job in jobs:
                            async with job:
                                seen[job.body] += 1
                                workers.add(number)
                                await anyio.sleep(0.005)

                for number in range(5):
                    nursery.start_soon(work, number)
                async with mq.producer() as producer, producer.stream() as stream:
                    for number in range(100):
                        await stream.send(trimq.Message(topic=topic, body=b"%d" % number))
                await until(lambda: len(seen) == 100)
                await anyio.sleep(0.2)
                nursery.cancel_scope.cancel()
            assert set(seen.values()) == {1}
            assert len(workers) == 5
            assert (await mq.admin.lag(group)).messages == 0

    run(backend, body)


@BACKENDS
def test_a_failed_job_comes_back_and_at_last_is_a_dead_letter(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("jobs"), fresh("workers")
        attempts: list[tuple[bytes, int, str]] = []
        async with trimq.connect(namesrv) as mq:
            async with mq.pop(topic, group=group, max_attempts=3) as jobs:
                await mq.send(topic, b"bad", tag="x", keys=["k"])
                await mq.send(topic, b"poison")
                async for job in jobs:
                    async with job:
                        attempts.append((job.body, job.attempt, job.topic))
                        assert job.body == b"poison" or (job.tag, job.keys) == ("x", ("k",))
                        if job.body == b"poison":
                            raise trimq.DeadLetter("no good")
                        raise trimq.Retry(after=timedelta(milliseconds=50))
                    if len(attempts) == 4:
                        break
            async with mq.pull() as reader:
                dead = [message.body async for message in reader.iterate(f"%DLQ%{group}")]
        assert sorted(attempts) == [(b"bad", 1, topic), (b"bad", 2, topic), (b"bad", 3, topic), (b"poison", 1, topic)]
        assert sorted(dead) == [b"bad", b"poison"]

    run(backend, body)


@BACKENDS
def test_what_is_cancelled_comes_again_when_its_time_is_up(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("jobs"), fresh("workers")
        async with trimq.connect(namesrv) as mq, mq.pop(topic, group=group, invisible=0.5) as jobs:
            await mq.send(topic, b"job")
            with anyio.move_on_after(0.1):
                async with await anext(jobs):
                    await anyio.sleep_forever()
            async with await anext(jobs) as job:
                assert (job.body, job.attempt) == (b"job", 2)

    run(backend, body)


@BACKENDS
def test_a_handler_that_takes_long_keeps_its_message(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("jobs"), fresh("workers")
        done: list[int] = []

        async def slow(job: trimq.Received) -> None:
            await anyio.sleep(1.5)
            done.append(job.attempt)

        async with trimq.connect(namesrv) as mq, anyio.create_task_group() as nursery:
            async with mq.pop(topic, group=group, invisible=0.6) as jobs:
                await nursery.start(jobs.run, slow)
                await mq.send(topic, b"job")
                await until(lambda: bool(done))
                await anyio.sleep(0.8)
            assert done == [1]
            assert (await mq.admin.lag(group)).messages == 0

    run(backend, body)


@BACKENDS
def test_extending_by_hand_and_too_late(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("jobs"), fresh("workers")
        async with trimq.connect(namesrv) as mq, mq.pop(topic, group=group, invisible=0.4) as jobs:
            await mq.send(topic, b"job")
            (job,) = await jobs.receive()
            await job.extend(timedelta(seconds=30))
            assert await jobs.receive(wait=0.8) == []
            assert await job.ack()
            assert await job.ack()
            await mq.send(topic, b"late")
            (late,) = await jobs.receive()
            (again,) = await jobs.receive(wait=5)
            assert (again.body, again.attempt) == (b"late", 2)
            with pytest.raises(BadRequest, match="not ours any more"):
                await late.extend(timedelta(seconds=1))
            assert not await late.ack()
            assert await again.ack()

    run(backend, body)


@BACKENDS
def test_ordered_jobs_of_a_queue_come_in_order_through_failures(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("jobs"), fresh("workers")
        seen: dict[str, list[int]] = {key: [] for key in "abc"}
        failed: set[bytes] = set()

        async def handle(job: trimq.Received) -> None:
            if job.body.endswith(b"7") and job.body not in failed:
                failed.add(job.body)
                raise trimq.Retry(after=timedelta(milliseconds=20))
            seen[job.order_key or ""].append(int(job.body))

        async with trimq.connect(namesrv) as mq, trimq.connect(namesrv) as other:
            await mq.admin.create_topic(topic, queues=3)
            async with (
                anyio.create_task_group() as nursery,
                mq.pop(topic, group=group, ordered=True) as one,
                other.pop(topic, group=group, ordered=True) as two,
            ):
                async with mq.producer() as producer, producer.stream() as stream:
                    for number in range(60):
                        key = "abc"[number % 3]
                        await stream.send(trimq.Message(topic=topic, body=b"%d" % number, order_key=key))
                await nursery.start(one.run, handle)
                await nursery.start(two.run, handle)
                await until(lambda: sum(map(len, seen.values())) == 60, 20)
        assert seen == {key: list(range(start, 60, 3)) for start, key in enumerate("abc")}
        assert failed

    run(backend, body)


def test_threads_pop_too(namesrv: str, fresh: Names) -> None:
    topic, group = fresh("jobs"), fresh("workers")
    with blocking.connect(namesrv) as mq, mq.pop(topic, group=group, invisible=5) as jobs:
        for number in range(4):
            mq.send(topic, b"%d" % number)
        seen: list[bytes] = []
        while len(seen) < 3 and (job := jobs.poll()) is not None:
            with job:
                job.extend(timedelta(seconds=20))
                seen.append(job.body)
        rest = jobs.receive(max=5, wait=5)
        for each in rest:
            each.ack()
        assert sorted(seen + [each.body for each in rest]) == [b"0", b"1", b"2", b"3"]
        assert jobs.poll(timeout=0.1) is None


@pytest.mark.parametrize("wrong", [{"invisible": 0.0}, {"invisible": 1e6}, {"max_attempts": 0}])
def test_arguments_that_cannot_be(namesrv: str, fresh: Names, wrong: dict[str, float]) -> None:
    async def body() -> None:
        async with trimq.connect(namesrv) as mq:
            with pytest.raises(BadRequest):
                async with mq.pop("t", group="g", **wrong):  # type: ignore[arg-type]  # that is the point
                    pass

    anyio.run(body)
