"""Tells every name server who this replica is: at once when it matters, else every 30 s.

The ready leader registers under id 0 with its whole topic table, any other replica under its rank among the members
plus one and without topics, one that was removed from its group not at all. At once: on becoming ready, on leaving
leadership, on topic changes (within 50 ms), when a name server comes back. Each name server has one connection and one
task that always sends the newest state; what happens while a registration is on its way is in the next one.
`DataVersion.stateVersion` is the term: name servers refuse id 0 from an older term, so a revived old leader cannot take
the route back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig
from broker.metadata.state import GroupState
from broker.replication.base import Replicator, RoleEvent
from broker.service.tables import data_version, topic_config
from trimq.errors import TrimqError
from trimq.remoting.address_page import REFRESH_S
from trimq.wire.body.register import RegisterBrokerBody, body_crc32
from trimq.wire.body.topic_config import TopicConfigTable
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.route import RegisterBrokerHeader, UnregisterBrokerHeader

if TYPE_CHECKING:
    from trimq.remoting.client import RemotingClient

__all__ = ["Registration"]

log = logging.getLogger(__name__)

CALL_S = 3.0
COALESCE_S = 0.02
"""Topic changes within this time go in one registration (the promise is 50 ms)."""
RETRY_S = 1.0
TOLD_S = 1.0
"""Longest wait of a topic creation for the name servers."""
GOODBYE_S = 1.0


class Registration:
    """Registers one replica with its name servers."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        replicator: Replicator,
        client: RemotingClient,
        address: str,
        ha_address: str,
        look_up: Callable[[], Awaitable[Sequence[str]]] | None = None,
    ) -> None:
        self._config = config
        self._state = state
        self._replicator = replicator
        self._client = client
        self._address = address
        self._ha_address = ha_address
        self._look_up = look_up
        """Asks an address page for the name servers."""
        self._following: dict[str, trio.CancelScope] = {}
        self._wanted = 1
        """Counts what there is to tell."""
        self._roles = 0
        """Counts role changes, which are told without the pause that gathers topic changes."""
        self._told: dict[str, int] = dict.fromkeys(config.namesrv, 0)
        self._reached: dict[str, bool] = dict.fromkeys(config.namesrv, True)
        self._changed = trio.Event()
        self._progress = trio.Event()
        state.on_topics.append(self._topics_changed)
        client.on_channel_closed(self._lost)

    # --- what there is to tell

    def role_changed(self, event: RoleEvent) -> None:
        """Call it with every role event; the first one counts too."""
        self._roles += 1
        self._tell()

    def _topics_changed(self) -> None:
        if self._replicator.is_ready:
            self._tell()

    def _lost(self, address: str, reason: str) -> None:
        # The name server forgot us with the connection, whether it restarted or only closed it.
        if address in self._told:
            self._told[address] = 0
            self._wake()

    def _tell(self) -> None:
        self._wanted += 1
        self._wake()

    def _wake(self) -> None:
        event, self._changed = self._changed, trio.Event()
        event.set()

    @property
    def broker_id(self) -> int:
        """The id this replica registers under at the moment."""
        if self._replicator.is_ready:
            return 0
        replicator = self._replicator
        return replicator.replicas.broker_id(replicator.node_id, replicator.leader.leader_id)

    async def told(self) -> None:
        """Return when every name server that answers has what is known now, at the latest after a second."""
        wanted = self._wanted
        with trio.move_on_after(TOLD_S):
            while any(self._reached[address] and told < wanted for address, told in self._told.items()):
                await self._progress.wait()

    # --- telling

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all name servers informed until cancelled."""
        async with trio.open_nursery() as nursery:
            self._set_servers(nursery, self._config.namesrv)
            if self._look_up is not None:
                nursery.start_soon(self._keep_looking, nursery, self._look_up)
            task_status.started()

    async def _keep_looking(self, nursery: trio.Nursery, look_up: Callable[[], Awaitable[Sequence[str]]]) -> None:
        """Follow what the address page says; while it does not answer, what it said last."""
        said: tuple[str, ...] = ()
        while True:
            try:
                addresses = tuple(sorted(await look_up()))
            except TrimqError as error:
                log.warning("address page not read", extra={"broker": self._config.broker_name, "error": str(error)})
            else:
                if addresses != said:
                    log.info("name servers of the address page", extra={"addresses": ";".join(addresses)})
                    said = addresses
                    self._set_servers(nursery, addresses)
            await trio.sleep(REFRESH_S if said else RETRY_S)

    def _set_servers(self, nursery: trio.Nursery, addresses: Sequence[str]) -> None:
        for address in [each for each in self._following if each not in addresses]:
            self._following.pop(address).cancel()
            self._told.pop(address, None)
            self._reached.pop(address, None)
            self._client.close_channel(address, "no name server any more")
        for address in addresses:
            if address not in self._following:
                self._told.setdefault(address, 0)
                self._reached.setdefault(address, True)
                scope = self._following[address] = trio.CancelScope()
                nursery.start_soon(self._follow_within, scope, address)

    async def _follow_within(self, scope: trio.CancelScope, address: str) -> None:
        with scope:
            await self._follow(address)

    async def _follow(self, address: str) -> None:
        roles = -1
        while True:
            if roles == self._roles:
                await trio.sleep(COALESCE_S)
            roles, wanted, changed = self._roles, self._wanted, self._changed
            stored = await self._register(address)
            self._note(address, wanted if stored else 0, reached=stored)
            if stored and self._wanted != wanted:
                continue
            with trio.move_on_after(self._config.register_period_s if stored else RETRY_S):
                await changed.wait()

    def _note(self, address: str, told: int, *, reached: bool) -> None:
        if reached != self._reached[address]:
            log.info(
                "name server answers again" if reached else "name server does not answer, trying on",
                extra={"namesrv": address, "broker": self._config.broker_name},
            )
        self._reached[address] = reached
        self._told[address] = told
        event, self._progress = self._progress, trio.Event()
        event.set()

    async def _register(self, address: str) -> bool:
        """One registration. True when the name server has it (or knows of a newer leader, which is as good)."""
        if self._replicator.node_id not in self._replicator.replicas:
            with trio.move_on_after(CALL_S):
                await self._unregister(address)  # removed from the group, or not added yet
            return True
        command = self._command()
        try:
            with trio.fail_after(CALL_S):
                answer = await self._client.invoke(address, command)
        except (TrimqError, trio.TooSlowError) as error:
            log.debug("registration failed", extra={"namesrv": address, "error": str(error)})
            return False
        if answer.code != ResponseCode.SUCCESS:
            log.info(
                "name server refused the registration",
                extra={"namesrv": address, "broker": self._config.broker_name, "remark": answer.remark},
            )
        return True

    def _command(self) -> Command:
        broker_id = self.broker_id
        config, state = self._config, self._state
        topics = {info.name: topic_config(info) for info in state.topics.all()} if broker_id == 0 else {}
        body = RegisterBrokerBody(
            topicConfigSerializeWrapper=TopicConfigTable(
                dataVersion=data_version(state, self._replicator), topicConfigTable=topics
            )
        ).to_json()
        header = RegisterBrokerHeader(
            broker_name=config.broker_name,
            broker_addr=self._address,
            cluster_name=config.cluster_name,
            ha_server_addr=self._ha_address,
            broker_id=broker_id,
            body_crc32=body_crc32(body),
        )
        ext = header.to_ext()
        if broker_id == 0:
            ext["full"] = "true"
        return Command(code=RequestCode.REGISTER_BROKER, ext=ext, body=body)

    async def ask(self, command: Command) -> Command | None:
        """The answer of the first name server that gives one; None when none does."""
        for address in sorted(self._config.namesrv, key=lambda each: not self._reached[each]):
            try:
                with trio.fail_after(CALL_S / 2):
                    return await self._client.invoke(address, command)
            except (TrimqError, trio.TooSlowError) as error:
                log.debug("name server does not answer", extra={"namesrv": address, "error": str(error)})
        return None

    async def goodbye(self) -> None:
        """Unregister everywhere, for at most a second: the replica is about to stop."""
        with trio.move_on_after(GOODBYE_S):
            async with trio.open_nursery() as nursery:
                for address, reached in self._reached.items():
                    if reached:
                        nursery.start_soon(self._unregister, address)

    async def _unregister(self, address: str) -> None:
        header = UnregisterBrokerHeader(
            broker_name=self._config.broker_name,
            broker_addr=self._address,
            cluster_name=self._config.cluster_name,
            broker_id=self.broker_id,
        )
        try:
            await self._client.invoke(address, Command(code=RequestCode.UNREGISTER_BROKER, ext=header.to_ext()))
        except TrimqError as error:
            log.debug("goodbye failed", extra={"namesrv": address, "error": str(error)})
