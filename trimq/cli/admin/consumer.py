"""`trimq admin consumerProgress`: how far consumer groups are behind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial

import click

from trimq.cli.admin.session import Session, in_parallel, open_session
from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import run_async
from trimq.errors import NoRoute
from trimq.message.names import RETRY_PREFIX
from trimq.wire.body.stats import ConsumerConnection, ConsumeStats
from trimq.wire.body.topic_config import SubscriptionGroupTable
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.headers.admin import ConsumerConnectionHeader, ConsumeStatsHeader

__all__ = ["Summary", "consumer_progress", "summaries"]


_UNKNOWN = (
    ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
    ResponseCode.TOPIC_NOT_EXIST,
    ResponseCode.CONSUMER_NOT_ONLINE,
)


@dataclass(frozen=True, slots=True, order=True)
class Lag:
    """One queue of one consumer group."""

    topic: str
    broker: str
    queue: int
    broker_offset: int
    consumer_offset: int
    behind: int
    last_time: str
    """When the last consumed message was stored (UTC); empty when there is none."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A consumer group over all brokers."""

    group: str
    consumers: int
    model: str
    """`CLUSTERING` or `BROADCASTING`; empty when nobody is connected."""
    topics: int
    behind: int
    brokers: list[str]
    warnings: list[str]
    """What silently loses messages: members that subscribe differently, client ids used twice."""


@click.command("consumerProgress")
@namesrv_option
@click.option("-g", "--group", help="Show every queue of this consumer group.")
@click.option("-t", "--topic", help="Only this topic (with -g).")
@json_option
def consumer_progress(namesrv: str, group: str | None, topic: str | None, as_json: bool) -> None:
    """How far consumer groups are behind: all in short, or one by queue."""
    if group is None:
        run_async(partial(_all, namesrv, as_json))
    else:
        run_async(partial(_one, namesrv, group, topic, as_json))


async def _one(namesrv: str, group: str, topic: str | None, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        leaders = await session.leaders()
        parts = await in_parallel(leaders.values(), partial(_stats, session, group, topic or ""))
        known = [part for part in parts if part is not None]
        if not any(part.offsetTable for part in known) and group not in await groups_by_broker(session, leaders):
            raise NoRoute(f"consumer group {group} is not known", advice="trimq admin consumerGroupList shows all")
    lags = sorted(lag for part in known for lag in _lags(part) if topic in (None, lag.topic))
    behind = sum(lag.behind for lag in lags)
    if as_json:
        print_json({"group": group, "behind": behind, "queues": [asdict(lag) for lag in lags]})
        return
    print_table(
        ["topic", "broker", "queue", "broker offset", "consumer offset", "behind", "last consumed (UTC)"],
        [[g.topic, g.broker, g.queue, g.broker_offset, g.consumer_offset, g.behind, g.last_time] for g in lags],
    )
    click.echo(f"{group} is {behind} messages behind")


async def _all(namesrv: str, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        rows = await summaries(session)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ["group", "consumers", "model", "topics", "behind"],
        [[row.group, row.consumers, row.model, row.topics, row.behind] for row in rows],
    )
    for row in rows:
        for warning in row.warnings:
            click.echo(f"warning: {row.group}: {warning}", err=True)


async def summaries(session: Session) -> list[Summary]:
    """All consumer groups, by name."""
    leaders = await session.leaders()
    groups = await groups_by_broker(session, leaders)

    async def one(group: str) -> Summary:
        at = [leaders[name] for name in groups[group]]
        stats = [part for part in await in_parallel(at, partial(_stats, session, group, "")) if part is not None]
        told = [part for part in await in_parallel(at, partial(_connection, session, group)) if part is not None]
        people = [part for part, _ in told]
        lags = [lag for part in stats for lag in _lags(part)]
        return Summary(
            group,
            len({member.clientId for part in people for member in part.connectionSet}),
            people[0].messageModel if people else "",
            len({lag.topic for lag in lags if not lag.topic.startswith(RETRY_PREFIX)}),
            sum(lag.behind for lag in lags),
            groups[group],
            sorted({warning for _, remark in told for warning in remark.split("; ") if warning}),
        )

    return await in_parallel(groups, one)


async def groups_by_broker(session: Session, leaders: dict[str, str]) -> dict[str, list[str]]:
    """Consumer group to the broker names that know it, sorted by group."""

    async def one(addr: str) -> list[str]:
        answer = await session.ask(addr, RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)
        return list(SubscriptionGroupTable.from_json(answer.body).subscriptionGroupTable)

    found: dict[str, list[str]] = {}
    for name, groups in zip(leaders, await in_parallel(leaders.values(), one), strict=True):
        for group in groups:
            found.setdefault(group, []).append(name)
    return dict(sorted(found.items()))


async def _stats(session: Session, group: str, topic: str, addr: str) -> ConsumeStats | None:
    """One broker's part; None when it does not know the group or the topic."""
    ext = ConsumeStatsHeader(consumer_group=group, topic=topic).to_ext()
    unknown = (
        ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
        ResponseCode.TOPIC_NOT_EXIST,
        ResponseCode.CONSUMER_NOT_ONLINE,
    )
    answer = await session.ask(addr, RequestCode.GET_CONSUME_STATS, ext, ok=(ResponseCode.SUCCESS, *unknown))
    return ConsumeStats.from_json(answer.body) if answer.code == ResponseCode.SUCCESS else None


async def _connection(session: Session, group: str, addr: str) -> tuple[ConsumerConnection, str] | None:
    """Who is connected to one broker; None when nobody is."""
    ext = ConsumerConnectionHeader(consumer_group=group).to_ext()
    nobody = (ResponseCode.CONSUMER_NOT_ONLINE, ResponseCode.SYSTEM_ERROR)
    answer = await session.ask(addr, RequestCode.GET_CONSUMER_CONNECTION_LIST, ext, ok=(ResponseCode.SUCCESS, *nobody))
    if answer.code != ResponseCode.SUCCESS:
        return None
    return ConsumerConnection.from_json(answer.body), answer.remark


def _lags(stats: ConsumeStats) -> list[Lag]:
    return [
        Lag(
            queue.topic,
            queue.brokerName,
            queue.queueId,
            offsets.brokerOffset,
            offsets.consumerOffset,
            max(0, offsets.brokerOffset - offsets.consumerOffset),
            _time(offsets.lastTimestamp),
        )
        for queue, offsets in stats.offsetTable.items()
    ]


def _time(millis: int) -> str:
    if millis <= 0:
        return ""
    return datetime.fromtimestamp(millis / 1000, tz=UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
