"""The consumer that takes messages one by one, for threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from trimq.blocking.portal import Portal
from trimq.blocking.received import Received, next_message
from trimq.client.pop_consumer import PopConsumer as AsyncPopConsumer

__all__ = ["PopConsumer"]


class PopConsumer:
    """See `trimq.PopConsumer`. Several threads may iterate over it at the same time."""

    def __init__(self, consumer: AsyncPopConsumer, portal: Portal) -> None:
        self._consumer = consumer
        self._portal = portal

    def __iter__(self) -> Iterator[Received]:
        """Messages as they come. Ends when the consumer's block is left."""
        while (message := self.poll(timeout=None)) is not None:
            yield message

    def poll(self, *, timeout: float | None = 15.0) -> Received | None:
        """The next message, or None when none comes within `timeout` seconds (None: wait for ever)."""
        return next_message(self._consumer, self._portal, timeout=timeout)

    def receive(self, *, max: int = 32, wait: float = 15.0) -> list[Received]:
        """Up to `max` messages, waiting up to `wait` seconds for the first one."""
        messages = self._portal.call(partial(self._consumer.receive, max=max, wait=wait))
        return [Received(message, self._portal) for message in messages]
