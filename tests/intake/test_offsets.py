"""Consumer offsets: the rules of what is taken, one test each, and when an answer comes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from broker.metadata.ops import GroupDel, OffsetsPut, Reset, TopicDel, decode_payload, key_of
from broker.replication.base import NotLeader
from broker.replication.control import CreationRules
from broker.replication.intake import IntakeConfig, OutcomeUnknown, Refused
from broker.replication.offset_intake import ROWS_MAX
from broker.store.entry import EntryKind
from tests.support.intake_bench import HOST, LOST, OK, UNKNOWN, Client, Replica
from trimq.wire.codes import ResponseCode


@pytest.fixture
def replica() -> Replica:
    """A leader with topic "orders" (tid 1, ten messages in queue 0) and consumer group "billing" (gid 1)."""
    leader = Replica()
    leader.lead()
    for number in range(10):
        leader.put(uniq=b"%d" % number)
    leader.intake.ensure_group("billing")
    leader.flush()
    return leader


def commit(
    replica: Replica, offset: int, client: Client | None = None, *, newest: bool = False, forced: bool = False
) -> None:
    replica.intake.commit_offset(
        "billing",
        "orders",
        0,
        offset,
        newest_puller=newest,
        forced=forced,
        answer=client.answer() if client is not None else None,
    )


def stored(replica: Replica) -> int | None:
    return replica.state.offsets.get(1, key_of(1, 0))


def test_an_answer_comes_when_the_offset_is_applied_not_before(replica: Replica) -> None:
    client = Client()
    commit(replica, 5, client)
    assert replica.intake.has_work()
    replica.take()
    replica.settle()
    assert client.got == []
    replica.apply()
    assert [answer.code for answer in client.take()] == [0]
    assert stored(replica) == 5


def test_a_oneway_update_waits_for_an_entry_that_forms_anyway(replica: Replica) -> None:
    commit(replica, 5)
    assert not replica.intake.has_work()
    replica.put()
    (entry,) = replica.flush()
    assert decode_payload(entry.control)[1] == [OffsetsPut([(1, 1, 0, 5)])]
    assert stored(replica) == 5


@pytest.mark.trio
async def test_with_no_entry_forming_one_is_formed_after_200_ms(
    replica: Replica, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(replica.intake.run)
        commit(replica, 5)
        await trio.sleep(0.19)
        assert not replica.intake.has_work()
        await trio.sleep(0.02)
        (entry,) = replica.flush()
        assert entry.kind == EntryKind.METADATA
        commit(replica, 6)
        await trio.sleep(0.21)
        replica.flush()
        assert stored(replica) == 6
        nursery.cancel_scope.cancel()


def test_updates_of_one_queue_coalesce_and_all_waiters_are_told(replica: Replica) -> None:
    client = Client()
    for offset in (3, 4, 5):
        commit(replica, offset, client)
    (entry,) = replica.flush()
    assert decode_payload(entry.control)[1] == [OffsetsPut([(1, 1, 0, 5)])]
    assert [answer.code for answer in client.take()] == [0, 0, 0]


def test_negative_is_ignored(replica: Replica) -> None:
    client = Client()
    commit(replica, -1, client)
    assert [answer.code for answer in client.take()] == [0]
    assert not replica.intake.has_work()
    assert replica.intake.statistics.offsets.ignored_negative == 1


def test_beyond_the_end_in_the_leader_view_is_refused(replica: Replica) -> None:
    with pytest.raises(Refused) as refused:
        commit(replica, 11)
    assert refused.value.code == ResponseCode.SYSTEM_ERROR
    replica.put()  # not even taken yet, but its offset is given
    commit(replica, 11)
    replica.flush()
    assert stored(replica) == 11


def test_lower_is_taken_only_from_the_newest_puller_or_when_forced(replica: Replica) -> None:
    client = Client()
    commit(replica, 8)
    commit(replica, 5, client)  # lower than pending
    replica.intake.flush_offsets()
    replica.flush()
    commit(replica, 5, client)  # lower than applied
    assert [answer.code for answer in client.take()] == [0, 0]
    assert not replica.intake.has_work()
    assert replica.intake.statistics.offsets.ignored_lower == 2
    commit(replica, 5, newest=True)
    assert replica.intake.view.offset(1, key_of(1, 0)) == 8
    replica.intake.flush_offsets()
    replica.take()
    assert replica.intake.view.offset(1, key_of(1, 0)) == 5
    commit(replica, 2, forced=True)
    replica.intake.flush_offsets()
    replica.flush()
    assert stored(replica) == 2


def test_the_same_offset_is_answered_when_it_is_applied(replica: Replica) -> None:
    client = Client()
    commit(replica, 5)
    replica.intake.flush_offsets()
    replica.take()
    commit(replica, 5, client)
    assert client.got == []
    replica.flush()
    assert len(client.take()) == 1
    commit(replica, 5, client)
    assert len(client.take()) == 1
    assert not replica.intake.has_work()


def test_a_reset_sets_any_value_and_fences_until_a_pull_at_or_below_it(replica: Replica) -> None:
    commit(replica, 8)
    replica.intake.put_ops([Reset(1, [(1, 0, 3)], "operator")])
    commit(replica, 9)
    assert replica.intake.fenced
    replica.intake.note_pull("billing", "orders", 0, 9)
    commit(replica, 9, newest=True)
    replica.flush()
    commit(replica, 9, forced=True)
    assert stored(replica) == 3
    assert replica.intake.statistics.offsets.ignored_fenced == 3
    replica.intake.note_pull("billing", "orders", 0, 3)
    commit(replica, 4)
    replica.put()
    replica.flush()
    assert stored(replica) == 4


def test_a_fence_ends_after_a_minute_also_under_a_new_leader(replica: Replica) -> None:
    replica.intake.put_ops([Reset(1, [(1, 0, 3)])])
    replica.flush()
    replica.intake.end_term()
    replica.lead()
    commit(replica, 9)
    assert replica.intake.statistics.offsets.ignored_fenced == 1
    replica.clock.now_ms += 60_000
    commit(replica, 9)
    replica.put()
    replica.flush()
    assert stored(replica) == 9


def test_a_second_reset_fences_anew(replica: Replica) -> None:
    replica.intake.put_ops([Reset(1, [(1, 0, 3)])])
    replica.intake.note_pull("billing", "orders", 0, 0)
    replica.clock.now_ms += 1
    replica.intake.put_ops([Reset(1, [(1, 0, 5)])])
    commit(replica, 9)
    assert replica.intake.statistics.offsets.ignored_fenced == 1


def test_a_reset_overtakes_what_is_pending_and_its_waiters_are_told(replica: Replica) -> None:
    client = Client()
    commit(replica, 8, client)
    replica.intake.put_ops([Reset(1, [(1, 0, 3)])])
    assert [answer.code for answer in client.take()] == [0]
    replica.flush()
    assert stored(replica) == 3


def test_an_entry_takes_at_most_4096_offsets(replica: Replica) -> None:
    replica.intake.put_ops([replica.intake.topic_op("wide", read_queues=5000, write_queues=5000)])
    replica.flush()
    for queue in range(5000):
        replica.intake.commit_offset("billing", "wide", queue, 0)
    replica.intake.flush_offsets()
    entries = replica.flush()
    assert [len(decode_payload(entry.control)[1][0].offsets) for entry in entries] == [ROWS_MAX, 5000 - ROWS_MAX]  # type: ignore[union-attr]
    assert len(replica.state.offsets.of_group(1)) == 5000


@pytest.mark.parametrize(
    ("group", "topic", "queue", "code"),
    [
        ("billing", "unknown", 0, ResponseCode.TOPIC_NOT_EXIST),
        ("billing", "orders", 99, ResponseCode.INVALID_PARAMETER),
        ("billing", "orders", -1, ResponseCode.INVALID_PARAMETER),
        ("nobody", "orders", 0, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST),
    ],
)
def test_unknown_names_are_refused(group: str, topic: str, queue: int, code: ResponseCode) -> None:
    replica = Replica(config=IntakeConfig(store_host=HOST, creation=CreationRules(auto_create_group=False)))
    replica.lead()
    replica.put()
    replica.intake.put_ops(replica.intake.group_ops("billing"))
    with pytest.raises(Refused) as refused:
        replica.intake.commit_offset(group, topic, queue, 0)
    assert refused.value.code == code


def test_an_unknown_consumer_group_is_created_with_its_retry_topic(replica: Replica) -> None:
    replica.intake.commit_offset("new", "orders", 0, 1)
    replica.flush()
    replica.intake.flush_offsets()
    replica.flush()
    group = replica.state.groups.get("new")
    assert group is not None
    assert replica.state.offsets.get(group.gid, key_of(1, 0)) == 1
    retry = replica.state.topics.get(b"%RETRY%new")
    assert retry is not None
    assert (retry.write_queues, retry.perm) == (1, 6)


def test_offsets_of_a_lost_entry_are_answered_as_not_stored(replica: Replica) -> None:
    for outcome, code in ((LOST, ResponseCode.SERVICE_NOT_AVAILABLE), (UNKNOWN, ResponseCode.SYSTEM_ERROR)):
        client = Client()
        commit(replica, 5, client)
        replica.take()
        replica.settle(outcome)
        assert [answer.code for answer in client.take()] == [code]


def test_pending_offsets_survive_the_end_of_a_term_as_provisional(replica: Replica) -> None:
    client = Client()
    commit(replica, 7, client)
    replica.intake.end_term()
    assert [answer.code for answer in client.take()] == [ResponseCode.SERVICE_NOT_AVAILABLE]
    provisional = replica.intake.provisional
    assert provisional.get("billing", "orders", 0, applied=3) == 7
    assert provisional.get("billing", "orders", 0, applied=9) == 9
    assert provisional.get("billing", "orders", 1, applied=None) is None
    provisional.put("billing", "orders", 0, 5)
    assert provisional.take() == [("billing", "orders", 0, 7)]
    assert len(provisional) == 0
    with pytest.raises(NotLeader):
        commit(replica, 8)


def test_deleting_a_topic_takes_its_offsets_and_its_pending_ones(replica: Replica) -> None:
    commit(replica, 5)
    replica.intake.flush_offsets()
    replica.flush()
    client = Client()
    commit(replica, 6, client)
    replica.put()  # a record of the old topic must be in an entry before the deletion
    replica.intake.put_ops([TopicDel(1)])
    replica.put()  # and this one belongs to a new topic of the same name
    entries = replica.flush()
    assert len(client.take()) == 1
    assert [entry.record_count for entry in entries] == [1, 1]
    assert stored(replica) is None
    info = replica.state.topics.get(b"orders")
    assert info is not None
    assert info.tid == 3
    assert replica.records()[-1].queue_offset == 0


def test_deleting_a_consumer_group_may_keep_its_offsets(replica: Replica) -> None:
    commit(replica, 5)
    replica.intake.flush_offsets()
    replica.flush()
    replica.intake.put_ops([GroupDel(1, drop_offsets=False)])
    replica.flush()
    assert replica.state.groups.get("billing") is None
    assert replica.intake.ensure_group("billing").gid == 1
    replica.flush()
    assert stored(replica) == 5
    replica.intake.put_ops([GroupDel(1, drop_offsets=True)])
    replica.flush()
    assert replica.intake.ensure_group("billing").gid == 2
    assert stored(replica) is None


# --- ops in general


@pytest.mark.trio
async def test_apply_returns_when_the_ops_are_applied(replica: Replica) -> None:
    done = False

    async def create() -> None:
        nonlocal done
        await replica.intake.apply([replica.intake.topic_op("made", read_queues=1, write_queues=1)])
        assert replica.state.topics.get(b"made") is not None
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        await trio.testing.wait_all_tasks_blocked()
        replica.take()
        replica.settle()
        await trio.testing.wait_all_tasks_blocked()
        assert not done
        replica.apply()
    assert done


@pytest.mark.trio
@pytest.mark.parametrize(("outcome", "error"), [(LOST, NotLeader), (UNKNOWN, OutcomeUnknown)])
async def test_apply_says_what_became_of_the_ops(replica: Replica, outcome: object, error: type[Exception]) -> None:
    async with trio.open_nursery() as nursery:

        async def create() -> None:
            with pytest.raises(error):
                await replica.intake.apply([replica.intake.topic_op("made", read_queues=1, write_queues=1)])

        nursery.start_soon(create)
        await trio.testing.wait_all_tasks_blocked()
        replica.take()
        replica.settle(outcome)  # type: ignore[arg-type]  # a parameter


def test_ops_tell_their_outcome_when_it_is_settled(replica: Replica) -> None:
    outcomes: list[object] = []
    replica.intake.put_ops([replica.intake.topic_op("made", read_queues=1, write_queues=1)], outcomes.append)
    replica.take()
    assert outcomes == []
    replica.settle()
    assert outcomes == [OK]
