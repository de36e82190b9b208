"""Samples as they come, one JSON line each, so that a run that is cut short has lost nothing; and their medians.

A *sample* is one figure of one scenario for one subject in one round. Samples of the same round of one step were taken
in turn, within seconds of each other: ratios are taken round by round, and the median of the ratios counts, so slow
drifts of a shared machine cancel out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

__all__ = ["Sample", "Samples", "Spread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    step: str
    """Subjects of one step ran side by side."""
    scenario: str
    subject: str
    round: int
    value: float
    unit: str
    facts: Mapping[str, float] = field(default_factory=dict)
    """p50_ms, p99_ms, written_per_message, cpu_us:<process>, ..."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, minimum and maximum of some values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        found = sorted(values)
        return cls(median(found), found[0], found[-1], len(found)) if found else None


class Samples:
    """All samples of a run, in a file."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.all: list[Sample] = []
        self.notes: dict[str, str] = {}
        if resume and path.exists():
            for line in path.read_text().splitlines():
                self._take(json.loads(line))
        else:
            path.write_text("")

    def _take(self, line: dict[str, object]) -> None:
        if "note" in line:
            self.notes[str(line["note"])] = str(line["text"])
        else:
            self._have(Sample(**line))  # type: ignore[arg-type]  # what asdict wrote

    def _have(self, sample: Sample) -> None:
        self.all.append(sample)
        self.notes.pop(sample.step, None)  # what was left out once has been measured since

    def add(self, sample: Sample) -> None:
        self._have(sample)
        self._write(asdict(sample))

    def note(self, about: str, text: str) -> None:
        """Why something is missing, in one line."""
        self.notes[about] = text
        self._write({"note": about, "text": text})

    def _write(self, line: dict[str, object]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, step: str, scenario: str, subject: str, round_: int) -> bool:
        return any((s.step, s.scenario, s.subject, s.round) == (step, scenario, subject, round_) for s in self.all)

    def of(self, scenario: str, subject: str, step: str | None = None) -> Iterator[Sample]:
        for s in self.all:
            if s.scenario == scenario and s.subject == subject and step in (None, s.step):
                yield s

    def spread(self, scenario: str, subject: str, fact: str | None = None, step: str | None = None) -> Spread | None:
        found = self.of(scenario, subject, step)
        return Spread.of(s.value if fact is None else s.facts[fact] for s in found if fact is None or fact in s.facts)

    def ratio(
        self, ours: tuple[str, str], theirs: tuple[str, str], fact: str | None = None, step: str | None = None
    ) -> Spread | None:
        """Ours ÷ theirs, each a (scenario, subject), paired by step and round."""

        def value(s: Sample) -> float:
            return s.value if fact is None else s.facts[fact]

        peers = {(s.step, s.round): value(s) for s in self.of(*theirs, step)}
        pairs = ((value(s), peers.get((s.step, s.round))) for s in self.of(*ours, step))
        return Spread.of(own / peer for own, peer in pairs if peer)

    def subjects(self) -> list[str]:
        return list(dict.fromkeys(s.subject for s in self.all))
