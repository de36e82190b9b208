"""`trimq bench`: figures of a running cluster, as a table or JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from trimq.cli.output import json_option, namesrv_option, print_json, print_table
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


@bench.command()
@namesrv_option
@click.option("--topic", default="trimq-bench-latency", show_default=True)
@click.option(
    "--rate", type=click.FloatRange(1), multiple=True, default=(100, 1000), show_default=True, help="A second."
)
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Per rate.")
@click.option("--bytes", "body_bytes", type=click.IntRange(8), default=1024, show_default=True)
@json_option
def latency(namesrv: str, topic: str, rate: tuple[float, ...], seconds: float, body_bytes: int, as_json: bool) -> None:
    """From when a message is due to when a consumer has it, at fixed rates (open loop)."""
    from trimq.bench.end_to_end import Latency
    from trimq.bench.end_to_end import latency as measure

    found: list[Latency] = []

    async def run() -> None:
        for each in rate:
            found.append(await measure(namesrv, topic, rate=each, seconds=seconds, body_bytes=body_bytes))

    run_async(run)
    rows = [asdict(each) for each in found]
    if as_json:
        print_json(rows)
        return
    print_table(
        [name.replace("_", " ") for name in rows[0]],
        [[f"{value:,.2f}" if isinstance(value, float) else value for value in row.values()] for row in rows],
        title=f"from due to consumed, {namesrv}",
    )


@bench.command()
@namesrv_option
@click.option("--topic", default=None, help="A topic of its own for each run.  [default: a new one]")
@click.option("--messages", type=click.IntRange(256), default=50_000, show_default=True)
@click.option("--consumers", type=click.IntRange(1), multiple=True, default=(1,), show_default=True)
@click.option("--bytes", "body_bytes", type=click.IntRange(1), default=1024, show_default=True)
@json_option
def consume(
    namesrv: str, topic: str | None, messages: int, consumers: tuple[int, ...], body_bytes: int, as_json: bool
) -> None:
    """How fast a consumer group reads a topic from its beginning."""
    import random

    from trimq.bench.end_to_end import Rate, catch_up

    found: list[Rate] = []

    async def run() -> None:
        for count in consumers:
            name = topic or f"trimq-bench-{random.SystemRandom().getrandbits(32):08x}"
            group = f"{name}-{count}"
            found.append(
                await catch_up(namesrv, name, group, messages=messages, consumers=count, body_bytes=body_bytes)
            )

    run_async(run)
    rows = [{**asdict(each), "per_second": round(each.per_second)} for each in found]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["consumers", "messages", "seconds", "messages/s"],
        [[row["consumers"], row["messages"], f"{row['seconds']:.2f}", row["per_second"]] for row in rows],
        title=f"read from the beginning, {namesrv}",
    )
