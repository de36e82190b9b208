"""Our client library against Apache RocketMQ 4.9 and 5.x: the matrix that Apache's client runs against us.

Two masters and a name server, from Maven Central, on loopback. In the middle of each row one broker is killed (kill -9)
and comes back: Apache has no failover without more machinery, so our client goes to the other broker, or waits. Apache
does not know our sequences, so a send whose answer is lost may be stored twice: counted, not a failure.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

import trimq
from tests.interop.apache import Apache, apache
from tests.interop.bench import Found, bodies, compare, stored
from tests.interop.java_home import VERSIONS, NotToBeHad
from tests.interop.table import FAILED, NOT_TO_BE_HAD, PASSED, Row, record
from trimq import Message, Received, Sql, Start, Tag
from trimq.client.model import EVERYTHING
from trimq.errors import BadRequest, SendUnknown, TrimqError

CLIENT = "ours, at Apache RocketMQ"
DOWN_S = 2.0
pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


class At:
    """One row's place of work."""

    def __init__(self, servers: Apache, client: trimq.Client, producer: trimq.Producer, topic: str) -> None:
        self.servers = servers
        self.client = client
        self.producer = producer
        self.topic = topic
        self.group = f"{topic}-readers"
        self.kills = 0
        self.errors = 0

    async def outage(self) -> None:
        """broker-b dies and comes back."""
        self.kills += 1
        await trio.to_thread.run_sync(self.servers.kill, "broker-b")
        await trio.sleep(DOWN_S)
        await trio.to_thread.run_sync(self.servers.start, "broker-b")

    def message(self, number: int, *tags: str, **fields: Any) -> Message:  # Any: the fields of Message
        tag = tags[number % len(tags)] if tags else "TagA"
        properties = {"n": str(number)}
        return Message(
            topic=self.topic,
            body=f"body-{number}".encode(),
            tag=tag,
            keys=[f"key-{number}"],
            properties=properties,
            **fields,
        )

    async def until_stored(self, send: Callable[[], Awaitable[object]]) -> None:
        """Send until it is stored; count what the application would have seen."""
        while True:
            try:
                await send()
                return
            except TrimqError:
                self.errors += 1
                await trio.sleep(0.1)

    async def send_all(self, count: int, *tags: str, **fields: Any) -> None:
        """One by one, with an outage in the middle."""
        async with trio.open_nursery() as nursery:
            for number in range(count):
                if number == count // 2:
                    nursery.start_soon(self.outage)
                message = self.message(number, *tags, **fields)
                await self.until_stored(lambda message=message: self.producer.send(message))  # type: ignore[misc]

    async def found(self, count: int, *, lost: int | None = None) -> Found:
        """What was sent against what stands in the queues, those of a broker that is coming back too."""
        await trio.to_thread.run_sync(self.servers.wait_ready)
        there = await trio.to_thread.run_sync(stored, self.servers.namesrv, self.topic)
        found = Found(messages=count, errors=self.errors)
        compare(found, set(bodies(count)), there)
        if found.twice:
            found.notes.append(f"{found.twice} stored twice: Apache does not recognise a repeated send")
            found.twice = 0
        if lost is not None:
            found.lost = lost
        wrong = [b for b in there.bodies if there.keys[b] != (b.replace("body", "key"),) or there.tags[b] is None]
        found.expect(not wrong, f"{len(wrong)} messages with other keys or tags than sent")
        return found


async def until(holds: Callable[[], bool]) -> None:
    """Wait up to a minute: what does not come then is counted as lost."""
    with trio.move_on_after(60):
        while not holds():  # noqa: ASYNC110  (other tasks and another process make it true)
            await trio.sleep(0.1)


# --- sending


async def one_by_one(at: At) -> Found:
    await at.send_all(400)
    return await at.found(400)


async def batches(at: At) -> Found:
    async with trio.open_nursery() as nursery:
        for first in range(0, 400, 20):
            if first == 200:
                nursery.start_soon(at.outage)
            batch = [at.message(number) for number in range(first, first + 20)]
            await at.until_stored(lambda batch=batch: at.producer.send_batch(batch))  # type: ignore[misc]
    return await at.found(400)


async def stream(at: At) -> Found:
    """What a stream could not settle it tells at its end; a message of unknown outcome is sent again, as the same."""
    sent = {message.id: message for message in (at.message(number) for number in range(1000))}
    refused = 0
    async with trio.open_nursery() as nursery:
        try:
            async with at.producer.stream() as sending:
                for number, message in enumerate(sent.values()):
                    if number == 500:
                        nursery.start_soon(at.outage)
                    await sending.send(message)
        except ExceptionGroup as group:
            at.errors += len(group.exceptions)
            for error in group.exceptions:
                if isinstance(error, SendUnknown):
                    unknown = sent[error.id]
                    await at.until_stored(lambda unknown=unknown: at.producer.send(unknown))  # type: ignore[misc]
                elif isinstance(error, TrimqError):
                    refused += 1  # surely not stored, and the application was told
                else:
                    raise
    found = await at.found(1000)
    found.lost = max(0, found.lost - refused)
    return found


async def oneway(at: At) -> Found:
    count = 300
    for number in range(count):
        await at.producer.send_oneway(at.message(number))
        await trio.sleep(0.002)
    await trio.sleep(1)
    found = await at.found(count)
    if found.lost:
        found.notes.append(f"{found.lost} lost: a oneway send is not acknowledged")
        found.expect(found.lost < count // 2, "most oneway messages lost")
        found.lost = 0
    return found


async def ordered_sends(at: At) -> Found:
    async with trio.open_nursery() as nursery:
        for number in range(400):
            if number == 200:
                nursery.start_soon(at.outage)
            message = at.message(number, order_key=str(number % 5))
            await at.until_stored(lambda message=message: at.producer.send(message))  # type: ignore[misc]
    found = await at.found(400)
    there = await trio.to_thread.run_sync(stored, at.servers.namesrv, at.topic)
    last: dict[tuple[str, int, int], int] = defaultdict(lambda: -1)
    rising = True
    for queue, order in there.order.items():
        for body in dict.fromkeys(order):
            number = int(body.rpartition("-")[2])
            rising = rising and number > last[*queue, number % 5]
            last[*queue, number % 5] = number
    found.expect(rising, "messages of one key are not in order")
    return found


# --- consuming


def pushing(
    count: int,
    *,
    wanted: Callable[[int], bool] = lambda number: True,
    filter: trimq.Tag | trimq.Sql = EVERYTHING,
    tags: tuple[str, ...] = ("TagA",),
    readers: int = 1,
    **options: Any,
) -> Callable[[At], Awaitable[Found]]:
    """A push consumer (or several, broadcasting) and what it got of what was sent. Any: options of subscribe."""

    async def row(at: At) -> Found:
        got: list[Counter[str]] = [Counter() for _ in range(readers)]
        order: list[tuple[trimq.Queue, int]] = []
        expected = {f"body-{n}" for n in range(count) if wanted(n)}

        async def read(counter: Counter[str], *, task_status: trio.TaskStatus[None]) -> None:
            async def handle(message: Received) -> None:
                counter[message.body.decode()] += 1
                order.append((message.queue, message.offset))

            async with at.client.subscribe(
                at.topic, group=at.group, filter=filter, start=Start.FIRST, **options
            ) as consumer:
                await consumer.run(handle, task_status=task_status)

        async with trio.open_nursery() as nursery:
            for counter in got:
                await nursery.start(lambda *, counter=counter, task_status: read(counter, task_status=task_status))
            await at.send_all(count, *tags)
            await until(lambda: not (any(expected - set(counter) for counter in got)))
            nursery.cancel_scope.cancel()
        lost = sum(len(expected - set(counter)) for counter in got)
        found = await at.found(count, lost=lost)
        strange = set().union(*got) - expected
        found.expect(not strange, f"{len(strange)} messages that the filter leaves out")
        repeated = sum(counter.total() - len(counter) for counter in got)
        if repeated:
            found.notes.append(f"{repeated} delivered again")
        if options.get("ordered"):
            newest: dict[trimq.Queue, int] = defaultdict(lambda: -1)
            for queue, offset in order:
                found.expect(offset <= newest[queue] + 1, f"{queue}: {offset} after {newest[queue]}")
                newest[queue] = max(newest[queue], offset)
        return found

    return row


async def retries(at: At) -> Found:
    count, attempts = 40, defaultdict[str, set[int]](set)

    async def handle(message: Received) -> None:
        attempts[message.body.decode()].add(message.attempt)
        if message.attempt == 1:
            await message.retry(timedelta(seconds=2))

    async with (
        trio.open_nursery() as nursery,
        at.client.subscribe(at.topic, group=at.group, start=Start.FIRST) as consumer,
    ):
        await nursery.start(consumer.run, handle)
        await at.send_all(count)
        await until(lambda: not (sum(2 in seen for seen in attempts.values()) < count))
        nursery.cancel_scope.cancel()
    return await at.found(count, lost=count - sum(2 in seen for seen in attempts.values()))


async def dead_letters(at: At) -> Found:
    count = 30

    async def handle(message: Received) -> None:
        await message.dead_letter("no use")

    async with (
        trio.open_nursery() as nursery,
        at.client.subscribe(at.topic, group=at.group, start=Start.FIRST) as consumer,
    ):
        await nursery.start(consumer.run, handle)
        await at.send_all(count)
        dead: set[str] = set()
        with trio.move_on_after(60):
            while len(dead) < count:
                await trio.sleep(0.5)
                try:
                    there = await trio.to_thread.run_sync(stored, at.servers.namesrv, f"%DLQ%{at.group}")
                except TrimqError:
                    continue  # it is created with the first dead letter
                dead = there.bodies
        nursery.cancel_scope.cancel()
    return await at.found(count, lost=count - len(dead & set(bodies(count))))


async def assigned(at: At) -> Found:
    """Assign, poll, commit, and read the last half again after a seek."""
    count = 400
    await at.send_all(count)
    async with at.client.pull(at.group) as consumer:
        queues = await consumer.queues(at.topic)
        await consumer.assign(dict.fromkeys(queues, Start.FIRST))
        got = await _polled(consumer, count)
        await consumer.commit()
        committed = {queue: await consumer.committed(queue) for queue in queues}
        ends = {queue: (await consumer.bounds(queue))[1] for queue in queues}
        for queue in queues:
            await consumer.seek(queue, ends[queue] // 2)
        again = await _polled(consumer, sum(end - end // 2 for end in ends.values()))
    found = await at.found(count, lost=len(set(bodies(count)) - set(got)))
    found.expect(committed == ends, "what was committed is not what is told")
    found.expect(len(again) == sum(end - end // 2 for end in ends.values()), "a seek did not go back")
    return found


async def _polled(consumer: trimq.PullConsumer, count: int) -> list[str]:
    """Until so many different ones came: a broker that has just started may send some again."""
    got: dict[str, None] = {}
    with trio.move_on_after(60):
        while len(got) < count:
            got |= dict.fromkeys(message.body.decode() for message in await consumer.poll(max=64, wait=2))
    return list(got)


async def by_time(at: At) -> Found:
    count = 60
    for number in range(count // 2):
        await at.producer.send(at.message(number))
    await trio.sleep(0.5)
    middle = datetime.now(UTC)
    await trio.sleep(0.5)
    for number in range(count // 2, count):
        await at.producer.send(at.message(number))
    await trio.sleep(1)
    late: list[str] = []
    async with at.client.pull() as consumer:
        async for message in consumer.iterate(at.topic, start=middle):
            late.append(message.body.decode())
    found = await at.found(count, lost=len({f"body-{n}" for n in range(count // 2, count)} - set(late)))
    found.expect(len(late) == count // 2, f"{len(late)} messages at or after a time instead of {count // 2}")
    return found


async def delays(at: At) -> Found:
    return await _delayed(at, 3.9, 60, level=6)


async def timer(at: At) -> Found:
    return await _delayed(at, 3.0, 60, when=datetime.now(UTC) + timedelta(seconds=6))


async def refused(at: At) -> Found:
    """A 4.9 broker would deliver at once what shall come later: our client says so, and nothing is stored."""
    found = Found()
    for fields in ({"at": datetime.now(UTC) + timedelta(seconds=6)}, {"delay": timedelta(seconds=6)}):
        with pytest.raises(BadRequest, match="use delay_level"):
            await at.producer.send(at.message(0, **fields))
    async with at.client.pull() as reader:
        stored = [message async for message in reader.iterate(at.topic)]
    found.expect(not stored, f"{len(stored)} stored")
    found.notes.append("refused by our client: 4.9 knows no times, it would deliver at once")
    return found


async def _delayed(
    at: At, least_s: float, count: int, *, level: int | None = None, when: datetime | None = None
) -> Found:
    waits: dict[str, float] = {}
    begun: dict[str, float] = {}

    async def handle(message: Received) -> None:
        waits.setdefault(message.body.decode(), trio.current_time() - begun[message.body.decode()])

    async with (
        trio.open_nursery() as nursery,
        at.client.subscribe(at.topic, group=at.group, start=Start.FIRST) as consumer,
    ):
        await nursery.start(consumer.run, handle)
        for number in range(count):
            begun[f"body-{number}"] = trio.current_time()
            message = at.message(number, delay_level=level, at=when)
            await at.until_stored(lambda message=message: at.producer.send(message))  # type: ignore[misc]
        await until(lambda: not (len(waits) < count))
        nursery.cancel_scope.cancel()
    found = await at.found(count, lost=count - len(waits))
    found.expect(bool(waits) and min(waits.values()) >= least_s, "delivered before its time")
    if waits:
        found.notes.append(f"delivered after {min(waits.values()):.1f} to {max(waits.values()):.1f} s")
    return found


FEATURES: dict[str, Callable[[At], Awaitable[Found]]] = {
    "send one by one": one_by_one,
    "send batch": batches,
    "send stream": stream,
    "send oneway": oneway,
    "send with order keys": ordered_sends,
    "push": pushing(400),
    "push, ordered": pushing(400, ordered=True),
    "push, broadcast": pushing(200, mode="broadcast"),
    "push, tags": pushing(300, wanted=lambda n: n % 3 != 1, filter=Tag("TagA || TagC"), tags=("TagA", "TagB", "TagC")),
    "push, SQL92 filter": pushing(300, wanted=lambda n: 10 <= n < 200, filter=Sql("n BETWEEN 10 AND 199")),
    "push, retries": retries,
    "push, dead letters": dead_letters,
    "pull, assign, seek, commit": assigned,
    "replay from a time": by_time,
    "delay levels": delays,
    "timer messages": timer,
}
OLDER: dict[str, Callable[[At], Awaitable[Found]]] = {"timer messages": refused}
"""What another answer is right for at 4.9."""
ROWS = [(m, f) for m in ("server4", "server5") for f in FEATURES]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Apache]]:
    with ExitStack() as stack:
        made: dict[str, Apache] = {}

        def of(module: str) -> Apache:
            if module not in made:
                stack.close()
                made.clear()
                home = tmp_path_factory.mktemp(module)
                stack.callback(shutil.rmtree, home, ignore_errors=True)
                made[module] = stack.enter_context(apache(module, home))
            return made[module]

        yield of


@pytest.mark.parametrize(("module", "feature"), ROWS)
def test_our_client_at_apache(module: str, feature: str, servers: Callable[[str], Apache]) -> None:
    try:
        running = servers(module)
    except NotToBeHad as reason:
        record(Row(client=CLIENT, version=VERSIONS[module], feature=feature, result=NOT_TO_BE_HAD, note=str(reason)))
        pytest.skip(str(reason))
    running.wait_ready()
    topic = f"T{ROWS.index((module, feature))}"
    kills = 0

    async def main() -> Found:
        nonlocal kills
        async with trimq.connect(running.namesrv) as client, client.producer("PRODUCERS") as producer:
            await client.admin.create_topic(topic, queues=4)
            at = At(running, client, producer, topic)
            try:
                return await ({**FEATURES, **OLDER} if module == "server4" else FEATURES)[feature](at)
            finally:
                kills = at.kills

    found = Found()
    try:
        found = trio.run(main)
    except BaseException as problem:
        found.problems.append(f"{type(problem).__name__}: {problem}".partition("\n")[0])
        raise
    finally:
        found.expect(found.lost == 0, f"{found.lost} lost")
        record(
            Row(
                client=CLIENT,
                version=VERSIONS[module],
                feature=feature,
                result=FAILED if found.problems else PASSED,
                messages=found.messages,
                kills=kills,
                lost=found.lost,
                twice=found.twice,
                errors=found.errors,
                note="; ".join((*found.problems, *found.notes)),
            )
        )
    assert not found.problems, found.problems
