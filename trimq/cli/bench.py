"""`trimq bench`: figures of a running cluster, as a table or JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from trimq.cli.output import json_option, namesrv_option
from trimq.cli.run import run_async


@click.group()
def bench() -> None:
    """Measure a running cluster."""


@bench.command()
@namesrv_option
@click.option("--topic", default="trimq-bench", show_default=True)
@click.option("--queues", type=click.IntRange(1), default=4, show_default=True, help="Queues per replica group.")
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Per workload.")
@json_option
def produce(namesrv: str, topic: str, queues: int, seconds: float, as_json: bool) -> None:
    """Messages a second and latency of sends, each acknowledged as the cluster's strategy promises."""
    from trimq.bench.produce import Figures, run

    found: list[Figures] = []

    async def measure() -> None:
        found.extend(await run(namesrv, topic, queues, seconds))

    run_async(measure)
    if as_json:
        rows = [
            {**asdict(row), "per_second": round(row.per_second), "mb_per_second": round(row.mb_per_second, 2)}
            for row in found
        ]
        click.echo(json.dumps(rows))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"produce to {namesrv}, {queues} queues a group", title_justify="left")
    table.add_column("body")
    table.add_column("how")
    for heading in ("messages/s", "MB/s", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            f"{row.workload.body_bytes} B",
            row.workload.name,
            f"{row.per_second:,.0f}",
            f"{row.mb_per_second:,.2f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
