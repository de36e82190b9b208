"""Figures of one replica: counters that the hot path bumps, and rates over 10 s, 60 s and 600 s.

Counting is an integer addition on a slotted object; everything else (rates, text for mqadmin's `brokerStatus`, the
Prometheus page) is made when somebody asks. Rates come from samples taken every 10 s by the housekeeping service, so
nothing here reads a clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields, replace

__all__ = ["SAMPLE_S", "Counters", "Rates", "exposition"]

SAMPLE_S = 10.0


@dataclass(slots=True)
class Counters:
    """What one replica has done since it started."""

    put_messages: int = 0
    put_bytes: int = 0
    put_refused: int = 0
    get_requests_found: int = 0
    get_requests_missed: int = 0
    get_messages: int = 0
    get_bytes: int = 0
    pulls_held: int = 0
    send_backs: int = 0
    dead_letters: int = 0
    delayed_delivered: int = 0
    timers_delivered: int = 0
    timers_rolled: int = 0
    timers_recalled: int = 0
    transactions_committed: int = 0
    transactions_rolled_back: int = 0
    transactions_checked: int = 0
    transactions_given_up: int = 0
    offsets_committed: int = 0
    pop_messages: int = 0
    pop_acks: int = 0
    pop_revived: int = 0
    pops_held: int = 0
    duplicates: int = 0
    forwarded_in: int = 0
    replies: int = 0
    """Replies to requests that were taken, whether they reached their client or not."""

    def snapshot(self) -> Counters:
        return replace(self)


class Rates:
    """Per-second rates of `Counters` fields over the last 10, 60 and 600 seconds."""

    SPANS = (1, 6, 60)
    """In samples."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Counters]] = deque(maxlen=max(self.SPANS) + 1)

        self._day = -1
        self.this_morning = Counters()
        """The counters when this day began, or at the start of the process if that was later ..."""
        self.yesterday_morning = Counters()
        """... and the same of the day before."""

    def sample(self, now: float, counters: Counters, *, day: int = 0) -> None:
        """Remember the counters at monotonic time `now`, on day number `day`; call it every `SAMPLE_S`."""
        taken = counters.snapshot()
        if day != self._day and self._day >= 0:
            self.yesterday_morning, self.this_morning = self.this_morning, taken
        self._day = day
        self._samples.append((now, taken))

    def rate(self, name: str, span: int) -> float:
        """Per second, over the newest `span` samples (fewer right after the start)."""
        if len(self._samples) < 2:
            return 0.0
        now, newest = self._samples[-1]
        then, oldest = self._samples[-1 - min(span, len(self._samples) - 1)]
        if now <= then:
            return 0.0
        return float(getattr(newest, name) - getattr(oldest, name)) / (now - then)

    def tps3(self, *names: str) -> str:
        """Three rates, as RocketMQ's tools print them: `10s 60s 600s`."""
        return " ".join(f"{sum(self.rate(name, span) for name in names):.2f}" for span in self.SPANS)


def exposition(labels: dict[str, str], gauges: dict[str, float], counters: Counters) -> str:
    """The Prometheus text page. Names follow RocketMQ 5's where the meaning is the same."""
    text = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    lines: list[str] = []
    for each in fields(counters):
        name = _NAMES.get(each.name, f"trimq_{each.name}_total")
        lines += [f"# TYPE {name} counter", f"{name}{{{text}}} {getattr(counters, each.name)}"]
    for key, value in sorted(gauges.items()):
        lines += [f"# TYPE {key} gauge", f"{key}{{{text}}} {value:g}"]
    return "\n".join(lines) + "\n"


_NAMES = {
    "put_messages": "rocketmq_messages_in_total",
    "put_bytes": "rocketmq_throughput_in_total",
    "get_messages": "rocketmq_messages_out_total",
    "get_bytes": "rocketmq_throughput_out_total",
    "dead_letters": "rocketmq_send_to_dlq_messages_total",
}
