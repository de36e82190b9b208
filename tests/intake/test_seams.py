"""The parts that meet in the intake have the shapes they expect of each other. Mostly a statement for mypy."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio

from broker.metadata.state import GroupState
from broker.replication.intake import Intake
from broker.store.dispatch import Dispatcher
from broker.store.fs_memory import MemoryFileSystem
from broker.store.key_index import KeyIndex
from broker.store.queue_index import QueueIndex
from tests.support.intake_bench import Replica

if TYPE_CHECKING:
    from broker.replication.base import EntrySource
    from broker.replication.leader_view import QueueEnds
    from broker.replication.once import KeyLookup, LogView
    from broker.store.commit_log import CommitLog
    from broker.store.dispatch import StateMachine

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

    fs = MemoryFileSystem(random.Random(1))
    state, keys = GroupState(), KeyIndex(fs)
    dispatcher = Dispatcher(leader.log, QueueIndex(fs), keys, state)  # type: ignore[arg-type]  # only `feed` is called
    for entry in leader.log.entries:
        dispatcher.feed(entry)
    for key in (b"A", b"k1", b"k2"):
        assert len(trio.run(keys.lookup, 1, key, 0, 1 << 50, 10)) == 1
    assert trio.run(keys.lookup, 1, b"k3", 0, 1 << 50, 10) == []
    assert state.snapshot()() == leader.state.snapshot()()
