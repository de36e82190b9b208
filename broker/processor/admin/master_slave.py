"""Masters and slaves by request: a slave joins (9007), a slave is made the master (9006), a group moves to another
strategy (9005). And the operator's word for a suspect log (9008).

What a slave says of itself when it asks to join is compared with what it says again on the peer link (uuid, id,
cluster, group): an answer here opens nothing by itself.
"""

from __future__ import annotations

from broker.config import BrokerConfig
from broker.processor.request import Refused, Request
from broker.replication.base import Replicator
from broker.replication.ha.master import JoinRefused
from broker.replication.ha.move import MoveRefused
from broker.replication.ha.promotion import PromotionRefused
from broker.replication.membership import member_of
from broker.replication.raft_group import RaftReplicator
from broker.replication.trusting import TrustRefused
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.group import PromoteMasterHeader, SetStrategyHeader, TrustLogHeader
from trimq.wire.headers.group_join import JoinGroupHeader, JoinGroupResponse

__all__ = ["MasterSlaveAdmin"]


class MasterSlaveAdmin:
    """Serves one replica."""

    def __init__(self, config: BrokerConfig, replicator: Replicator) -> None:
        self._config = config
        self._replicator = replicator

    async def join(self, request: Request) -> bytes:
        """Code 9007, at the ready master."""
        header = JoinGroupHeader.from_ext(request.ext)
        config = self._config
        if config.cluster_name != header.cluster:
            raise Refused(
                ResponseCode.INVALID_PARAMETER, f"brokerClusterName is {config.cluster_name} here, not {header.cluster}"
            )
        replicator = self._replicated(header.group)
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

    async def set_strategy(self, request: Request) -> bytes:
        """Code 9005, at the ready leader: answered when the move is committed."""
        header = SetStrategyHeader.from_ext(request.ext)
        try:
            index = await self._replicated(header.group).set_strategy(header.strategy, required=header.required)
        except MoveRefused as error:
            raise Refused(ResponseCode.ILLEGAL_OPERATION, str(error)) from None
        return request.success({"index": str(index), "strategy": header.strategy})

    async def promote(self, request: Request) -> bytes:
        """Code 9006, at the candidate."""
        header = PromoteMasterHeader.from_ext(request.ext)
        replicator = self._replicated(header.group)
        self._check_node(header.node, replicator.node_id)
        try:
            done = await replicator.promote(force=header.force)
        except PromotionRefused as error:
            raise Refused(ResponseCode.ILLEGAL_OPERATION, f"{header.node} was not made the master: {error}") from None
        return request.success({"epoch": str(done.epoch), "granted": ",".join(done.granted), "mayLose": done.may_lose})

    async def trust_log(self, request: Request) -> bytes:
        """Code 9008, at the suspect replica."""
        header = TrustLogHeader.from_ext(request.ext)
        replicator = self._replicated(header.group)
        self._check_node(header.node, replicator.node_id)
        try:
            lost = await replicator.trust_log(accept_loss=header.accept_loss)
        except TrustRefused as error:
            raise Refused(ResponseCode.ILLEGAL_OPERATION, str(error)) from None
        return request.success({"mayLose": lost})

    @staticmethod
    def _check_node(wanted: str, own: str) -> None:
        if wanted != own:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"this is {own}: send the request to {wanted} itself")

    def _replicated(self, group: str) -> RaftReplicator:
        if group != self._config.broker_name:
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"group {group!r} is not served here: this address serves {self._config.broker_name}",
            )
        if not isinstance(self._replicator, RaftReplicator):
            raise Refused(
                ResponseCode.ILLEGAL_OPERATION,
                f"{group} is a group of one replica (replicationStrategy=local) and cannot be moved:"
                " found a group under another brokerName and let this one run dry (brokerPermission=4)",
            )
        return self._replicator
