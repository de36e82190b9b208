"""What becomes of a message that was not processed: it goes back to the brokers, for another attempt or for good."""

from __future__ import annotations

import logging

from trimq.client.broker_api import BrokerApi
from trimq.client.received import Received

__all__ = ["DEAD_LETTER", "Retries"]

log = logging.getLogger(__name__)

DEAD_LETTER = -1
"""The delay level that means: never again."""


class Retries:
    """The attempts of one consumer group."""

    def __init__(self, api: BrokerApi, group: str, attempts_max: int) -> None:
        self._api = api
        self._group = group
        self._attempts_max = attempts_max

    def exhausted(self, message: Received) -> bool:
        """This was its last attempt."""
        return message.attempt >= self._attempts_max

    def note_dead_letter(self, message: Received, reason: str) -> None:
        log.warning(
            "message dead-lettered",
            extra={"topic": message.topic, "id": message.id, "group": self._group, "reason": reason},
        )

    async def hand_back(self, message: Received, level: int) -> None:
        """To its replica group: `level` 0 by attempts, above 0 that delay level, `DEAD_LETTER` never again."""
        await self._api.send_back(
            message.queue.group,
            self._group,
            message.position,
            level=level,
            max_retries=self._attempts_max - 1,
            id=message.id,
            topic=message.topic,
        )
