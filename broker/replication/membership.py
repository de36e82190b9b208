"""The membership entry: who belongs to the group, and what the group is.

Payload, canonical CBOR: `[1, t, {lineage, strategy, master, required, segment_bytes, voters, learners}]`, a member
being `[id, rank, peer address, client address, store uuid]`. Entry 1 of every log is one; it is written by whoever
forms the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cbor2

from broker.store.entry import START, EntryKind, fits, lineage_tag, seal_entry, seal_filler
from raft.core.types import Member, Membership

if TYPE_CHECKING:
    from broker.store.entry import Entry, EntryId

__all__ = [
    "GroupDetail",
    "MembershipDamaged",
    "decode_membership",
    "encode_membership",
    "first_entry",
    "member_of",
    "seal_chain",
]

PAYLOAD_VERSION = 1


class MembershipDamaged(Exception):
    """The payload of a membership entry is not one (or of a newer version)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDetail:
    """What a membership entry says beside the members."""

    lineage: int = 0
    strategy: str = "raft"
    master: str = ""
    required: int = 0
    """Master-slave: replicas that surely hold what is acknowledged, the master included."""
    flush_sync: bool = True
    """Master-slave: an entry counts when it is on the disk, not already when it is written."""
    segment_bytes: int = 0


def member_of(node_id: str, *, rank: int, address: str, client_address: str, uuid: str) -> Member:
    """A member by its fields."""
    return Member(id=node_id, rank=rank, address=address, client_address=client_address, uuid=uuid)


def encode_membership(membership: Membership, t: int) -> bytes:
    """The control payload; `t` is the entry's log time in milliseconds."""
    detail = membership.detail
    assert isinstance(detail, GroupDetail), "a membership carries its group's detail"
    fields = {
        "lineage": detail.lineage,
        "strategy": detail.strategy,
        "master": detail.master,
        "required": detail.required,
        "flush_sync": detail.flush_sync,
        "segment_bytes": detail.segment_bytes,
        "voters": [_fields(member) for member in membership.voters],
        "learners": [_fields(member) for member in membership.learners],
    }
    return cbor2.dumps([PAYLOAD_VERSION, t, fields], canonical=True)


def decode_membership(payload: bytes) -> Membership:
    """Back from the payload. Raises MembershipDamaged."""
    try:
        version, _t, fields = cbor2.loads(payload)
    except Exception as error:  # whatever the decoder raises, the bytes are at fault
        raise MembershipDamaged("a membership entry is not readable") from error
    if version != PAYLOAD_VERSION:
        raise MembershipDamaged(f"a membership entry was written by a newer version ({version!r})")
    try:
        detail = GroupDetail(
            lineage=int(fields["lineage"]),
            strategy=str(fields["strategy"]),
            master=str(fields["master"]),
            required=int(fields["required"]),
            flush_sync=bool(fields.get("flush_sync", True)),
            segment_bytes=int(fields["segment_bytes"]),
        )
        voters = tuple(sorted((_member(item) for item in fields["voters"]), key=_by_id))
        learners = tuple(sorted((_member(item) for item in fields["learners"]), key=_by_id))
    except (KeyError, TypeError, ValueError) as error:
        raise MembershipDamaged(f"a membership entry lacks a field: {error!r}") from error
    return Membership(voters, learners, detail)


def _fields(member: Member) -> list[Any]:
    return [member.id, member.rank, member.address, member.client_address, member.uuid]


def _member(item: Any) -> Member:  # Any: decoded CBOR
    node_id, rank, address, client_address, uuid = item
    return member_of(
        str(node_id), rank=int(rank), address=str(address), client_address=str(client_address), uuid=str(uuid)
    )


def _by_id(member: Member) -> str:
    return member.id


def seal_chain(
    *,
    kind: EntryKind,
    prev: EntryId,
    term: int,
    lineage: int,
    commit_hint: int,
    segment_bytes: int,
    control: bytes,
) -> Sequence[Entry]:
    """A control entry on `prev`, with a filler before it where the segment's rest is too short."""
    entries: list[Entry] = []
    size = 64 + len(control)
    if not fits(prev.end, size, segment_bytes):
        filler = seal_filler(
            prev=prev, term=term, lineage=lineage, commit_hint=commit_hint, segment_bytes=segment_bytes
        )
        entries.append(filler)
        prev = filler.id
    entries.append(
        seal_entry(kind=kind, prev=prev, term=term, lineage=lineage, commit_hint=commit_hint, control=control)
    )
    return entries


FORMING_TERM = 1
"""Entry 1 belongs to term 1; the first election is for term 2."""


def first_entry(lineage: int, membership: Membership, detail: GroupDetail, t: int) -> Entry:
    """Entry 1 of a group that is formed with these members. `lineage` are the 64 bits that were drawn."""
    payload = encode_membership(Membership(membership.voters, membership.learners, replace(detail, lineage=lineage)), t)
    return seal_entry(
        kind=EntryKind.MEMBERSHIP,
        prev=START,
        term=FORMING_TERM,
        lineage=lineage_tag(lineage) or 1,
        commit_hint=0,
        control=payload,
    )
