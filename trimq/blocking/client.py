"""The client for threads: what `connect` opens, and everything that begins there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.from_thread
import anyio.to_thread

from trimq import outbox
from trimq.blocking.admin import Admin
from trimq.blocking.pop_consumer import PopConsumer
from trimq.blocking.portal import Portal
from trimq.blocking.producer import Producer
from trimq.blocking.pull_consumer import PullConsumer
from trimq.blocking.push_consumer import PushConsumer
from trimq.blocking.received import Received
from trimq.blocking.relay import Relay
from trimq.client import client as asynchronous
from trimq.client.limits import Limits
from trimq.client.model import EVERYTHING, Filter, Receipt, Start
from trimq.client.received import Received as AsyncReceived
from trimq.client.replies import Reply
from trimq.client.transaction import Outcome
from trimq.message.allocation import Strategy

__all__ = ["Client", "connect"]


class Client:
    """See `trimq.Client`."""

    def __init__(self, client: asynchronous.Client, portal: Portal) -> None:
        self._client = client
        self._portal = portal
        self.admin = Admin(client.admin, portal)

    def send(
        self, topic: str, body: bytes | str, /, *, timeout: float | None = None, **fields: Any
    ) -> Receipt:  # Any: the fields of Message
        """Store one message; `fields` are those of `Message`."""
        return self._portal.call(partial(self._client.send, topic, body, **fields), timeout)

    def request(
        self, topic: str, body: bytes | str, /, *, timeout: float | None = None, **fields: Any
    ) -> Reply:  # Any: the fields of Message
        """Send a message and wait for the reply of whoever consumes it."""
        return self._portal.call(partial(self._client.request, topic, body, **fields), timeout)

    @contextmanager
    def producer(
        self,
        group: str = asynchronous.DEFAULT_PRODUCER,
        *,
        check: Callable[[Received], Outcome] | None = None,
        **options: Any,
    ) -> Iterator[Producer]:
        """A producer of its own; options as `trimq.Client.producer`. `check` is called in a worker thread."""
        if check is not None:

            async def in_thread(message: AsyncReceived) -> Outcome:
                return await anyio.to_thread.run_sync(check, Received(message, self._portal))

            options["check"] = in_thread
        with self._portal.open(self._client.producer(group, **options)) as producer:
            yield Producer(producer, self._portal)

    @contextmanager
    def subscribe(
        self,
        topic: str | Mapping[str, Filter],
        *,
        group: str,
        filter: Filter = EVERYTHING,
        mode: Literal["cluster", "broadcast"] = "cluster",
        ordered: bool = False,
        start: Start | datetime = Start.LAST,
        prefetch: int | None = None,
        limits: Limits = asynchronous.DEFAULT_LIMITS,
        max_attempts: int = 16,
        allocation: Strategy = asynchronous.AVERAGELY,
        offsets_file: str | os.PathLike[str] | None = None,
    ) -> Iterator[PushConsumer]:
        """Join a consumer group; arguments as `trimq.Client.subscribe`."""
        consumer = self._client.subscribe(
            topic,
            group=group,
            filter=filter,
            mode=mode,
            ordered=ordered,
            start=start,
            prefetch=prefetch,
            limits=limits,
            max_attempts=max_attempts,
            allocation=allocation,
            offsets_file=offsets_file,
        )
        with self._portal.open(consumer) as opened:
            yield PushConsumer(opened, self._portal)

    @contextmanager
    def outbox(self, path: str | Path) -> Iterator[Relay]:
        """Send what is in the outbox of an SQLite database (`trimq.outbox`) while the block runs."""
        with self._portal.open(outbox.open_relay(self._client, path)) as relay:
            yield Relay(relay, self._portal)

    @contextmanager
    def pop(
        self,
        topic: str | Mapping[str, Filter],
        *,
        group: str,
        filter: Filter = EVERYTHING,
        invisible: float = 60.0,
        ordered: bool = False,
        start: Start = Start.LAST,
        max_attempts: int = 16,
    ) -> Iterator[PopConsumer]:
        """Take messages one by one; arguments as `trimq.Client.pop`."""
        consumer = self._client.pop(
            topic,
            group=group,
            filter=filter,
            invisible=invisible,
            ordered=ordered,
            start=start,
            max_attempts=max_attempts,
        )
        with self._portal.open(consumer) as opened:
            yield PopConsumer(opened, self._portal)

    @contextmanager
    def pull(self, group: str | None = None) -> Iterator[PullConsumer]:
        """Read queues by hand."""
        with self._portal.open(self._client.pull(group)) as consumer:
            yield PullConsumer(consumer, self._portal)


@contextmanager
def connect(
    namesrv: str | Sequence[str] | None = None,
    *,
    default_timeout: float = 10.0,
    client_id: str | None = None,
    trace: bool | str = False,
) -> Iterator[Client]:
    """Open a client, with a thread of its own, for the length of the block; arguments as `trimq.connect`."""
    with anyio.from_thread.start_blocking_portal("asyncio") as portal:
        opening = asynchronous.connect(namesrv, default_timeout=default_timeout, client_id=client_id, trace=trace)
        with portal.wrap_async_context_manager(opening) as client:
            yield Client(client, Portal(portal))
