"""`trimq admin topicList`, `topicRoute`, `updateTopic`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import click
import msgspec

from trimq.cli.admin.session import Session, in_parallel, open_session
from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import fail, run_async
from trimq.errors import NoRoute, TrimqError
from trimq.message.names import check_topic, is_derived, is_reserved, is_system_topic
from trimq.wire.body.route import TopicRouteData
from trimq.wire.codes import RequestCode
from trimq.wire.headers.admin import CreateTopicHeader

__all__ = ["topic_list", "topic_route", "update_topic"]


@dataclass(frozen=True, slots=True)
class TopicRow:
    """One topic over all its brokers."""

    topic: str
    kind: str
    """`retry`, `dead letters`, `system`, or empty for an application's own."""
    read_queues: int
    write_queues: int
    brokers: list[str]


@click.command("topicList")
@namesrv_option
@click.option("-c", "--cluster", help="Only topics of this cluster.")
@json_option
def topic_list(namesrv: str, cluster: str | None, as_json: bool) -> None:
    """All topics and where they are."""
    run_async(partial(_topic_list, namesrv, cluster, as_json))


async def _topic_list(namesrv: str, cluster: str | None, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        topics = await session.topics()
        routes = await in_parallel(topics, session.route)
    rows: list[TopicRow] = []
    for topic, route in zip(topics, routes, strict=True):
        if route is None or (cluster and cluster not in {broker.cluster for broker in route.brokerDatas}):
            continue
        queues = sorted(route.queueDatas, key=lambda q: q.brokerName)
        reads, writes = sum(q.readQueueNums for q in queues), sum(q.writeQueueNums for q in queues)
        rows.append(TopicRow(topic, _kind(topic), reads, writes, [q.brokerName for q in queues]))
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ["topic", "kind", "read queues", "write queues", "brokers"],
        [[row.topic, row.kind, row.read_queues, row.write_queues, " ".join(row.brokers)] for row in rows],
    )


def _kind(topic: str) -> str:
    if is_derived(topic):
        return "retry" if topic.startswith("%RETRY%") else "dead letters"
    return "system" if is_system_topic(topic) or is_reserved(topic) else ""


@click.command("topicRoute")
@namesrv_option
@click.option("-t", "--topic", required=True)
@json_option
def topic_route(namesrv: str, topic: str, as_json: bool) -> None:
    """Brokers and queues of one topic."""
    run_async(partial(_topic_route, namesrv, topic, as_json))


async def _topic_route(namesrv: str, topic: str, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        route = await _known(session, topic)
    if as_json:
        print_json(msgspec.to_builtins(route, str_keys=True))
        return
    brokers = {broker.brokerName: broker for broker in route.brokerDatas}
    rows = []
    for queues in sorted(route.queueDatas, key=lambda q: q.brokerName):
        broker = brokers.get(queues.brokerName)
        addrs = [f"{i}={addr}" for i, addr in sorted(broker.brokerAddrs.items())] if broker else []
        cluster = broker.cluster if broker else ""
        rows.append(
            [
                cluster,
                queues.brokerName,
                queues.readQueueNums,
                queues.writeQueueNums,
                _perm(queues.perm),
                " ".join(addrs),
            ]
        )
    print_table(["cluster", "broker", "read queues", "write queues", "permission", "addresses (0 leads)"], rows)


async def _known(session: Session, topic: str) -> TopicRouteData:
    route = await session.route(topic)
    if route is None:
        raise NoRoute(
            f"topic {topic} does not exist, or none of its brokers is up",
            advice=f"create it: trimq admin updateTopic -t {topic}",
        )
    return route


def _perm(perm: int) -> str:
    return ("read" if perm & 4 else "") + ("+" if perm & 6 == 6 else "") + ("write" if perm & 2 else "") or "none"


@click.command("updateTopic")
@namesrv_option
@click.option("-t", "--topic", required=True)
@click.option("-c", "--cluster", help="On every broker of this cluster.  [default: the only cluster there is]")
@click.option("-b", "--broker", help="On one broker (name or address) only.")
@click.option("-r", "--read-queues", type=click.IntRange(1, 65535), default=8, show_default=True)
@click.option("-w", "--write-queues", type=click.IntRange(1, 65535), default=8, show_default=True)
@click.option("-p", "--perm", type=click.Choice(["2", "4", "6"]), default="6", help="2 write, 4 read, 6 both.")
@click.option("-o", "--order", is_flag=True, help="Mark it as an ordered topic.")
@json_option
def update_topic(
    namesrv: str,
    topic: str,
    cluster: str | None,
    broker: str | None,
    read_queues: int,
    write_queues: int,
    perm: str,
    order: bool,
    as_json: bool,
) -> None:
    """Create a topic or change its queues, on the leader of every broker name."""
    header = CreateTopicHeader(
        topic=topic, read_queue_nums=read_queues, write_queue_nums=write_queues, perm=int(perm), order=order
    )
    run_async(partial(_update_topic, namesrv, header, cluster, broker, as_json))


async def _update_topic(
    namesrv: str, header: CreateTopicHeader, cluster: str | None, broker: str | None, as_json: bool
) -> None:
    check_topic(header.topic)
    async with open_session(namesrv) as session:
        targets = await _targets(session, cluster, broker)

        async def change(item: tuple[str, str]) -> str:
            try:
                await session.ask(item[1], RequestCode.UPDATE_AND_CREATE_TOPIC, header.to_ext())
            except TrimqError as error:
                return str(error)
            return ""

        errors = await in_parallel(targets.items(), change)
    outcome = [
        {"broker": name, "address": addr, "ok": not error, **({"error": error} if error else {})}
        for (name, addr), error in zip(targets.items(), errors, strict=True)
    ]
    if as_json:
        print_json(outcome)
    else:
        for line in outcome:
            state = "done" if line["ok"] else f"failed: {line['error']}"
            click.echo(f"{header.topic} on {line['broker']} ({line['address']}): {state}")
    if failed := sum(1 for error in errors if error):
        fail(f"{failed} of {len(errors)} brokers did not take it: run the command again, it is safe to repeat")


async def _targets(session: Session, cluster: str | None, broker: str | None) -> dict[str, str]:
    """Broker name to address of those who are to be told."""
    if broker is not None and ":" in broker:
        return {broker: broker}
    if broker is not None:
        leaders = await session.leaders()
        if broker not in leaders:
            raise NoRoute(f"broker {broker} does not exist or has no leader", advice=f"known: {', '.join(leaders)}")
        return {broker: leaders[broker]}
    if cluster is None:
        clusters = sorted((await session.cluster()).clusterAddrTable)
        if len(clusters) > 1:
            raise NoRoute(f"there are {len(clusters)} clusters: {', '.join(clusters)}", advice="choose one with -c")
    return await session.leaders(cluster)
