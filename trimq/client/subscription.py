"""What a consumer tells the brokers about itself with each heartbeat: its filters, and where new queues begin."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from trimq.client.broker_api import filter_kind
from trimq.client.model import Filter, Start
from trimq.wire.body.heartbeat import ConsumerData, SubscriptionData

__all__ = ["describe"]


def describe(
    group: str, topics: Mapping[str, Filter], start: Start | datetime, version: int, *, model: str = "CLUSTERING"
) -> ConsumerData:
    """The heartbeat's part of one consumer. `version`: when it subscribed (ms); brokers keep the newest filters."""
    return ConsumerData(
        groupName=group,
        messageModel=model,
        consumeFromWhere="CONSUME_FROM_" + (f"{start.name}_OFFSET" if isinstance(start, Start) else "TIMESTAMP"),
        subscriptionDataSet=[
            SubscriptionData.of(topic, wanted.expression, version, filter_kind(wanted))
            for topic, wanted in topics.items()
        ],
    )
