"""`trimq admin consumerGroupList`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from trimq.cli.admin.consumer import summaries
from trimq.cli.admin.session import open_session
from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import run_async

__all__ = ["list_groups"]


@click.command("consumerGroupList")
@namesrv_option
@json_option
def list_groups(namesrv: str, as_json: bool) -> None:
    """All consumer groups: who is connected, where they are known."""
    run_async(partial(_list, namesrv, as_json))


async def _list(namesrv: str, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        rows = await summaries(session)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ["group", "consumers", "model", "topics", "behind", "brokers"],
        [[row.group, row.consumers, row.model, row.topics, row.behind, " ".join(row.brokers)] for row in rows],
    )
