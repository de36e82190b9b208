"""Random work for a leader: every kind of op and send, so that its log holds whatever a log can hold."""

from __future__ import annotations

import random
from collections.abc import Callable

from broker.metadata.ops import (
    ConfigPut,
    Feature,
    GroupDel,
    InSync,
    Locks,
    MembersPut,
    Op,
    Progress,
    Reset,
    TopicDel,
    key_of,
)
from broker.metadata.state import GroupState
from broker.replication.intake import Refused
from broker.replication.leader_view import LeaderView
from tests.support.intake_bench import Replica, message
from trimq.message.batch import BatchElement

TOPICS = [b"t%d" % n for n in range(4)]
GROUPS = [f"g{n}" for n in range(3)]


class RandomWork:
    """Does one random thing at a time to a leader."""

    def __init__(self, replica: Replica, rng: random.Random) -> None:
        self.replica = replica
        self.rng = rng
        self.sequences = dict.fromkeys(range(1, 4), 0)
        self.ids = 0

    def step(self) -> None:
        """One thing; what the rules refuse is refused."""
        deeds: list[Callable[[], None]] = [
            *([self.send] * 6),
            *([self.numbered] * 4),
            *([self.batch] * 2),
            self.own,
            *([self.offset] * 4),
            self.reset,
            self.topic,
            self.group,
            self.delete,
            self.locks,
            self.others,
        ]
        self.replica.clock.now_ms += self.rng.choice([0, 1, 50, 900])
        try:
            self.rng.choice(deeds)()
        except Refused:
            pass

    def _id(self) -> bytes:
        self.ids += 1
        return b"%08d" % (self.ids if self.rng.random() < 0.8 else self.rng.randrange(1, self.ids + 1))

    def _topic(self) -> bytes:
        return self.rng.choice(TOPICS)

    def _tid(self) -> int:
        return self.replica.intake.ensure_topic(self._topic()).tid

    def _gid(self) -> int:
        return self.replica.intake.ensure_group(self.rng.choice(GROUPS)).gid

    def send(self) -> None:
        self.replica.put(topic=self._topic(), queue_id=self.rng.randrange(4), uniq=self._id())

    def numbered(self) -> None:
        pid = self.rng.choice(list(self.sequences))
        first = self.sequences[pid]
        floor = max(0, first - self.rng.randrange(4))
        count = self.rng.choice([1, 1, 3])
        topic, queue = self._topic(), self.rng.randrange(4)
        sequence = (pid, 0, first, floor)
        if count == 1:
            self.replica.put(topic=topic, queue_id=queue, sequence=sequence, uniq=self._id())
        else:
            self.replica.put_elements([BatchElement(b"e")] * count, topic=topic, queue_id=queue, sequence=sequence)
        self.sequences[pid] += count

    def batch(self) -> None:
        elements = [BatchElement(b"b", b"UNIQ_KEY\x01" + self._id()) for _ in range(self.rng.randrange(1, 5))]
        self.replica.put_elements(elements, topic=self._topic(), queue_id=self.rng.randrange(4))

    def own(self) -> None:
        topics = [self._topic() for _ in range(2)]
        for topic in topics:
            self.replica.intake.ensure_topic(topic)
        self.replica.intake.put_batch(
            [message(topic=topic, own=True, uniq=self._id()) for topic in topics],
            ops=[Progress("delay", self.rng.randrange(3), self.rng.randrange(100))],
        )

    def offset(self) -> None:
        self.replica.intake.commit_offset(
            self.rng.choice(GROUPS),
            self._topic().decode(),
            self.rng.randrange(4),
            self.rng.randrange(6),
            newest_puller=self.rng.random() < 0.5,
        )
        if self.rng.random() < 0.3:
            self.replica.intake.flush_offsets()

    def reset(self) -> None:
        self.replica.intake.put_ops([Reset(self._gid(), [(self._tid(), self.rng.randrange(4), self.rng.randrange(9))])])

    def topic(self) -> None:
        name = self._topic().decode()
        self.replica.intake.put_ops([self.replica.intake.topic_op(name, read_queues=4, write_queues=4, perm=6)])

    def group(self) -> None:
        settings = {"retryMaxTimes": self.rng.randrange(20)}
        self.replica.intake.put_ops(self.replica.intake.group_ops(self.rng.choice(GROUPS), settings))

    def delete(self) -> None:
        if self.rng.random() < 0.5:
            self.replica.intake.put_ops([TopicDel(self._tid())])
        else:
            self.replica.intake.put_ops([GroupDel(self._gid(), self.rng.random() < 0.5)])

    def locks(self) -> None:
        client = self.rng.choice(["", "c1", "c2"])
        self.replica.intake.put_ops([Locks(self._gid(), client, [(self._tid(), self.rng.randrange(4))])])

    def others(self) -> None:
        some: list[Op] = [
            MembersPut(self._gid(), self.rng.sample(["a", "b", "c"], 2)),
            ConfigPut("fileReservedTime", self.rng.choice(["48", "72", ""]), "operator"),
            InSync(3, ("n0", "n1"), 2),
            Feature(1),
        ]
        self.replica.intake.put_ops([self.rng.choice(some)])


def assert_view_is(view: LeaderView, state: GroupState, ends: dict[int, int]) -> None:
    """The view decides as a state would in which everything is applied."""
    tables, applied = view.tables, state.tables
    assert dict(tables.topics.by_name) == dict(applied.topics.by_name)
    assert dict(tables.topics.by_id) == dict(applied.topics.by_id)
    assert tables.topics.highest == applied.topics.highest
    assert dict(tables.groups.by_name) == dict(applied.groups.by_name)
    assert dict(tables.groups.retired) == dict(applied.groups.retired)
    assert tables.groups.highest == applied.groups.highest
    assert dict(tables.locks.owners) == dict(applied.locks.owners)
    assert dict(tables.members.sets) == dict(applied.members.sets)
    assert dict(tables.progress.values) == dict(applied.progress.values)
    assert dict(tables.settings.values) == dict(applied.settings.values)
    keys = [key_of(info.tid, queue) for info in applied.topics.all() for queue in range(info.read_queues)]
    for key in keys:
        assert view.next_offset(key) == ends.get(key, 0), key
        for group in applied.groups.all():
            assert view.offset(group.gid, key) == state.offsets.get(group.gid, key)
            fence, expected = tables.offsets.fence(group.gid, key), state.offsets.fence(group.gid, key)
            assert (fence and fence[0]) == (expected and expected[0])
    assert dict(view.producers) == dict(state.producers.items())
    assert view.log_time == state.log_time
