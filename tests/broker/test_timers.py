"""Delivery at any time: on time, once, moved on when far, recalled, listed, kept by retention; by frames."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from broker.metadata.ops import key_of
from broker.metadata.timers import NOTHING_DONE, QueueDone
from broker.runtime import Replica
from broker.service.timer_slot import OpenSlot
from broker.service.wheel import FAR_QUEUE, SLOT_MS, SLOTS, Wheel, slot_of
from tests.broker.cluster import open_cluster
from tests.broker.support import START_MS, LoopClock, User, World, drained, open_local, open_user
from trimq.message.model import MessageExt
from trimq.wire.body.timers import TimerList
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.timer import ListTimersHeader, RecallHeader

wall_ms = LoopClock().wall_ms
asynchronous = pytest.mark.trio


def waiting_end(replica: Replica, topic: str, queue: int = 0) -> int:
    info = replica.state.topics.get(topic.encode())
    return 0 if info is None else replica.store.queues.next_offset(key_of(info.tid, queue))


async def send_timed(user: User, body: bytes, *, topic: str = "T", id: str = "", **props: str) -> Command:
    answer = await user.send(topic, body, props={**props, **({"UNIQ_KEY": id} if id else {})})
    assert answer.code == 0, answer
    return answer


async def recall(user: User, handle: str, topic: str = "T") -> Command:
    return await user.ask(RequestCode.RECALL_MESSAGE, RecallHeader(topic=topic, recall_handle=handle).to_ext())


async def listed(user: User, topic: str = "", page: int = 256) -> tuple[list[tuple[str, int]], int]:
    found: list[tuple[str, int]] = []
    after = ""
    while True:
        header = ListTimersHeader(topic=topic, max_num=page, after=after)
        answer = await user.ask(RequestCode.LIST_TIMERS, header.to_ext())
        assert answer.code == 0, answer
        body = TimerList.from_json(answer.body)
        found += [(each.msgId, each.dueMs) for each in body.messages]
        after = answer.ext.get("next", "")
        if not after:
            return found, body.waiting


def due_of(message: MessageExt) -> int:
    return int(message.properties["TIMER_OUT_MS"])


# --- on time


@asynchronous
@pytest.mark.parametrize("key", ["TIMER_DELAY_MS", "TIMER_DELAY_SEC", "TIMER_DELIVER_MS", "__STARTDELIVERTIME"])
async def test_a_message_is_delivered_at_its_time(autojump_clock: MockClock, key: str) -> None:
    async with open_local() as (replica, user, _world):
        await user.send("T", b"plain")
        began = wall_ms()
        value = {"TIMER_DELAY_MS": 7_000, "TIMER_DELAY_SEC": 7}.get(key, began + 7_000)
        answer = await send_timed(user, b"later", **{key: str(value)}, TAGS="A", KEYS="k")
        assert answer.ext["queueId"] == "0"
        await trio.sleep(6.9)
        assert waiting_end(replica, "T") == 1
        (message,) = await drained(user, "T", 0, 2, start=1)
        assert (message.body, message.tag, message.keys) == (b"later", "A", ("k",))
        assert due_of(message) - began in range(7_000, 7_020)
        assert 0 <= message.store_ms - due_of(message) < 50
        assert "REAL_TOPIC" not in message.properties


@asynchronous
async def test_what_is_due_already_is_a_plain_message(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for value in (0, wall_ms(), wall_ms() - 5):
            await send_timed(user, b"now", TIMER_DELIVER_MS=str(value))
        assert len(await drained(user, "T", 0, 3)) == 3


@asynchronous
async def test_many_come_in_order_of_their_times_and_none_early(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        rng = random.Random(7)
        for number in range(200):
            await send_timed(user, b"%d" % number, id=f"U{number}", TIMER_DELAY_MS=str(rng.randrange(1, 40_000)))
        assert (await listed(user, page=64))[1] == 200
        await trio.sleep(41)
        messages = await drained(user, "T", 0, 200)
        assert sorted(int(message.body) for message in messages) == list(range(200))
        dues = [due_of(message) for message in messages]
        assert dues == sorted(dues)
        late = [message.store_ms - due_of(message) for message in messages]
        assert min(late) >= 0
        assert max(late) < 100, late
        assert replica.parts.counters.timers_delivered == 200
        assert await listed(user) == ([], 0)


@asynchronous
async def test_a_delay_level_comes_before_a_time(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        await send_timed(user, b"x", DELAY="1", TIMER_DELAY_SEC="100")
        await trio.sleep(1.5)
        (message,) = await drained(user, "T", 0, 1)
        assert "TIMER_DELAY_SEC" not in message.properties
        assert replica.parts.counters.delayed_delivered == 1


@asynchronous
@pytest.mark.parametrize(
    ("props", "code", "words"),
    [
        ({"TIMER_DELAY_SEC": "99999999999"}, ResponseCode.MESSAGE_ILLEGAL, "timerMaxDelaySec of 157680000 s"),
        ({"TIMER_DELIVER_MS": "tomorrow"}, ResponseCode.MESSAGE_ILLEGAL, "no number of milliseconds since 1970"),
        ({"TIMER_DELAY_MS": "-5"}, ResponseCode.MESSAGE_ILLEGAL, "no number of milliseconds"),
    ],
)
async def test_times_that_cannot_be_kept_are_refused(
    autojump_clock: MockClock, props: dict[str, str], code: int, words: str
) -> None:
    async with open_local() as (_, user, _world):
        answer = await user.send("T", b"x", props=props)
        assert answer.code == code
        assert words in (answer.remark or "")


@asynchronous
async def test_timers_may_be_switched_off(autojump_clock: MockClock) -> None:
    async with open_local(timers=False, recall=False) as (_, user, _world):
        answer = await user.send("T", b"x", props={"TIMER_DELAY_SEC": "5"})
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert "timerWheelEnable" in (answer.remark or "")
        assert (await recall(user, "any")).code == ResponseCode.NO_PERMISSION
        assert (await user.send("rmq_sys_wheel_timer", b"x")).code == ResponseCode.NO_PERMISSION


@asynchronous
async def test_a_repeated_send_of_a_foreign_client_waits_once(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        first = await send_timed(user, b"x", id="U1", TIMER_DELAY_SEC="5")
        await trio.sleep(0.5)  # another due time now, and its client picks another queue
        props = {"TIMER_DELAY_SEC": "5", "UNIQ_KEY": "U1"}
        again = await user.send("T", b"x", queue=1, props=props)
        assert (again.code, again.ext["dup"], again.ext["msgId"]) == (0, "1", first.ext["msgId"])
        assert (await listed(user))[1] == 1


# --- far


@asynchronous
async def test_a_far_message_is_moved_on_and_comes_once(autojump_clock: MockClock) -> None:
    async with open_local(timer_roll_s=5) as (replica, user, _world):
        began = wall_ms()
        await send_timed(user, b"far", id="U1", TIMER_DELAY_SEC="100")
        assert await listed(user, "T") == ([("U1", began + 100_000)], 1)
        await trio.sleep(99)
        assert waiting_end(replica, "T") == 0
        assert replica.state.timers.done(FAR_QUEUE).start == waiting_end(replica, "rmq_sys_wheel_timer", FAR_QUEUE) > 10
        (message,) = await drained(user, "T", 0, 1)
        assert message.body == b"far"
        assert 0 <= message.store_ms - began - 100_000 < 100
        assert int(message.properties["TIMER_ROLL_TIMES"]) in range(16, 21)
        await trio.sleep(20)
        assert waiting_end(replica, "T") == 1


def test_the_wheel_puts_what_is_near_into_its_slot_and_the_rest_far() -> None:
    wheel = Wheel(roll_ms=60_000)
    assert wheel.queue_for(START_MS + 60_000, START_MS) == 1 + slot_of(START_MS + 60_000) % SLOTS
    assert wheel.queue_for(START_MS + 60_001, START_MS) == FAR_QUEUE
    assert Wheel().roll_ms < (SLOTS - 2) * SLOT_MS


# --- recall and list


@asynchronous
async def test_a_recalled_message_is_not_delivered(autojump_clock: MockClock) -> None:
    async with open_local(timer_roll_s=6) as (replica, user, _world):
        near = (await send_timed(user, b"near", id="N", TIMER_DELAY_SEC="5")).ext["recallHandle"]
        far = (await send_timed(user, b"far", id="F", TIMER_DELAY_SEC="30")).ext["recallHandle"]
        await send_timed(user, b"stays", id="S", TIMER_DELAY_SEC="5")
        assert (await recall(user, near)).ext["msgId"] == "N"
        await trio.sleep(10)  # the far one was moved on by now
        assert (await recall(user, far)).code == 0
        again = await recall(user, far)
        assert again.code == ResponseCode.ILLEGAL_OPERATION
        assert "does not wait" in (again.remark or "")
        await trio.sleep(30)
        assert [message.body for message in await drained(user, "T", 0, 1)] == [b"stays"]
        assert waiting_end(replica, "T") == 1
        assert not replica.state.timers.cancelled
        assert await listed(user) == ([], 0)


@asynchronous
async def test_a_recall_that_comes_too_late_is_told_so(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        handle = (await send_timed(user, b"x", id="U", TIMER_DELAY_SEC="5")).ext["recallHandle"]
        await trio.sleep(6)
        assert (await recall(user, handle)).code == ResponseCode.ILLEGAL_OPERATION
        for bad in ("", "!!", "djEgYQ=="):
            assert (await recall(user, bad)).code != 0
        other = await recall(user, handle, topic="Other")
        assert "not of Other here" in (other.remark or "")


@asynchronous
async def test_a_send_may_cancel_too(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        for number in range(2):
            await send_timed(user, b"x", id=f"U{number}", TIMER_DELAY_SEC="5")
        for key in ("U0", "T+U1"):
            answer = await user.send("T", b"", props={"TIMER_DEL_UNIQKEY": key, "TIMER_DELAY_SEC": "5"})
            assert answer.code == 0, answer
        again = await user.send("T", b"", props={"TIMER_DEL_UNIQKEY": "U0", "TIMER_DELAY_SEC": "5"})
        assert again.code == ResponseCode.MESSAGE_ILLEGAL
        assert "does not wait" in (again.remark or "")
        await trio.sleep(8)
        assert waiting_end(replica, "T") == 0


@asynchronous
async def test_listing_names_what_waits_by_topic_and_in_pages(autojump_clock: MockClock) -> None:
    async with open_local(timer_roll_s=3_000) as (_, user, _world):
        began = wall_ms()
        wanted = []
        for number in range(40):
            delay = 1 + number * 120
            await send_timed(user, b"x", topic=f"T{number % 2}", id=f"U{number:02}", TIMER_DELAY_SEC=str(delay))
            wanted.append((f"U{number:02}", delay))
        for page in (7, 1000):
            found, total = await listed(user, "T1", page)
            assert [id for id, _ in sorted(found, key=lambda each: each[1])] == [id for id, _ in wanted[1::2]]
            assert all(due - began >= dict(wanted)[id] * 1000 for id, due in found)
            assert total == 40
        bad = await user.ask(RequestCode.LIST_TIMERS, ListTimersHeader(after="x").to_ext())
        assert bad.code == ResponseCode.INVALID_PARAMETER


# --- through failures


@asynchronous
async def test_a_restart_in_the_midst_of_a_slot_repeats_nothing(autojump_clock: MockClock) -> None:
    world = World()
    count = 40
    async with open_local(world) as (_, user, _):
        for number in range(count):
            # Not in the order in which they are due.
            await send_timed(user, b"%d" % number, TIMER_DELAY_SEC=str(5 + number * 7 % count))
        await trio.sleep(20)
    await trio.sleep(10)
    async with open_local(world) as (replica, user, _):
        await trio.sleep(30)
        messages = await drained(user, "T", 0, count)
        assert sorted(int(message.body) for message in messages) == list(range(count))
        assert waiting_end(replica, "T") == count


@asynchronous
async def test_leaders_die_and_each_comes_once_and_none_early(autojump_clock: MockClock) -> None:
    async with open_cluster(timer_roll_s=10) as cluster:
        count = 40
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            for number in range(count):
                answer = await send_timed(
                    user, b"%d" % number, id=f"U{number}", TIMER_DELAY_MS=str(3_000 + number * 300)
                )
                if number % 10 == 9:
                    assert (await recall(user, answer.ext["recallHandle"])).code == 0
        for _ in range(2):
            await trio.sleep(4)
            await leader.kill()
            following = await cluster.ready()
            await leader.start()
            leader = following
        await trio.sleep(6)
        kept = [number for number in range(count) if number % 10 != 9]
        async with open_user(cluster.world, leader.replica().address) as user:
            messages = await drained(user, "T", 0, len(kept))
        assert sorted(int(message.body) for message in messages) == kept
        assert all(message.store_ms >= due_of(message) for message in messages)
        assert waiting_end(leader.replica(), "T") == len(kept)


@asynchronous
async def test_retention_spares_what_waits(autojump_clock: MockClock) -> None:
    async with open_local(reserved_s=5, delay_levels_ms=(140_000,)) as (replica, user, _world):
        await send_timed(user, b"kept", id="U", TIMER_DELAY_SEC="100")
        await send_timed(user, b"level", DELAY="1")
        body = bytes(2 << 20)
        for _ in range(20):
            await user.send("T2", body)
        await trio.sleep(90)
        assert replica.store.log.first_position == 0
        await trio.sleep(15)
        assert [message.body for message in await drained(user, "T", 0, 1)] == [b"kept"]
        assert replica.store.log.first_position == 0  # the delay level still needs it
        await trio.sleep(40)
        assert [message.body for message in await drained(user, "T", 0, 2, start=1)] == [b"level"]
        await trio.sleep(75)
        assert replica.store.log.first_position > 0


# --- the open slot


@given(st.data())
def test_a_slot_gives_what_is_due_in_order_whatever_comes_meanwhile(data: st.DataObject) -> None:
    base = 1_000 * SLOT_MS
    first = data.draw(st.integers(0, 1 << 33))
    done = data.draw(st.sampled_from([NOTHING_DONE, QueueDone(first, base + 400, first + 2)]))
    slot = OpenSlot(1_000, first, done)
    expected: list[tuple[int, int]] = []
    got: list[tuple[int, int]] = []
    now = 0
    for _ in range(data.draw(st.integers(1, 8))):
        dues = data.draw(st.lists(st.integers(now, SLOT_MS - 1), max_size=12))
        offset = slot.seen
        slot.add([word for due in dues for word in (0, 0, base + due)])
        places = [(base + due, offset + number) for number, due in enumerate(dues)]
        expected += [place for place in places if place > (done.due_ms, done.offset)]
        now = data.draw(st.integers(now, SLOT_MS - 1))
        taken = slot.take(base + now, data.draw(st.integers(1, 30)))
        back = data.draw(st.integers(0, len(taken)))
        slot.put_back(taken[len(taken) - back :])
        got += taken[: len(taken) - back]
        assert all(due <= base + now for due, _ in taken)
        assert taken == sorted(taken)
    slot.add([0, 0, base + SLOT_MS])
    assert slot.full
    got += slot.take(base + SLOT_MS, 1_000)
    assert sorted(got) == sorted(expected)
    assert len(slot) == 0
    assert slot.next_due() is None
