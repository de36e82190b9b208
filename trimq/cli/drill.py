"""`trimq drill`: break a local cluster under load and get a verdict."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from trimq.drill.kinds import FAULTS


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path(".run3"), show_default=True)
@click.option("--base-port", type=int, default=None, help="For a cluster that is started for the drill (0: free).")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--fault", type=click.Choice(FAULTS), default="kill", show_default=True)
@click.option("--rate", type=click.IntRange(1), default=2000, show_default=True, help="Messages a second in all.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def drill(directory: Path, base_port: int | None, rounds: int, fault: str, rate: int, seed: int, as_json: bool) -> None:
    """Load a local cluster, break it ROUNDS times, and say what was lost.

    Exit status: 0 held, 1 something was lost, doubled or reordered, 2 the run proves nothing.
    """
    from trimq.drill.command import run_drill
    from trimq.testing.local_cluster import ClusterError

    try:
        status = run_drill(
            directory, base_port=base_port, rounds=rounds, fault=fault, rate=rate, seed=seed, as_json=as_json
        )
    except ClusterError as error:
        click.echo(f"trimq: {error}", err=True)
        status = 2
    sys.exit(status)
