"""Two commits, or two settings, pair by pair: `bench/run.sh --compare main HEAD`, `--compare key=1 key=2`.

Both clusters run side by side and take the same scenarios in turn; the harness, the client and the interpreter are the
same for both, only the servers' code or configuration differs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import click

from bench.peers.base import Open
from bench.peers.trimq import opener
from bench.plan import SCENARIOS, Step
from bench.report import number
from bench.results import Samples
from bench.take import ROOT

__all__ = ["steps", "table"]

_USUAL = ("1 KiB, one by one", "100 B, 64 in flight", "1 KiB, 256 in flight", "100 B, batches of 32, 16 in flight")


def steps(a: str, b: str, scenarios: Sequence[str], work: Path) -> list[Step]:
    """Raises click.UsageError for what is neither a commit nor a setting, and for unknown scenarios."""
    unknown = [name for name in scenarios if name not in SCENARIOS]
    if unknown:
        raise click.UsageError(f"no scenario {unknown[0]!r}; there are: {'; '.join(SCENARIOS)}")
    takes = [(SCENARIOS[name], (a, b)) for name in scenarios or _USUAL]
    return [Step(name="compare", subjects={name: _subject(name, work) for name in (a, b)}, takes=takes, start_s=15)]


def _subject(text: str, work: Path) -> Open:
    if text == ".":
        return opener(text, "the working tree", source=ROOT)
    if "=" in text:
        return opener(text, f"this tree, {text}", extra=dict(part.split("=", 1) for part in text.split(",")))
    found = subprocess.run(
        ["git", "rev-parse", "--verify", f"{text}^{{commit}}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise click.UsageError(f"{text!r} is neither a commit, `.`, nor a setting key=value")
    commit = found.stdout.strip()
    tree = work / "commits" / commit[:12]
    if not tree.exists():
        tree.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return opener(text, f"commit {commit[:12]}", source=tree)


def table(samples: Samples, a: str, b: str) -> str:
    """B ÷ A for every scenario: rates, and CPU time a message in all processes."""
    lines = [
        f"{'scenario':44} {'A: ' + a:>16} {'B: ' + b:>16} {'B÷A':>6} {'min':>6} {'max':>6}  CPU B÷A: leader, follower"
    ]
    for scenario in dict.fromkeys(s.scenario for s in samples.all):
        ratio = samples.ratio((scenario, b), (scenario, a))
        first, second = samples.spread(scenario, a), samples.spread(scenario, b)
        if ratio is None or first is None or second is None:
            continue
        roles = ("cpu_us:leader", "cpu_us:follower 1")
        cpu = [samples.ratio((scenario, b), (scenario, a), role) for role in roles]
        spent = ", ".join(number(each.median if each is not None else None) for each in cpu)
        lines.append(
            f"{scenario:44} {number(first.median):>16} {number(second.median):>16} {ratio.median:6.2f} "
            f"{ratio.low:6.2f} {ratio.high:6.2f}  {spent}"
        )
    return "\n".join(lines)
