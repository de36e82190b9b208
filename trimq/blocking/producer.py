"""Sending from threads: the producer, its stream and its transactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self

from trimq.blocking.portal import Portal
from trimq.client.model import Message, Queue, Receipt
from trimq.client.producer import Producer as AsyncProducer
from trimq.client.send_stream import SendStream as AsyncSendStream
from trimq.client.transaction import Transaction as AsyncTransaction

__all__ = ["Producer", "SendStream", "Transaction"]


class SendStream:
    """See `trimq.SendStream`."""

    def __init__(self, stream: AsyncSendStream, portal: Portal) -> None:
        self._stream = stream
        self._portal = portal

    def send(self, message: Message, /, *, queue: Queue | None = None) -> None:
        """Queue one message; waits only while the producer has its `max_in_flight` in hand."""
        self._portal.call(partial(self._stream.send, message, queue=queue))

    def drain(self, *, timeout: float | None = None) -> None:
        """Wait until everything queued so far is acknowledged."""
        self._portal.call(self._stream.drain, timeout)


class Transaction:
    """See `trimq.Transaction`. Leaving its `with` block commits; an exception rolls back."""

    def __init__(self, transaction: AsyncTransaction, portal: Portal) -> None:
        self._transaction = transaction
        self._portal = portal

    @property
    def id(self) -> str:
        return self._transaction.id

    @property
    def receipt(self) -> Receipt | None:
        return self._transaction.receipt

    def commit(self, *, timeout: float | None = None) -> None:
        """Make the message visible."""
        self._portal.call(self._transaction.commit, timeout)

    def rollback(self, *, timeout: float | None = None) -> None:
        """Drop the message."""
        self._portal.call(self._transaction.rollback, timeout)

    def unknown(self) -> None:
        """Decide nothing here: the broker will ask `check`."""
        self._transaction.unknown()

    def __enter__(self) -> Self:
        self._portal.call(self._transaction.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.call(partial(self._transaction.__aexit__, kind, error, trace))


class Producer:
    """See `trimq.Producer`."""

    def __init__(self, producer: AsyncProducer, portal: Portal) -> None:
        self._producer = producer
        self._portal = portal

    def send(self, message: Message, /, *, queue: Queue | None = None, timeout: float | None = None) -> Receipt:
        """Store one message and return where it is; errors as `trimq.Producer.send`."""
        return self._portal.call(partial(self._producer.send, message, queue=queue), timeout)

    def send_batch(
        self, messages: Sequence[Message], /, *, queue: Queue | None = None, timeout: float | None = None
    ) -> Sequence[Receipt]:
        """Store several messages next to each other, all or none."""
        return self._portal.call(partial(self._producer.send_batch, messages, queue=queue), timeout)

    def send_atomic(self, messages: Sequence[Message], /, *, timeout: float | None = None) -> Sequence[Receipt]:
        """Store messages of several topics as one entry of a replica group's log, all or none."""
        return self._portal.call(partial(self._producer.send_atomic, messages), timeout)

    def send_oneway(self, message: Message, /, *, queue: Queue | None = None) -> None:
        """Hand a message to the connection and forget it."""
        self._portal.call(partial(self._producer.send_oneway, message, queue=queue))

    @contextmanager
    def stream(self) -> Iterator[SendStream]:
        """Send without waiting for each receipt; leaving the block waits for all."""
        with self._portal.open(self._producer.stream()) as stream:
            yield SendStream(stream, self._portal)

    def recall(self, receipt: Receipt, /) -> bool:
        """Cancel a message with `delay` or `at`; False when it does not wait (any more)."""
        return self._portal.call(partial(self._producer.recall, receipt))

    def transaction(self, message: Message, /, *, queue: Queue | None = None) -> Transaction:
        """A message that becomes visible only when the `with` block is left without an exception."""
        return Transaction(self._producer.transaction(message, queue=queue), self._portal)

    def queues(self, topic: str) -> Sequence[Queue]:
        """The queues that `send` chooses from."""
        return self._portal.call(partial(self._producer.queues, topic))
