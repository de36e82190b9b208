"""The verbs of `deploy/run3.sh`: a local cluster to try, to break and to measure.

Every verb but `up` reads where things are from `DIR/cluster.json`. The shell script in front only makes the
virtual environment.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import click
import trio

from trimq.drill.kinds import FAULTS
from trimq.remoting.client import open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing import status as status_module
from trimq.testing.layout import DEFAULT_BASE_PORT
from trimq.testing.local_cluster import STATE_FILE, ClusterError, LocalCluster
from trimq.testing.status import GroupStatus

_UP_DEADLINE_S = 30.0
_DEMO_MESSAGES = 1000
_WHO = {"raft": "a majority", "sync": "the master and a slave", "async": "the master"}


class _Verbs(click.Group):
    """A bare `run3.sh`, or one that begins with an option, means `up`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--root", "--help"}
        at = 0
        while at < len(args) and args[at] in own and args[at] != "--help":
            at += 2
        if at >= len(args) or (args[at].startswith("-") and args[at] not in own):
            args = [*args[:at], "up", *args[at:]]
        return super().parse_args(ctx, args)


@click.group(cls=_Verbs)
@click.option("--root", type=click.Path(path_type=Path), default=Path(), hidden=True)
@click.pass_context
def run3(ctx: click.Context, root: Path) -> None:
    """A three-node trimq cluster on this machine."""
    ctx.obj = root.resolve() / ".run3"


def _directory_option(command: Any) -> Any:
    return click.option(
        "--dir", "directory", type=click.Path(path_type=Path), help="Folder with all state of the cluster (.run3)."
    )(
        click.option("--base-port", type=int, default=None, help="The name server's port; the rest lies above it.")(
            command
        )
    )


def _load(ctx: click.Context, directory: Path | None, base_port: int | None) -> LocalCluster:
    cluster = LocalCluster.load(directory or ctx.obj)
    if base_port and base_port != cluster.layout.base_port:
        raise ClusterError(f"the cluster in {cluster.directory} has base port {cluster.layout.base_port}")
    return cluster


@run3.command()
@_directory_option
@click.option("--groups", type=click.IntRange(1, 20), default=3, show_default=True)
@click.option("--strategy", type=click.Choice(["raft", "sync", "async"]), default="raft", show_default=True)
@click.option("--flush", type=click.Choice(["sync", "async"]), default="sync", show_default=True)
@click.option("--no-demo", is_flag=True, help="Do not send and consume the thousand messages.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A broker setting of a new cluster.")
@click.pass_context
def up(
    ctx: click.Context,
    directory: Path | None,
    base_port: int | None,
    groups: int,
    strategy: str,
    flush: str,
    no_demo: bool,
    settings: tuple[str, ...],
) -> None:
    """Start the cluster (or what of it does not run), wait for its leaders, show it."""
    extra = {key.strip(): value.strip() for key, _, value in (each.partition("=") for each in settings)}
    if not all(extra.values()) or not all(extra):
        raise ClusterError(f"--set {' --set '.join(settings)}: KEY=VALUE is needed")
    directory = directory or ctx.obj
    if (directory / STATE_FILE).exists():
        cluster = _load(ctx, directory, base_port)
        if extra:
            raise ClusterError(f"--set is for a new cluster; {directory} has one already (its files are in conf/)")
        if not any(cluster.running(name) for name in cluster.processes):
            cluster.pids.clear()
    else:
        port = DEFAULT_BASE_PORT if base_port is None else base_port
        cluster = LocalCluster.create(
            directory, base_port=port, groups=groups, strategy=strategy, flush=flush, extra=extra
        )
    cluster.start()
    try:
        groups_now = trio.run(_up, cluster, not no_demo)
    except TimeoutError as error:
        words = "\n".join(f"{name}: {cluster.last_words(name, lines=4)}" for name in cluster.processes)
        raise ClusterError(f"no ready leader in every group within {_UP_DEADLINE_S:.0f} s\n{words}") from error
    _print_table(cluster, groups_now)
    _print_hints(cluster, ctx)


async def _up(cluster: LocalCluster, demo: bool) -> dict[str, GroupStatus]:
    async with open_remoting_client(AnyioNetwork()) as client:
        with trio.move_on_after(_UP_DEADLINE_S) as scope:
            await status_module.wait_ready(client, cluster, all_replicas=True)
        if scope.cancelled_caught:
            raise TimeoutError
        if demo:
            from trimq.testing.demo import send_and_consume

            took = await send_and_consume(cluster.namesrv_address, _DEMO_MESSAGES)
            click.echo(
                f"{_DEMO_MESSAGES} messages sent in {took.sent_s:.2f} s, "
                f"each acknowledged by {_WHO[cluster.strategy]}; all consumed after {took.consumed_s:.2f} s."
            )
        return await status_module.ask(client, cluster)


@run3.command()
@_directory_option
@click.pass_context
def down(ctx: click.Context, directory: Path | None, base_port: int | None) -> None:
    """End every process of the cluster; its data stays."""
    cluster = _load(ctx, directory, base_port)
    cluster.stop()
    click.echo(f"down; the data stays in {cluster.directory}")


@run3.command()
@_directory_option
@click.pass_context
def wipe(ctx: click.Context, directory: Path | None, base_port: int | None) -> None:
    """End the cluster and delete its folder."""
    directory = directory or ctx.obj
    assert directory is not None
    if not directory.exists():
        return
    if not (directory / STATE_FILE).exists():
        raise ClusterError(f"{directory} holds no {STATE_FILE}: it is not deleted")
    try:
        _load(ctx, directory, base_port).stop()
    except ClusterError as error:
        click.echo(f"run3: {error}", err=True)
    shutil.rmtree(directory)


@run3.command()
@_directory_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def status(ctx: click.Context, directory: Path | None, base_port: int | None, as_json: bool) -> None:
    """Who leads, and how far each replica is."""
    cluster = _load(ctx, directory, base_port)
    groups = status_module.query(cluster)
    if as_json:
        found = {"namesrv": cluster.namesrv_address, "groups": {g.name: g.as_json() for g in groups.values()}}
        click.echo(json.dumps(found))
    else:
        _print_table(cluster, groups)


@run3.command()
@_directory_option
@click.argument("node", required=False)
@click.option("--lines", default=20, show_default=True, help="Lines from the end of each log.")
@click.pass_context
def logs(ctx: click.Context, directory: Path | None, base_port: int | None, node: str | None, lines: int) -> None:
    """The end of a process's log, or of all."""
    cluster = _load(ctx, directory, base_port)
    for name in [cluster.check_process(node)] if node else cluster.processes:
        click.secho(f"== {cluster.log_path(name)}", bold=True)
        click.echo(cluster.last_words(name, lines=lines))


@run3.command()
@_directory_option
@click.argument("victim")
@click.option("--group", help="Whose leader `leader` means (broker-a).")
@click.pass_context
def kill(ctx: click.Context, directory: Path | None, base_port: int | None, victim: str, group: str | None) -> None:
    """kill -9 a NODE, or the `leader` of a group."""
    cluster = _load(ctx, directory, base_port)
    node = victim
    if victim == "leader":
        wanted = group or cluster.groups[0]
        if wanted not in cluster.groups:
            raise ClusterError(f"no group {wanted!r} here; there are {', '.join(cluster.groups)}")
        leader = status_module.query(cluster)[wanted].leader
        if leader is None:
            raise ClusterError(f"nobody leads {wanted} at the moment")
        node = leader
    cluster.kill(node)
    click.echo(f"killed {node}")


@run3.command()
@_directory_option
@click.argument("node")
@click.pass_context
def stop(ctx: click.Context, directory: Path | None, base_port: int | None, node: str) -> None:
    """End a NODE in good order."""
    cluster = _load(ctx, directory, base_port)
    if not cluster.running(cluster.check_process(node)):
        raise ClusterError(f"{node} does not run")
    cluster.stop(node)
    click.echo(f"stopped {node}")


@run3.command()
@_directory_option
@click.argument("node")
@click.pass_context
def start(ctx: click.Context, directory: Path | None, base_port: int | None, node: str) -> None:
    """Start a NODE that does not run."""
    cluster = _load(ctx, directory, base_port)
    if cluster.running(cluster.check_process(node)):
        raise ClusterError(f"{node} runs already")
    cluster.start(node)
    click.echo(f"started {node}, pid {cluster.pids[node]}")


@run3.command()
@_directory_option
@click.argument("node")
@click.pass_context
def pause(ctx: click.Context, directory: Path | None, base_port: int | None, node: str) -> None:
    """Freeze a NODE (SIGSTOP)."""
    _load(ctx, directory, base_port).signal(node, signal.SIGSTOP)
    click.echo(f"paused {node}")


@run3.command()
@_directory_option
@click.argument("node")
@click.pass_context
def resume(ctx: click.Context, directory: Path | None, base_port: int | None, node: str) -> None:
    """Let a frozen NODE go on (SIGCONT)."""
    _load(ctx, directory, base_port).signal(node, signal.SIGCONT)
    click.echo(f"resumed {node}")


@run3.command()
@_directory_option
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--fault", type=click.Choice(FAULTS), default="kill", show_default=True)
@click.option("--rate", type=click.IntRange(1), default=2000, show_default=True, help="Messages a second in all.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
@click.pass_context
def drill(
    ctx: click.Context,
    directory: Path | None,
    base_port: int | None,
    rounds: int,
    fault: str,
    rate: int,
    seed: int,
    as_json: bool,
) -> None:
    """Load the cluster, break it ROUNDS times, and say what was lost. Starts a cluster of its own if none runs."""
    from trimq.drill.command import run_drill

    directory = directory or ctx.obj
    sys.exit(
        run_drill(directory, base_port=base_port, rounds=rounds, fault=fault, rate=rate, seed=seed, as_json=as_json)
    )


def _print_table(cluster: LocalCluster, groups: dict[str, GroupStatus]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"trimq · name server {cluster.namesrv_address}", title_justify="left")
    for heading in ("group", "node", "role", "address", "pid"):
        table.add_column(heading)
    for heading in ("term", "last", "commit", "dispatched"):
        table.add_column(heading, justify="right")
    colours = {"leader": "bold green", "down": "red"}
    for group in groups.values():
        for at, (node, replica) in enumerate(group.replicas.items()):
            role = replica["role"]
            if role == "leader" and not replica["ready"]:
                role = "leader, not ready"
            table.add_row(
                group.name if at == 0 else "",
                node,
                f"[{colours.get(role, 'default')}]{role}[/]",
                replica["addr"],
                str(replica.get("pid", "")),
                *(str(replica.get(key, "-")) for key in ("term", "last", "commit", "dispatched")),
                end_section=at == len(group.replicas) - 1,
            )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _print_hints(cluster: LocalCluster, ctx: click.Context) -> None:
    where = "" if cluster.directory == ctx.obj else f" --dir {cluster.directory}"
    address = cluster.namesrv_address
    click.echo(
        f"""
It goes on running. Try next:
  .venv/bin/trimq send -n {address} orders 'hello'          send a message
  .venv/bin/trimq consume -n {address} orders --group g     read along
  deploy/run3.sh kill leader{where}                          and send again: nothing is lost
  deploy/run3.sh status{where}                               who leads now
  deploy/run3.sh drill --rounds 5{where}                     break it under load, get a verdict
  deploy/run3.sh down{where}                                 stop it (wipe deletes the data too)
"""
    )


def main() -> None:
    """Entry point: one clear line instead of a traceback for what the user can mend."""
    try:
        run3(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except ClusterError as error:
        click.echo(f"run3: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
