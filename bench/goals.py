"""The goals of docs/performance.md: what is compared with what, and whether it was reached.

A goal reads its figure from the samples and says nothing else; what was not measured has no figure and is not met.
Ratios are ours ÷ peer, round by round in one step, and the median of them counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.results import Samples, Spread

__all__ = ["GOALS", "Goal", "Row", "rows"]

_W256 = "1 KiB, 256 in flight"
_SMALL = "100 B, 256 in flight"
_WIDE = "1 KiB, 2,048 in flight"
_ONE = "1 KiB, one by one"
_PULL = "pull 32 × 1 KiB"
_LIBRARY = "library, 1 KiB, 256 in flight"
_BATCH = "100 B, batches of 32, 16 in flight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One line of the table."""

    number: str
    what: str
    peer: str = ""
    bound: float
    at_most: bool = False
    stretch: float | None = None
    unit: str = "×"
    figure: Callable[[Samples], tuple[Spread | None, Spread | None, Spread | None]]
    """Ours, the peer's, and what is held against the bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    goal: Goal
    ours: Spread | None
    peer: Spread | None
    value: Spread | None

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if self._reached(self.goal.bound) else "NOT met"

    @property
    def stretched(self) -> bool:
        return self.value is not None and self.goal.stretch is not None and self._reached(self.goal.stretch)

    def _reached(self, bound: float) -> bool:
        assert self.value is not None
        return self.value.median <= bound if self.goal.at_most else self.value.median >= bound


Figure = tuple[Spread | None, Spread | None, Spread | None]


def _ratio(
    number: str, peer: str, scenario: str, bound: float, stretch: float | None = None, *, ours: str = "trimq",
    theirs: str | None = None, note: str = "", fact: str | None = None, at_most: bool = False,
) -> Goal:  # fmt: skip
    other = theirs or scenario

    def figure(samples: Samples) -> Figure:
        ratio = samples.ratio((scenario, ours), (other, peer), fact)
        paired = {s.step for s in samples.of(other, peer)} & {s.step for s in samples.of(scenario, ours)}
        step = next(iter(sorted(paired)), None)
        return samples.spread(scenario, ours, fact, step), samples.spread(other, peer, fact, step), ratio

    what = scenario + (f", {fact.removesuffix('_ms')}" if fact else "") + (" (async)" if ours != "trimq" else "")
    return Goal(
        number=number, what=what, peer=peer + (f", {other}" if other != scenario else "") + note, bound=bound,
        stretch=stretch, figure=figure, at_most=at_most,
    )  # fmt: skip


def _value(
    number: str, scenario: str, bound: float, unit: str, stretch: float | None = None, *, subject: str = "trimq",
    at_most: bool = True,
) -> Goal:  # fmt: skip
    def figure(samples: Samples) -> Figure:
        found = samples.spread(scenario, subject)
        return found, None, found

    return Goal(
        number=number, what=scenario, bound=bound, unit=unit, stretch=stretch, at_most=at_most, figure=figure
    )  # fmt: skip


def _part(number: str, scenario: str, of: str, bound: float, stretch: float | None = None) -> Goal:
    """Ours ÷ ours."""

    def figure(samples: Samples) -> Figure:
        there, base = _starting(samples, scenario), _starting(samples, of)
        if there is None or base is None:
            return None, None, None
        ratio = samples.ratio((there, "trimq"), (base, "trimq"))
        return samples.spread(there, "trimq"), samples.spread(base, "trimq"), ratio

    return Goal(number=number, what=scenario, peer=f"ours, {of}", bound=bound, stretch=stretch, figure=figure)


def _starting(samples: Samples, pattern: str) -> str | None:
    """The scenario measured whose name has all words of the pattern, in order."""
    return next((s.scenario for s in samples.all if s.scenario.startswith(pattern)), None)


def _begins(number: str, prefix: str, bound: float, unit: str, stretch: float | None = None) -> Goal:
    def figure(samples: Samples) -> Figure:
        found = Spread.of(
            value
            for name in dict.fromkeys(s.scenario for s in samples.all if s.scenario.startswith(prefix))
            if (spread := samples.spread(name, "trimq")) is not None
            for value in (spread.median,)
        )
        return found, None, found

    return Goal(number=number, what=prefix, bound=bound, unit=unit, stretch=stretch, at_most=True, figure=figure)


def _failover(number: str, peer: str, divided: float) -> Goal:
    """Ours against the peer's ÷ something; the two need not have run side by side."""

    def figure(samples: Samples) -> Figure:
        ours, theirs = (samples.spread("failover, kill -9", who) for who in ("trimq", peer))
        if ours is None or theirs is None:
            return ours, theirs, None
        return ours, theirs, Spread.of([ours.median / theirs.median])

    return Goal(
        number=number, what="failover, kill -9", peer=peer, bound=round(1 / divided, 3), at_most=True, figure=figure
    )  # fmt: skip


GOALS: Sequence[Goal] = (
    _ratio("1", "NATS always", _W256, 2, 3),
    _ratio("2", "RabbitMQ", _W256, 4, 6),
    _ratio("2", "RocketMQ DLedger", _W256, 2, 4, note=" (which does not fsync)"),
    _ratio("2", "RocketMQ sync", _W256, 2, 4),
    _ratio("2", "Kafka flush", _LIBRARY, 2, 4, note=" (librdkafka)"),
    _ratio("3", "NATS always", _SMALL, 2, 4),
    _ratio("3", "RabbitMQ", _SMALL, 4, 8),
    _ratio("4", "NATS always", _WIDE, 2, 4),
    _ratio("4", "RabbitMQ", _WIDE, 5, 10),
    _ratio("5", "NATS always", _ONE, 1.3, 1.6),
    _ratio("5", "RabbitMQ", _ONE, 1.3, 1.6),
    _ratio("6", "NATS default", _W256, 1.2, 2, ours="trimq async"),
    _ratio("6", "RocketMQ DLedger", _W256, 1.2, 2, ours="trimq async"),
    _ratio("6", "Kafka default", _LIBRARY, 1.2, 2, ours="trimq async", note=" (librdkafka)"),
    _value("7", _BATCH, 150_000, "msg/s", 300_000, at_most=False),
    _ratio("7", "NATS always", _BATCH, 2, theirs="100 B, 2,048 in flight"),
    _ratio("8", "NATS always", _PULL, 2, 4),
    _ratio("8", "RabbitMQ", _PULL, 4, 8),
    _ratio("8", "RocketMQ DLedger", _PULL, 1, 2),
    _ratio("9", "NATS always", _LIBRARY, 1.5, 2.5, note=" (nats-py)"),
    _ratio("9", "RabbitMQ", _LIBRARY, 5, 8, note=" (aio-pika)"),
    _ratio("9", "Kafka flush", _LIBRARY, 1.5, 3, note=" (librdkafka)"),
    _ratio("10", "NATS always", _LIBRARY, 0.5, 0.3, note=" (nats-py)", fact="p99_ms", at_most=True),
    _value("11", "failover, kill -9", 0.6, "s", 0.3),
    _failover("11", "NATS always", 8),
    _failover("11", "RocketMQ DLedger", 10),
    _value("12", "failover, SIGSTOP", 1.5, "s", 0.8),
    _begins("13", "idle CPU, 10,000 queues, leader", 5, "% of a core", 2),
    _part("14", "1 KiB, 256 in flight, over 10,000 queues", "1 KiB, 256 in flight, over 8 queues", 0.8, 0.95),
    _part("14", "1 KiB, 256 in flight, over 50,000 queues", "1 KiB, 256 in flight, over 8 queues", 0.6, 0.8),
    _begins("14", "resident, 50,000 queues", 500, "MB"),
    _begins("14", "all nodes killed and started, 50,000 queues", 10, "s"),
    _part("15", "1 KiB, 256 in flight, 2,000,000 messages there", "1 KiB, 256 in flight, empty", 0.9, 1),
    _begins("16", "restart after kill -9, 10 GiB of log", 5, "s", 2),
    _value("17", "standalone, ready", 0.8, "s", 0.4),
    _value("17", "standalone, resident", 80, "MB", 50),
)


def rows(samples: Samples) -> list[Row]:
    found = []
    for goal in GOALS:
        ours, peer, value = goal.figure(samples)
        found.append(Row(goal=goal, ours=ours, peer=peer, value=value))
    return found
