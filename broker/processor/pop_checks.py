"""What can be popped at all: names, rights and queues, checked before anything is looked for."""

from __future__ import annotations

from broker.config import BrokerConfig
from broker.metadata.group_settings import settings_of
from broker.metadata.topics import TopicInfo
from broker.processor.request import Refused
from broker.replication.intake import Intake
from broker.replication.leader_view import LeaderView
from broker.service.pop_waits import PopWait
from trimq.message.names import BadName, check_group
from trimq.message.pop import ANY_QUEUE
from trimq.wire.codes import ResponseCode

__all__ = ["COUNT_MAX", "INVISIBLE_MAX_MS", "check_amount", "check_wait", "topic_of"]

COUNT_MAX = 32
INVISIBLE_MAX_MS = 12 * 3_600_000
ATTEMPT_MAX = 128


def check_amount(broker: str, count: int, invisible_ms: int) -> None:
    """How many messages, and for how long. Raises `Refused`."""
    if not 1 <= count <= COUNT_MAX:
        raise Refused(
            ResponseCode.INVALID_PARAMETER,
            f"the broker[{broker}] pop message's num is greater than {COUNT_MAX}: ask for 1 to {COUNT_MAX}",
        )
    if not 0 < invisible_ms <= INVISIBLE_MAX_MS:
        raise Refused(
            ResponseCode.INVALID_PARAMETER,
            f"invisibleTime {invisible_ms} ms: it has to be above 0 and at most {INVISIBLE_MAX_MS}",
        )


def check_wait(config: BrokerConfig, intake: Intake, wait: PopWait) -> None:
    """Raise `Refused` for what can never be popped."""
    if not config.permission & 4:
        raise Refused(ResponseCode.NO_PERMISSION, f"the broker[{config.broker_name}] pop message is forbidden")
    try:
        check_group(wait.group)
    except BadName as error:
        raise Refused(ResponseCode.INVALID_PARAMETER, str(error)) from None
    if len(wait.attempt) > ATTEMPT_MAX:
        raise Refused(ResponseCode.INVALID_PARAMETER, f"attemptId: at most {ATTEMPT_MAX} characters")
    topic = topic_of(intake.view, wait.topic)
    if not topic.perm & 4:
        raise Refused(ResponseCode.NO_PERMISSION, f"the topic[{wait.topic}] pop message is forbidden (perm)")
    if not ANY_QUEUE <= wait.queue < topic.read_queues:
        raise Refused(
            ResponseCode.INVALID_PARAMETER,
            f"queueId[{wait.queue}] is illegal, topic:[{wait.topic}] topicConfig.readQueueNums:[{topic.read_queues}]",
        )
    if not settings_of(intake.ensure_group(wait.group).settings).consume_enable:
        raise Refused(ResponseCode.NO_PERMISSION, f"subscription group no permission, {wait.group}")


def topic_of(view: LeaderView, name: str) -> TopicInfo:
    """Raises `Refused`."""
    info = view.topic(name.encode())
    if info is None:
        raise Refused(
            ResponseCode.TOPIC_NOT_EXIST, f"topic[{name}] not exist, apply first please! (or refresh the route)"
        )
    return info
