"""How fast a consumer works, per topic: counted per message, reckoned when somebody asks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from trimq.wire.body.running import ConsumeStatus

__all__ = ["ConsumeRates"]

SPAN_S: Final = 60.0
SAMPLE_S: Final = 5.0


@dataclass(slots=True)
class _Counts:
    ok: int = 0
    failed: int = 0
    busy_s: float = 0.0
    pulls: int = 0
    pull_s: float = 0.0
    pulled: int = 0

    def copy(self) -> _Counts:
        return _Counts(self.ok, self.failed, self.busy_s, self.pulls, self.pull_s, self.pulled)


class ConsumeRates:
    """Counts of the last minute by topic. `now` is the loop's clock."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}
        self._samples: deque[tuple[float, dict[str, _Counts]]] = deque()

    def pulled(self, topic: str, messages: int, took_s: float, now: float) -> None:
        """One pull was answered."""
        counts = self._at(topic, now)
        counts.pulls += 1
        counts.pull_s += took_s
        counts.pulled += messages

    def handled(self, topic: str, took_s: float, now: float, *, ok: bool) -> None:
        """A handler is done with a message."""
        counts = self._at(topic, now)
        counts.busy_s += took_s
        if ok:
            counts.ok += 1
        else:
            counts.failed += 1

    def _at(self, topic: str, now: float) -> _Counts:
        samples = self._samples
        if not samples or now - samples[-1][0] >= SAMPLE_S:
            samples.append((now, {name: counts.copy() for name, counts in self._counts.items()}))
            while len(samples) > 1 and now - samples[0][0] > SPAN_S:
                samples.popleft()
        return self._counts.setdefault(topic, _Counts())

    def statuses(self, now: float) -> dict[str, ConsumeStatus]:
        """Rates since the oldest sample that is kept (a minute at most)."""
        if not self._samples:
            return {}
        since, then = self._samples[0]
        span = max(now - since, 1.0)
        return {topic: _status(counts, then.get(topic, _Counts()), span) for topic, counts in self._counts.items()}


def _status(counts: _Counts, then: _Counts, span: float) -> ConsumeStatus:
    done = counts.ok + counts.failed - then.ok - then.failed
    pulls = counts.pulls - then.pulls
    return ConsumeStatus(
        consumeOKTPS=(counts.ok - then.ok) / span,
        consumeFailedTPS=(counts.failed - then.failed) / span,
        consumeFailedMsgs=counts.failed - then.failed,
        consumeRT=1000 * (counts.busy_s - then.busy_s) / done if done else 0.0,
        pullTPS=(counts.pulled - then.pulled) / span,
        pullRT=1000 * (counts.pull_s - then.pull_s) / pulls if pulls else 0.0,
    )
