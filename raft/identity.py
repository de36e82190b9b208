"""Who a replica says it is, and whether a peer may take part.

What must be equal: cluster, group, lineage (once both are formed), the node id that belongs to the peer's address, and
the store uuid that the membership lists for it. A member whose log holds a *later* membership entry is believed about
its store: it may have been replaced by an entry that this replica has not got yet, and may be the one who brings it.
What is only told: client address, term, feature level. A difference is answered with the name of the field, once per
peer.
"""

from __future__ import annotations

from typing import Any

from raft.core.types import Member, Membership, NodeId
from raft.formation import Introduction
from raft.frames import CodecError
from raft.transport import Mismatch

__all__ = ["check_identity", "hello_fields", "read_hello"]


def hello_fields(cluster: str, group: str, me: Introduction) -> dict[str, Any]:
    """The hello of one group."""
    return {
        "cluster": cluster,
        "group": group,
        "id": me.node_id,
        "uuid": me.store_uuid,
        "client": me.client_address,
        "lineage": me.lineage,
        "term": me.term,
        "feature": me.feature,
        "members": me.members,
    }


def read_hello(fields: dict[str, Any]) -> tuple[str, str, Introduction]:
    """Cluster, group and what the peer says of itself. Raises CodecError."""
    texts = [fields.get(name) for name in ("cluster", "group", "id", "uuid", "client")]
    numbers = [fields.get(name) for name in ("lineage", "term", "feature", "members")]
    if not all(isinstance(text, str) for text in texts):
        raise CodecError("a hello lacks cluster, group, id, uuid or client")
    if not all(type(number) is int and 0 <= number < 1 << 64 for number in numbers):
        raise CodecError("a hello lacks lineage, term, feature or members")
    cluster, group, node_id, uuid, client = (str(text) for text in texts)
    lineage, term, feature, members = (int(number or 0) for number in numbers)
    return cluster, group, Introduction(node_id, uuid, client, lineage, term, feature, members)


def check_identity(
    *,
    cluster: str,
    group: str,
    me: Introduction,
    expected: NodeId,
    membership: Membership | None,
    peer_cluster: str,
    peer_group: str,
    peer: Introduction,
) -> Mismatch | None:
    """The first thing that is not as it must be, None when the peer may take part."""
    for field, ours, theirs in (
        ("cluster", cluster, peer_cluster),
        ("group", group, peer_group),
        ("node id", expected, peer.node_id),
    ):
        if ours != theirs:
            return Mismatch(field, f"{ours!r} here, {theirs!r} there")
    if me.formed and peer.formed and me.lineage != peer.lineage:
        return Mismatch("lineage", f"{me.lineage:016x} here, {peer.lineage:016x} there: two different groups' data")
    listed = _listed(membership, peer.node_id)
    knows_later = me.formed and peer.formed and peer.members > me.members
    if not knows_later and listed is not None and listed.uuid and listed.uuid != peer.store_uuid:
        return Mismatch(
            "store uuid",
            f"{listed.uuid[:8]} is a member, {peer.store_uuid[:8]} came: the disk of {peer.node_id} was replaced; "
            f"remove the replica from the group and add it again",
        )
    return None


def _listed(membership: Membership | None, node_id: NodeId) -> Member | None:
    return membership.member(node_id) if membership is not None else None
