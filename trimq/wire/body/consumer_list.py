"""Members and settings of consumer groups: bodies of 38 and 46."""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from trimq.wire.body.base import Body
from trimq.wire.body.heartbeat import RawSubscription, SubscriptionData

__all__ = ["CheckClientRequest", "ConsumerIdList"]


class ConsumerIdList(Body, frozen=True, kw_only=True):
    """The answer to 38. Clients sort it themselves; ours is sorted already."""

    consumerIdList: list[str] = []


class CheckClientRequest(Body, frozen=True, kw_only=True):
    """Code 46: may this client subscribe so?"""

    clientId: str = ""
    group: str = ""
    namespace: str | None = None
    subscriptionData: RawSubscription

    @property
    def subscription(self) -> SubscriptionData:
        return self.subscriptionData.clean()
