"""One listener and one link per pair of nodes, shared by all groups of this process.

A *link* is the way to one peer address; a *session* is one connection of it. The node with the smaller address dials,
the other one accepts, so two nodes never hold two connections. A session starts with a hello from both sides: format
version, both addresses, and per group what the group says of itself (its part is checked by the group: cluster,
lineage, node id, store uuid, ...). What does not agree ends the session for that group, with one log line that names
the field; a session without any group left in agreement is closed and retried slowly.

Receiving: all frames of one read are decoded and handed over per group in one call. Garbage ends that connection only.

A session that breaks while the peer's address then *refuses* connections means that the process there has died: the
groups hear `peer_gone` and may shorten their election timeout. A peer that is only silent is not gone.
"""

from __future__ import annotations

import enum
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import trio

from raft.env import BROKEN, Network, Stream
from raft.frames import FRAME_MAX_BYTES, CodecError, FrameReader, encode_frame, split_frame
from raft.link import APP, BUNDLE, GROUP, HELLO, MESSAGE, RECEIVE_BYTES, REFUSED, Address, PeerLink, Session

__all__ = ["Address", "Endpoint", "Mismatch", "PeerLink", "PeerTransport", "TransportConfig"]

log = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
FEATURE_LEVEL = 1

HELLO_MAX_BYTES = 1 << 20
STRANGERS_MAX = 64
"""Connections that have not introduced themselves yet."""


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """Times in seconds."""

    connect_timeout_s: float = 1.0
    hello_timeout_s: float = 2.0
    backoff_min_s: float = 0.02
    backoff_max_s: float = 0.5
    refused_backoff_s: float = 2.0
    """Pause after a session that ended because nothing agreed."""
    ping_after_s: float = 0.5
    """A link that sent nothing for so long sends an empty frame."""
    silent_after_s: float = 2.0
    """A link that received nothing for so long is closed: the connection may be half open."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Why a group does not want to talk to a peer."""

    field: str
    detail: str


class Endpoint(Protocol):
    """A group, as the transport sees it. All calls are synchronous and must not raise (but CodecError in `receive`)."""

    def hello(self) -> dict[str, Any]:
        """What this replica says of itself."""
        ...

    def check_hello(self, addr: Address, hello: dict[str, Any]) -> Mismatch | None:
        """Look at what the replica at `addr` says of itself. Raises CodecError when it is not even well formed."""
        ...

    def link_up(self, addr: Address) -> None:
        """A session agreed: messages sent from now on travel."""
        ...

    def link_down(self, addr: Address) -> None:
        """The session ended: whatever was under way is lost or not, nobody knows."""
        ...

    def peer_gone(self, addr: Address) -> None:
        """The session broke and nobody listens there any more."""
        ...

    def receive(self, addr: Address, messages: Sequence[tuple[list[Any], memoryview]]) -> None:
        """Messages of one read, in order: fields and body. Raises CodecError: the session ends."""
        ...

    def receive_app(self, addr: Address, fields: list[Any], body: memoryview) -> None:
        """A frame of the application channel."""
        ...


GONE_WITHIN_S = 1.0
"""A connect refused so soon after the link broke means that the peer's process is gone."""
PROBE_PAUSES_S = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Before each look of a node that does not dial the peer itself."""


class _Ended(enum.Enum):
    """How an attempt to talk to a peer went."""

    NO_HELLO = "no hello"
    REFUSED = "refused"
    CLOSED = "closed"
    WORKED = "worked until the connection broke"


class PeerTransport:
    """All links of one listening address. `run` serves until cancelled."""

    def __init__(
        self,
        network: Network,
        rng: random.Random,
        address: Address,
        config: TransportConfig | None = None,
        *,
        listen_host: str | None = None,
    ) -> None:
        self.address = address
        self.now = 0.0
        """Time as the links see it: a reading of the clock that a late loop does not let jump (`tick`)."""
        self._network = network
        self._rng = rng
        self._config = config or TransportConfig()
        self._listen_host = listen_host or address.host
        self._endpoints: dict[str, Endpoint] = {}
        self._links: dict[Address, PeerLink] = {}
        self._nursery: trio.Nursery | None = None
        self._dialing: dict[Address, trio.CancelScope] = {}
        self._complained: dict[tuple[Address, str], list[Mismatch]] = {}
        self._strangers = 0

    # groups

    def register(self, group: str, endpoint: Endpoint) -> None:
        """Let a group take part; it introduces itself on every session, present ones included."""
        assert group not in self._endpoints, f"group {group} is registered twice"
        self._endpoints[group] = endpoint
        self.reintroduce(group)
        self._revisit(group)

    def unregister(self, group: str) -> None:
        """The group is gone (stopped or failed); the other groups' links stay."""
        self._endpoints.pop(group, None)
        for link in list(self._links.values()):
            if link.agreed(group):
                link.groups.discard(group)
                self._urgent(link, [REFUSED, group, "group", "stopped"])
            self._unwant(link, group)

    def set_peers(self, group: str, addresses: Sequence[Address]) -> None:
        """Which peers the group wants links to (its own address is left out)."""
        wanted = dict.fromkeys(address for address in addresses if address != self.address)
        for address in wanted:
            link = self.link(address)
            link.wanted_by[group] = None
            self._dial(link)
        for link in list(self._links.values()):
            if link.address not in wanted:
                self._unwant(link, group)
        self.reintroduce(group)
        self._revisit(group)

    def link(self, address: Address) -> PeerLink:
        """The link to an address; made when it is first asked for, connected only when a group wants it."""
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = PeerLink(address)
        return link

    def reintroduce(self, group: str) -> None:
        """What the group says of itself has changed: say it again on every session."""
        endpoint = self._endpoints.get(group)
        if endpoint is None:
            return
        for link in self._links.values():
            if link.session is not None and group in link.wanted_by:
                self._urgent(link, [GROUP, group, endpoint.hello()])

    def _revisit(self, group: str) -> None:
        """Peers may have introduced the group before it was known here."""
        for link in list(self._links.values()):
            session = link.session
            if session is not None and group in session.hellos:
                self._introduce(link, session, group, session.hellos[group])

    def tick(self, now: float) -> None:
        """Pings and silent links; called by the node's one tick task with its own, stall-proof time."""
        self.now = now
        for link in self._links.values():
            session = link.session
            if session is None:
                continue
            if now - session.last_received > self._config.silent_after_s:
                log.info("peer is silent; connection closed", extra={"peer": str(link.address)})
                session.scope.cancel()
            elif now - session.last_sent > self._config.ping_after_s and not session.wake.is_set:
                session.last_sent = now
                self._urgent(link, [BUNDLE, []])

    # connections

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and keep links up; `started(port)`. Raises OSError when the address cannot be bound."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.now = trio.current_time()
            try:
                port = await nursery.start(self._listen)
                for link in self._links.values():
                    self._dial(link)
                task_status.started(port)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _listen(self, *, task_status: trio.TaskStatus[int]) -> None:
        await self._network.serve(self._accept, self._listen_host, self.address.port, task_status=task_status)

    def _dial(self, link: PeerLink) -> None:
        if self._nursery is None or link.address in self._dialing or not link.wanted_by:
            return
        if self.address < link.address:
            scope = self._dialing[link.address] = trio.CancelScope()
            self._nursery.start_soon(self._keep_connected, link, scope)

    def _unwant(self, link: PeerLink, group: str) -> None:
        if link.wanted_by.pop(group, self) is self or link.wanted_by:
            return
        scope = self._dialing.pop(link.address, None)
        if scope is not None:
            scope.cancel()
        if link.session is not None:
            link.session.scope.cancel()

    async def _keep_connected(self, link: PeerLink, scope: trio.CancelScope) -> None:
        config = self._config
        with scope:
            backoff = config.backoff_min_s
            broke_at: float | None = None  # until the peer was called gone, or so long ago that it means nothing
            while True:
                ended: _Ended = _Ended.NO_HELLO
                try:
                    with trio.fail_after(config.connect_timeout_s):
                        stream = await self._network.connect(link.address.host, link.address.port)
                except ConnectionRefusedError:
                    if broke_at is not None and trio.current_time() - broke_at < GONE_WITHIN_S:
                        self._gone(link)
                    broke_at = None
                except (OSError, trio.TooSlowError):
                    pass
                else:
                    ended = await self._converse(link, stream, FrameReader(HELLO_MAX_BYTES), None)
                if ended is _Ended.WORKED:
                    broke_at = trio.current_time()
                if ended is _Ended.REFUSED:
                    pause = config.refused_backoff_s
                elif ended is _Ended.WORKED:
                    # Not at once: the listener of a dying process may outlive its connections by an instant.
                    pause = backoff = config.backoff_min_s
                else:
                    pause, backoff = backoff, min(backoff * 2, config.backoff_max_s)
                await trio.sleep(pause * (0.5 + self._rng.random()))

    async def _accept(self, stream: Stream) -> None:
        if self._strangers >= STRANGERS_MAX:
            log.warning("too many connections without a hello; connection closed")
            return
        self._strangers += 1
        try:
            met = await self._hello_in(stream)
        finally:
            self._strangers -= 1
        if met is not None:
            link, reader, groups = met
            ended = await self._converse(link, stream, reader, groups)
            if ended is _Ended.WORKED and link.session is None and link.wanted_by and self._nursery is not None:
                self._nursery.start_soon(self._probe, link)

    async def _hello_in(self, stream: Stream) -> tuple[PeerLink, FrameReader, dict[str, Any]] | None:
        """The hello of a node that dialled us. None (logged where it says something): close the connection."""
        reader = FrameReader(HELLO_MAX_BYTES)
        try:
            with trio.move_on_after(self._config.hello_timeout_s):
                frame = await self._first_frame(stream, reader)
                if frame is None:
                    return None
                sender, groups = self._parse_hello(frame)
                link = self._links.get(sender)
                if link is None:
                    raise CodecError(f"peer address {sender} is in no group's list of peers")
                if not link.wanted_by:  # the groups shared with it have closed here, or it was removed: nothing strange
                    log.debug("hello of a former peer; connection closed", extra={"peer": sender})
                    return None
                return link, reader, groups
        except BROKEN:
            return None
        except CodecError as error:
            log.warning("not a peer; connection closed", extra={"reason": str(error)})
            return None
        log.warning("no hello in time; connection closed")
        return None

    async def _first_frame(self, stream: Stream, reader: FrameReader) -> memoryview | None:
        """The first frame of a connection, no matter how many came with it; None at the end of the stream."""
        while True:
            data = await stream.receive_some(RECEIVE_BYTES)
            if not data:
                if reader.buffered:
                    raise CodecError("the connection ended within the hello")
                return None
            frames = reader.feed_one(data)
            if frames is not None:
                return frames

    def _parse_hello(self, frame: memoryview) -> tuple[Address, dict[str, Any]]:
        header, _body = split_frame(frame)
        if len(header) != 2 or header[0] != HELLO or not isinstance(header[1], dict):
            raise CodecError("the first frame is not a hello")
        fields = header[1]
        version, sender, target, groups = (fields.get(name) for name in ("v", "from", "to", "groups"))
        if version != PROTOCOL_VERSION:
            raise CodecError(f"peer protocol version {version!r}, ours is {PROTOCOL_VERSION}")
        if target != str(self.address):
            raise CodecError(f"peer wants to reach {target!r}, this is {self.address}")
        if not isinstance(sender, str) or not isinstance(groups, dict):
            raise CodecError("the hello lacks its sender or its groups")
        try:
            return Address.parse(sender), groups
        except ValueError as error:
            raise CodecError(f"sender {error}") from None

    def _our_groups(self, link: PeerLink) -> dict[str, dict[str, Any]]:
        """What our groups say of themselves to this peer, now."""
        return {name: endpoint.hello() for name, endpoint in sorted(self._endpoints.items()) if name in link.wanted_by}

    def _hello_frame(self, link: PeerLink, groups: dict[str, dict[str, Any]]) -> bytes:
        fields = {
            "v": PROTOCOL_VERSION,
            "feature": FEATURE_LEVEL,
            "from": str(self.address),
            "to": str(link.address),
            "groups": groups,
        }
        return encode_frame([HELLO, fields])

    async def _converse(
        self, link: PeerLink, stream: Stream, reader: FrameReader, groups: dict[str, Any] | None
    ) -> _Ended:
        """Hello (the peer's is still to come when `groups` is None), then the session to its end."""
        try:
            try:
                with trio.fail_after(self._config.hello_timeout_s):
                    said = self._our_groups(link)
                    await stream.send_all(self._hello_frame(link, said))
                    if groups is None:
                        frame = await self._first_frame(stream, reader)
                        if frame is None:
                            return _Ended.NO_HELLO
                        sender, groups = self._parse_hello(frame)
                        if sender != link.address:
                            raise CodecError(f"peer calls itself {sender}, dialled as {link.address}")
            except (*BROKEN, trio.TooSlowError):
                return _Ended.NO_HELLO
            reader.limit_bytes = FRAME_MAX_BYTES
            return await self._session(link, stream, reader, groups, said)
        except CodecError as error:
            log.warning(
                "peer sent no valid hello; connection closed",
                extra={"peer": str(link.address), "reason": str(error)},
            )
            return _Ended.REFUSED
        finally:
            await stream.aclose()

    async def _session(
        self,
        link: PeerLink,
        stream: Stream,
        reader: FrameReader,
        groups: dict[str, Any],
        said: dict[str, dict[str, Any]],
    ) -> _Ended:
        """`groups`: what the peer's hello said; `said`: what ours did."""
        if link.session is not None:
            old = link.session
            self._end(link, old)
            old.scope.cancel()
        session = link.session = Session(link, stream, reader, lambda: self.now, partial(self._frames, link))
        # A group that came, or changed, while the hellos were on their way found no session to say so on.
        for name, hello in self._our_groups(link).items():
            if said.get(name) != hello:
                self._urgent(link, [GROUP, name, hello])
        try:
            for name in sorted(groups, key=str):
                self._introduce(link, session, name, groups[name])
            await session.run()  # also when all are refused: the refusals are said before it closes
        finally:
            if link.session is session:
                self._end(link, session)
        if session.all_refused:
            return _Ended.REFUSED
        return _Ended.WORKED if session.broken else _Ended.CLOSED

    def _end(self, link: PeerLink, session: Session) -> None:
        """The session is over: forget it and tell the groups that were using it."""
        link.session = None
        groups = sorted(link.groups)
        link.groups.clear()
        for name in groups:
            endpoint = self._endpoints.get(name)
            if endpoint is not None:
                endpoint.link_down(link.address)

    async def _probe(self, link: PeerLink) -> None:
        """We do not dial this peer, but want to know whether its process is still there.

        Asked more than once: a process that is being killed closes its connections one by one, and the listener may
        still answer when ours is gone already.
        """
        for pause in PROBE_PAUSES_S:
            await trio.sleep(pause)
            if link.session is not None:
                return
            try:
                with trio.fail_after(self._config.connect_timeout_s):
                    stream = await self._network.connect(link.address.host, link.address.port)
            except ConnectionRefusedError:
                if link.session is None:
                    self._gone(link)
                return
            except (OSError, trio.TooSlowError):
                return
            await stream.aclose()

    def _gone(self, link: PeerLink) -> None:
        log.info("peer's process is gone", extra={"peer": str(link.address)})
        for name in sorted(link.wanted_by):
            endpoint = self._endpoints.get(name)
            if endpoint is not None:
                endpoint.peer_gone(link.address)

    # frames

    def _urgent(self, link: PeerLink, header: list[Any]) -> None:
        if link.session is not None:
            link.session.urgent.append(encode_frame(header))
            link.session.wake.set()

    def _introduce(self, link: PeerLink, session: Session, group: Any, hello: Any) -> None:  # Any: peer's bytes
        """A group of the peer says who it is: agree or refuse. Raises CodecError."""
        if not isinstance(group, str) or not isinstance(hello, dict):
            raise CodecError("a group's hello is malformed")
        session.hellos[group] = hello
        endpoint = self._endpoints.get(group)
        if endpoint is None or group not in link.wanted_by:
            return
        mismatch = endpoint.check_hello(link.address, hello)
        if mismatch is not None:
            self._complain(link, group, mismatch)
            self._urgent(link, [REFUSED, group, mismatch.field, mismatch.detail])
            session.refused_groups.add(group)
            self._disagree(link, session, group)
            return
        self._complained.pop((link.address, group), None)
        session.refused_groups.discard(group)
        if group not in link.groups:
            link.groups.add(group)
            endpoint.link_up(link.address)

    def _disagree(self, link: PeerLink, session: Session, group: str) -> None:
        """The group does not use this session; without any group in agreement there is no point in keeping it."""
        if group in link.groups:
            link.groups.discard(group)
            endpoint = self._endpoints.get(group)
            if endpoint is not None:
                endpoint.link_down(link.address)
        if not link.groups and all(name in session.refused_groups for name in link.wanted_by):
            session.all_refused = True
            session.closing = True
            session.wake.set()

    def _complain(self, link: PeerLink, group: str, mismatch: Mismatch) -> None:
        """One line per peer, group and difference, not one per attempt."""
        known = self._complained.setdefault((link.address, group), [])
        if mismatch not in known:
            known.append(mismatch)
            log.error(
                "peer refused: %s differs",
                mismatch.field,
                extra={"peer": str(link.address), "group": group, "field": mismatch.field, "detail": mismatch.detail},
            )

    def _refused_by_peer(self, link: PeerLink, session: Session, header: list[Any]) -> None:
        if len(header) != 4 or not all(isinstance(item, str) for item in header[1:]):
            raise CodecError("a refusal is malformed")
        group, field, detail = header[1:]
        session.refused_groups.add(group)
        if field != "group":
            self._complain(link, group, Mismatch(field, f"refused by the peer: {detail}"))
        self._disagree(link, session, group)

    def _frames(self, link: PeerLink, session: Session, frames: Sequence[memoryview]) -> None:
        """All frames of one read: sort by group, one call per group. Raises CodecError."""
        inbox: dict[str, list[tuple[list[Any], memoryview]]] = {}
        empty = memoryview(b"")
        for frame in frames:
            header, body = split_frame(frame)
            kind = header[0]
            if kind == BUNDLE:
                if len(header) != 2 or not isinstance(header[1], list):
                    raise CodecError("a bundle is malformed")
                for message in header[1]:
                    if not isinstance(message, list) or len(message) < 2 or not isinstance(message[0], str):
                        raise CodecError("a message in a bundle is malformed")
                    inbox.setdefault(message[0], []).append((message[1:], empty))
            elif kind == MESSAGE:
                if len(header) < 3 or not isinstance(header[1], str):
                    raise CodecError("a message is malformed")
                inbox.setdefault(header[1], []).append((header[2:], body))
            elif kind == APP:
                if len(header) < 3 or not isinstance(header[1], str):
                    raise CodecError("an application frame is malformed")
                if header[1] in link.groups:
                    self._endpoints[header[1]].receive_app(link.address, header[2:], body)
            elif kind == GROUP and len(header) == 3:
                self._introduce(link, session, header[1], header[2])
            elif kind == REFUSED:
                self._refused_by_peer(link, session, header)
            else:
                raise CodecError(f"frame kind {kind!r} is unknown")
        link.received_frames += len(frames)
        for group, messages in inbox.items():
            if group in link.groups and session is link.session:
                self._endpoints[group].receive(link.address, messages)
