"""The `trimq` command.

`trimq --help` must feel instant, so nothing is imported before it is needed: commands stand in a table by name and
each module loads when its command runs.
"""

from __future__ import annotations

import click

from trimq.cli.lazy import Entry, LazyGroup

__all__ = ["main"]


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"trimq {version('trimq')}")
        context.exit()


main = LazyGroup(
    name="trimq",
    help="trimq: a message broker that speaks RocketMQ's protocol. Try `trimq standalone`, then `trimq send`.",
    entries={
        "standalone": Entry("trimq.cli.standalone:command", "Run name server and broker in one process."),
        "send": Entry("trimq.cli.send:command", "Send messages: arguments, or lines from standard input."),
        "consume": Entry("trimq.cli.consume:command", "Print messages as they come."),
        "bench": Entry("trimq.cli.bench:bench", "Measure throughput and latency."),
        "drill": Entry("trimq.cli.drill:drill", "Break a local cluster under load and check that nothing was lost."),
        "admin": Entry("trimq.cli.admin:command", "Look at a cluster and change it."),
    },
    params=[
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
        )
    ],
)
