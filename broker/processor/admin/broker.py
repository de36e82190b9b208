"""The broker itself: runtime figures (28), configuration (26, 25), status of the replica group (9001)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from broker.config import BrokerConfig, ConfigError
from broker.metadata.ops import ConfigPut
from broker.metadata.settings import check_setting
from broker.metadata.state import GroupState
from broker.metrics import Counters, Rates
from broker.processor.lane import Lane
from broker.processor.request import Refused, Request
from broker.replication.base import Health, Replicator, Role
from broker.replication.intake import Intake
from broker.service.hold import HoldTable
from broker.service.live_config import LiveConfig, check
from broker.service.members import Members
from broker.service.schedule import ScheduleService
from broker.service.tables import data_version
from trimq.wire.body.base import encode_body
from trimq.wire.body.group import GroupStatus, ReplicaStatus
from trimq.wire.body.route import KVTable
from trimq.wire.codes import VERSION, ResponseCode
from trimq.wire.headers.admin import GroupStatusHeader

if TYPE_CHECKING:
    from broker.store.fs import FileSystem
    from broker.store.message_store import MessageStore
    from trimq.env import Clock

__all__ = ["BrokerAdmin", "Parts", "group_status"]

VERSION_NAME = "V5_3_3"
"""What tools print for the version that we report (`trimq.wire.codes.VERSION`)."""


FACTS = {
    "filterServerNums": "0",
    "maxMessageSize": "4194304",
    "slaveReadEnable": "true",
    "traceOn": "true",
    "useTLS": "false",
}
"""Keys that are no settings here but that tools read without asking whether they are there (exportConfigs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the figures are taken from."""

    config: BrokerConfig
    state: GroupState
    store: MessageStore
    fs: FileSystem
    replicator: Replicator
    clock: Clock
    counters: Counters
    rates: Rates
    holds: HoldTable
    members: Members
    schedule: ScheduleService
    lanes: Mapping[str, Lane]
    address: Callable[[], str]
    """`ip:port` that clients are told."""
    pid: int
    started_ms: int


class BrokerAdmin:
    """Tells operators about one replica."""

    def __init__(self, parts: Parts, live: LiveConfig, intake: Intake) -> None:
        self._parts = parts
        self._live = live
        self._intake = intake

    async def runtime(self, request: Request) -> bytes:
        """Code 28, with the keys that mqadmin and the dashboard read."""
        return request.success(body=KVTable(table=await self._figures()).to_json())

    async def configuration(self, request: Request) -> bytes:
        """Code 26: every key with the value in force, as properties text."""
        config = self._live.now
        shown = {**FACTS, **{each.metadata["key"]: _text(getattr(config, each.name)) for each in fields(config)}}
        shown["messageDelayLevel"] = " ".join(_level(delay) for delay in config.delay_levels_ms)
        lines = [f"{key}={value}" for key, value in shown.items()]
        version = data_version(self._parts.state, self._parts.replicator)
        body = ("\n".join(sorted(lines)) + "\n").encode()
        return request.success({"version": version.to_json().decode()}, body=body)

    async def update_configuration(self, request: Request) -> bytes:
        """Code 25: allow-listed keys of the whole replica group, all or none, through the log."""
        try:
            wanted = parse_properties(request.command.body.decode())
        except UnicodeDecodeError:
            raise Refused(ResponseCode.SYSTEM_ERROR, "the body is no text of key=value lines") from None
        if not wanted:
            raise Refused(ResponseCode.SYSTEM_ERROR, "the body names no key=value")
        changes = []
        for key, value in wanted.items():
            try:
                check(key, value)
                check_setting(key, value)
            except ConfigError as problem:
                raise Refused(ResponseCode.NO_PERMISSION, f"not changed: {problem}") from None
            except ValueError as problem:
                raise Refused(ResponseCode.NO_PERMISSION, f"not changed: {problem}") from None
            changes.append(ConfigPut(key, value, request.reply.peer))
        await self._intake.apply(changes)
        return request.success()

    async def status(self, request: Request) -> bytes:
        """Code 9001: the replica group as this replica sees it."""
        parts = self._parts
        group = GroupStatusHeader.from_ext(request.ext).group
        if group not in ("", parts.config.broker_name):
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"group {group} is not served here: this address serves {parts.config.broker_name}",
            )
        return request.success(body=encode_body(group_status(parts)))

    async def _figures(self) -> dict[str, str]:
        parts = self._parts
        status, rates, counters, queues = parts.replicator.status(), parts.rates, parts.counters, parts.store.log
        free, total = await parts.fs.space()
        now = parts.clock.wall_ms()
        figures = {
            "brokerVersionDesc": VERSION_NAME,
            "brokerVersion": str(VERSION),
            "brokerActive": str(status.health is Health.OK).lower(),
            "putTps": rates.tps3("put_messages"),
            "getTotalTps": rates.tps3("get_requests_found", "get_requests_missed"),
            "getFoundTps": rates.tps3("get_requests_found"),
            "getMissTps": rates.tps3("get_requests_missed"),
            "getTransferredTps": rates.tps3("get_messages"),
            "getTransferedTps": rates.tps3("get_messages"),
            "msgPutTotalYesterdayMorning": str(rates.yesterday_morning.put_messages),
            "msgPutTotalTodayMorning": str(rates.this_morning.put_messages),
            "msgPutTotalTodayNow": str(counters.put_messages),
            "msgGetTotalYesterdayMorning": str(rates.yesterday_morning.get_messages),
            "msgGetTotalTodayMorning": str(rates.this_morning.get_messages),
            "msgGetTotalTodayNow": str(counters.get_messages),
            "pageCacheLockTimeMills": "0",
            "earliestMessageTimeStamp": str(await parts.store.earliest_time()),
            "commitLogDiskRatio": f"{1 - free / total:.4f}" if total else "0",
            "commitLogDirCapacity": f"Total : {total / 2**30:.1f} GiB, Free : {free / 2**30:.1f} GiB.",
            "commitLogMinOffset": str(queues.first_position),
            "commitLogMaxOffset": str(queues.last.end),
            "bootTimestamp": str(parts.started_ms),
            "runtime": _duration(now - parts.started_ms),
            "putMessageTimesTotal": str(counters.put_messages),
            "putMessageFailedTimes": str(counters.put_refused),
            "putMessageSizeTotal": str(counters.put_bytes),
            "putMessageAverageSize": f"{counters.put_bytes / max(1, counters.put_messages):.1f}",
            "dispatchBehindBytes": str(max(0, queues.last.end - status.visible)),
            "remainHowManyDataToFlush": "0 B",
            "startAcceptSendRequestTimeStamp": "0",
            "heldPulls": str(len(parts.holds)),
            "role": status.role.value,
            "term": str(status.term),
            "ready": str(status.ready).lower(),
        }
        for name in ("send", "pull", "ack", "query"):
            lane = parts.lanes.get(name)
            figures[f"{name}ThreadPoolQueueSize"] = str(lane.queued if lane is not None else 0)
            figures[f"{name}ThreadPoolQueueHeadWaitTimeMills"] = "0"
            figures[f"{name}ThreadPoolQueueCapacity"] = str(parts.config.lane_queue)
        for level, (delivered, end) in parts.schedule.waiting().items():
            figures[f"scheduleMessageOffset_{level}"] = f"{delivered},{end}"
        return dict(sorted(figures.items()))


def group_status(parts: Parts) -> dict[str, object]:
    """The body of 9001 with a few figures more than `GroupStatus` has; what other replicas do is theirs to say."""
    status = parts.replicator.status()
    role = status.role.value if status.health in (Health.OK, Health.SUSPECT) else status.health.value
    own = ReplicaStatus(
        addr=parts.address(),
        commit=status.commit,
        dispatched=status.dispatched,
        last=status.last,
        pid=parts.pid,
        ready=status.ready,
        role=role,
        term=status.term,
        learner=status.role is Role.LEARNER,
        peer=status.peer_address,
        uuid=status.store_uuid,
        rank=status.rank,
        suspect=status.health is Health.SUSPECT,
    )
    replicas: dict[str, dict[str, object]] = {}
    members = parts.replicator.replicas
    for node, address in (*members.voters, *members.learners):
        replicas[node] = {"addr": address, "role": "leader" if node == status.leader.leader_id else "unknown"}
    for node, _address in members.learners:
        replicas[node]["learner"] = True
    for peer in status.peers:
        replicas.setdefault(peer.node_id, {}).update(
            {"connected": peer.connected, "lag_bytes": peer.lag_bytes, "match": peer.match, "state": peer.state}
        )
    log = parts.store.log
    replicas[status.node_id] = {
        **{key: getattr(own, key) for key in own.__struct_fields__},
        "detail": status.detail,
        "first": status.first,
        "durable": status.durable,
        "lastPosition": log.last.end,
        "visible": status.visible,
        "inSync": list(parts.replicator.replicas.in_sync),
    }
    group = GroupStatus(
        cluster=parts.config.cluster_name,
        group=parts.config.broker_name,
        leader=status.leader.leader_id or None,
        answeredBy=status.node_id,
        strategy=status.strategy,
        term=status.term,
    )
    return {**{key: getattr(group, key) for key in group.__struct_fields__}, "replicas": replicas}


def parse_properties(text: str) -> dict[str, str]:
    """`key=value` lines; comments and empty lines are left out. The last of two equal keys counts."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key and key[0] not in "#!":
            found[key.strip()] = value.strip()
    return found


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ";".join(f"{each.id}-{each.address}" if hasattr(each, "address") else str(each) for each in value)
    return str(value)


def _level(milliseconds: int) -> str:
    """A delay as `messageDelayLevel` has it: 30s, 10m, 2h."""
    seconds = milliseconds // 1000
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _duration(milliseconds: int) -> str:
    seconds = max(0, milliseconds) // 1000
    minutes, hours, days = seconds // 60 % 60, seconds // 3600 % 24, seconds // 86400
    return f"[ {days} days, {hours} hours, {minutes} minutes, {seconds % 60} seconds ]"
