"""A slave asks the master of its group to let it follow (9007): the master lists it, and says where it listens.

What the slave says of itself is compared with what it says again on the peer link (uuid, id, cluster, group): an answer
here opens nothing by itself.
"""

from __future__ import annotations

from broker.config import BrokerConfig
from broker.processor.request import Refused, Request
from broker.replication.base import Replicator
from broker.replication.ha.master import JoinRefused
from broker.replication.membership import member_of
from broker.replication.raft_group import RaftReplicator
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.group_join import JoinGroupHeader, JoinGroupResponse

__all__ = ["JoiningAdmin"]


class JoiningAdmin:
    """Serves one replica."""

    def __init__(self, config: BrokerConfig, replicator: Replicator) -> None:
        self._config = config
        self._replicator = replicator

    async def join(self, request: Request) -> bytes:
        """Code 9007, at the ready master."""
        header = JoinGroupHeader.from_ext(request.ext)
        config, replicator = self._config, self._replicator
        for what, ours, theirs in (
            ("brokerClusterName", config.cluster_name, header.cluster),
            ("brokerName", config.broker_name, header.group),
        ):
            if ours != theirs:
                raise Refused(ResponseCode.INVALID_PARAMETER, f"{what} is {ours} here, not {theirs}")
        if not isinstance(replicator, RaftReplicator):
            raise Refused(ResponseCode.SYSTEM_ERROR, f"{config.broker_name} is a group of one replica (local)")
        member = member_of(
            header.node,
            rank=header.rank,
            address=header.peer_addr,
            client_address=header.client_addr,
            uuid=header.store_uuid,
        )
        try:
            address = replicator.admit_slave(member)
        except JoinRefused as error:
            raise Refused(ResponseCode.SYSTEM_ERROR, str(error)) from None
        return request.success(JoinGroupResponse(node=replicator.node_id, peer_addr=address).to_ext())
