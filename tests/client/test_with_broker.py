"""The whole library against a real broker, under Trio and asyncio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
import pytest

import trimq
from trimq.errors import BadRequest, NoRoute

BACKENDS = pytest.mark.parametrize("backend", ["trio", "asyncio"])
Names = Callable[[str], str]


def run(backend: str, body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(30):
            await body()

    anyio.run(bounded, backend=backend)


def own_time() -> anyio.CancelScope:
    """What is done inside has the client's default timeout, not the test's deadline."""
    return anyio.CancelScope(shield=True)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Other tasks make it true; the broker is in another thread, so there is no event to wait for."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


@BACKENDS
def test_subscribe_then_send_on_a_new_topic_misses_nothing(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("orders"), fresh("billing")
        got: list[trimq.Received] = []

        async def bill(message: trimq.Received) -> None:
            got.append(message)

        async with trimq.connect(namesrv) as mq, anyio.create_task_group() as nursery:
            async with mq.subscribe(topic, group=group, filter=trimq.Tag("paid")) as orders:
                await nursery.start(orders.run, bill)
                receipt = await mq.send(topic, b'{"id": 42}', tag="paid", order_key="42", keys=["k"])
                await mq.send(topic, b"not for us", tag="open")
                await until(lambda: bool(got))
            message = got[0]
            assert (message.id, message.queue, message.offset) == (receipt.id, receipt.queue, receipt.offset)
            assert (message.body, message.tag, message.order_key) == (b'{"id": 42}', "paid", "42")
            assert message.keys == ("k",)
            assert message.attempt == 1
        assert len(got) == 1

    run(backend, body)


def test_name_servers_come_from_the_environment_and_one_that_is_dead_is_passed_over(
    namesrv: str, fresh: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = "ws://127.0.0.1:9" if namesrv.startswith("ws://") else "127.0.0.1:9"
    monkeypatch.setenv("NAMESRV_ADDR", f"{dead};{namesrv}")

    async def body() -> None:
        for _ in range(4):  # the first one is chosen by chance
            async with trimq.connect() as mq:
                assert (await mq.send(fresh("t"), b"x")).offset == 0

    run("trio", body)


@BACKENDS
def test_what_was_finished_is_not_delivered_again(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=2)
            async with mq.subscribe(topic, group=group, start=trimq.Start.FIRST) as consumer:
                for number in range(6):
                    await mq.send(topic, b"%d" % number)
                seen = 0
                async for message in consumer:
                    async with message:
                        seen += 1
                    if seen == 4:
                        break
            rest = []
            async with mq.subscribe(topic, group=group) as consumer:
                await mq.send(topic, b"last")
                async for message in consumer:
                    async with message:
                        rest.append(message.body)
                    if len(rest) == 3:
                        break
            assert b"last" in rest, "two were left, and one came: nothing that was finished comes again"
            assert (await mq.admin.lag(group)).messages == 0

    run(backend, body)


@BACKENDS
def test_a_failed_message_comes_back_with_its_next_attempt(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        attempts: list[tuple[bytes, int, str]] = []
        async with trimq.connect(namesrv) as mq, mq.subscribe(topic, group=fresh("g")) as consumer:
            await mq.send(topic, b"bad")
            await mq.send(topic, b"worse")
            async for message in consumer:
                async with message:
                    attempts.append((message.body, message.attempt, message.topic))
                    if message.attempt < 3:
                        raise (
                            ValueError("failed") if message.body == b"bad" else trimq.Retry(after=timedelta(seconds=1))
                        )
                if len(attempts) == 6:
                    break
        assert sorted(attempts) == sorted((body, n, topic) for body in (b"bad", b"worse") for n in (1, 2, 3))

    run(backend, body)


@BACKENDS
def test_dead_letters_are_put_aside(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        async with trimq.connect(namesrv) as mq:
            async with mq.subscribe(topic, group=group, max_attempts=2) as consumer:
                await mq.send(topic, b"poison")
                await mq.send(topic, b"fails")
                left = 3
                async for message in consumer:
                    async with message:
                        left -= 1
                        raise trimq.DeadLetter("no good") if message.body == b"poison" else ValueError("failed")
                    if not left:
                        break
            async with mq.pull() as reader:
                dead = [message.body async for message in reader.iterate(f"%DLQ%{group}")]
        assert sorted(dead) == [b"fails", b"poison"]

    run(backend, body)


@BACKENDS
def test_members_share_the_queues_and_hand_them_over(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        seen: Counter[bytes] = Counter()
        async with trimq.connect(namesrv) as one, trimq.connect(namesrv) as two:
            await one.admin.create_topic(topic, queues=6)

            async def handle(message: trimq.Received) -> None:
                seen[message.body] += 1

            def of_topic(consumer: trimq.PushConsumer) -> set[trimq.Queue]:
                return {queue for queue in consumer.assignment if queue.topic == topic}

            async with anyio.create_task_group() as nursery, one.subscribe(topic, group=group) as first:
                await nursery.start(first.run, handle)
                async with two.subscribe(topic, group=group) as second:
                    await nursery.start(second.run, handle)
                    await until(lambda: len(of_topic(first)) == len(of_topic(second)) == 3)
                    assert not of_topic(first) & of_topic(second)
                    async with one.producer() as producer, producer.stream() as stream:
                        for number in range(300):
                            await stream.send(trimq.Message(topic=topic, body=b"%d" % number))
                    await until(lambda: len(seen) == 300)
                await until(lambda: len(of_topic(first)) == 6)
        assert set(seen.values()) == {1}

    run(backend, body)


@BACKENDS
def test_ordered_queues_keep_their_order_through_failures(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        seen: dict[str, list[int]] = {key: [] for key in "abc"}
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=4)
            async with mq.subscribe(topic, group=fresh("g"), ordered=True) as consumer:
                async with mq.producer() as producer, producer.stream() as stream:
                    for number in range(60):
                        message = trimq.Message(topic=topic, body=b"%d" % number, order_key="abc"[number % 3])
                        await stream.send(message)

                async def handle(message: trimq.Received) -> None:
                    if message.attempt == 1 and message.body.endswith(b"9"):
                        raise trimq.Retry(after=timedelta(milliseconds=20))
                    seen[message.order_key or ""].append(int(message.body))

                async with anyio.create_task_group() as nursery:
                    await nursery.start(consumer.run, handle)
                    await until(lambda: sum(map(len, seen.values())) == 60)
                    nursery.cancel_scope.cancel()
        assert seen == {key: list(range(start, 60, 3)) for start, key in enumerate("abc")}

    run(backend, body)


@BACKENDS
def test_every_member_of_a_broadcast_gets_everything(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        got: dict[str, list[bytes]] = {"one": [], "two": []}
        async with trimq.connect(namesrv) as one, trimq.connect(namesrv) as two:
            await one.admin.create_topic(topic, queues=2)
            async with (
                one.subscribe(topic, group=group, mode="broadcast") as first,
                two.subscribe(topic, group=group, mode="broadcast") as second,
                anyio.create_task_group() as nursery,
            ):
                for name, consumer in (("one", first), ("two", second)):

                    async def handle(message: trimq.Received, name: str = name) -> None:
                        got[name].append(message.body)

                    await nursery.start(consumer.run, handle)
                for number in range(10):
                    await one.send(topic, b"%d" % number)
                await until(lambda: len(got["one"]) == len(got["two"]) == 10)
                nursery.cancel_scope.cancel()
        assert sorted(got["one"]) == sorted(got["two"]) == [b"%d" % n for n in range(10)]

    run(backend, body)


@BACKENDS
def test_a_slow_handler_holds_back_the_reading(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            async with mq.subscribe(topic, group=fresh("g"), prefetch=16) as consumer:
                async with mq.producer() as producer, producer.stream() as stream:
                    for number in range(500):
                        await stream.send(trimq.Message(topic=topic, body=b"%d" % number))
                count = 0
                async for message in consumer:
                    assert len(consumer._delivery.offered.ready) < 16
                    async with message:
                        count += 1
                    if count == 500:
                        break

    run(backend, body)


@BACKENDS
def test_paused_queues_are_not_read(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            async with mq.subscribe(topic, group=fresh("g")) as consumer:
                await mq.send(topic, b"1")
                async with await anext(consumer):
                    consumer.pause()
                await mq.send(topic, b"2")
                await mq.send(topic, b"3")
                with anyio.move_on_after(0.3) as scope:
                    await anext(consumer)
                assert scope.cancelled_caught, "the pull that was held is given up too"
                consumer.resume()
                with anyio.fail_after(5):
                    assert [(await anext(consumer)).body for _ in range(2)] == [b"2", b"3"]

    run(backend, body)


@BACKENDS
def test_reading_by_hand(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=2)
            async with mq.producer() as producer:
                queue, other = await producer.queues(topic)
                await producer.send_batch([trimq.Message(topic=topic, body=b"%d" % n) for n in range(40)], queue=queue)
                middle = datetime.now(UTC)
                await anyio.sleep(0.01)
                await producer.send(trimq.Message(topic=topic, body=b"late"), queue=other)
            async with mq.pull(fresh("g")) as reader:
                assert await reader.queues(topic) == (queue, other)
                await until_bounds(reader, queue, 40)
                batch = await reader.read(queue, 10, max=5, wait=0)
                assert [message.body for message in batch.messages] == [b"10", b"11", b"12", b"13", b"14"]
                assert (batch.next_offset, batch.first_offset, batch.end_offset) == (15, 0, 40)
                assert not (await reader.read(queue, trimq.Start.LAST, wait=0)).messages
                beyond = await reader.read(queue, 999, wait=0)
                assert (len(beyond.messages), beyond.next_offset) == (0, 40)
                everything = [message.body async for message in reader.iterate(topic)]
                assert everything == [*(b"%d" % n for n in range(40)), b"late"]
                assert [message.body async for message in reader.iterate(topic, start=middle)] == [b"late"]
                early = [message.body async for message in reader.iterate(topic, until=middle)]
                assert early == [b"%d" % n for n in range(40)]
                assert await reader.committed(queue) in (None, 0)
                await reader.commit({queue: 12})
                assert await reader.committed(queue) == 12
                await reader.commit({queue: 3})
                assert await reader.committed(queue) == 3, "a lower offset is a seek, and meant"

    run(backend, body)


async def until_bounds(reader: trimq.PullConsumer, queue: trimq.Queue, end: int) -> None:
    """Acknowledgement does not wait for dispatch; ends do."""
    with anyio.fail_after(5):
        while (await reader.bounds(queue))[1] < end:  # noqa: ASYNC110  (the broker is in another thread)
            await anyio.sleep(0.01)


@BACKENDS
def test_assigned_queues_are_read_ahead_and_can_be_sought(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=2)
            async with mq.producer() as producer, mq.pull(group) as reader:
                queues = await producer.queues(topic)
                for queue in queues:
                    await producer.send_batch(
                        [trimq.Message(topic=topic, body=b"%d" % n) for n in range(20)], queue=queue
                    )
                await reader.assign(queues)
                got: list[bytes] = []
                while len(got) < 40:
                    got += [message.body for message in await reader.poll(max=7)]
                assert sorted(got) == sorted(2 * [b"%d" % n for n in range(20)])
                await reader.commit()
                assert [await reader.committed(queue) for queue in queues] == [20, 20]
                await reader.seek(queues[0], 18)
                again: list[tuple[trimq.Queue, int]] = []
                while len(again) < 2:
                    again += [(message.queue, message.offset) for message in await reader.poll()]
                assert again == [(queues[0], 18), (queues[0], 19)]
                assert await reader.poll(wait=0.05) == []
                with pytest.raises(trimq.errors.BadRequest, match="not assigned"):
                    await reader.seek(trimq.Queue("other", "solo", 0), 0)

    run(backend, body)


@BACKENDS
def test_following_a_topic_sees_what_comes(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq, mq.pull() as reader:
            await mq.send(topic, b"0")
            got = []
            async for message in reader.iterate(topic, follow=True):
                got.append(message.body)
                if len(got) == 5:
                    break
                await mq.send(topic, b"%d" % len(got))
            assert got == [b"0", b"1", b"2", b"3", b"4"]

    run(backend, body)


@BACKENDS
def test_following_a_topic_sees_the_queues_that_it_gets_later(backend: str, namesrv: str, fresh: Names) -> None:
    """As on a new topic, whose queues come group by group: nobody waits for the next look at the route, 30 s later."""

    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq, mq.producer() as producer, mq.pull() as reader:
            await mq.admin.create_topic(topic, queues=1)
            first = await producer.send(trimq.Message(topic=topic, body=b"1"))
            messages = reader.iterate(topic, start=trimq.Start.LAST, follow=True)
            with anyio.fail_after(5), anyio.CancelScope() as reading:
                async with anyio.create_task_group() as tasks:

                    async def send() -> None:
                        await anyio.sleep(0.1)
                        await mq.admin.create_topic(topic, queues=2)
                        new = replace(first.queue, id=1)
                        await producer.send(trimq.Message(topic=topic, body=b"2"), queue=new)
                        await producer.send(trimq.Message(topic=topic, body=b"3"), queue=first.queue)

                    tasks.start_soon(send)
                    got = {(await anext(messages)).body for _ in range(2)}
            assert not reading.cancelled_caught
        assert got == {b"2", b"3"}

    run(backend, body)


@BACKENDS
def test_sending_the_same_message_twice_stores_it_once(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq, mq.producer() as producer:
            message = trimq.Message(topic=topic, body=b"x")
            first = await producer.send(message)
            second = await producer.send(message)
            assert not first.duplicate
            assert second.duplicate
            assert (first.queue, first.offset) == (second.queue, second.offset)

    run(backend, body)


@BACKENDS
def test_a_lost_connection_neither_loses_nor_doubles(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=4)
            async with mq.producer() as producer:

                async def send(start: int) -> None:
                    for number in range(start, start + 50):
                        await producer.send(trimq.Message(topic=topic, body=b"%d" % number))

                async with anyio.create_task_group() as tasks:
                    for worker in range(8):
                        tasks.start_soon(send, worker * 50)
                    for _ in range(10):
                        await anyio.sleep(0.01)
                        address = next(iter(mq.instance.routes.group("solo").all_addresses))
                        mq.instance.remoting.close_channel(address, "cut by the test")
                statistics = producer.statistics()
            async with mq.pull() as reader:
                await until_stored(reader, topic, 400)
                bodies = [message.body async for message in reader.iterate(topic)]
            assert sorted(bodies) == sorted(b"%d" % n for n in range(400))
            assert statistics.stored == 400

    run(backend, body)


async def until_stored(reader: trimq.PullConsumer, topic: str, count: int) -> None:
    with anyio.move_on_after(2):
        queues = await reader.queues(topic)
        while sum([(await reader.bounds(queue))[1] for queue in queues]) < count:  # noqa: ASYNC110  (as above)
            await anyio.sleep(0.01)


@BACKENDS
def test_a_filter_that_the_broker_cannot_evaluate_is_refused_at_once(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq:
            await mq.send(topic, b"x")
            with pytest.raises(trimq.errors.BadRequest, match="does not accept the filter"):
                async with mq.subscribe(topic, group=fresh("g"), filter=trimq.Sql("price > 10 AND")):
                    pass

    run(backend, body)


@BACKENDS
def test_a_condition_over_properties_selects_what_is_delivered(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with (
            trimq.connect(namesrv) as mq,
            mq.subscribe(topic, group=fresh("g"), filter=trimq.Sql("price > 10 AND colour IN ('red')")) as consumer,
        ):
            for price, colour in ((5, "red"), (11, "blue"), (12, "red"), (13, "red")):
                await mq.send(topic, b"%d" % price, properties={"price": str(price), "colour": colour})
            got = []
            async for message in consumer:
                async with message:
                    got.append(message.body)
                if len(got) == 2:
                    break
        assert sorted(got) == [b"12", b"13"]

    run(backend, body)


@BACKENDS
def test_a_replay_of_one_key_within_a_window_of_time(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq, mq.pull() as reader:
            end = datetime.now(UTC)
            for number in range(12):
                keys = ["it's", "k"] if number % 3 == 0 else ["k"]
                receipt = await mq.send(topic, b"%d" % number, keys=keys, tag="even" if number % 2 == 0 else "odd")
                if number == 8:
                    stored = await reader.read(receipt.queue, receipt.offset, max=1)
                    end = stored.messages[0].stored_at + timedelta(milliseconds=1)
                    await anyio.sleep(0.005)
            await until_stored(reader, topic, 12)
            every = [m.body async for m in reader.iterate(topic, key="it's")]
            window = [m.body async for m in reader.iterate(topic, key="it's", until=end)]
            even = [m.body async for m in reader.iterate(topic, key="it's", filter=trimq.Tag("even"))]
            none = [m.body async for m in reader.iterate(topic, key="it")]
        assert every == [b"0", b"3", b"6", b"9"]
        assert window == [b"0", b"3", b"6"]
        assert even == [b"0", b"6"]
        assert none == []

    run(backend, body)


@BACKENDS
def test_a_request_gets_the_reply_of_whoever_consumes_it(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("quotes")

        async def answer(request: trimq.Received) -> None:
            assert request.wants_reply
            await request.reply(request.body * 2, tag="ok", properties={"of": request.id})

        async with (
            trimq.connect(namesrv) as mq,
            trimq.connect(namesrv) as other,
            anyio.create_task_group() as tasks,
            other.subscribe(topic, group=fresh("g")) as requests,
        ):
            await tasks.start(requests.run, answer)
            reply = await mq.request(topic, "ping", tag="ask")
            assert (reply.body, reply.tag) == (b"pingping", "ok")
            assert reply.properties["of"]
            large = b"x" * 100_000
            assert (await mq.request(topic, large)).body == large * 2, "compressed on its way"
            replies = []

            async def ask(number: int) -> None:
                replies.append((number, (await mq.request(topic, b"%d," % number)).body))

            async with anyio.create_task_group() as many:
                for number in range(20):
                    many.start_soon(ask, number)
            assert sorted(replies) == [(number, b"%d,%d," % (number, number)) for number in range(20)]
            tasks.cancel_scope.cancel()

    run(backend, body)


@BACKENDS
def test_a_request_that_nobody_answers_ends_and_says_so(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        async with trimq.connect(namesrv, default_timeout=0.5) as mq, mq.pull() as reader:
            with pytest.raises(trimq.errors.NoReply, match="nobody answered"), own_time():
                await mq.request(fresh("quotes"), b"?")
            topic = fresh("t")
            receipt = await mq.send(topic, b"no request")
            (plain,) = (await reader.read(receipt.queue, 0)).messages
            assert not plain.wants_reply
            with pytest.raises(trimq.errors.BadRequest, match="nobody waits"):
                await plain.reply(b"!")

    run(backend, body)


@BACKENDS
def test_a_reply_to_a_client_that_is_gone_is_refused_in_time(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("quotes")
        async with trimq.connect(namesrv, default_timeout=0.5) as mq:
            with pytest.raises(trimq.errors.NoReply), own_time():
                await mq.request(topic, b"?")
        async with trimq.connect(namesrv, default_timeout=1) as mq, mq.pull() as reader:
            found = [message async for message in reader.iterate(topic)]
            with pytest.raises(trimq.errors.BrokerError, match="not found"), own_time():
                await found[0].reply(b"too late")

    run(backend, body)


@BACKENDS
def test_a_running_consumer_is_reset_skipped_and_cloned(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group, copy = fresh("t"), fresh("g"), fresh("h")
        got: list[bytes] = []

        async def take(message: trimq.Received) -> None:
            got.append(message.body)

        async with trimq.connect(namesrv) as mq, anyio.create_task_group() as tasks:
            await mq.admin.create_topic(topic, queues=1)
            async with mq.subscribe(topic, group=group, start=trimq.Start.FIRST) as consumer:
                await tasks.start(consumer.run, take)
                for number in range(6):
                    await mq.send(topic, b"%d" % number)
                await until(lambda: len(got) == 6)
                (queue,) = [queue for queue in consumer.assignment if queue.topic == topic]
                assert (await mq.admin.positions(group, topic))[mq.instance.client_id][queue] == 6
                assert await mq.admin.reset(group, topic, to=2, queue=queue) == {queue: 2}
                await until(lambda: len(got) == 10)
                assert got[6:] == [b"2", b"3", b"4", b"5"], "moved while it runs"
                assert await mq.admin.reset(group, topic, to=trimq.Start.FIRST) == {queue: 0}
                await until(lambda: len(got) == 16)
                consumer.pause()
                await anyio.sleep(0.05)
                for number in range(6, 9):
                    await mq.send(topic, b"%d" % number)
                assert await mq.admin.skip(group, topic) == {queue: 9}
                consumer.resume()
                await mq.send(topic, b"after")
                await until(lambda: b"after" in got)
                await consumer.commit()
                await mq.admin.clone(group, copy)
                lag = await mq.admin.lag(copy)
                assert [each.consumer_offset for each in lag.queues if each.queue == queue] == [10]
                with pytest.raises(trimq.errors.BrokerError, match="outside queue"):
                    await mq.admin.reset(group, topic, to=99, queue=queue)
            tasks.cancel_scope.cancel()

    run(backend, body)


@BACKENDS
def test_messages_are_found_tracked_and_consumed_again_on_demand(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        got: list[tuple[bytes, int]] = []

        async def take(message: trimq.Received) -> None:
            got.append((message.body, message.attempt))
            if message.body == b"bad" and len(got) > 2:
                raise ValueError("again")

        async with trimq.connect(namesrv) as mq, anyio.create_task_group() as tasks:
            async with mq.subscribe(topic, group=group, filter=trimq.Tag("a")) as consumer:
                await tasks.start(consumer.run, take)
                good = await mq.send(topic, b"good", tag="a", keys=["k1"])
                bad = await mq.send(topic, b"bad", tag="a", keys=["k1"])
                other = await mq.send(topic, b"other", tag="b")
                await until(lambda: len(got) == 2)
                await consumer.commit()
                found = await mq.admin.message(good.id, topic)
                assert found is not None
                assert (found.body, found.queue, found.offset) == (b"good", good.queue, good.offset)
                by_place = await mq.admin.message(good.offset_id)
                assert by_place is not None
                assert by_place.id == good.id
                assert await mq.admin.message("0" * 32, topic) is None
                assert [m.body for m in await mq.admin.find(topic, "k1")] == [b"bad", b"good"]
                assert await mq.admin.find(topic, "k2") == []
                (track,) = await mq.admin.track(found)
                assert (track.group, track.kind.name) == (group, "CONSUMED")
                client = mq.instance.client_id
                result = await mq.admin.consume_directly(group, client, found)
                assert (result.consumeResult, got[-1]) == ("CR_SUCCESS", (b"good", 1))
                failing = await mq.admin.message(bad.id, topic)
                assert failing is not None
                later = await mq.admin.consume_directly(group, client, failing)
                assert later.consumeResult == "CR_LATER"
                assert later.remark
                info = await mq.admin.running_info(group, client)
                assert info.properties["PROP_CONSUME_TYPE"] == "CONSUME_PASSIVELY"
                assert {mq_.topic for mq_ in info.queues} == {topic, f"%RETRY%{group}"}
                assert info.statuses[topic].consumeOKTPS > 0
                with pytest.raises(trimq.errors.BrokerError, match="not online"):
                    await mq.admin.consume_directly(group, "nobody", found)
                passed = await mq.admin.message(other.id, topic)
                assert passed is not None
                with anyio.fail_after(20):
                    while (await mq.admin.track(passed))[0].kind.name != "CONSUMED_BUT_FILTERED":
                        await mq.send(topic, b"on", tag="a")  # so that the queue of the other one is read on
                        await consumer.commit()
            tasks.cancel_scope.cancel()

    run(backend, body)


@BACKENDS
def test_topics_cluster_and_lag(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        async with trimq.connect(namesrv) as mq:
            made = await mq.admin.create_topic(topic, queues=3)
            assert made.queues == {"solo": 3}
            with anyio.fail_after(5):
                while topic not in [each.name for each in await mq.admin.topics()]:  # noqa: ASYNC110  (as above)
                    await anyio.sleep(0.01)
            assert [queue.id for queue in (await mq.admin.route(topic)).read_queues] == [0, 1, 2]
            (only,) = (await mq.admin.cluster()).groups
            assert only.name == "solo"
            assert only.leader is not None
            with pytest.raises(NoRoute, match="no such replica group: nowhere"):
                await mq.admin.create_topic(topic, groups=["nowhere"])
            with pytest.raises(NoRoute, match="no broker has the topic"):
                await mq.admin.route(fresh("missing"))
            async with mq.subscribe(topic, group=group):
                await mq.send(topic, b"x")
            with anyio.fail_after(5):
                while (await mq.admin.lag(group)).messages != 1:  # noqa: ASYNC110  (as above)
                    await anyio.sleep(0.01)

    run(backend, body)


@BACKENDS
@pytest.mark.parametrize("method", ["zlib", "lz4", "zstd"])
def test_the_producer_chooses_how_bodies_are_compressed(backend: str, method: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("large")
        text = b"all work and no play " * 10_000
        async with trimq.connect(namesrv) as mq, mq.producer(compression=method) as producer:  # type: ignore[arg-type]
            receipt = await producer.send(trimq.Message(topic=topic, body=text))
            whole = bytes(range(256)) * 16_384  # 4 MiB, the limit
            largest = await producer.send(trimq.Message(topic=topic, body=whole))
            async with mq.pull() as reader:
                for sent, wanted in ((receipt, text), (largest, whole)):
                    (message,) = (await reader.read(sent.queue, sent.offset, max=1)).messages
                    assert message.body == wanted
            with pytest.raises(BadRequest, match="more than 4,194,304"):
                await producer.send(trimq.Message(topic=topic, body=whole + b"x"))
            with pytest.raises(BadRequest, match="unknown compression"):
                async with mq.producer(compression="rar"):  # type: ignore[arg-type]
                    pass

    run(backend, body)
