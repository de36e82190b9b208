"""Transactions by frames: what is visible when, who is asked, and what a repeated or contradicting end is told."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.metadata.transaction_ops import End
from tests.broker.cluster import open_cluster
from tests.broker.support import START_MS, User, World, drained, messages, open_local, open_user
from trimq.message.ids import offset_message_id, parse_offset_message_id
from trimq.message.model import decode_messages
from trimq.message.sysflag import TRANSACTION_COMMIT, TRANSACTION_MASK, TRANSACTION_PREPARED
from trimq.wire.body.heartbeat import HeartbeatData, ProducerData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.transaction import CheckTransactionHeader, EndTransactionHeader, ResumeCheckHeader

pytestmark = pytest.mark.trio

COMMIT, ROLLBACK, UNKNOWN = 8, 12, 0
HALF = "RMQ_SYS_TRANS_HALF_TOPIC"


async def send_half(
    user: User, topic: str, body: bytes, *, queue: int = 1, group: str = "pay", id: str = "U1", **more: str
) -> Command:
    props = {"TRAN_MSG": "true", "PGROUP": group, "UNIQ_KEY": id, **more}
    answer = await user.send(topic, body, queue=queue, props=props, sys_flag=TRANSACTION_PREPARED, producer_group=group)
    assert answer.code == 0, answer
    return answer


async def end(
    user: User, half: Command, how: int, *, group: str = "pay", checked: bool = False, shift: int = 0
) -> Command:
    header = EndTransactionHeader(
        producer_group=group,
        tran_state_table_offset=int(half.ext["queueOffset"]) + shift,
        commit_log_offset=parse_offset_message_id(half.ext["msgId"])[1],
        commit_or_rollback=how,
        from_transaction_check=checked,
        msg_id=half.ext.get("transactionId", ""),
    )
    return await user.ask(RequestCode.END_TRANSACTION, header.to_ext())


async def be_producer(user: User, group: str) -> None:
    data = HeartbeatData(clientID=f"c-{group}", producerDataSet=[ProducerData(groupName=group)])
    assert (await user.ask(RequestCode.HEART_BEAT, body=data.to_json())).code == 0


def checks(user: User) -> list[Command]:
    return [notice for notice in user.notices if notice.code == RequestCode.CHECK_TRANSACTION_STATE]


async def test_a_half_message_is_invisible_until_it_is_committed(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"plain", queue=1)
        half = await send_half(user, "T", b"paid", TAGS="A", KEYS="k")
        # The answer describes the half message, but names the queue that was asked for.
        assert (half.ext["queueId"], half.ext["queueOffset"], half.ext["transactionId"]) == ("1", "0", "U1")
        assert len(messages(await user.pull("T", 1, 0))) == 1
        assert (await end(user, half, UNKNOWN)).code == 0
        assert len(messages(await user.pull("T", 1, 0))) == 1
        answer = await end(user, half, COMMIT)
        assert (answer.code, answer.ext["queueId"], answer.ext["queueOffset"]) == (0, "1", "1")
        (message,) = await drained(user, "T", 1, 2, start=1)
        assert (message.body, message.topic, message.queue_id) == (b"paid", "T", 1)
        assert message.sys_flag & TRANSACTION_MASK == TRANSACTION_COMMIT
        assert message.prepared_offset == parse_offset_message_id(half.ext["msgId"])[1]
        assert message.properties["TAGS"] == "A"
        assert (message.properties["TRAN_MSG"], message.properties["REAL_TOPIC"]) == ("true", "T")
        assert message.born_ms == START_MS
        (stored,) = await drained(user, HALF, 0, 1)
        assert (stored.sys_flag & TRANSACTION_MASK, stored.properties["REAL_QID"]) == (0, "1")


async def test_a_rolled_back_message_is_never_seen(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        half = await send_half(user, "T", b"no")
        assert (await end(user, half, ROLLBACK)).code == 0
        assert (await user.pull("T", 1, 0)).code == ResponseCode.PULL_NOT_FOUND
        assert not replica.state.transactions.open


async def test_an_end_that_is_repeated_changes_nothing_and_a_contradiction_is_told(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        half = await send_half(user, "T", b"once")
        first = await end(user, half, COMMIT)
        again = await end(user, half, COMMIT)
        assert again.code == 0
        place = ("queueId", "queueOffset", "msgId")
        assert [again.ext[name] for name in place] == [first.ext[name] for name in place]
        refused = await end(user, half, ROLLBACK)
        assert refused.code == ResponseCode.SYSTEM_ERROR
        assert "was committed before" in (refused.remark or "")
        assert replica.store.queues.next_offset(replica.state.topics.by_name[b"T"].tid << 16 | 1) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [({"group": "other"}, "of another group"), ({"shift": 1}, "queue offset 0, not 1")],
)
async def test_an_end_must_fit_its_half_message(
    autojump_clock: MockClock, change: dict[str, object], words: str
) -> None:
    async with open_local() as (_, user, _world):
        half = await send_half(user, "T", b"x")
        answer = await end(user, half, COMMIT, **change)  # type: ignore[arg-type]  # one of the keywords
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert words in (answer.remark or "")
        half.ext["msgId"] = half.ext["msgId"][:16] + f"{1 << 40:016X}"
        lost = await end(user, half, COMMIT)
        assert lost.code == ResponseCode.SYSTEM_ERROR
        assert "no half message at position" in (lost.remark or "")


async def test_the_producer_group_is_asked_about_what_stays_undecided(autojump_clock: MockClock) -> None:
    async with open_local(transaction_timeout_ms=2_000, transaction_check_interval_ms=1_000) as (replica, user, world):
        half = await send_half(user, "T", b"who knows", KEYS="k")
        async with open_user(world, replica.address) as other:
            await trio.sleep(5)
            assert not checks(user)
            assert not checks(other)
            await be_producer(other, "pay")
            await trio.sleep(3)
            asked = checks(other)
            assert asked
            assert not checks(user)
            header = CheckTransactionHeader.from_ext(asked[0].ext)
            assert header.tran_state_table_offset == int(half.ext["queueOffset"])
            assert header.offset_msg_id == half.ext["msgId"]
            assert (header.msg_id, header.transaction_id, header.topic) == ("U1", "U1", HALF)
            (shown,) = decode_messages(asked[0].body)
            assert (shown.topic, shown.queue_id, shown.body) == ("T", 1, b"who knows")
            assert (await end(other, half, COMMIT, checked=True)).code == 0
            await drained(user, "T", 1, 1)
            seen = len(checks(other))
            await trio.sleep(5)
            assert len(checks(other)) == seen


async def test_after_the_last_check_it_is_given_up_and_can_be_resumed(autojump_clock: MockClock) -> None:
    quick = {"transaction_timeout_ms": 1_000, "transaction_check_interval_ms": 1_000}
    async with open_local(None, **quick, transaction_check_max=3) as (replica, user, _world):
        await be_producer(user, "pay")
        half = await send_half(user, "T", b"never")
        await trio.sleep(20)
        assert len(checks(user)) == 3
        assert not replica.state.transactions.open
        (copy,) = await drained(user, "TRANS_CHECK_MAX_TIME_TOPIC", 0, 1)
        assert (copy.body, copy.properties["TRANSACTION_CHECK_TIMES"]) == (b"never", "3")
        late = await end(user, half, COMMIT)
        assert "was given up" in (late.remark or "")
        resume = ResumeCheckHeader(msg_id=offset_message_id(copy.store_host, copy.position))
        assert (await user.ask(RequestCode.RESUME_CHECK_HALF_MESSAGE, resume.to_ext())).code == 0
        await trio.sleep(2)
        header = CheckTransactionHeader.from_ext(checks(user)[-1].ext)
        assert header.tran_state_table_offset == 1
        again = Command(code=0, ext={"queueOffset": "1", "msgId": header.offset_msg_id})
        assert (await end(user, again, COMMIT, checked=True)).code == 0
        assert [message.body for message in await drained(user, "T", 1, 1)] == [b"never"]


async def test_immunity_delays_the_check_and_then_only_a_check_decides(autojump_clock: MockClock) -> None:
    async with open_local(transaction_timeout_ms=1_000, transaction_check_interval_ms=1_000) as (_, user, _world):
        await be_producer(user, "pay")
        half = await send_half(user, "T", b"x", CHECK_IMMUNITY_TIME_IN_SECONDS="10")
        await trio.sleep(9)
        assert not checks(user)
        await trio.sleep(4)
        assert checks(user)
        assert (await end(user, half, COMMIT)).code == ResponseCode.ILLEGAL_OPERATION
        assert (await end(user, half, COMMIT, checked=True)).code == 0
        props = {"TRAN_MSG": "true", "PGROUP": "pay", "CHECK_IMMUNITY_TIME_IN_SECONDS": "9999999"}
        refused = await user.send("T", b"x", props=props)
        assert refused.code == ResponseCode.MESSAGE_ILLEGAL
        assert "0 to 259200" in (refused.remark or "")


async def test_half_messages_may_be_switched_off(autojump_clock: MockClock) -> None:
    async with open_local(reject_transactions=True) as (_, user, _world):
        answer = await user.send("T", b"x", props={"TRAN_MSG": "true", "PGROUP": "pay"})
        assert answer.code == ResponseCode.NO_PERMISSION


async def test_a_committed_message_may_be_delayed(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        half = await send_half(user, "T", b"later", DELAY="2")
        assert (await end(user, half, COMMIT)).code == 0
        await trio.sleep(4)
        assert (await user.pull("T", 1, 0)).code == ResponseCode.PULL_NOT_FOUND
        await trio.sleep(2)
        assert [message.body for message in await drained(user, "T", 1, 1)] == [b"later"]


async def test_open_halves_and_decisions_survive_a_restart(autojump_clock: MockClock) -> None:
    world = World()
    async with open_local(world) as (_, user, _):
        undecided = await send_half(user, "T", b"open", id="U1")
        decided = await send_half(user, "T", b"done", id="U2")
        first = await end(user, decided, COMMIT)
    async with open_local(world) as (replica, user, _):
        assert list(replica.state.transactions.open) == [0]
        assert replica.state.transactions.ended[1].end is End.COMMIT
        assert (await end(user, decided, COMMIT)).ext["queueOffset"] == first.ext["queueOffset"]
        assert (await end(user, undecided, COMMIT)).code == 0
        bodies = [message.body for message in await drained(user, "T", 1, 2)]
        assert bodies == [b"done", b"open"]


async def test_the_leader_may_die_between_the_halves(autojump_clock: MockClock) -> None:
    async with open_cluster(transaction_timeout_ms=1_000, transaction_check_interval_ms=1_000) as cluster:
        old = await cluster.ready()
        async with open_user(cluster.world, old.replica().address) as user:
            halves = [await send_half(user, "T", b"%d" % n, id=f"U{n}") for n in range(6)]
            committed = await end(user, halves[0], COMMIT)
            await end(user, halves[1], ROLLBACK)
        await old.kill()
        new = await cluster.ready()
        follower = cluster.followers()[0]
        async with (
            open_user(cluster.world, new.replica().address) as user,
            open_user(cluster.world, follower.replica().address) as elsewhere,
        ):
            again = await end(user, halves[0], COMMIT)
            assert (again.code, again.ext["queueOffset"]) == (0, committed.ext["queueOffset"])
            assert (await end(user, halves[1], COMMIT)).code == ResponseCode.SYSTEM_ERROR
            assert (await end(elsewhere, halves[2], COMMIT)).code == 0  # passed on to the leader
            assert (await end(elsewhere, halves[3], ROLLBACK)).code == 0
            await be_producer(user, "pay")
            await trio.sleep(3)
            offsets = {CheckTransactionHeader.from_ext(each.ext).tran_state_table_offset for each in checks(user)}
            assert offsets == {4, 5}
            assert (await end(user, halves[4], COMMIT, checked=True)).code == 0
            assert (await end(user, halves[5], ROLLBACK, checked=True)).code == 0
            assert [message.body for message in await drained(user, "T", 1, 3)] == [b"0", b"2", b"4"]
            assert (await user.pull("T", 1, 3)).code == ResponseCode.PULL_NOT_FOUND
