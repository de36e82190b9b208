"""The parts that meet in the intake have the shapes they expect of each other. Mostly a statement for mypy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.metadata.state import GroupState
from broker.replication.intake import Intake
from broker.store.dispatch import Dispatcher
from tests.support.intake_bench import Replica

if TYPE_CHECKING:
    from broker.replication.base import EntrySource
    from broker.replication.leader_view import QueueEnds
    from broker.replication.once import KeyLookup, LogView
    from broker.store.commit_log import CommitLog
    from broker.store.dispatch import StateMachine
    from broker.store.key_index import KeyIndex
    from broker.store.queue_index import QueueIndex

    def fits_state(state: GroupState) -> StateMachine:
        return state

    def fits_source(intake: Intake) -> EntrySource:
        return intake

    def fits_log(log: CommitLog) -> LogView:
        return log

    def fits_queues(queues: QueueIndex) -> QueueEnds:
        return queues

    def fits_keys(keys: KeyIndex) -> KeyLookup:
        return keys


def test_the_stores_dispatcher_feeds_a_group_state_what_the_intake_wrote() -> None:
    leader = Replica()
    leader.lead()
    leader.put(properties=b"UNIQ_KEY\x01A\x02TAGS\x01red\x02KEYS\x01k1 k2\x02")
    leader.intake.ensure_group("g")
    leader.intake.commit_offset("g", "orders", 0, 1)
    leader.intake.flush_offsets()
    leader.flush()

    class Queues:
        def append(self, key: int, offset: int, position: int, size: int, tag: int) -> int:
            assert (key, offset) == (1 << 16, 0)
            return offset + 1

    class Keys:
        def __init__(self) -> None:
            self.keys: list[bytes] = []

        def put(self, tid: int, key: bytes, store_ms: int, position: int) -> None:
            self.keys.append(key)

    state, keys = GroupState(), Keys()
    dispatcher = Dispatcher(leader.log, Queues(), keys, state)  # type: ignore[arg-type]  # what `feed` needs of them
    for entry in leader.log.entries:
        dispatcher.feed(entry)
    assert keys.keys == [b"A", b"k1", b"k2"]
    assert state.snapshot()() == leader.state.snapshot()()
