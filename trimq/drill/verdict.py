"""Judge a drill: what was lost, doubled, reordered, invented, or taken back.

Pure: a history in, a verdict out, linear in the number of messages. The rules, by name:

* lost: acknowledged and not found in a final read, through any node;
* duplicates: one value at two offsets, or in two queues;
* reordered: neighbours of one (producer, queue) whose sequence order and offset order differ;
* phantom: found, but never sent, sent to another queue, surely refused, or with a body that proves nothing;
* offsets_back: a told consumer offset followed by a lower one;
* disagree: two nodes that hold different values at one (queue, offset);
* two_leaders: terms of a group in which more than one node said that it leads (the runner's to count).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trimq.drill.history import History, Outcome, QueueId, Stored, Value

STILL_ARRIVES_S = 0.05
"""So long after a blow the victim's last answers are taken in; no other node answers so soon."""


@dataclass(slots=True)
class Verdict:
    """The figures of one drill; `violations` is what must be zero."""

    rounds: int = 0
    rounds_hit: int = 0
    acked: int = 0
    lost: int = 0
    duplicates: int = 0
    reordered: int = 0
    phantom: int = 0
    offsets_back: int = 0
    disagree: int = 0
    unknown: int = 0
    redelivered: int = 0
    client_errors: int = 0
    two_leaders: int = 0
    """Terms of a group in which more than one node said that it leads."""
    short: int = 0
    """Stored by a master without the slaves it should have waited for: no acknowledgement."""
    loss_window_ms: float = 0.0
    """The oldest lost message was acknowledged so long before the blow that lost it."""
    may_lose: bool = False
    """The strategy (`async`) promises nothing about the tail: what is lost is measured, not judged."""
    failover_ms: dict[str, float] = field(default_factory=dict)
    stall_ms: dict[str, float] = field(default_factory=dict)
    """The longest stretch without an OK, over the rounds."""
    invalid: str = ""
    """Why the run proves nothing; empty when it does."""
    examples: list[str] = field(default_factory=list)
    """The first few violations, in words."""

    @property
    def violations(self) -> int:
        tail = 0 if self.may_lose else self.lost + self.offsets_back
        return tail + self.duplicates + self.reordered + self.phantom + self.disagree + self.two_leaders

    @property
    def exit_status(self) -> int:
        """0 all rounds hit and nothing violated, 1 a violation, 2 the run proves nothing."""
        if self.violations:
            return 1
        return 2 if self.invalid or self.rounds_hit < self.rounds else 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_EXAMPLES_MAX = 10


def _before_blow_ms(history: History, value: Value) -> float:
    """How long before the blow that lost it a value was acknowledged; 0 where the answer came in behind it."""
    at = history.acked_at.get(value, 0.0)
    if any(0 <= at - blow <= STILL_ARRIVES_S for blow in history.blows_at):
        return 0.0
    return round(min((blow - at for blow in history.blows_at if blow >= at), default=0.0) * 1000, 1)


def judge(history: History) -> Verdict:
    """All counts that follow from a history alone; rounds and times are the runner's to add."""
    verdict = Verdict()
    _judge_reads(history, verdict)
    _judge_offsets(history, verdict)
    outcomes = [outcome for _, outcome in history.sends.values()]
    verdict.acked = outcomes.count(Outcome.OK)
    verdict.unknown = outcomes.count(Outcome.UNKNOWN)
    verdict.redelivered = sum(times - 1 for times in history.deliveries.values())
    verdict.client_errors = history.client_errors
    verdict.short = history.short
    return verdict


def _judge_reads(history: History, verdict: Verdict) -> None:
    by_queue: dict[QueueId, list[tuple[str, list[Stored]]]] = {}
    for (node, queue), records in history.reads.items():
        by_queue.setdefault(queue, []).append((node, records))

    acknowledged: dict[QueueId, list[Value]] = {}
    for value, (target, outcome) in history.sends.items():
        if outcome is Outcome.OK:
            acknowledged.setdefault(target, []).append(value)

    found: dict[Value, tuple[QueueId, int]] = {}
    for queue, readings in by_queue.items():
        at_offset: dict[int, Value | None] = {}
        for node, records in readings:
            seen_here: set[Value] = set()
            for record in records:
                held = at_offset.setdefault(record.offset, record.value)
                if held != record.value:
                    verdict.disagree += 1
                    _example(verdict, f"{queue} offset {record.offset}: {node} has {record.value}, another {held}")
                if record.value is not None:
                    seen_here.add(record.value)
            for value in acknowledged.get(queue, ()):
                if value not in seen_here:
                    verdict.lost += 1
                    verdict.loss_window_ms = max(verdict.loss_window_ms, _before_blow_ms(history, value))
                    _example(verdict, f"{value} was acknowledged for {queue} and is not there through {node}")
        _judge_queue(history, verdict, queue, sorted(at_offset.items()), found)

    for queue, values in acknowledged.items():
        if queue not in by_queue:
            verdict.lost += len(values)
            _example(verdict, f"{queue}: {len(values)} messages were acknowledged and it cannot be read at all")


def _judge_queue(
    history: History,
    verdict: Verdict,
    queue: QueueId,
    records: Sequence[tuple[int, Value | None]],
    found: dict[Value, tuple[QueueId, int]],
) -> None:
    newest: dict[int, int] = {}
    for offset, value in records:
        if value is None or (sent := history.sends.get(value)) is None:
            verdict.phantom += 1
            _example(verdict, f"{queue} offset {offset}: nobody sent what stands there ({value})")
            continue
        if sent[0] != queue or sent[1] is Outcome.FAILED:
            verdict.phantom += 1
            _example(verdict, f"{queue} offset {offset}: {value} was sent to {sent[0]} and ended {sent[1].value}")
        if value in found:
            verdict.duplicates += 1
            _example(verdict, f"{value} stands at {found[value]} and at {(queue, offset)}")
            continue
        found[value] = (queue, offset)
        if value.sequence < newest.get(value.producer, -1):
            verdict.reordered += 1
            _example(verdict, f"{queue} offset {offset}: {value} after sequence {newest[value.producer]}")
        newest[value.producer] = max(value.sequence, newest.get(value.producer, -1))


def _judge_offsets(history: History, verdict: Verdict) -> None:
    for (consumer_group, queue), told in history.told_offsets.items():
        for before, after in itertools.pairwise(told):
            if after < before:
                verdict.offsets_back += 1
                _example(verdict, f"{consumer_group} on {queue}: told {before}, then {after}")


def _example(verdict: Verdict, text: str) -> None:
    if len(verdict.examples) < _EXAMPLES_MAX:
        verdict.examples.append(text)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max of some milliseconds; below 100 values p99 is the maximum. Empty in, empty out."""
    if not values:
        return {}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)], 1)

    return {"p50": at(0.50), "p99": at(0.99), "max": round(ordered[-1], 1)}
