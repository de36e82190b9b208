"""What a seed draws before its run begins: swarm testing.

Faults that always come together hide what each of them finds alone, so a run has each kind of fault with chance 1/2,
and its own latencies, rates, sizes and clocks. A run can also be told exactly what to do (`faults`, and any field by
`dataclasses.replace`): planted bugs and shrinking do that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["FAULTS", "FEATURES", "Plan", "draw_plan"]

FAULTS = (
    # machines
    "kill",
    "power",
    "kill all",
    "power all",
    "kill majority",
    "stop",
    "rolling",
    "replace",
    "pause",
    "clock jump",
    # links
    "isolate",
    "one way",
    "pair",
    "clients cut",
    "flap",
    "slow link",
    "thin link",
    "resets",
    # disks
    "slow disk",
    "hung disk",
    "sync error",
    "write error",
    "read error",
    "full disk",
    "rot",
    # leadership
    "transfer",
)
"""Every kind of fault, as the nemesis knows it."""

FEATURES = (
    "transactions",
    "delays",
    "retries",
    "ordered",
    "together",
    "filters",
    "broadcast",
    "requests",
    "resets",
)
"""Every kind of message and of consuming beside the plain ones (`tests.sim.features`). A seed has a few of them, never
all: they cost time, and what always comes together hides what each of them finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parameters of one run."""

    seed: int
    fault_s: float
    """How long faults go on; healing and the checks come after."""
    groups: int
    faults: tuple[str, ...]
    fault_every_s: float
    faults_max: int = 1 << 30
    """So many faults and no more (shrinking)."""
    latency_ms: float
    jitter_ms: float
    disk_ms: float
    disk_jitter_ms: float
    drift: tuple[float, ...]
    """Rate error of each node's wall clock."""
    rates: tuple[float, ...]
    """How fast each node's monotonic clock runs."""
    beat_ms: int
    election_ms: int
    producers: int
    pause_s: float
    """Mean time between two bursts of one producer."""
    bursts: tuple[int, ...]
    """How many messages a burst may have."""
    body_bytes: int
    consumers: int
    slow_consumer_s: float
    """How long a handler of the first consumer takes, at most."""
    segment_bytes: int
    retention_s: int = 0
    """Messages are kept so long; 0: for good."""
    client_timeout_s: float = 10.0
    rotten: int = 0
    """The only node whose disk rots: more than a minority with the same damage is beyond any log."""
    without: tuple[str, ...] = field(default=())
    """Pieces of the load that are left out (shrinking): consumers, watchers, tailers."""
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"groups={self.groups} faults={'+'.join(f.replace(' ', '-') for f in self.faults)} "
            f"every={self.fault_every_s:.1f}s link={self.latency_ms:.1f}+{self.jitter_ms:.1f}ms "
            f"disk={self.disk_ms:.1f}+{self.disk_jitter_ms:.1f}ms E={self.election_ms}ms rates={self.rates} "
            f"producers={self.producers} pause={self.pause_s}s body={self.body_bytes} segment={self.segment_bytes} "
            f"retention={self.retention_s}s timeout={self.client_timeout_s}s features={'+'.join(self.features)}"
        )


def draw_plan(seed: int, fault_s: float = 12.0, faults: tuple[str, ...] = ()) -> Plan:
    """The plan of a seed. `faults`: exactly these instead of drawn ones."""
    rng = random.Random(f"{seed}/plan")
    drawn = tuple(f for f in FAULTS if rng.random() < 0.5) or ("kill",)
    patient = rng.random() < 0.6
    old = rng.random() < 0.25
    features = _features(seed) if not old else ()  # their messages are read when all is over
    return Plan(
        seed=seed,
        fault_s=fault_s,
        groups=rng.choice((1, 1, 1, 1, 2, 3)),
        faults=faults or drawn,
        fault_every_s=rng.choice((0.7, 1.5, 3.0)),
        latency_ms=rng.choice((0.1, 0.5, 2.0)),
        jitter_ms=rng.choice((0.05, 0.5, 4.0)),
        disk_ms=rng.choice((0.1, 0.5, 5.0)),
        disk_jitter_ms=rng.choice((0.0, 1.0, 10.0)),
        drift=tuple(rng.choice((-0.1, 0.0, 0.0, 0.1)) for _ in range(3)),
        rates=tuple(rng.choice((1.0, 1.0, 0.9, 1.1)) for _ in range(3)) if rng.random() < 0.3 else (1.0, 1.0, 1.0),
        beat_ms=250 if patient else 100,
        election_ms=1000 if patient else 400,
        producers=rng.choice((1, 1, 2, 3)),
        pause_s=rng.choice((0.3, 0.7, 1.5)),
        bursts=rng.choice(((1,), (1, 1, 2, 4, 8), (1, 4, 16))),
        body_bytes=rng.choice((2048, 6000)) if old else rng.choice((64, 64, 300, 1024)),
        consumers=rng.choice((1, 1, 2)),
        slow_consumer_s=rng.choice((0.0, 0.0, 0.0, 0.2, 1.5)),
        segment_bytes=rng.choice((64 << 10, 128 << 10)) if old else rng.choice((256 << 10, 512 << 10)),
        retention_s=rng.choice((2, 5)) if old else 0,
        client_timeout_s=rng.choice((1.0, 3.0, 10.0, 10.0)),
        rotten=rng.randrange(3),
        features=features,
        # Those who pop are a feature too, and have their turn in the other seeds.
        without=("poppers",) if features else (),
    )


def _features(seed: int) -> tuple[str, ...]:
    """Drawn apart, so that all else of a plan is as it would be without them."""
    rng = random.Random(f"{seed}/features")
    drawn = rng.sample(FEATURES, rng.choice((0, 1, 1, 2, 2)))
    return tuple(feature for feature in FEATURES if feature in drawn)
