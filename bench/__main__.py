"""`bench/run.sh`: measure trimq and its peers on this machine, side by side, and write docs/performance.md."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click

from bench import compare as comparing
from bench.peers.base import NotToBeHad
from bench.plan import STEPS, Step
from bench.plots import draw
from bench.report import goals_table, number, page, publish
from bench.results import Sample, Samples
from bench.scale import Sizes
from bench.take import ROOT, take
from bench.thin import Refused
from trimq.errors import TrimqError
from trimq.testing.local_cluster import ClusterError

_WORK = ROOT / ".bench"
_PAGE = ROOT / "docs" / "performance.md"
_FAILURES = (NotToBeHad, Refused, OSError, ClusterError, TrimqError, subprocess.SubprocessError, TimeoutError)


class Clock:
    """The run's time budget."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + minutes * 60

    def left(self) -> float:
        return self.end - time.monotonic()


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every step, in the order of what they tell.")
@click.option("--quick", is_flag=True, help="The first step, one round, half a second each: does the harness work?")
@click.option("--only", multiple=True, metavar="STEP", help=f"Steps: {', '.join(s.name for s in STEPS)}.")
@click.option("--compare", nargs=2, metavar="A B", help="Two commits, or two settings key=value, pair by pair.")
@click.option("--scenario", multiple=True, help="With --compare: what to run.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1), default=1.5, show_default=True, help="Per run.")
@click.option("--minutes", type=float, default=20.0, show_default=True, help="No step begins that would end later.")
@click.option("--log-gib", type=float, default=2.0, show_default=True, help="The largest log that is restarted.")
@click.option("--backlog", type=int, default=2_000_000, show_default=True, help="Messages.")
@click.option("--resume", is_flag=True, help="Keep what the last run measured and go on from there.")
@click.option("--publish/--no-publish", "published", default=None, help="Write docs/performance.md.  [with --all]")
def main(
    everything: bool,
    quick: bool,
    only: tuple[str, ...],
    compare: tuple[str, str] | None,
    scenario: tuple[str, ...],
    rounds: int,
    seconds: float,
    minutes: float,
    log_gib: float,
    backlog: int,
    resume: bool,
    published: bool | None,
) -> None:
    """Measure, print every goal with figure, peer, ratio and verdict; samples are kept in .bench/results.jsonl."""
    clock = Clock(minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every server is stopped on the way out
    if quick:
        rounds, seconds = 1, 0.5
    if compare:
        steps: Sequence[Step] = comparing.steps(*compare, scenario, _WORK)
    elif quick and not only:
        steps = STEPS[:1]
    elif everything:
        steps = STEPS
    else:
        unknown = set(only) - {step.name for step in STEPS}
        if unknown or not only:
            raise click.UsageError(
                f"say --all, --quick, --compare, or --only one of {', '.join(s.name for s in STEPS)}"
            )
        steps = [step for step in STEPS if step.name in only]
    path = _WORK / ("compare.jsonl" if compare else "results.jsonl")
    samples = Samples(path, resume=resume)
    sizes = Sizes(rounds=rounds, seconds=seconds, log_gib=log_gib, backlog=backlog)
    began = datetime.now(UTC)
    published = everything if published is None else published
    pictures = _PAGE.parent / "performance"
    for step in steps:
        _run(step, samples, clock, sizes)
        if published:  # after every step, so that a run that is cut short has its page too
            publish(_PAGE, page(samples, _facts(began), sorted(each.stem for each in pictures.glob("*.png"))))
    if published:
        publish(_PAGE, page(samples, _facts(began), draw(samples, pictures)))
    if compare:
        click.echo(comparing.table(samples, *compare))
        return
    click.echo(goals_table(samples))
    for about, text in samples.notes.items():
        click.echo(f"{about}: {text}")


def _run(step: Step, samples: Samples, clock: Clock, sizes: Sizes) -> None:
    needs = step.needs_s(sizes.rounds, sizes.seconds)
    if clock.left() < needs:
        samples.note(step.name, f"left out, no time: it needs about {needs:.0f} s, {clock.left():.0f} s were left")
        return
    click.echo(f"== {step.name}, about {needs:.0f} s", err=True)
    home = Path(tempfile.mkdtemp(prefix="trimq-bench-"))
    try:
        if step.alone is not None:
            _alone(step, home, samples, sizes)
        else:
            _side_by_side(step, home, samples, clock, sizes)
    except _FAILURES as why:
        samples.note(step.name, " ".join(str(why).split())[:500] or type(why).__name__)
        click.echo(f"   {samples.notes[step.name]}", err=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _alone(step: Step, home: Path, samples: Samples, sizes: Sizes) -> None:
    if any(s.step == step.name for s in samples.all):
        return

    def found(scenario: str, round_: int, value: float, unit: str) -> None:
        sample = Sample(step=step.name, scenario=scenario, subject="trimq", round=round_, value=value, unit=unit)
        samples.add(sample)
        click.echo(f"   {scenario}: {number(value)} {unit}", err=True)

    assert step.alone is not None
    step.alone(home, sizes, found)


def _side_by_side(step: Step, home: Path, samples: Samples, clock: Clock, sizes: Sizes) -> None:
    rounds = min(step.rounds or sizes.rounds, sizes.rounds)
    wanted = [
        (at, scenario, subject)
        for at in range(rounds)
        for scenario, subjects in step.takes
        for subject in (subjects if at % 2 == 0 else tuple(reversed(subjects)))
        if not samples.has(step.name, scenario.name, subject, at)
    ]
    if not wanted:
        return
    with ExitStack() as stack:
        peers = {
            name: stack.enter_context(opens(home / name.replace(" ", "-"))) for name, opens in step.subjects.items()
        }
        for name, peer in peers.items():
            click.echo(f"   {name}: {peer.about}", err=True)
        for at, scenario, subject in wanted:
            if clock.left() < 0:
                raise NotToBeHad(f"cut short in round {at}: the time was up")
            try:
                value, unit, facts = take(peers[subject], scenario, sizes.seconds)
            except _FAILURES as why:
                about = f"{subject}, {scenario.name}"
                samples.note(about, " ".join(str(why).split())[:300] or type(why).__name__)
                click.echo(f"   {about}: {samples.notes[about]}", err=True)
                continue
            samples.add(
                Sample(
                    step=step.name, scenario=scenario.name, subject=subject, round=at, value=value, unit=unit,
                    facts=facts,
                )
            )  # fmt: skip
            click.echo(f"   {at} {scenario.name}: {subject} {number(value)} {unit}", err=True)


def _facts(began: datetime) -> dict[str, str]:
    commit = _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else "")
    cores = len(os.sched_getaffinity(0))
    return {
        "Begun": began.strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit,
        "machine": f"{cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load average at the end": f"{os.getloadavg()[0]:.1f}",
    }


def _git(*words: str) -> str:
    found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown" if words[0] == "rev-parse" else found.stdout.strip()


def run(arguments: Sequence[str]) -> None:
    """For tests: as the command line, without leaving the interpreter."""
    main(list(arguments), standalone_mode=False)


if __name__ == "__main__":
    sys.exit(main())
