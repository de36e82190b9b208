"""`python -m tests.sim --seeds N [--first-seed S] [--hours H]`: run seeds, end with one ledger line.

    ledger commit=<id> seeds=N hours=H kills=K states=reached/known violations=0 digest=<hex>

`hours` is simulated time; with `--hours H` the fault phases of all seeds together last so long, else 12 s each. The
digest covers every seed's trace in order: equal seeds and an equal commit give an equal digest, in any process. Exit
status 0 only without a violation; each violation prints the command that repeats it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections import Counter

from tests.sim.plan import draw_plan
from tests.sim.run import MUST_BE_REACHED, Result, simulate

FAULT_S = 12.0
ENOUGH_SEEDS = 50
"""From so many seeds on, a state that was never reached is a finding as well."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Deterministic simulation of a cluster.")
    parser.add_argument("--seeds", type=int, default=ENOUGH_SEEDS, help="how many seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=0.0, help="simulated hours of faults, all seeds together")
    parser.add_argument("--verbose", action="store_true", help="print the trace")
    asked = parser.parse_args()
    if asked.seeds < 1:
        parser.error("--seeds must be at least 1")
    fault_s = asked.hours * 3600 / asked.seeds if asked.hours > 0 else FAULT_S

    digest = hashlib.sha256()
    reached: Counter[str] = Counter()
    seconds, kills, violations = 0.0, 0, 0
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        plan = draw_plan(seed, fault_s)
        result = simulate(plan, keep=sys.stdout.write if asked.verbose else None)
        digest.update(result.digest.encode())
        reached += result.reached
        seconds += result.seconds
        kills += result.kills
        violations += len(result.violations)
        print(_line(result), flush=True)
        for violation in result.violations:
            print(f"  violation: {violation}\n  plan: {plan}\n  repeat: {_command(seed, fault_s)}", flush=True)

    blind = [state for state in MUST_BE_REACHED if not reached[state]]
    if blind and asked.seeds >= ENOUGH_SEEDS:
        print(f"never reached, so the simulation is blind there: {', '.join(blind)}")
        violations += len(blind)
    print("reached: " + ", ".join(f"{state} {count}" for state, count in sorted(reached.items())))
    states = f"{len(MUST_BE_REACHED) - len(blind)}/{len(MUST_BE_REACHED)}"
    print(
        f"ledger commit={_commit()} seeds={asked.seeds} hours={seconds / 3600:.2f} kills={kills} states={states} "
        f"violations={violations} digest={digest.hexdigest()}"
    )
    return 1 if violations else 0


def _line(result: Result) -> str:
    return (
        f"seed {result.seed}: {result.seconds:.0f} s, {len(result.faults)} faults, {result.kills} kills, "
        f"{result.acked} acked, {result.unknown} unknown, digest {result.digest[:12]}"
        + (f", VIOLATIONS {len(result.violations)}" if result.violations else "")
    )


def _command(seed: int, fault_s: float) -> str:
    hours = "" if fault_s == FAULT_S else f" --hours {fault_s / 3600!r}"
    return f"python -m tests.sim --seeds 1 --first-seed {seed}{hours} --verbose"


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
