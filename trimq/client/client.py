"""The front door: `trimq.connect`, and the client that it opens.

    async with trimq.connect("127.0.0.1:9876") as mq:
        receipt = await mq.send("orders", b"...")

Nothing starts outside an `async with`, and leaving it leaves nothing behind. There is one default timeout, used where
the caller set no deadline (`move_on_after`, `fail_after`); no call has a timeout parameter of its own. Runs under
Trio and under asyncio alike.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from trimq.client.admin import Admin
from trimq.client.instance import Instance, open_instance
from trimq.client.limits import Limits
from trimq.client.model import EVERYTHING, Filter, Message, Receipt, Start
from trimq.client.namesrv import split_addresses
from trimq.client.pop_consumer import PopConsumer, open_pop_consumer
from trimq.client.producer import Producer, open_producer
from trimq.client.pull_consumer import PullConsumer, open_pull_consumer
from trimq.client.push_consumer import PushConsumer, open_push_consumer
from trimq.client.replies import Reply
from trimq.client.trace import TRACE_GROUP, Tracer, run_tracer
from trimq.client.transaction import Checker
from trimq.env import Clock, Network
from trimq.errors import BadRequest, ConnectFailed, NoRoute
from trimq.message.allocation import Averagely, Strategy
from trimq.message.names import check_topic
from trimq.message.trace import TRACE_TOPIC
from trimq.remoting.address_page import fetch_addresses, is_page
from trimq.remoting.system import AnyioNetwork, SystemClock

__all__ = ["Client", "connect", "open_client"]

DEFAULT_PRODUCER = "DEFAULT_PRODUCER"

COMPRESS_OVER = 4096
"""RocketMQ's compressMsgBodyOverHowmuch."""

DEFAULT_LIMITS = Limits()
AVERAGELY = Averagely()

NAMESRV_ADDR = "NAMESRV_ADDR"
"""RocketMQ's environment variable for name server addresses."""


class Client:
    """One client of one cluster. Made by `connect`; shares its connections among everything it opens."""

    def __init__(self, instance: Instance, sender: Producer) -> None:
        self.instance = instance
        """Connections, routes and heartbeats; for tools and tests."""
        self.admin = Admin(instance)
        """Topics, groups and cluster: what an operator asks."""
        self._sender = sender

    async def send(self, topic: str, body: bytes | str, /, **fields: Any) -> Receipt:  # Any: the fields of Message
        """Store one message; `fields` are those of `Message` (`tag=`, `keys=`, `order_key=`, ...). Text is sent as
        UTF-8.

        Deadline and errors as `Producer.send`.
        """
        data = body.encode() if isinstance(body, str) else body
        return await self._sender.send(Message(topic=topic, body=data, **fields))

    async def request(self, topic: str, body: bytes | str, /, **fields: Any) -> Reply:  # Any: the fields of Message
        """Send a message and wait for the reply of whoever consumes it (`Received.reply`).

        Ends at the caller's deadline, else after the client's default timeout, with `NoReply` (it may be processed all
        the same), or as `send` does.
        """
        data = body.encode() if isinstance(body, str) else body
        return await self.instance.replies.request(self._sender, Message(topic=topic, body=data, **fields))

    def producer(
        self,
        group: str = DEFAULT_PRODUCER,
        *,
        idempotent: bool = True,
        compress_over: int = COMPRESS_OVER,
        compression: Literal["zlib", "lz4", "zstd"] = "zlib",
        max_in_flight: int = 1000,
        auto_batch: bool = True,
        check: Checker | None = None,
    ) -> AbstractAsyncContextManager[Producer]:
        """A producer of its own.

        `idempotent`: repetitions inside are stored once (brokers of ours). `compress_over`: bodies of at least so
        many bytes are compressed. `compression`: how; consumers from before RocketMQ 5 read zlib only, lz4 and zstd
        need `pip install trimq[compression]`. `max_in_flight`: messages without an outcome; above it `send` waits.
        `auto_batch`: messages that queue up while a request is in flight travel together. `check`: says what became of
        a transaction of this group (`Producer.transaction`) when a broker asks; keep such a producer open, so that
        there is somebody to ask.
        """
        return open_producer(
            self.instance,
            group,
            idempotent=idempotent,
            compress_over=compress_over,
            compression=compression,
            max_in_flight=max_in_flight,
            auto_batch=auto_batch,
            check=check,
        )

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
        limits: Limits = DEFAULT_LIMITS,
        max_attempts: int = 16,
        allocation: Strategy = AVERAGELY,
        offsets_file: str | os.PathLike[str] | None = None,
    ) -> AbstractAsyncContextManager[PushConsumer]:
        """Join a consumer group and be handed its messages.

        `topic` is a name, or several with a filter each. `mode`: the members of a cluster share the messages; with
        broadcast each gets all, and keeps its place in `offsets_file` if it has one. `ordered`: each queue's messages
        one at a time, in order. `start` (an end of the queue, or a time) counts for queues that this group has never
        read; a queue that appears later is always read from its first message. `limits`: how much it takes on at once
        (`prefetch` is short for `Limits(messages=...)`). `max_attempts`: after so many failed deliveries a message
        goes to the dead letters. `allocation`: how the members share the queues, the same for all members.
        """
        if mode not in ("cluster", "broadcast"):
            raise BadRequest(f'mode={mode!r}; there are "cluster" and "broadcast"')
        return open_push_consumer(
            self.instance,
            group,
            {topic: filter} if isinstance(topic, str) else dict(topic),
            broadcast=mode == "broadcast",
            ordered=ordered,
            start=start,
            limits=limits if prefetch is None else replace(limits, messages=prefetch),
            max_attempts=max_attempts,
            strategy=allocation,
            offsets_file=None if offsets_file is None else Path(offsets_file),
        )

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
    ) -> AbstractAsyncContextManager[PopConsumer]:
        """Take messages one by one, shared with all others who pop for this consumer group.

        `topic` is a name, or several with a filter each; the filters of one group have to be equal. `invisible`:
        seconds for which a message is nobody else's. `ordered`: the messages of one queue in order, nothing else of
        that queue meanwhile. `start` counts for queues that this group has never read. `max_attempts`: after so many
        failed attempts a message goes to the dead letters. Needs brokers of ours, or RocketMQ 5.
        """
        return open_pop_consumer(
            self.instance,
            group,
            {topic: filter} if isinstance(topic, str) else dict(topic),
            invisible_s=invisible,
            ordered=ordered,
            start=start,
            max_attempts=max_attempts,
        )

    def pull(self, group: str | None = None) -> AbstractAsyncContextManager[PullConsumer]:
        """Read queues by hand; with a consumer group, positions can be committed."""
        return open_pull_consumer(self.instance, group)


@asynccontextmanager
async def open_client(
    namesrv: str | Sequence[str],
    network: Network,
    clock: Clock,
    rng: random.Random,
    *,
    client_id: str,
    default_timeout: float = 10.0,
    trace: bool | str = False,
) -> AsyncIterator[Client]:
    """`connect` with everything passed in: for simulations and tests."""
    page = namesrv.strip() if isinstance(namesrv, str) and is_page(namesrv) else ""
    try:
        addresses = split_addresses(await fetch_addresses(network, page) if page else namesrv)
    except ConnectFailed as error:
        raise NoRoute(f"no name server is known: {error.message}", advice="check the address page") from error
    if not default_timeout > 0:
        raise BadRequest(f"default_timeout={default_timeout}: seconds above 0 are needed")
    async with (
        open_instance(
            addresses, network, clock, rng, client_id=client_id, default_timeout=default_timeout, page=page
        ) as instance,
        _traced(instance, trace),
        open_producer(
            instance,
            DEFAULT_PRODUCER,
            idempotent=True,
            compress_over=COMPRESS_OVER,
            max_in_flight=1000,
            auto_batch=True,
        ) as sender,
    ):
        yield Client(instance, sender)


@asynccontextmanager
async def _traced(instance: Instance, trace: bool | str) -> AsyncIterator[None]:
    """Trace everything that is opened in the block."""
    if not trace:
        yield
        return
    tracer = Tracer(instance, check_topic(trace) if isinstance(trace, str) else TRACE_TOPIC)
    async with (
        open_producer(
            instance, TRACE_GROUP, idempotent=True, compress_over=COMPRESS_OVER, max_in_flight=100, auto_batch=True
        ) as producer,
        run_tracer(tracer, producer),
    ):
        instance.tracer = tracer
        yield


def connect(
    namesrv: str | Sequence[str] | None = None,
    *,
    default_timeout: float = 10.0,
    client_id: str | None = None,
    trace: bool | str = False,
) -> AbstractAsyncContextManager[Client]:
    """Open a client of the cluster that these name servers know.

    `namesrv`: `host:port`, several separated by `;` or as a sequence; else the environment's NAMESRV_ADDR. With
    `http://host:port/path`, a page that names them is read, and again every two minutes. With
    `ws://host:port`, the name server's WebSocket gateway (its port + 4), brokers are reached through theirs too.
    Connections are made when they are first needed. `default_timeout`: seconds that a call may take where the caller
    set no deadline. `client_id` must differ between clients; by default it is made of host, process id and chance.
    `trace`: write who sent and who got each message to RocketMQ's trace topic, or to the topic named; never slows a
    send.

    Raises `NoRoute` on entry when there is no address.
    """
    rng = random.Random()
    if client_id is None:
        client_id = f"{socket.gethostname()}@{os.getpid()}#{rng.getrandbits(48):012x}"
    return open_client(
        os.environ.get(NAMESRV_ADDR, "") if namesrv is None else namesrv,
        AnyioNetwork(),
        SystemClock(),
        rng,
        client_id=client_id,
        default_timeout=default_timeout,
        trace=trace,
    )
