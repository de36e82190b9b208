"""What silently loses messages: members of one consumer group that subscribe differently, one client id twice.

Queues are shared among the members of a group by their ids. If two members want different messages, each queue brings
only what its present owner wants, and the rest is passed by for good; if two processes have one id, both take the same
queues and nobody takes the others. RocketMQ lets both happen without a word. Here they are found, said once, counted,
and refused where `strictSubscription=true` asks for that. Pure: `now` is passed in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Protocol

from broker.filter.tags import FilterError, parse_tags

__all__ = ["Doubles", "Wanted", "differences", "wanted_of"]

IDS_MAX = 64
"""Client ids of one connection that are watched."""

Wanted = Mapping[str, Hashable]
"""Topic → what is wanted of it, so that equal subscriptions compare equal however they are written."""


class _Subscribed(Protocol):
    @property
    def topic(self) -> str: ...
    @property
    def expression(self) -> str: ...
    @property
    def expression_type(self) -> str: ...


def wanted_of(subscriptions: Iterable[_Subscribed]) -> dict[str, tuple[str, str]]:
    """Topic → (kind, expression in one spelling): `B || A` and `A||B` are the same."""
    return {each.topic: (each.expression_type or "TAG", _spelled(each)) for each in subscriptions}


def _spelled(subscription: _Subscribed) -> str:
    text = subscription.expression.strip()
    if subscription.expression_type not in ("", "TAG"):
        return text
    try:
        tags = parse_tags(text).tags
    except FilterError:
        return text
    return " || ".join(sorted(tags)) or "*"


def differences(members: Mapping[str, Mapping[str, tuple[str, str]]]) -> dict[str, tuple[str, ...]]:
    """Topic → the different things that the members (by client id) want of it; empty when all want the same."""
    topics = sorted({topic for wanted in members.values() for topic in wanted})
    found: dict[str, tuple[str, ...]] = {}
    for topic in topics:
        said = {_said(wanted.get(topic)) for wanted in members.values()}
        if len(said) > 1:
            found[topic] = tuple(sorted(said))
    return found


def _said(wanted: tuple[str, str] | None) -> str:
    if wanted is None:
        return "not subscribed"
    kind, expression = wanted
    return expression if kind == "TAG" else f"{kind}: {expression}"


class Doubles:
    """Which client ids are used over several connections at the same time.

    A client that reconnects leaves an old connection behind for a while, but says nothing on it any more. So an id is
    doubled when the older connection speaks after the newer one began.
    """

    def __init__(self) -> None:
        self._spoken: dict[str, dict[object, tuple[float, float]]] = {}
        """Client id → connection → when it first and last spoke, oldest first."""
        self._ids: dict[object, dict[str, None]] = {}

    def spoke(self, client_id: str, link: object, now: float) -> None:
        """A client says over a connection that this is its id."""
        ids = self._ids.setdefault(link, {})
        if client_id not in ids and len(ids) >= IDS_MAX:
            return  # no client of this world: it is watched no further
        ids[client_id] = None
        links = self._spoken.setdefault(client_id, {})
        first, _ = links.get(link, (now, now))
        links[link] = (first, now)

    def closed(self, link: object) -> None:
        """A connection ended. (Leaving a group is no reason: who was refused would be a newcomer each time.)"""
        for client_id in self._ids.pop(link, {}):
            links = self._spoken[client_id]
            del links[link]
            if not links:
                del self._spoken[client_id]

    def others(self, client_id: str, link: object) -> bool:
        """Is this connection the younger one of a doubled id?"""
        links = self._spoken.get(client_id, {})
        mine = links.get(link)
        return mine is not None and any(
            first < mine[0] < last for other, (first, last) in links.items() if other is not link
        )

    def all(self) -> list[str]:
        """All doubled ids, sorted."""
        return sorted(
            client_id
            for client_id, links in self._spoken.items()
            if len(links) > 1 and any(self.others(client_id, link) for link in links)
        )
