"""A client, wherever in this replica group it is connected.

Clients are known by their heartbeats, to the replica that they are connected to. A consumer heartbeats to all replicas,
a producer of Java's only to the leader that it knew last; so a reply (324) may reach a leader that has never heard of
the client that waits for it, while another replica holds its connection. Who is not connected here is looked for at the
other members (`broker.replication.relay`): each asks the client on its own connection and sends the answer back.
"""

from __future__ import annotations

from broker.metadata.clients import ClientTable
from broker.replication.relay import ANSWERED, SILENT, UNKNOWN, Asked, Relay, Told
from broker.service.client_calls import ClientCalls, ClientSilent
from trimq.errors import ProtocolError
from trimq.wire.command import FLAG_ONEWAY, Command, decode, encode

__all__ = ["ClientReach", "ClientUnknown"]


class ClientUnknown(Exception):
    """No replica of this group that can be reached has a connection of this client."""


class ClientReach:
    """Asks and tells clients of one replica group."""

    def __init__(self, clients: ClientTable, calls: ClientCalls, relay: Relay) -> None:
        self._clients = clients
        self._calls = calls
        self._relay = relay
        relay.serve = self._asked

    async def ask(self, client_id: str, command: Command, *, group: str = "", within_s: float) -> Command:
        """The client's answer, from whichever replica it is connected to; `group`: as a member of this consumer group.

        Raises `ClientUnknown`, or `ClientSilent` when it is connected and does not answer in time.
        """
        link = self._clients.find(client_id, group)
        if link is not None:
            return await self._calls.ask(link, command, within_s=within_s)
        told = await self._relay.ask(Asked(client_id, group, within_s, encode(command)))
        if told.code == SILENT:
            raise ClientSilent(f"client {client_id} did not answer within {within_s:g} s")
        if told.code == ANSWERED:
            try:
                return decode(told.frame[4:])
            except ProtocolError as error:
                raise ClientSilent(f"the answer of client {client_id} cannot be read: {error}") from None
        raise ClientUnknown(f"client {client_id} is not connected to this replica group")

    def tell(self, client_id: str, command: Command, *, group: str = "") -> None:
        """Send a request that wants no answer to the client, if a reachable replica has a connection of it."""
        command.flag |= FLAG_ONEWAY
        link = self._clients.find(client_id, group)
        if link is not None:
            link.send(encode(command))
        else:
            self._relay.tell(Asked(client_id, group, 0.0, encode(command)))

    async def _asked(self, asked: Asked) -> Told:
        """A question of another member: is the client here, and what does it say?"""
        link = self._clients.find(asked.client_id, asked.group)
        if link is None:
            return Told(UNKNOWN)
        try:
            command = decode(asked.frame[4:])
            if command.is_oneway:
                link.send(asked.frame)
                return Told(SILENT)
            return Told(ANSWERED, encode(await self._calls.ask(link, command, within_s=asked.within_s)))
        except (ClientSilent, ProtocolError):
            return Told(SILENT)
