"""Subscribing to a topic that nobody has yet: it is created as by a send, so that its first message is not missed."""

from __future__ import annotations

import logging

from trimq.client.broker_api import BrokerApi
from trimq.client.instance import Instance
from trimq.client.model import Filter, Sql
from trimq.client.outgoing import DEFAULT_TOPIC_QUEUES
from trimq.client.route import DEFAULT_TOPIC, Route
from trimq.errors import TrimqError

__all__ = ["create_missing", "find_topic"]

log = logging.getLogger(__name__)


async def find_topic(
    instance: Instance, api: BrokerApi, consumer_group: str, topic: str, wanted: Filter, *, create: bool = True
) -> Route | None:
    """Before a consumer group reads a topic: where it is, None when it was missing; it may be there from now on.

    Raises `NoRoute` when no name server answers, `BadRequest` for a filter that the brokers cannot evaluate.
    """
    found = route = await instance.routes.refresh(topic)
    if route is None and create:
        route = await create_missing(instance, api, topic)
    if route is not None and isinstance(wanted, Sql):
        await api.check_filter(consumer_group, route.groups[0].name, topic, wanted)
    return found


async def create_missing(instance: Instance, api: BrokerApi, topic: str) -> Route | None:
    """Have an unknown topic created where that is allowed, and wait until the name server knows it there.

    Returns where it would be created. Apache's brokers cannot be asked for it.
    """
    template = await instance.routes.refresh(DEFAULT_TOPIC)
    if template is None:
        return None
    route = template.provisional(topic, DEFAULT_TOPIC_QUEUES)
    created: set[str] = set()
    for group in route.groups:
        try:
            await api.create_as_needed(topic, group.name, group.write_queues)
        except TrimqError as error:
            log.info("topic not created", extra={"topic": topic, "group": group.name, "error": error})
        else:
            created.add(group.name)
    if created:
        # A route that was asked for meanwhile names only some of them.
        await instance.routes.complete(topic, created)
    return route
