"""What a seed draws before its run begins: swarm testing.

Faults that always come together hide what each of them finds alone, so a run has each kind of fault with chance 1/2,
and its own latencies, rates and sizes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["FAULTS", "Plan", "draw_plan"]

FAULTS = (
    "kill",
    "power",
    "kill all",
    "power all",
    "isolate",
    "one way",
    "pair",
    "slow link",
    "slow disk",
    "sync error",
    "transfer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parameters of one run."""

    seed: int
    fault_s: float
    """How long faults go on; healing and the checks come after."""
    groups: int
    faults: tuple[str, ...]
    fault_every_s: float
    latency_ms: float
    jitter_ms: float
    disk_ms: float
    disk_jitter_ms: float
    drift: tuple[float, ...]
    """Rate error of each node's wall clock."""
    producers: int
    rate: float
    """Messages a second, all producers together."""
    segment_bytes: int

    def __str__(self) -> str:
        return (
            f"groups={self.groups} faults={'+'.join(f.replace(' ', '-') for f in self.faults)} "
            f"every={self.fault_every_s:.1f}s link={self.latency_ms:.1f}+{self.jitter_ms:.1f}ms "
            f"disk={self.disk_ms:.1f}+{self.disk_jitter_ms:.1f}ms rate={self.rate:.0f} segment={self.segment_bytes}"
        )


def draw_plan(seed: int, fault_s: float = 12.0, faults: tuple[str, ...] = ()) -> Plan:
    """The plan of a seed. `faults`: exactly these instead of drawn ones."""
    rng = random.Random(f"{seed}/plan")
    drawn = tuple(f for f in FAULTS if rng.random() < 0.5) or ("kill",)
    return Plan(
        seed=seed,
        fault_s=fault_s,
        groups=rng.choice((1, 1, 1, 2)),
        faults=faults or drawn,
        fault_every_s=rng.choice((0.7, 1.5, 3.0)),
        latency_ms=rng.choice((0.1, 0.5, 2.0)),
        jitter_ms=rng.choice((0.05, 0.5, 4.0)),
        disk_ms=rng.choice((0.1, 0.5, 5.0)),
        disk_jitter_ms=rng.choice((0.0, 1.0, 10.0)),
        drift=tuple(rng.choice((-0.1, 0.0, 0.0, 0.1)) for _ in range(3)),
        producers=rng.choice((1, 2, 3)),
        rate=rng.choice((20.0, 40.0, 80.0)),
        segment_bytes=rng.choice((256 << 10, 1 << 20, 8 << 20)),
    )
