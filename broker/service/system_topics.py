"""The topics that every replica group has, created by the first ready leader that misses one.

Facts: message-format, "Topics and groups". `BenchmarkTest` with its 1,024 queues is left out: it is a topic like any
other and created when somebody sends to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from broker.config import BrokerConfig
from broker.metadata.ops import Op, TopicPut
from broker.replication.intake import Intake
from broker.service.delay import DELAY_TOPIC
from broker.service.half import GIVEN_UP_TOPIC, HALF_TOPIC, OP_TOPIC
from broker.service.wheel import TIMER_QUEUES, TIMER_TOPIC

__all__ = ["create_system_topics", "wanted_topics"]

log = logging.getLogger(__name__)

_TEMPLATE_PERM = 7
"""Read, write, and inherited by topics that are created from it."""


def wanted_topics(config: BrokerConfig) -> Iterator[tuple[str, int, int]]:
    """(name, queues, perm) of the topics that this configuration asks for."""
    if config.auto_create_topic:
        yield "TBW102", config.default_topic_queues, _TEMPLATE_PERM
    yield DELAY_TOPIC, max(18, len(config.delay_levels_ms)), 6
    yield TIMER_TOPIC, TIMER_QUEUES, 6
    yield HALF_TOPIC, 1, 6
    yield OP_TOPIC, 1, 6
    yield GIVEN_UP_TOPIC, 1, 6
    yield "SELF_TEST_TOPIC", 1, 6
    yield "OFFSET_MOVED_EVENT", 1, 6
    yield config.cluster_name, 16, 7 if config.cluster_topic else 1
    yield config.broker_name, 1, 7 if config.broker_topic else 1
    yield f"{config.cluster_name}_REPLY_TOPIC", 1, 6
    if config.trace_topic:
        yield config.trace_topic_name, 1, 6


async def create_system_topics(config: BrokerConfig, intake: Intake) -> None:
    """Create what is missing; return when it is applied. Raises NotLeader when leadership ends meanwhile."""
    topics = intake.view.tables.topics
    ops: list[Op] = []
    highest = topics.highest
    for name, (queues, perm) in {name: (queues, perm) for name, queues, perm in wanted_topics(config)}.items():
        known = topics.get(name.encode())
        if known is not None:
            if known.write_queues < queues:
                ops.append(replace(known, read_queues=queues, write_queues=queues))
            continue
        highest += 1
        ops.append(TopicPut(highest, name, queues, queues, perm))
    if ops:
        await intake.apply(ops)
        log.info("system topics created", extra={"topics": len(ops), "broker": config.broker_name})
