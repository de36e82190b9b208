"""The producer through failovers, refusals and deadlines, against a scripted cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from tests.client.scripted import NAMESRV, Cluster, Group, client_of, reply, run
from trimq.client.model import Message, Queue, Receipt, SendStatus
from trimq.errors import BadRequest, Busy, NoRoute, NotStored, SendUnknown
from trimq.wire.codes import ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.send import SendHeader

BACKENDS = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def message(number: int, *, tag: str | None = None, order_key: str | None = None) -> Message:
    return Message(topic="t", body=b"%d" % number, tag=tag, order_key=order_key)


@BACKENDS
def test_a_message_is_stored_and_the_receipt_says_where(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        async with client_of(cluster) as mq:
            sent = message(1, tag="paid")
            async with mq.producer() as producer:
                receipt = await producer.send(sent)
            assert receipt.id == sent.id
            assert receipt.queue.group == "a"
            assert (receipt.offset, receipt.status, receipt.duplicate) == (0, SendStatus.OK, False)
            assert receipt.leader == "a0:1"
            assert cluster.groups["a"].bodies == [b"1"]

    run(backend, body)


@BACKENDS
def test_concurrent_sends_share_requests(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 4})
        async with client_of(cluster) as mq, mq.producer() as producer:
            async with anyio.create_task_group() as tasks:
                for number in range(256):
                    tasks.start_soon(producer.send, message(number))
            assert sorted(cluster.groups["a"].bodies) == sorted(b"%d" % n for n in range(256))
            assert len(cluster.sends) < 20

    run(backend, body)


@BACKENDS
def test_one_by_one_goes_round_the_queues_and_groups(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1, "b": 1}, topics={"t": 2})
        async with client_of(cluster) as mq, mq.producer() as producer:
            queues = [(await producer.send(message(n))).queue for n in range(8)]
        assert set(queues[:4]) == set(queues[4:]) == {Queue("t", g, q) for g in "ab" for q in range(2)}
        assert [queue.group for queue in queues[:4]] in (["a", "b", "a", "b"], ["b", "a", "b", "a"])

    run(backend, body)


@BACKENDS
def test_a_new_topic_is_sent_to_all_groups(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1, "b": 1, "c": 1}, topics={})
        async with client_of(cluster) as mq, mq.producer() as producer:
            groups = {(await producer.send(message(n))).queue.group for n in range(3)}
        assert groups == {"a", "b", "c"}

    run(backend, body)


@BACKENDS
def test_messages_of_one_order_key_stay_in_order_through_a_kill(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        group = cluster.groups["a"]
        async with client_of(cluster) as mq, mq.producer() as producer:
            async with producer.stream() as stream:
                for number in range(300):
                    await stream.send(message(number, order_key="k"))
                    if number == 100:
                        await anyio.sleep(0.01)
                        cluster.judge = lose_answers
                    if number == 200:
                        await anyio.sleep(0.01)
                        cluster.judge = lambda group, command, header: None
                        cluster.kill("a0:1")
                        group.elect("a1:1")
            assert group.bodies == [b"%d" % n for n in range(300)]
            assert producer.statistics().stored == 300

    run(backend, body)


def lose_answers(group: Group, command: Command, header: SendHeader) -> str:
    return "lose"


def test_nothing_is_lost_or_doubled_when_leaders_die_under_load() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        group = cluster.groups["a"]

        async def worker(first: int) -> None:
            for number in range(first, first + 20):
                await producer.send(message(number))
                await anyio.sleep(0.001)

        async with client_of(cluster) as mq, mq.producer() as producer:
            async with anyio.create_task_group() as tasks:
                for worker_number in range(16):
                    tasks.start_soon(worker, 100 * worker_number)
                for old, new in (("a0:1", "a1:1"), ("a1:1", "a2:1"), ("a2:1", "a0:1")):
                    await anyio.sleep(0.005)
                    cluster.judge = lose_answers
                    await anyio.sleep(0.001)
                    cluster.kill(old)
                    group.elect(None)
                    cluster.judge = lambda group, command, header: None
                    await anyio.sleep(0.3)
                    cluster.servers[new].alive = True
                    group.elect(new)
            expected = sorted(b"%d" % n for w in range(16) for n in range(100 * w, 100 * w + 20))
            assert sorted(group.bodies) == expected

    run("trio", body)


def test_a_frozen_leader_is_left_once_another_one_leads() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        group = cluster.groups["a"]
        answered: list[float] = []

        async def send(number: int) -> None:
            await producer.send(message(number))
            answered.append(anyio.current_time())

        async with client_of(cluster) as mq, mq.producer() as producer, mq.producer() as other:
            await producer.send(message(0))
            await other.send(message(-1))
            cluster.servers["a0:1"].frozen = True
            began = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.send, message(-2))
                for number in range(1, 200):  # new messages keep coming: silence must be noticed all the same
                    tasks.start_soon(send, number)
                    await anyio.sleep(0.01)
                    if number == 50:
                        group.elect("a1:1")
            assert min(answered) - began < 0.9
            assert anyio.current_time() - began < 2.5, "all lanes leave it, whichever of them heard of the new leader"
            assert sorted(group.bodies) == sorted(b"%d" % n for n in range(-2, 200))

    run("trio", body)


def test_a_leader_hint_is_followed_without_asking_the_name_server() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        group = cluster.groups["a"]
        async with client_of(cluster) as mq, mq.producer() as producer:
            await producer.send(message(0))
            asked = cluster.servers[NAMESRV].frames
            group.leader, group.term = "a2:1", 5
            cluster.judge = refuse_at_followers(cluster)
            receipt = await producer.send(message(1))
            assert receipt.leader == "a2:1"
            assert cluster.servers[NAMESRV].frames == asked

    run("trio", body)


def refuse_at_followers(cluster: Cluster):  # type: ignore[no-untyped-def]  # a judge; see Cluster.judge
    def judge(group: Group, command: Command, header: SendHeader) -> Command | None:
        if cluster.sends[-1][0] == group.leader:
            return None
        hint = {"leaderAddr": str(group.leader), "leaderTerm": str(group.term)}
        return reply(command, ResponseCode.NOT_STORED, ext=hint)

    return judge


def test_a_hint_of_an_old_term_is_not_followed() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        group = cluster.groups["a"]
        group.term = 9
        async with client_of(cluster) as mq, mq.producer() as producer:
            await producer.send(message(0))

            def stale_once(group: Group, command: Command, header: SendHeader) -> Command | None:
                cluster.judge = lambda group, command, header: None
                return reply(command, ResponseCode.NOT_STORED, ext={"leaderAddr": "a2:1", "leaderTerm": "3"})

            cluster.judge = stale_once
            group.hints = False
            await producer.send(message(1))
            assert "a2:1" not in [addr for addr, _, _ in cluster.sends]

    run("trio", body)


def test_a_forwarded_success_moves_the_lane_to_the_leader() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        group = cluster.groups["a"]
        async with client_of(cluster) as mq, mq.producer() as producer:
            await producer.send(message(0))
            group.elect("a2:1")  # a0 lives on, and passes our requests on
            receipts = [await producer.send(message(n)) for n in range(1, 4)]
            assert [receipt.leader for receipt in receipts] == ["a0:1", "a2:1", "a2:1"]

    run("trio", body)


def test_a_replica_that_passed_it_on_to_a_leader_that_died_is_kept() -> None:
    """It knows the next leader before anybody else; the dead one's address is only refused."""

    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        async with client_of(cluster) as mq, mq.producer() as producer:
            await producer.send(message(0))

            def unknown_once(group: Group, command: Command, header: SendHeader) -> Command | None:
                cluster.judge = lambda group, command, header: None
                group.elect("a2:1")
                hint = {"leaderAddr": "a0:1", "leaderTerm": str(group.term - 1)}
                return reply(command, ResponseCode.OUTCOME_UNKNOWN, ext=hint)

            cluster.judge = unknown_once
            cluster.kill("a0:1")
            receipt = await producer.send(message(1))
            assert [addr for addr, _, _ in cluster.sends[1:]] == ["a1:1", "a1:1"]
            assert not receipt.duplicate

    run("trio", body)


def test_without_a_leader_a_send_ends_not_stored_at_the_callers_deadline() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        group = cluster.groups["a"]
        async with client_of(cluster) as mq, mq.producer() as producer:
            await producer.send(message(0))
            group.elect(None)
            sent = message(1)
            with pytest.raises(NotStored, match="no leader"), anyio.fail_after(2):
                await producer.send(sent)
            group.elect("a1:1")
            receipt = await producer.send(sent)
            assert not receipt.duplicate
            assert group.bodies == [b"0", b"1"]

    run("trio", body)


def test_without_an_answer_a_send_is_unknown_and_sending_again_stores_it_once() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 4})
        group = cluster.groups["a"]
        async with client_of(cluster, default_timeout=2.0) as mq, mq.producer() as producer:
            cluster.judge = lose_answers
            sent = message(1)
            with pytest.raises(SendUnknown) as caught:
                await producer.send(sent)
            assert caught.value.id == sent.id
            cluster.judge = lambda group, command, header: None
            receipt = await producer.send(sent)
            assert receipt.duplicate
            assert cluster.sends[-1][2].again
            assert group.bodies == [b"1"]
            other = await producer.send(message(2))
            assert not other.duplicate

    run("trio", body)


@BACKENDS
def test_a_cancelled_send_leaves_nothing_behind(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        cluster.judge = lambda group, command, header: "drop"
        async with client_of(cluster) as mq, mq.producer() as producer:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(producer.send, message(0))
                tasks.start_soon(producer.send, message(1))
                await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()
            assert producer.statistics().in_hand == 0
            cluster.judge = lambda group, command, header: None
            assert isinstance(await producer.send(message(2)), Receipt)
            assert cluster.groups["a"].bodies == [b"2"]

    run(backend, body)


def test_only_the_message_at_fault_is_refused() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        outcomes: dict[int, object] = {}

        def dislike_seven(group: Group, command: Command, header: SendHeader) -> Command | None:
            return reply(command, ResponseCode.MESSAGE_ILLEGAL, remark="seven") if b"BAD" in command.body else None

        async def send(number: int) -> None:
            body = b"BAD" if number == 7 else b"%d" % number
            try:
                outcomes[number] = await producer.send(Message(topic="t", body=body))
            except BadRequest as error:
                outcomes[number] = error

        cluster.judge = dislike_seven
        async with client_of(cluster) as mq, mq.producer() as producer:
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(send, number)
            assert [n for n, outcome in outcomes.items() if isinstance(outcome, BadRequest)] == [7]
            assert len(cluster.groups["a"].log) == 19

    run("trio", body)


def test_messages_bound_to_no_queue_go_elsewhere_while_a_group_is_down() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1, "b": 1}, topics={"t": 2})
        async with client_of(cluster) as mq, mq.producer() as producer:
            for number in range(4):
                await producer.send(message(number))
            cluster.kill("a0:1")
            began = anyio.current_time()
            for number in range(4, 24):
                await producer.send(message(number))
            assert anyio.current_time() - began < 1
            assert len(cluster.groups["a"].log) + len(cluster.groups["b"].log) == 24
            at_a = len(cluster.groups["a"].log)
            cluster.servers["a0:1"].alive = True
            await anyio.sleep(3)
            for number in range(24, 28):
                await producer.send(message(number))
            assert len(cluster.groups["a"].log) == at_a + 2, "it gets its share again once it is back"

    run("trio", body)


def test_an_overloaded_broker_is_asked_again_later() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        refusals = iter(range(5))

        def busy(group: Group, command: Command, header: SendHeader) -> Command | None:
            return reply(command, ResponseCode.SYSTEM_BUSY) if next(refusals, None) is not None else None

        cluster.judge = busy
        async with client_of(cluster) as mq, mq.producer() as producer:
            assert (await producer.send(message(0))).offset == 0
            assert len(cluster.sends) == 6

    run("trio", body)


@pytest.mark.parametrize(("version", "taken"), [(409, False), (413, True)])
def test_a_broker_that_would_deliver_at_once_is_not_asked_to_deliver_later(version: int, taken: bool) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        cluster.groups["a"].ours = False
        cluster.groups["a"].version = version
        async with client_of(cluster) as mq:
            await mq.send("t", b"first")
            if taken:
                await mq.send("t", b"later", delay=timedelta(seconds=5))
            else:
                for timing in ({"delay": timedelta(seconds=5)}, {"at": datetime.now(UTC) + timedelta(seconds=5)}):
                    with pytest.raises(BadRequest, match=r"older than RocketMQ 5.*use delay_level"):
                        await mq.send("t", b"later", **timing)
            await mq.send("t", b"level", delay_level=2)
        assert cluster.groups["a"].bodies == [b"first", *([b"later"] if taken else []), b"level"]

    run("trio", body)


def test_a_foreign_broker_gets_no_sequences_and_one_request_per_queue() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 2})
        cluster.groups["a"].ours = False
        cluster.groups["a"].hints = False
        async with client_of(cluster) as mq, mq.producer() as producer:
            async with producer.stream() as stream:
                for number in range(100):
                    await stream.send(message(number, order_key="k"))
            assert cluster.groups["a"].bodies == [b"%d" % n for n in range(100)]
            assert all(not header.pid for _, _, header in cluster.sends)

    run("trio", body)


@BACKENDS
def test_a_batch_is_one_request_with_consecutive_offsets(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 4})
        async with client_of(cluster) as mq, mq.producer() as producer:
            receipts = await producer.send_batch([message(n) for n in range(5)])
            assert [receipt.offset for receipt in receipts] == list(range(5))
            assert len(cluster.sends) == 1
            with pytest.raises(BadRequest, match="one topic"):
                await producer.send_batch([message(0), Message(topic="u", body=b"")])

    run(backend, body)


@BACKENDS
def test_a_stream_reports_what_failed_together(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})

        def refuse(group: Group, command: Command, header: SendHeader) -> Command:
            return reply(command, ResponseCode.NO_PERMISSION, remark="no")

        cluster.judge = refuse
        async with client_of(cluster) as mq, mq.producer() as producer:

            async def send_three() -> None:
                async with producer.stream() as stream:
                    for number in range(3):
                        await stream.send(message(number))

            with pytest.raises(ExceptionGroup, match="3 messages") as caught:
                await send_three()
            assert len(caught.value.exceptions) == 3

    run(backend, body)


def test_missing_links_are_named() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        cluster.kill(NAMESRV)
        async with client_of(cluster) as mq:
            with pytest.raises(NoRoute, match=r"no name server answers: .*refused"):
                await mq.send("t", b"x")

    run("trio", body)


def test_backpressure_waits_instead_of_queueing_without_end() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        cluster.judge = lambda group, command, header: "drop"
        async with client_of(cluster) as mq, mq.producer(max_in_flight=10) as producer:
            with anyio.move_on_after(0.1):
                async with producer.stream() as stream:
                    for number in range(100):
                        await stream.send(message(number))
            assert producer.statistics().in_hand == 0
            assert producer.statistics().unknown == 10

    run("trio", body)


def test_closing_tells_whoever_still_waits() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        cluster.judge = lambda group, command, header: "drop"
        caught: list[Exception] = []

        async def send() -> None:
            try:
                await producer.send(message(0))
            except SendUnknown as error:
                caught.append(error)

        async with client_of(cluster) as mq, anyio.create_task_group() as tasks:
            async with mq.producer() as producer:
                tasks.start_soon(send)
                await anyio.sleep(0.01)
            await anyio.sleep(0.01)
            assert "closed" in str(caught[0])
            with pytest.raises(NotStored, match="closed"):
                await producer.send(message(1))

    run("trio", body)


def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        with pytest.raises(Busy, match="mine"):
            async with client_of(cluster) as mq, mq.producer():
                raise Busy("mine")

    run("trio", body)


@BACKENDS
def test_calls_that_wait_for_room_keep_their_order(backend: str) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 2})
        begun = iter(range(500))

        async def send() -> None:
            number = next(begun)  # tasks start in any order; what counts is the order of the calls
            await producer.send(message(number, order_key="k"))

        async with client_of(cluster) as mq, mq.producer(max_in_flight=7) as producer:
            await producer.send(message(-1, order_key="k"))
            async with anyio.create_task_group() as tasks:
                for _ in range(500):
                    tasks.start_soon(send)
        assert cluster.groups["a"].bodies == [b"%d" % n for n in range(-1, 500)]

    run(backend, body)
