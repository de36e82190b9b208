"""`run3.sh drill` and `trimq drill`: find or start the cluster, run the plan, print the verdict."""

from __future__ import annotations

import gc
import json
import random
import shutil
import sys
from pathlib import Path

import click
import trio

from trimq.drill.kinds import Fault
from trimq.drill.runner import Drill
from trimq.drill.verdict import Verdict
from trimq.remoting.system import SystemClock
from trimq.testing.local_cluster import STATE_FILE, LocalCluster
from trimq.testing.status import wait_ready_blocking


def run_drill(
    directory: Path,
    *,
    base_port: int | None,
    rounds: int,
    fault: str,
    rate: int,
    seed: int,
    as_json: bool,
    websocket: bool = False,
) -> int:
    """Run one drill and print it. Returns the exit status: 0 held, 1 a violation, 2 the run proves nothing.

    A cluster that runs already is used and left running; otherwise one is started for the drill and ended after it.
    Faults that are trouble get a cluster of their own in `directory`/trouble, always.
    """
    kind = Fault(fault)
    cluster, ours = _cluster_for(kind, directory, base_port)
    drill = Drill(
        cluster=cluster,
        fault=kind,
        rounds=rounds,
        rate=rate,
        topic=f"drill-{SystemClock().wall_ms()}",
        rng=random.Random(f"{seed}/drill"),
        websocket=websocket,
        say=lambda line: click.echo(line, err=as_json),
    )
    # The history is one large, growing heap without cycles: walking it again and again would stall the probes.
    gc.freeze()
    gc.set_threshold(200_000, 50, 1000)
    try:
        verdict = trio.run(drill.run)
    finally:
        if ours:
            cluster.stop()
    if as_json:
        click.echo(json.dumps(verdict.as_json()))
    else:
        _print_verdict(verdict)
    return verdict.exit_status


def _cluster_for(fault: Fault, directory: Path, base_port: int | None) -> tuple[LocalCluster, bool]:
    """The cluster to break and whether it was started here. Nodes that are down are started either way."""
    if fault.is_trouble:
        directory /= "trouble"
        if (directory / STATE_FILE).exists():
            LocalCluster.load(directory).stop()
            shutil.rmtree(directory)
        cluster = LocalCluster.create(directory, base_port=0 if base_port is None else base_port, troubled=True)
    elif (directory / STATE_FILE).exists():
        cluster = LocalCluster.load(directory)
    else:
        cluster = LocalCluster.create(directory, base_port=0 if base_port is None else base_port)
    ours = not any(cluster.running(name) for name in cluster.processes)
    cluster.start()
    wait_ready_blocking(cluster)
    return cluster, ours


def _print_verdict(verdict: Verdict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("rounds", f"{verdict.rounds_hit} of {verdict.rounds}")
    for name in ("acked", "lost", "duplicates", "reordered", "phantom", "offsets_back", "disagree", "two_leaders"):
        count = getattr(verdict, name)
        bad = name != "acked" and count
        table.add_row(name, f"[bold red]{count}[/]" if bad else f"{count:,}")
    for name in ("unknown", "short", "redelivered", "client_errors"):
        table.add_row(name, f"{getattr(verdict, name):,}", style="dim")
    for label, times in (("next OK", verdict.failover_ms), ("longest without", verdict.stall_ms)):
        table.add_row(label, " · ".join(f"{key} {value:.0f} ms" for key, value in times.items()) or "-")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for example in verdict.examples:
        console.print(f"[red]{example}[/]")
    words = {0: "[bold green]held[/]: nothing lost, doubled or reordered", 1: "[bold red]VIOLATED[/]"}
    console.print(words.get(verdict.exit_status, f"[yellow]proves nothing[/]: {verdict.invalid}"))
