"""What the clients of a simulation saw, and the verdict over it.

It is the drill's history (`trimq.drill.history`) with more witnesses: where an acknowledged message was said to stand,
what every reader saw at any time, the queue ends that were told, and where each replica's queues begin now (retention
removes what is old: a message below the beginning is expired, not lost).

A send has three outcomes, and UNKNOWN is neither of the others: such a message may be there, once, or never.

Pure: `judge` looks at nothing but the history. Rules by name, as in the drill: lost, duplicates, reordered, phantom,
offsets back, disagree; and *moved* (an acknowledged message stands elsewhere than told), *gap* (offsets of a queue are
not dense), *ends back* (a told queue end was followed by a lower one), *undelivered* (an acknowledged message that no
consumer of a group was handed, although the cluster was whole and had time).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

from trimq.drill.history import Outcome, QueueId, Value

__all__ = ["Outcome", "QueueId", "SimHistory", "Value", "judge"]


@dataclass(slots=True)
class SimHistory:
    """Everything that happened, as the clients saw it."""

    sends: dict[Value, tuple[QueueId, Outcome]] = field(default_factory=dict)
    """Target and outcome of every send that was begun; UNKNOWN until it ends."""
    told: dict[Value, int] = field(default_factory=dict)
    """The offset that came with the acknowledgement; -1 when the first copy had expired."""
    seen: dict[QueueId, dict[int, Value | None]] = field(default_factory=lambda: defaultdict(dict))
    """What any reader ever saw at an offset; None for a body that proves nothing."""
    repeated: set[Value] = field(default_factory=set)  # membership only
    """Given up as unknown and sent again by the application: stored once, but after what was sent meanwhile."""
    contradictions: list[str] = field(default_factory=list)
    """Two values seen at one offset, and the like: noted when they happen."""
    reads: dict[tuple[str, QueueId], dict[int, Value | None]] = field(default_factory=dict)
    """(node, queue) to what the final read through it found."""
    first: dict[tuple[str, QueueId], int] = field(default_factory=dict)
    """(node, queue) to the oldest offset that it still has."""
    ends: dict[tuple[str, QueueId], int] = field(default_factory=dict)
    told_offsets: dict[tuple[str, QueueId], list[int]] = field(default_factory=lambda: defaultdict(list))
    """(consumer group, queue) to the committed offsets that the cluster told, in the order of the answers."""
    told_ends: dict[QueueId, list[int]] = field(default_factory=lambda: defaultdict(list))
    deliveries: dict[Value, int] = field(default_factory=dict)
    """How often a value reached a consumer of the group that reads everything."""
    popped: dict[Value, int] = field(default_factory=dict)
    """How often a value was handed to a pop consumer."""
    finished: dict[Value, int] = field(default_factory=dict)
    """Value → the attempt whose acknowledgement was told to a pop consumer."""
    """Values whose acknowledgement by a pop consumer was answered: they never come again."""
    client_errors: int = 0

    def begin(self, value: Value, queue: QueueId) -> None:
        self.sends[value] = (queue, Outcome.UNKNOWN)

    def end(self, value: Value, outcome: Outcome, offset: int = -1) -> None:
        self.sends[value] = (self.sends[value][0], outcome)
        if outcome is Outcome.OK:
            self.told[value] = offset

    def saw(self, who: str, queue: QueueId, offset: int, value: Value | None) -> None:
        """A reader got this record."""
        known = self.seen[queue].setdefault(offset, value)
        if known != value:
            self.contradictions.append(f"disagree: {queue} offset {offset}: {who} saw {value}, before it was {known}")

    def delivered(self, value: Value) -> None:
        self.deliveries[value] = self.deliveries.get(value, 0) + 1

    def took(self, value: Value | None, where: str, attempt: int = 1) -> None:
        """A pop consumer got it; None for a body that proves nothing. An earlier attempt may arrive late."""
        if value is None or value not in self.sends:
            self.contradictions.append(f"phantom: {where}: a pop consumer got what nobody sent ({value})")
            return
        self.popped[value] = self.popped.get(value, 0) + 1
        if attempt >= self.finished.get(value, attempt + 1):
            self.contradictions.append(f"came back: {value} was popped again after its acknowledgement was told")

    def count(self, outcome: Outcome) -> int:
        return sum(1 for _, each in self.sends.values() if each is outcome)

    def expired(self, value: Value) -> bool:
        """Whether an acknowledged message may be gone: it stood below where some replica's queue begins now."""
        queue, _ = self.sends[value]
        offset = self.told.get(value, -1)
        return any(offset < first for (_, each), first in self.first.items() if each == queue)


def judge(history: SimHistory, *, delivered: bool, popped: bool = False) -> list[str]:
    """Every violation, in words that begin with the rule. `delivered`, `popped`: everything had the time to be."""
    found = list(history.contradictions)
    found += _final_reads(history)
    found += _values(history)
    found += _going_back("offsets back", history.told_offsets)
    found += _going_back("ends back", history.told_ends)
    if delivered:
        found += [
            f"undelivered: {value} was acknowledged for {queue} at {history.told[value]} and no consumer got it"
            for value, (queue, outcome) in history.sends.items()
            if outcome is Outcome.OK and value not in history.deliveries and not history.expired(value)
        ]
    if popped:
        found += [
            f"invisible: {value} was acknowledged for {queue} at {history.told[value]} and no pop consumer got it"
            for value, (queue, outcome) in history.sends.items()
            if outcome is Outcome.OK and value not in history.popped and not history.expired(value)
        ]
    return found


def _final_reads(history: SimHistory) -> list[str]:
    """Each node's queues: dense, equal to everything seen before, with everything acknowledged."""
    found: list[str] = []
    acknowledged: dict[QueueId, list[Value]] = defaultdict(list)
    for value, (queue, outcome) in history.sends.items():
        if outcome is Outcome.OK:
            acknowledged[queue].append(value)
    read = {queue for _, queue in history.reads}
    found += [
        f"lost: {queue} with {len(v)} acknowledged cannot be read"
        for queue, v in acknowledged.items()
        if queue not in read
    ]
    for (node, queue), records in history.reads.items():
        first, end = history.first[node, queue], history.ends[node, queue]
        missing = [offset for offset in range(first, end) if offset not in records]
        if missing:
            found.append(f"gap: {queue} through {node} has nothing at {missing[:5]} of [{first}, {end})")
        for offset, here in records.items():
            before = history.seen[queue].setdefault(offset, here)
            if before != here:
                found.append(f"disagree: {queue} offset {offset}: {node} has {here}, a reader saw {before}")
        places = {value: offset for offset, value in records.items()}
        for mine in acknowledged.get(queue, ()):
            told = history.told[mine]
            if mine not in places:
                if told >= first:
                    found.append(f"lost: {mine} was acknowledged for {queue} at {told}, {node} lacks it")
            elif places[mine] != told != -1:
                found.append(f"moved: {mine} was acknowledged at {told} of {queue}, {node} has it at {places[mine]}")
    return found


def _values(history: SimHistory) -> list[str]:
    """Per queue, everything ever seen in it: sent to it, once, and in each producer's order."""
    found: list[str] = []
    places: dict[Value, tuple[QueueId, int]] = {}
    for queue, at in history.seen.items():
        newest: dict[int, int] = {}
        for offset, value in sorted(at.items()):
            if value is None or (sent := history.sends.get(value)) is None:
                found.append(f"phantom: {queue} offset {offset}: nobody sent what stands there ({value})")
                continue
            if sent[0] != queue or sent[1] is Outcome.FAILED:
                found.append(f"phantom: {queue} offset {offset}: {value} went to {sent[0]} and ended {sent[1].value}")
            if value in places:
                found.append(f"duplicates: {value} stands at {places[value]} and at {(queue, offset)}")
                continue
            places[value] = (queue, offset)
            if value in history.repeated:
                continue
            if value.sequence < newest.get(value.producer, -1):
                found.append(f"reordered: {queue} offset {offset}: {value} after {newest[value.producer]}")
            newest[value.producer] = max(value.sequence, newest.get(value.producer, -1))
    return found


def _going_back(rule: str, told: dict[tuple[str, QueueId], list[int]] | dict[QueueId, list[int]]) -> list[str]:
    return [
        f"{rule}: {key}: told {before}, then {after}"
        for key, answers in told.items()
        for before, after in itertools.pairwise(answers)
        if after < before
    ]
