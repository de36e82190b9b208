"""Clients introduce themselves: heartbeat (34), goodbye (35), subscription check (46), HELLO (9000).

Heartbeats go to all replicas and each keeps what it hears. The leader also creates the consumer group, with its retry
topic, on first sight; the client's next steps rely on both (remoting-protocol, heartbeat).
"""

from __future__ import annotations

import logging

import trio

from broker.config import BrokerConfig
from broker.filter.selection import FilterError, parse_filter
from broker.metadata.clients import ClientTable, Consumer, Link, Producer, Subscription
from broker.processor.pull_message import check_type, parse_failed
from broker.processor.request import Client, Refused, Request
from broker.replication.base import Busy, NotLeader, Replicator
from broker.replication.intake import Intake
from broker.service.members import Members
from broker.service.registration import Registration
from trimq.errors import BadName
from trimq.message import names
from trimq.wire.body.consumer_list import CheckClientRequest
from trimq.wire.body.group import FEATURES, Hello
from trimq.wire.body.heartbeat import ConsumerData, HeartbeatData
from trimq.wire.codes import ResponseCode, language_name
from trimq.wire.headers.client import HeartbeatResponse, UnregisterClientHeader

__all__ = ["ClientProcessor"]

log = logging.getLogger(__name__)

GROUPS_PER_HEARTBEAT_MAX = 1_000
SUBSCRIPTIONS_MAX = 4_096
"""Topics one consumer may subscribe to in one group: more than any client means, and bounded."""

_HELLO_WORDS = ("seq", "hint")
"""Short names of the features that clients send as an ext field instead of a body."""


class ClientProcessor:
    """Keeps the live client table of one replica up to date."""

    def __init__(
        self,
        config: BrokerConfig,
        clients: ClientTable,
        members: Members,
        intake: Intake,
        replicator: Replicator,
        registration: Registration,
    ) -> None:
        self._config = config
        self._clients = clients
        self._members = members
        self._intake = intake
        self._replicator = replicator
        self._registration = registration

    async def heartbeat(self, request: Request) -> bytes:
        """Code 34. Unknown consumer groups are created where that is on; a bad name is refused as a whole."""
        data = HeartbeatData.from_json(request.command.body)
        if not data.clientID:
            raise Refused(ResponseCode.SYSTEM_ERROR, "the heartbeat names no clientID")
        if len(data.consumerDataSet) + len(data.producerDataSet) > GROUPS_PER_HEARTBEAT_MAX:
            raise Refused(
                ResponseCode.SYSTEM_ERROR, f"a client may belong to at most {GROUPS_PER_HEARTBEAT_MAX} groups"
            )
        changed: list[str] = []
        for each in data.consumerDataSet:
            self._check(each)
        now = trio.current_time()
        for each in data.consumerDataSet:
            if self._config.strict_subscription:
                self._refuse_odd(request, data, each)
            if await self._known(each.groupName, each.unitMode) and self._enter(request, data, each):
                changed.append(each.groupName)
        for producer in data.producerDataSet:
            self._clients.put_producer(
                producer.groupName,
                Producer(
                    request.reply, data.clientID, language_name(request.command.language), request.command.version, now
                ),
            )
        if changed:
            self._members.changed(changed)
        return request.success(HeartbeatResponse().to_ext())

    @staticmethod
    def _check(consumer: ConsumerData) -> None:
        try:
            names.check_group(consumer.groupName)
        except BadName as error:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"bad consumer group name: {error}") from None
        if len(consumer.subscriptionDataSet) > SUBSCRIPTIONS_MAX:
            raise Refused(
                ResponseCode.SYSTEM_ERROR, f"a consumer group may subscribe to at most {SUBSCRIPTIONS_MAX} topics"
            )

    async def _known(self, group: str, unit: bool) -> bool:
        """Create the group if need be and allowed. False: it is unknown and stays so (skipped, as RocketMQ does)."""
        replicator = self._replicator
        if not replicator.admitting:
            # The leader hears this client too, and creates the group where that is allowed.
            return self._intake.config.creation.auto_create_group or self._intake.state.groups.get(group) is not None
        if self._intake.view.group(group) is None:
            if not self._intake.config.creation.auto_create_group:
                return False
            try:
                await self._intake.apply(self._intake.group_ops(group, unit=unit))
                # The client asks for the route of its retry topic next.
                await self._registration.told()
            except (NotLeader, Busy):
                # Leadership moved, or the group is busy: the heartbeat counts, the next one creates the group.
                log.debug("consumer group not created now", extra={"group": group})
        return True

    def _enter(self, request: Request, data: HeartbeatData, consumer: ConsumerData) -> bool:
        return self._clients.put_consumer(
            consumer.groupName, self._consumer(request, data, consumer), keep_subscriptions=data.withoutSub
        )

    @staticmethod
    def _consumer(request: Request, data: HeartbeatData, consumer: ConsumerData) -> Consumer:
        subscriptions = {
            each.topic: Subscription.of(each.topic, each.subString, each.expressionType, each.subVersion)
            for each in consumer.subscriptionDataSet
        }
        return Consumer(
            link=request.reply,
            client_id=data.clientID,
            language=language_name(request.command.language),
            version=request.command.version,
            consume_type=consumer.consumeType,
            message_model=consumer.messageModel,
            from_where=consumer.consumeFromWhere,
            subscriptions=subscriptions,
            seen=trio.current_time(),
        )

    def _refuse_odd(self, request: Request, data: HeartbeatData, consumer: ConsumerData) -> None:
        """`strictSubscription`: who wants something else than the group, or has somebody's id, stays outside."""
        group = self._clients.consumer_group(consumer.groupName)
        if group is None:
            return
        newcomer = self._consumer(request, data, consumer)
        if data.withoutSub and (known := group.members.get(request.reply)) is not None:
            newcomer.subscriptions = known.subscriptions
        problem = ""
        if odd := group.odd(newcomer):
            topic, texts = next(iter(odd.items()))
            problem = (
                f"client {data.clientID} subscribes to {topic} differently than the rest of the consumer group"
                f" {consumer.groupName} ({' / '.join(texts)}): give every member the same subscriptions,"
                " or this one a group of its own (strictSubscription is on)"
            )
        elif self._clients.doubles.others(data.clientID, request.reply):
            problem = (
                f"client id {data.clientID} is in use by another client of {consumer.groupName}:"
                " give each client an id (instance name) of its own (strictSubscription is on)"
            )
        if problem:
            left = self._clients.unregister(request.reply, consumer_group=consumer.groupName, producer_group="")
            if left:
                self._members.changed(left)
            raise Refused(ResponseCode.NO_PERMISSION, problem)

    async def unregister(self, request: Request) -> bytes:
        """Code 35: one group of one client goes."""
        header = UnregisterClientHeader.from_ext(request.ext)
        changed = self._clients.unregister(
            request.reply, consumer_group=header.consumer_group, producer_group=header.producer_group
        )
        if header.consumer_group:
            # Replicas pass goodbyes on as oneway requests, which clients do not send.
            self._members.left(
                header.consumer_group,
                header.client_id,
                was_live=bool(changed),
                passed_on=request.command.is_oneway,
            )
        return request.success()

    async def check_client(self, request: Request) -> bytes:
        """Code 46: may this client subscribe so?"""
        body = CheckClientRequest.from_json(request.command.body)
        wanted = body.subscription
        check_type(self._config, wanted.expressionType)
        try:
            parse_filter(wanted.subString, wanted.expressionType)
        except FilterError as error:
            raise parse_failed(error) from None
        return request.success()

    async def hello(self, request: Request) -> bytes:
        """Code 9000: what both sides can do. From now on this connection may get fields and codes of ours."""
        said = Hello.from_json(request.command.body) if request.command.body else Hello()
        features = {*said.features, *filter(None, request.ext.get("features", "").split(","))}
        client_id = said.clientId or request.ext.get("client", "")
        if hasattr(request.reply, "data"):
            request.reply.data = Client(client_id, frozenset(features))
        ours = Hello.ours(
            cluster=self._config.cluster_name, group=self._config.broker_name, node_id=self._replicator.node_id
        )
        return request.success({"features": ",".join((*_HELLO_WORDS, *FEATURES))}, body=ours.to_json())

    def closed(self, link: Link) -> None:
        """A connection ended: its client is gone."""
        ids = self._clients.ids_of(link)
        changed = self._clients.closed(link)
        if changed:
            self._members.changed(changed, gone=ids)
