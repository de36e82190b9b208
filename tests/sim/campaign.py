"""Many seeds, in one process or several, and the ledger line that adds them up.

    ledger commit=<id> seeds=N hours=H kills=K states=reached/known violations=0 digest=<hex>

`hours` is simulated time of the cluster. The digest covers every seed's trace in the order of the seeds: equal seeds
and an equal commit give an equal digest, in any process, with any number of jobs. Workers get one seed at a time and
keep nothing from one to the next.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult
from pathlib import Path

from tests.sim.features.mix import RARE_STATES, STATES
from tests.sim.plan import draw_plan
from tests.sim.run import Result, simulate

__all__ = ["ENOUGH_SEEDS", "FAULT_S", "MUST_BE_REACHED", "Campaign", "append_to_record", "commit_id", "run_campaign"]

FAULT_S = 14.0
ENOUGH_SEEDS = 50
"""From so many seeds on, a state that was never reached is a finding as well ..."""
FEATURES_FROM_SEEDS = 200
"""... a state of one of the features, of which a seed has one or two ..."""
RARE_FROM_SEEDS = 1000
"""... and from so many on also a rare one."""

MUST_BE_REACHED = (
    "elected",
    "leader ready",
    "kill -9",
    "power cut",
    "kill majority",
    "stopped cleanly",
    "rolling",
    "replaced",
    "pause",
    "clock jump",
    "cut",
    "flap",
    "slow link",
    "thin link",
    "resets",
    "slow disk",
    "hung disk",
    "sync error",
    "write error",
    "read error",
    "full disk",
    "rot",
    "disk failed",
    "transfer done",
    "transfer aborted",
    "rebalanced",
    "leader lost with a tail",
    "entry overwritten",
    "crash with unsynced bytes",
    "recovered: crash",
    "barrier lost",
    "duplicate found",
    "slow consumer",
    "segments removed",
    "states compared",
)
"""States that a campaign must reach somewhere."""
RARE = (
    "recovered: torn",
    "damaged",
    "damage mended",
    "disk full",
    "hard state mended",
    "index mended",
    "install needed",
    "installed",
    "same message again",
    "crash before a grant",
)
"""States that a large campaign must reach."""


@dataclass(slots=True)
class Campaign:
    """What many seeds showed together."""

    seeds: int = 0
    seconds: float = 0.0
    kills: int = 0
    acked: int = 0
    unknown: int = 0
    violations: int = 0
    processor_s: float = 0.0
    digest: str = ""
    reached: Counter[str] = field(default_factory=Counter)
    blind: list[str] = field(default_factory=list)
    """States that should have been reached and never were."""
    failed: list[int] = field(default_factory=list)

    @property
    def known(self) -> tuple[str, ...]:
        rare = RARE + RARE_STATES if self.seeds >= RARE_FROM_SEEDS else ()
        return MUST_BE_REACHED + (STATES if self.seeds >= FEATURES_FROM_SEEDS else ()) + rare

    @property
    def rate(self) -> float:
        """Simulated seconds per second of one processor."""
        return self.seconds / self.processor_s if self.processor_s else 0.0

    def ledger(self) -> str:
        states = sum(1 for state in self.known if self.reached[state])
        return (
            f"ledger commit={commit_id()} seeds={self.seeds} hours={self.seconds / 3600:.2f} kills={self.kills} "
            f"states={states}/{len(self.known)} violations={self.violations} digest={self.digest}"
        )


@dataclass(slots=True)
class _Done:
    result: Result
    processor_s: float


def _one(seed: int, fault_s: float) -> _Done:
    begun = time.process_time()
    result = simulate(draw_plan(seed, fault_s))
    result.history = None  # large, and nobody asks
    return _Done(result, time.process_time() - begun)


def _results(jobs: int, seeds: Iterator[int], fault_s: float) -> Iterator[_Done]:
    """In the order of the seeds, however many run at once."""
    if jobs == 1:
        for seed in seeds:
            yield _one(seed, fault_s)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=50) as pool:
        ahead: deque[AsyncResult[_Done]] = deque()
        while True:
            ahead.extend(
                pool.apply_async(_one, (seed, fault_s)) for seed in itertools.islice(seeds, 4 * jobs - len(ahead))
            )
            if not ahead:
                return
            yield ahead.popleft().get()


def run_campaign(
    *,
    first_seed: int,
    seeds: int,
    hours: float = 0.0,
    fault_s: float = FAULT_S,
    jobs: int = 1,
    tell: Callable[[Result], None],
) -> Campaign:
    """At least `seeds` seeds and at least `hours` simulated hours. `tell` gets each result, in the order of seeds."""
    campaign, digest = Campaign(), hashlib.sha256()
    wanted = itertools.count(first_seed) if hours > 0 else iter(range(first_seed, first_seed + seeds))
    for done in _results(jobs, wanted, fault_s):
        result = done.result
        campaign.seeds += 1
        campaign.seconds += result.seconds
        campaign.kills += result.kills
        campaign.acked += result.acked
        campaign.unknown += result.unknown
        campaign.violations += len(result.violations)
        campaign.processor_s += done.processor_s
        campaign.reached += result.reached
        digest.update(result.digest.encode())
        if result.violations:
            campaign.failed.append(result.seed)
        tell(result)
        if campaign.seeds >= seeds and campaign.seconds >= hours * 3600:
            break
    campaign.digest = digest.hexdigest()
    if campaign.seeds >= ENOUGH_SEEDS:
        campaign.blind = [state for state in campaign.known if not campaign.reached[state]]
        campaign.violations += len(campaign.blind)
    return campaign


def commit_id() -> str:
    """Of the working tree; with a plus when it has changes."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def append_to_record(path: Path, campaign: Campaign, note: str) -> None:
    """One row more in the ledger of `docs/track-record.md`; the table is at the end of the file."""
    states = sum(1 for state in campaign.known if campaign.reached[state])
    row = (
        f"| {commit_id()} | {note} | {campaign.seeds} | {campaign.seconds / 3600:.2f} | {campaign.kills} "
        f"| {campaign.acked} | {campaign.unknown} | {states}/{len(campaign.known)} | {campaign.violations} "
        f"| {campaign.rate:.1f} | `{campaign.digest[:16]}` |\n"
    )
    with path.open("a", encoding="utf-8") as file:
        file.write(row)
