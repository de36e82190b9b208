"""Moving a consumer group while it runs: the offsets are in the log, and its members are moved at once.

A reset is one op (6). From then on the log has the new offsets, commits of the old place are ignored (the *fence*), and
a pull of that consumer group at any other place than the new one is answered "offset moved" to it, held pulls
included: RocketMQ's clients of every language continue there. The fence ends with the first pull at the new place, or
after 60 s. Our own clients are told as well (220), so that what they have read ahead is dropped at once; with
`useServerSideResetOffset=false` all members are, each in the form that its language reads, as RocketMQ did before 5.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker.config import BrokerConfig
from broker.metadata.clients import ClientTable, Consumer
from broker.metadata.groups import GroupInfo
from broker.metadata.ops import Reset, queue_of, tid_of
from broker.replication.intake import Intake
from broker.service.client_reach import ClientReach
from trimq.wire.body.lock import MQ
from trimq.wire.body.reset import reset_body
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command
from trimq.wire.headers.reset import ResetClientHeader

__all__ = ["OffsetResets"]

OURS = "PYTHON"
"""The language that our clients say; they move by a word of ours, without a pause."""


class OffsetResets:
    """Resets offsets of consumer groups, in a leader."""

    def __init__(
        self,
        config: BrokerConfig,
        intake: Intake,
        clients: ClientTable,
        reach: ClientReach,
        member_ids: Callable[[str], list[str]],
        wake: Callable[[Mapping[int, int]], None],
    ) -> None:
        self._config = config
        self._intake = intake
        self._clients = clients
        self._reach = reach
        self.member_ids = member_ids
        """Consumer group → the client ids of its members, wherever they are connected."""
        self._wake = wake

    async def apply(self, group: GroupInfo, targets: Mapping[int, int], who: str, *, timestamp: int = -1) -> None:
        """Set the offset of each queue (by key); returns when it is applied. Raises as `Intake.apply`."""
        if not targets:
            return
        rows = tuple((tid_of(key), queue_of(key), offset) for key, offset in targets.items())
        await self._intake.apply([Reset(group.gid, rows, who)])
        self._wake(targets)
        by_topic: dict[str, dict[MQ, int]] = {}
        for tid, queue, offset in rows:
            info = self._intake.state.topics.by_id.get(tid)
            if info is not None:
                mq = MQ(brokerName=self._config.broker_name, queueId=queue, topic=info.name)
                by_topic.setdefault(info.name, {})[mq] = offset
        for topic, table in by_topic.items():
            self._tell(group.name, topic, table, timestamp)

    def _tell(self, group: str, topic: str, table: Mapping[MQ, int], timestamp: int) -> None:
        found = self._clients.consumer_group(group)
        members = dict.fromkeys(self.member_ids(group))
        for member in list(found.members.values()) if found is not None else []:
            members.pop(member.client_id, None)
            if self._config.server_side_reset and member.language != OURS:
                continue
            self._reach.tell(member.client_id, _command(group, topic, table, timestamp, member), group=group)
        for client_id in members:  # connected to another replica only
            self._reach.tell(client_id, _command(group, topic, table, timestamp, None), group=group)


def _command(group: str, topic: str, table: Mapping[MQ, int], timestamp: int, member: Consumer | None) -> Command:
    header = ResetClientHeader(topic=topic, group=group, timestamp=timestamp)
    body = reset_body(table, member.language if member is not None else OURS)
    return Command(code=RequestCode.RESET_CONSUMER_CLIENT_OFFSET, ext=header.to_ext(), body=body)
