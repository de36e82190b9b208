"""`run3.sh drill` and `trimq drill`: find or start the cluster, run the plan, print the verdict."""

from __future__ import annotations

import gc
import json
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import trio

from trimq.drill.kinds import Fault
from trimq.drill.runner import Drill
from trimq.drill.verdict import Verdict
from trimq.remoting.system import SystemClock
from trimq.testing.local_cluster import STATE_FILE, LocalCluster, node_names
from trimq.testing.namespaces import NamespaceError, enter, open_namespaces
from trimq.testing.status import wait_ready_blocking

_NODES = 3


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
    Faults that are trouble get a cluster of their own in `directory`/trouble, always. For `kernel-partition` the whole
    command begins again in namespaces of its own, with a cluster in `directory`/namespaces.
    """
    kind = Fault(fault)
    try:
        with _open_cluster(kind, directory, base_port) as cluster:
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
            verdict = trio.run(drill.run)
    except NamespaceError as error:
        click.echo(f"drill: {error}; --fault partition cuts the same links at gates in the brokers", err=True)
        return 2
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is None:
            raise KeyboardInterrupt from None  # Ctrl-C is no bug of ours: it needs no tree of nurseries
        raise
    if as_json:
        click.echo(json.dumps(verdict.as_json()))
    else:
        _print_verdict(verdict)
    return verdict.exit_status


@contextmanager
def _open_cluster(fault: Fault, directory: Path, base_port: int | None) -> Iterator[LocalCluster]:
    """The cluster to break, ready. Nodes that are down are started; if all were, all are ended afterwards."""
    with ExitStack() as stack:
        port = 0 if base_port is None else base_port
        if fault is Fault.KERNEL_PARTITION:
            directory /= "namespaces"
            _forget(directory)  # here: from within the new namespaces processes of older ones are out of reach
            enter()
            namespaces = stack.enter_context(open_namespaces(node_names(_NODES)))
            cluster = LocalCluster.create(directory, base_port=port, nodes=_NODES, namespaces=namespaces)
        elif fault.is_trouble:
            directory /= "trouble"
            _forget(directory)
            cluster = LocalCluster.create(directory, base_port=port, troubled=True)
        elif (directory / STATE_FILE).exists():
            cluster = LocalCluster.load(directory)
        else:
            cluster = LocalCluster.create(directory, base_port=port)
        if not any(cluster.running(name) for name in cluster.processes):
            stack.callback(cluster.stop)
        cluster.start()
        wait_ready_blocking(cluster)
        yield cluster


def _forget(directory: Path) -> None:
    """End and delete what an earlier drill left there, if any."""
    if (directory / STATE_FILE).exists():
        LocalCluster.load(directory).stop()
        shutil.rmtree(directory)


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
