"""How a master-slave replica finds the others, through the name servers: founding, joining, coming back elsewhere.

An empty master founds its group only when no replica registered under its brokerName holds data: otherwise a master
whose disk was lost would begin a second history. It looks for two seconds, since the others may be starting, too. An
empty slave, and a replica that has heard of no master for a while, ask who leads and ask that one to be let in. Whoever
waits says for whom, once in a while.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import trio

from broker.config import BrokerConfig
from broker.metadata.ops import InSync
from broker.metadata.state import GroupState
from broker.replication.base import Health, Replicator
from broker.replication.intake import Intake
from broker.replication.membership import member_of
from broker.replication.raft_group import RaftReplicator
from trimq.errors import TrimqError
from trimq.wire.body.route import ClusterInfo
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.group_join import JoinGroupHeader, JoinGroupResponse

if TYPE_CHECKING:
    from trimq.remoting.client import RemotingClient

__all__ = ["Joining", "log_in_sync"]

log = logging.getLogger(__name__)

LOOK_S = 0.2
LOOK_MOST_S = 2.0
LOOK_GROWS = 1.25
"""A replica that finds no master asks less and less often (after ten seconds every two); as often as at first once its
links bring news."""
LOST_S = 3.0
"""A replica that belongs to a group and knows no master for so long looks for one elsewhere."""
SAY_S = 10.0
FOUND_S = 2.0
"""An empty master looks for so long whether somebody registers who has its group's data, before it founds one."""
ASK_S = 1.0


class Joining:
    """Runs beside one master-slave replica."""

    def __init__(self, config: BrokerConfig, replicator: RaftReplicator, client: RemotingClient, address: str) -> None:
        self._config = config
        self._replicator = replicator
        self._client = client
        self._address = address
        self._next_word = 0.0
        self._news = trio.Event()
        self._alone_since = trio.current_time()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for the others while there is need, until cancelled."""
        task_status.started()
        replicator = self._replicator
        lost_since = trio.current_time()
        pause = LOOK_S
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            while True:
                self._news = trio.Event()
                if replicator.leader.leader_id:
                    lost_since, pause = trio.current_time(), LOOK_S
                elif not replicator.formed or trio.current_time() - lost_since >= LOST_S:
                    await self._look()
                    pause = min(pause * LOOK_GROWS, LOOK_MOST_S)
                with trio.move_on_after(pause):
                    await self._news.wait()
                    pause = LOOK_S

    async def _listen(self) -> None:
        """A role that changes: a master may be there now, or the one there was is gone."""
        async for _event in self._replicator.subscribe():
            self._news.set()

    async def _look(self) -> None:
        config, replicator = self._config, self._replicator
        others = await self._others()
        if others is None:
            self._say("no name server answers: whether this group has data elsewhere is not known")
            self._alone_since = trio.current_time()
            return
        told = [status for address in others if (status := await self._status(address)) is not None]
        leading = [status for status in told if status["ready"]]
        if leading:
            await self._join(max(leading, key=lambda status: int(status["term"])))
        elif replicator.formed:
            return
        elif any(status["formed"] for status in told):
            names = ", ".join(status["node"] for status in told if status["formed"])
            self._say(f"{names} holds this group's data and has no master: promote it")
        elif config.broker_id == 0:
            if not self._config.namesrv or trio.current_time() - self._alone_since >= FOUND_S:
                replicator.may_found = True
            return  # still alone
        else:
            self._say("the master of this group is not there yet")
        self._alone_since = trio.current_time()

    async def _others(self) -> list[str] | None:
        """Client addresses of the other replicas that are registered; None when no name server answers."""
        if not self._config.namesrv:
            return []
        found: dict[str, None] = {}
        answered = False
        for server in self._config.namesrv:
            answer = await self._ask(server, Command(code=RequestCode.GET_BROKER_CLUSTER_INFO))
            if answer is None:
                continue
            answered = True
            group = ClusterInfo.from_json(answer.body).brokerAddrTable.get(self._config.broker_name)
            if group is not None:
                found |= dict.fromkeys(address for _id, address in sorted(group.brokerAddrs.items()))
        found.pop(self._address, None)
        return list(found) if answered else None

    async def _status(self, address: str) -> dict[str, Any] | None:
        """What the replica at an address says of itself; None when it says nothing."""
        ext = {"group": self._config.broker_name}
        answer = await self._ask(address, Command(code=RequestCode.GROUP_STATUS, ext=ext))
        if answer is None:
            return None
        try:
            said = json.loads(bytes(answer.body))
            own = said["replicas"][said["answeredBy"]]
            return {
                "address": address,
                "node": str(said["answeredBy"]),
                "term": int(own["term"]),
                "ready": own["role"] == "leader" and bool(own["ready"]),
                "formed": own["role"] != Health.UNFORMED.value,
            }
        except (ValueError, KeyError, TypeError):
            return None

    async def _join(self, master: dict[str, Any]) -> None:
        own = self._replicator.introduction()
        header = JoinGroupHeader(
            cluster=self._config.cluster_name,
            group=self._config.broker_name,
            node=own.id,
            rank=own.rank,
            peer_addr=own.address,
            client_addr=own.client_address,
            store_uuid=own.uuid,
        )
        answer = await self._ask(master["address"], Command(code=RequestCode.JOIN_GROUP, ext=header.to_ext()))
        if answer is not None:
            told = JoinGroupResponse.from_ext(answer.ext)
            self._replicator.follow(member_of(told.node, rank=0, address=told.peer_addr, client_address="", uuid=""))

    async def _ask(self, address: str, command: Command) -> Command | None:
        with trio.move_on_after(ASK_S):
            try:
                answer = await self._client.invoke(address, command)
            except TrimqError as error:
                log.debug("no answer", extra={"address": address, "error": str(error)})
                return None
            if answer.code == ResponseCode.SUCCESS:
                return answer
            if command.code == RequestCode.JOIN_GROUP:
                self._say(f"the master does not let this replica in: {answer.remark}")
        return None

    def _say(self, what: str) -> None:
        now = trio.current_time()
        if now >= self._next_word:
            self._next_word = now + SAY_S
            log.warning("%s", what, extra={"broker": self._config.broker_name, "node": self._replicator.node_id})


async def log_in_sync(state: GroupState, intake: Intake, replicator: Replicator) -> None:
    """A ready master: keep in the log which replicas are in sync, for whoever has to judge a promotion."""
    if not isinstance(replicator, RaftReplicator):
        return
    while True:
        members, epoch = replicator.in_sync, replicator.role.term
        known = state.settings.in_sync
        if members and (known is None or (known.epoch, tuple(known.replicas)) != (epoch, members)):
            intake.put_ops([InSync(epoch, members, replicator.config.ha.required)])
        await trio.sleep(LOOK_S)
