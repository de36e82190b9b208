"""Members that leave the choice of their queues to the broker (codes 400 to 402): RocketMQ 5's server-side rebalance.

The broker knows the members of a consumer group; the queues of a topic lie in all replica groups, so it asks a name
server for them, as a client would. In POP mode an assignment names replica groups and not queues (queue -1): whoever is
assigned pops from any queue there. The mode of a (topic, consumer group) is an op of the log (36).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from broker.metadata.pop_ops import RequestMode
from broker.metadata.state import GroupState
from broker.processor.request import Refused, Request
from broker.replication.intake import Intake
from broker.service.members import Members
from broker.service.registration import Registration
from trimq.message.allocation import Averagely, AveragelyByCircle, Strategy
from trimq.message.names import RETRY_PREFIX
from trimq.message.pop import ANY_QUEUE
from trimq.wire.body.lock import MQ
from trimq.wire.body.pop import (
    POP,
    PULL,
    QueryAssignmentRequest,
    QueryAssignmentResponse,
    QueueAssignment,
    RequestModeTable,
    SetRequestModeRequest,
)
from trimq.wire.body.route import TopicRouteData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command

__all__ = ["AssignmentProcessor", "allocate_for_pop"]

_STRATEGIES: Mapping[str, Strategy] = {each.name: each for each in (Averagely(), AveragelyByCircle())}
_READABLE = 4
_BROADCASTING = frozenset({"BROADCASTING", 0})


class _Queue(NamedTuple):
    topic: str
    group: str
    id: int


class AssignmentProcessor:
    """Assigns queues to members. Register it for a ready leader."""

    def __init__(self, state: GroupState, intake: Intake, members: Members, registration: Registration) -> None:
        self._state = state
        self._intake = intake
        self._members = members
        self._registration = registration

    async def query(self, request: Request) -> bytes:
        """Code 400. An empty list means "nothing for you", no list at all "keep what you have"."""
        body = QueryAssignmentRequest.from_json(request.command.body)
        queues = await self._queues(body.topic)
        mode, share = self._mode(body.topic, body.consumerGroup)
        chosen: Sequence[_Queue] | None = queues
        if queues is not None and body.messageModel not in _BROADCASTING:
            members = self._members.consumer_ids(body.consumerGroup)
            strategy = _STRATEGIES.get(body.strategyName)
            if not members or strategy is None:
                chosen = None
            elif mode == POP:
                chosen = allocate_for_pop(strategy, queues, members, body.clientId, share)
            else:
                chosen = strategy.allocate(queues, members, body.clientId)
        assignments = None
        if chosen is not None:
            assignments = [
                QueueAssignment(messageQueue=MQ(topic=topic, brokerName=group, queueId=queue), mode=mode)
                for topic, group, queue in dict.fromkeys(chosen)
            ]
        return request.success(body=QueryAssignmentResponse(messageQueueAssignments=assignments).to_json())

    def _mode(self, topic: str, group: str) -> tuple[str, int]:
        if topic.startswith(RETRY_PREFIX):
            return PULL, 0
        return self._state.pop.mode(topic, group) or (PULL, 0)

    async def _queues(self, topic: str) -> list[_Queue] | None:
        """All readable queues of a topic, sorted; None when nobody can be asked or nobody has it."""
        command = Command(
            code=RequestCode.GET_ROUTEINFO_BY_TOPIC, ext={"topic": topic, "acceptStandardJsonOnly": "true"}
        )
        answer = await self._registration.ask(command)
        if answer is None or answer.code != ResponseCode.SUCCESS:
            return None
        route = TopicRouteData.from_json(answer.body)
        return sorted(
            _Queue(topic, data.brokerName, number)
            for data in route.queueDatas
            if data.perm & _READABLE
            for number in range(data.readQueueNums)
        )

    async def set_mode(self, request: Request) -> bytes:
        """Code 401. Answered when it is applied."""
        body = SetRequestModeRequest.from_json(request.command.body)
        if body.topic.startswith(RETRY_PREFIX):
            raise Refused(ResponseCode.NO_PERMISSION, "retry topic is not allowed to set mode")
        if body.mode not in (PULL, POP):
            raise Refused(ResponseCode.INVALID_PARAMETER, f"mode {body.mode!r}: it is PULL or POP")
        if self._intake.view.topic(body.topic.encode()) is None:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"topic[{body.topic}] not exist")
        if self._intake.view.group(body.consumerGroup) is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                f"subscription group {body.consumerGroup} does not exist: create it, or start a consumer first",
            )
        share = max(0, body.popShareQueueNum)
        await self._intake.apply([RequestMode(body.topic, body.consumerGroup, body.mode, share)])
        return request.success()

    async def all_modes(self, request: Request) -> bytes:
        """Code 402."""
        table: dict[str, dict[str, SetRequestModeRequest]] = {}
        for (topic, group), (mode, share) in sorted(self._state.pop.modes().items()):
            table.setdefault(topic, {})[group] = SetRequestModeRequest(
                topic=topic, consumerGroup=group, mode=mode, popShareQueueNum=share
            )
        return request.success(body=RequestModeTable(messageRequestModeMap=table).to_json())


def allocate_for_pop(
    strategy: Strategy, queues: Sequence[_Queue], members: Sequence[str], me: str, share: int
) -> list[_Queue]:
    """What a member pops from: everything, or its own share and those of the `share` members behind it."""
    if share <= 0 or share >= len(members) - 1:
        return [_Queue(queue.topic, queue.group, ANY_QUEUE) for queue in queues]
    if me not in members or not queues:
        return []
    index = members.index(me)
    if len(members) > len(queues):
        return [queues[index % len(queues)]]  # nobody is left without
    found: list[_Queue] = []
    for step in range(share + 1):
        found += strategy.allocate(queues, members, members[(index + step) % len(members)])
    return found
