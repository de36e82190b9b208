"""Request and reply over topics: a message that somebody answers.

    reply = await mq.request("quotes", b"ACME")          # one client
    await message.reply(b"12.5")                         # the other, in its handler

A request is an ordinary message with three properties: who asks (REPLY_TO_CLIENT, the client id), a number
(CORRELATION_ID) and how long it waits (TTL, ms). Whoever consumes it sends the reply to the replica group that the
request came from (324/325), and the broker hands it to the asking client on that client's own connection (326). Facts:
RocketMQ's request-reply protocol, so that Java, Go and we answer each other.

Through a failover: the request is stored as any message; while requests are open this client keeps a connection to
every replica, so that whoever leads can reach it; a replier whose reply found nobody sends the same reply again until
the request's time is over. A reply may come twice, and only the first counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from trimq.client.links import Links
from trimq.client.model import Message
from trimq.client.outgoing import DEFAULT_TOPIC_QUEUES, prepare
from trimq.client.timing import Backoff, bounded_deadline, deadline_for
from trimq.errors import BadRequest, BrokerError, Disconnected, NoReply, ProtocolError, TrimqError
from trimq.message import properties
from trimq.message.compression import decompress
from trimq.message.names import reply_topic
from trimq.message.sysflag import COMPRESSED
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import FLAG_RESPONSE, Command
from trimq.wire.headers.reply import PushReplyHeader
from trimq.wire.headers.send import SendHeader

if TYPE_CHECKING:
    from trimq.client.instance import Instance
    from trimq.client.producer import Producer
    from trimq.client.received import Received

__all__ = ["Replies", "Reply", "send_reply", "wants_reply"]

log = logging.getLogger(__name__)

REPLY_PRODUCER = "TRIMQ_REPLY"
"""The producer group that replies are sent under."""
COMPRESS_OVER = 4096
ONE_TRY_S = 0.1
"""With less time left than this a reply that found nobody is not sent again."""
REACHABLE_S = 0.25
"""While requests are open, lost connections to brokers are noticed so often."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request."""

    body: bytes
    properties: Mapping[str, str]
    """The replier's own."""
    tag: str | None
    id: str
    """Unique id of the reply message."""
    replier: str
    """`ip:port` of who answered, as the broker saw it."""


@dataclass(slots=True)
class _Open:
    done: anyio.Event = field(default_factory=anyio.Event)
    reply: Reply | None = None


class Replies:
    """The requests of one client that wait for their reply."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._open: dict[str, _Open] = {}
        self._reachable_for: set[str] = set()  # membership only, never iterated
        self._keeping = False
        instance.serve(RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, self._pushed)

    async def request(self, producer: Producer, message: Message) -> Reply:
        """Send a request and wait for its reply: see `Client.request`."""
        deadline, _ = bounded_deadline(self._instance.default_timeout)
        left_ms = max(1, round((deadline - anyio.current_time()) * 1000))
        number = f"{self._instance.rng.getrandbits(128):032x}"
        carried = {
            properties.CORRELATION_ID: number,
            properties.REPLY_TO_CLIENT: self._instance.client_id,
            properties.TTL: str(left_ms),
        }
        object.__setattr__(message, "_carried", carried)
        waiting = self._open[number] = _Open()
        try:
            with anyio.CancelScope(deadline=deadline):
                await self._be_reachable(message.topic)
            await producer.send(message)
            with anyio.CancelScope(deadline=deadline):
                await waiting.done.wait()
        finally:
            del self._open[number]
        if waiting.reply is None:
            raise NoReply(f"nobody answered the request {message.id} to {message.topic} in time", id=message.id)
        return waiting.reply

    async def _be_reachable(self, topic: str) -> None:
        """Have every broker that a reply can come through know this client before the first request is sent."""
        if not self._keeping:
            self._keeping = True
            self._instance.tasks.start_soon(self._keep_reachable)
        if topic in self._reachable_for:
            return
        route = await self._instance.routes.refresh(topic)
        for cluster in {group.cluster: None for group in route.groups} if route is not None else {}:
            self._instance.routes.want(reply_topic(cluster))
            await self._instance.routes.refresh(reply_topic(cluster))
        await self._instance.beat()
        if route is not None:
            self._reachable_for.add(topic)

    async def _keep_reachable(self) -> None:
        """While requests are open, a lost connection is made anew at once: a reply may come over any of them."""
        while True:
            await anyio.sleep(REACHABLE_S)
            if self._open:
                links = self._instance.links
                lost = [addr for view in self._instance.routes.groups for addr in view.all_addresses]
                for addr in dict.fromkeys(addr for addr in lost if links.open(addr) is None):
                    self._instance.tasks.start_soon(_connect, links, addr)

    def _pushed(self, addr: str, command: Command) -> Command:
        """A broker hands over a reply. One that nobody waits for (any more) was taken, too."""
        try:
            header = PushReplyHeader.from_ext(command.ext)
            found = properties.parse(header.properties)
            body = decompress(command.body, header.sys_flag) if header.sys_flag & COMPRESSED else command.body
        except (ProtocolError, BadRequest) as error:
            return Command(code=ResponseCode.SYSTEM_ERROR, opaque=command.opaque, flag=FLAG_RESPONSE, remark=str(error))
        waiting = self._open.get(found.get(properties.CORRELATION_ID, ""))
        if waiting is None:
            log.debug("a reply came that nobody waits for", extra={"addr": addr})
        elif waiting.reply is None:
            own = {name: value for name, value in found.items() if name not in properties.RESERVED}
            tag, uniq = found.get(properties.TAGS), found.get(properties.UNIQ_KEY, "")
            waiting.reply = Reply(bytes(body), own, tag, uniq, header.born_host)
            waiting.done.set()
        return Command(code=ResponseCode.SUCCESS, opaque=command.opaque, flag=FLAG_RESPONSE)


async def _connect(links: Links, addr: str) -> None:
    try:
        await links.get(addr)
    except Disconnected as error:
        log.debug("broker not reached", extra={"addr": addr, "error": error})


def wants_reply(request: Received) -> bool:
    """Whether somebody waits for an answer to this message."""
    found = request.all_properties
    return properties.CORRELATION_ID in found and properties.REPLY_TO_CLIENT in found


async def send_reply(
    instance: Instance, request: Received, body: bytes, *, tag: str | None, own: Mapping[str, str]
) -> None:
    """Answer a request: see `Received.reply`."""
    if not wants_reply(request):
        raise BadRequest("nobody waits for a reply to this message", advice="look at its `wants_reply` first")
    found = request.all_properties
    cluster = found.get(properties.CLUSTER) or await _cluster_of(instance, request)
    message = Message(topic=reply_topic(cluster), body=body, tag=tag, properties=own)
    carried = {name: found[name] for name in _COPIED if name in found}
    object.__setattr__(message, "_carried", {**carried, properties.MSG_TYPE: "reply"})
    outgoing = prepare(message, COMPRESS_OVER)
    header = SendHeader(
        producer_group=REPLY_PRODUCER,
        topic=message.topic,
        default_topic_queue_nums=DEFAULT_TOPIC_QUEUES,
        queue_id=0,
        sys_flag=outgoing.sys_flag,
        born_timestamp=instance.clock.wall_ms(),
        properties=outgoing.properties,
        broker_name=request.queue.group,
    )
    await _deliver(instance, request.queue.group, header, outgoing.body)


_COPIED = (properties.CORRELATION_ID, properties.REPLY_TO_CLIENT, properties.TTL)


async def _deliver(instance: Instance, group: str, header: SendHeader, body: bytes) -> None:
    """Until the asking client has it; it may be between two connections. Raises the last refusal at the deadline."""
    deadline = deadline_for(instance.default_timeout)
    backoff = Backoff(instance.rng, first_s=0.05, most_s=0.5)
    while True:
        command = Command(code=RequestCode.SEND_REPLY_MESSAGE_V2, ext=header.to_short_ext(), body=body)
        answer = await instance.call(group, command, deadline=deadline)
        if answer.code == ResponseCode.SUCCESS:
            return
        refused = BrokerError(answer.code, answer.remark, advice="the client that asked is gone, or does not listen")
        pause = backoff.next_s()
        if answer.code != ResponseCode.SYSTEM_ERROR or anyio.current_time() + pause >= deadline - ONE_TRY_S:
            raise refused
        await anyio.sleep(pause)


async def _cluster_of(instance: Instance, request: Received) -> str:
    route = await instance.routes.route(request.queue.topic)
    group = route.group(request.queue.group)
    if group is None:
        raise TrimqError(f"the cluster of {request.queue.group} is not known")
    return group.cluster
