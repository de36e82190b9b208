"""Who belongs to a group, at which address, over which link, and what they said of themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raft.core.rules import RAFT_RULES, Rules
from raft.core.types import Member, Membership, NodeId
from raft.formation import Introduction
from raft.identity import check_identity, read_hello
from raft.transport import Address, Mismatch, PeerLink, PeerTransport

__all__ = ["GroupMembers", "GroupSettings"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """What a replica has to know to take part."""

    cluster: str
    group: str
    node_id: NodeId
    peers: tuple[Member, ...]
    """All configured replicas, this one included: id, rank and peer address. Used until a membership is known."""
    client_address: str = ""
    listen_host: str | None = None
    """Where to bind; the host of this replica's peer address by default."""
    rules: Rules = RAFT_RULES
    """How the group decides."""
    founds: Callable[[], bool] = lambda: True
    """May this empty replica form the group now, once all peers are here?"""
    joins: bool = False
    """An empty replica takes entry 1 from any member that knows it, although the entry does not list this store."""

    @property
    def own_address(self) -> Address:
        """Where this replica listens for its peers."""
        return Address.parse(self._own.address)

    @property
    def own_rank(self) -> int:
        """This replica's place among the preferred leaders, as configured."""
        return self._own.rank

    @property
    def _own(self) -> Member:
        return next(member for member in self.peers if member.id == self.node_id)


class GroupMembers:
    """The newest membership, else the configured peers. Names and addresses are looked up, never guessed."""

    def __init__(self, settings: GroupSettings, transport: PeerTransport) -> None:
        self.all: tuple[Member, ...] = settings.peers
        """Voters and learners; the configured peers before `use` was called."""
        self.index = 0
        """Index of the membership entry that says so; 0: none does."""
        self.uuid = ""
        """This replica's store, once that is known."""
        self.removed = False
        """The newest membership known, from the log or from a peer, does not list this store."""
        self._was_listed = False
        self._hint: tuple[int, Membership] | None = None
        """A later membership than the log holds: with whom to talk."""
        self.introductions: dict[NodeId, Introduction] = {}
        """What members with a working link said of themselves."""
        self._settings = settings
        self._transport = transport
        self._ids: dict[Address, NodeId] = {}
        self._links: dict[NodeId, PeerLink] = {}
        self._invited: dict[NodeId, Member] = {}

    def invite(self, member: Member) -> None:
        """Keep a link to this one too, whether or not it is listed (yet)."""
        if self._invited.get(member.id) != member:
            self._invited[member.id] = member
            self._look_up()

    def use(self, members: Sequence[Member], index: int = 0) -> None:
        """These are the members now; links to them are wanted, and to configured peers that may join yet."""
        self.all = tuple(members)
        self.index = index
        if self._hint is not None and self._hint[0] <= index:
            self._hint = None
        if index and self._hint is None:
            own = self.own
            listed = own is not None and own.uuid == self.uuid
            # An empty replica that joined reads of a time before it: it is not removed by what does not list it yet.
            self._note_removed(self._was_listed and not listed, index)
            self._was_listed |= listed
        self._look_up()

    def hear(self, index: int, membership: Membership) -> None:
        """A peer knows a later membership."""
        if index <= max(self.index, self._hint[0] if self._hint is not None else 0):
            return
        self._hint = (index, membership)
        own = membership.member(self._settings.node_id)
        if self.uuid:  # else the hard state is lost, and with it who this is
            self._note_removed(own is None or own.uuid != self.uuid, index)
        self._look_up()

    def _note_removed(self, removed: bool, index: int) -> None:
        if removed != self.removed:
            self.removed = removed
            log.warning(
                "this replica was removed from the group" if removed else "this replica belongs to the group again",
                extra={"group": self._settings.group, "node": self._settings.node_id, "index": index},
            )

    def _look_up(self) -> None:
        hint = self._hint[1] if self._hint is not None else None
        later = (*hint.voters, *hint.learners) if hint is not None else ()
        addresses = {}
        for member in (*self._settings.peers, *self._invited.values(), *self.all, *later):
            if member.address:
                addresses[Address.parse(member.address)] = member.id
        self._ids = addresses
        own = self._settings.node_id
        self._links = {node: self._transport.link(address) for address, node in addresses.items() if node != own}
        self._transport.set_peers(self._settings.group, list(addresses))

    def reintroduce(self) -> None:
        """What this replica says of itself has changed: say it again on every link."""
        self._transport.reintroduce(self._settings.group)

    @property
    def own(self) -> Member | None:
        """This replica, as it is listed."""
        return self.member(self._settings.node_id)

    @property
    def others(self) -> tuple[Member, ...]:
        """All members but this replica."""
        return tuple(member for member in self.all if member.id != self._settings.node_id)

    def member(self, node: NodeId) -> Member | None:
        """A member by its id."""
        return next((member for member in self.all if member.id == node), None)

    def id_of(self, address: Address) -> NodeId | None:
        """Who listens at an address; None for a stranger."""
        return self._ids.get(address)

    def link(self, node: NodeId) -> PeerLink | None:
        """The link to a member; None for strangers and for this replica itself."""
        return self._links.get(node)

    def connected(self, node: NodeId) -> bool:
        """Is there a session with the member in which both sides accepted this group?"""
        link = self._links.get(node)
        return link is not None and link.agreed(self._settings.group)

    @property
    def connected_ids(self) -> tuple[NodeId, ...]:
        """Members with a working link, sorted."""
        return tuple(node for node in sorted(self._links) if self.connected(node))

    def client_address(self, node: NodeId) -> str:
        """Where clients reach a member; "" when unknown. What it said last counts more than what is listed."""
        if node == self._settings.node_id:
            return self._settings.client_address
        told = self.introductions.get(node)
        if told is not None and told.client_address:
            return told.client_address
        listed = self.member(node)
        return listed.client_address if listed is not None else ""

    def meet(self, address: Address, hello: dict[str, Any], me: Introduction) -> Mismatch | Introduction:
        """A peer's hello: note it, or say what is wrong with it. Raises CodecError."""
        cluster, group, peer = read_hello(hello)
        expected = self._ids.get(address)
        if expected is None:
            return Mismatch("peer address", f"{address} is no member of the group")
        mismatch = check_identity(
            cluster=self._settings.cluster,
            group=self._settings.group,
            me=me,
            expected=expected,
            membership=Membership(self.all),
            peer_cluster=cluster,
            peer_group=group,
            peer=peer,
        )
        if mismatch is not None:
            return mismatch
        self.introductions[peer.node_id] = peer
        return peer

    def lost(self, address: Address) -> NodeId | None:
        """The link is down: what its member said may be outdated. Returns who it was."""
        node = self._ids.get(address)
        if node is not None:
            self.introductions.pop(node, None)
        return node
