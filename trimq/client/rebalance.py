"""Sharing the queues of a topic among the members of a consumer group, without a coordinator.

Every member asks a broker for the member list, takes the topic's queues from the route, and computes its own share
with the same strategy. That settles once all see the same lists; meanwhile a queue may have two readers (redelivery,
never loss), which ordered consumption excludes with locks at the broker.

`Shares` is the decision; asking, and acting on it, is the consumer's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from trimq.client.allocate import allocate
from trimq.client.broker_api import BrokerApi
from trimq.client.instance import Instance
from trimq.client.model import Queue
from trimq.errors import TrimqError
from trimq.message.allocation import Strategy

__all__ = ["REBALANCE_S", "Change", "Shares"]

log = logging.getLogger(__name__)

REBALANCE_S = 20.0
"""RocketMQ's period; changes of members are told at once (code 40), so this only mends what was missed."""


@dataclass(frozen=True, slots=True)
class Change:
    """What to take up and what to let go."""

    gained: tuple[Queue, ...]
    lost: tuple[Queue, ...]
    complete: bool
    """False when some topic could not be shared out now: try again soon."""


class Shares:
    """One member's share of the queues of some topics."""

    def __init__(
        self, instance: Instance, api: BrokerApi, consumer_group: str, strategy: Strategy, *, everything: bool
    ) -> None:
        self._instance = instance
        self._strategy = strategy
        self._api = api
        self._group = consumer_group
        self._everything = everything
        """Broadcast: every member reads every queue."""
        self._members: dict[str, list[str]] = {}
        """Replica group to the members that it knows, for the length of one `change`."""

    async def change(self, topics: Mapping[str, bool], held: frozenset[Queue]) -> Change:
        """Compare what should be ours with what is. `topics` says of each whether its absence matters."""
        self._members.clear()
        mine: set[Queue] = set()
        complete = True
        for topic, required in topics.items():
            share = await self._share(topic)
            if share is not None:
                mine.update(share)
            else:
                mine.update(queue for queue in held if queue.topic == topic)
                complete = complete and not required
        return Change(tuple(sorted(mine - held)), tuple(sorted(held - mine)), complete)

    async def _share(self, topic: str) -> tuple[Queue, ...] | None:
        """Our queues of a topic; None when that cannot be told now, so that what is held stays held."""
        route = self._instance.routes.known(topic)
        if route is None:
            return None
        queues = route.read_queues
        if self._everything or not queues:
            return queues
        for group in route.groups:
            members = self._members.get(group.name)
            if members is None:
                members = self._members[group.name] = await self._ask(group.name)
            if self._instance.client_id in members:
                return tuple(allocate(self._strategy, queues, members, self._instance.client_id))
        return None

    async def _ask(self, group: str) -> list[str]:
        try:
            members = await self._api.members(self._group, group)
        except TrimqError as error:
            log.info("consumer list not available", extra={"group": self._group, "error": error})
            return []
        if self._instance.client_id not in members:
            self._instance.beat_soon()  # our heartbeat has not arrived there, or the broker has just restarted
        return members
