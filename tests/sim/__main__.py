"""`python -m tests.sim`: run seeds, end with one ledger line; or look for the planted bugs.

    python -m tests.sim --seeds 2000 --hours 12 --jobs 2 --record docs/track-record.md
    python -m tests.sim --ci NAME            the fixed seeds, and new ones drawn from NAME (a commit, a date)
    python -m tests.sim --planted            the table of planted bugs and the seeds that found them
    python -m tests.sim --seeds 1 --first-seed 17 --verbose
    python -m tests.sim --seeds 1 --first-seed 17 --change "faults=('kill',)"     what shrinking prints

Exit status 0 only without a violation, and with every state reached that has to be; each violation is shrunk and
prints the command that repeats it.
"""

from __future__ import annotations

import argparse
import ast
import sys
import zlib
from dataclasses import replace
from pathlib import Path

from tests.sim.campaign import ENOUGH_SEEDS, FAULT_S, Campaign, append_to_record, run_campaign
from tests.sim.plan import Plan, draw_plan
from tests.sim.planted import print_table
from tests.sim.run import Result, simulate
from tests.sim.shrink import changes_of, rule_of, shrink

CI_FIXED_SEEDS = 12
CI_NEW_SEEDS = 12
CI_FAULT_S = 8.0
SHRUNK_MAX = 3
"""So many failing seeds are made smaller; the others are only named."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Deterministic simulation of a cluster.")
    parser.add_argument("--seeds", type=int, default=ENOUGH_SEEDS, help="at least so many seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=0.0, help="go on for so many simulated hours at least")
    parser.add_argument("--fault-seconds", type=float, default=FAULT_S, help="length of a seed's fault phase")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--record", type=Path, help="append a row to this ledger (docs/track-record.md)")
    parser.add_argument("--note", default="campaign", help="what the row is about")
    parser.add_argument("--ci", metavar="NAME", help="the share of a CI run: fixed seeds, and new ones drawn from NAME")
    parser.add_argument("--planted", action="store_true", help="look for every planted bug")
    parser.add_argument("--only", default="", help="with --planted: only bugs with this in their name")
    parser.add_argument("--change", action="append", default=[], metavar="FIELD=VALUE", help="change the drawn plan")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="print the trace")
    asked = parser.parse_args()
    if asked.seeds < 1 or asked.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    if asked.planted:
        return print_table(asked.jobs, asked.only)
    if asked.ci is not None:
        return _ci(asked.ci, asked.jobs)
    if asked.change or asked.verbose:
        return _single(asked.first_seed, asked.seeds, asked.fault_seconds, asked.change, verbose=asked.verbose)
    campaign = run_campaign(
        first_seed=asked.first_seed,
        seeds=asked.seeds,
        hours=asked.hours,
        fault_s=asked.fault_seconds,
        jobs=asked.jobs,
        tell=_tell,
    )
    _explain(campaign, asked.fault_seconds, shrinks=not asked.no_shrink)
    if asked.record is not None:
        append_to_record(asked.record, campaign, asked.note)
    print(campaign.ledger())
    return 1 if campaign.violations else 0


def _ci(name: str, jobs: int) -> int:
    """Old seeds, so that what worked still does, and new ones each time, so that the suite goes on searching."""
    new = zlib.crc32(name.encode()) % 1_000_000 + 1_000_000
    print(f"fixed seeds 0 to {CI_FIXED_SEEDS - 1}, new ones from {new} (drawn from {name!r})", flush=True)
    status = 0
    for first, count in ((0, CI_FIXED_SEEDS), (new, CI_NEW_SEEDS)):
        campaign = run_campaign(first_seed=first, seeds=count, fault_s=CI_FAULT_S, jobs=jobs, tell=_tell)
        _explain(campaign, CI_FAULT_S, shrinks=False)
        print(campaign.ledger(), flush=True)
        status = status or (1 if campaign.violations else 0)
    return status


def _single(first_seed: int, seeds: int, fault_s: float, changes: list[str], *, verbose: bool) -> int:
    """Runs with a trace or a changed plan: no campaign, no ledger, but the digest."""
    status = 0
    for seed in range(first_seed, first_seed + seeds):
        plan = _changed(draw_plan(seed, fault_s), changes)
        result = simulate(plan, keep=sys.stdout.write if verbose else None)
        print(f"plan: {plan}")
        _tell(result)
        status = status or (1 if result.violations else 0)
    return status


def _changed(plan: Plan, changes: list[str]) -> Plan:
    for change in changes:
        name, _, value = change.partition("=")
        plan = replace(plan, **{name: ast.literal_eval(value)})
    return plan


def _tell(result: Result) -> None:
    print(
        f"seed {result.seed}: {result.seconds:.0f} s, {len(result.faults)} faults, {result.kills} kills, "
        f"{result.acked} acked, {result.unknown} unknown, digest {result.digest[:12]}"
        + (f", VIOLATIONS {len(result.violations)}" if result.violations else ""),
        flush=True,
    )
    for violation in result.violations:
        print(f"  violation: {violation}", flush=True)


def _explain(campaign: Campaign, fault_s: float, *, shrinks: bool) -> None:
    for number, seed in enumerate(campaign.failed):
        print(f"repeat: {_command(draw_plan(seed, fault_s))}", flush=True)
        if shrinks and number < SHRUNK_MAX:
            plan = draw_plan(seed, fault_s)
            rule = rule_of(simulate(plan).violations[0])
            small = shrink(plan, lambda each: simulate(each).violations, rule)
            print(f"  shrunk, still breaks {rule!r}: {_command(small)}", flush=True)
    if campaign.blind:
        print(f"never reached, so the simulation is blind there: {', '.join(campaign.blind)}")
    print("reached: " + ", ".join(f"{state} {count}" for state, count in sorted(campaign.reached.items())))
    print(f"acknowledged {campaign.acked}, unknown {campaign.unknown}")
    print(f"{campaign.rate:.1f} simulated seconds per second of one processor", file=sys.stderr)


def _command(plan: Plan) -> str:
    """The one line that repeats a run."""
    length = "" if plan.fault_s == FAULT_S else f" --fault-seconds {plan.fault_s!r}"
    changes = "".join(f' --change "{name}={value!r}"' for name, value in changes_of(plan).items())
    return f"python -m tests.sim --seeds 1 --first-seed {plan.seed}{length}{changes} --verbose"


if __name__ == "__main__":
    sys.exit(main())
