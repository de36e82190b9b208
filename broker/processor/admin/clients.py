"""Connected clients, for operators: all producers (328), what a consumer is doing (307), consume one message now (309).

307 and 309 are questions to the client itself: its answer is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from broker.metadata.clients import ClientTable
from broker.processor.request import Refused, Request
from broker.service.client_calls import ClientSilent
from broker.service.client_reach import ClientReach, ClientUnknown
from broker.store.errors import StoreError
from trimq.errors import BadRequest, RecordError
from trimq.message.ids import parse_offset_message_id
from trimq.message.record import unpack_record
from trimq.wire.body.inspect import ProducerInfo, ProducerTableInfo
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.inspect import AskConsumerHeader

if TYPE_CHECKING:
    from broker.config import BrokerConfig
    from broker.replication.base import Replicator
    from broker.store.message_store import MessageStore
    from trimq.env import Clock

__all__ = ["ClientAdmin"]

ASK_S = 4.0
"""How long a client has to answer: tools wait 5 s for us."""


class ClientAdmin:
    """Tells about, and asks, the clients connected to one replica."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        replicator: Replicator,
        clients: ClientTable,
        reach: ClientReach,
        member_ids: Callable[[str], list[str]],
        clock: Clock,
    ) -> None:
        self._config = config
        self._store = store
        self._replicator = replicator
        self._clients = clients
        self._reach = reach
        self._member_ids = member_ids
        self._clock = clock

    async def all_producers(self, request: Request) -> bytes:
        """Code 328."""
        wall, now = self._clock.wall_ms(), trio.current_time()
        table = {
            group: [
                ProducerInfo(
                    clientId=each.client_id,
                    language=each.language,
                    lastUpdateTimestamp=wall - int((now - each.seen) * 1000),
                    remoteIP=each.link.peer.rpartition(":")[0],
                    version=each.version,
                )
                for each in self._clients.producers(group)
            ]
            for group in self._clients.producer_groups()
        }
        return request.success(body=ProducerTableInfo(data=table).to_json())

    async def running_info(self, request: Request) -> bytes:
        """Code 307: a consumer's own account of its queues and rates."""
        header = AskConsumerHeader.from_ext(request.ext)
        question = Command(code=RequestCode.GET_CONSUMER_RUNNING_INFO, ext=dict(request.ext))
        return await self._relay(request, header, question)

    async def consume_directly(self, request: Request) -> bytes:
        """Code 309: hand one stored message to a consumer, outside its queues and offsets."""
        header = AskConsumerHeader.from_ext(request.ext)
        body = await self._message(header.msg_id)
        ext = {**request.ext, "brokerName": self._config.broker_name}
        return await self._relay(
            request, header, Command(code=RequestCode.CONSUME_MESSAGE_DIRECTLY, ext=ext, body=body)
        )

    async def _relay(self, request: Request, header: AskConsumerHeader, question: Command) -> bytes:
        group, client_id = header.consumer_group, header.client_id
        if not client_id:
            client_id = next(iter(self._member_ids(group)), "")
        try:
            answer = await self._reach.ask(client_id, question, group=group, within_s=ASK_S)
        except ClientUnknown:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"The Consumer <{group}> <{client_id}> not online: no replica of this group has its connection",
            ) from None
        except ClientSilent as error:
            raise Refused(ResponseCode.CONSUME_MSG_TIMEOUT, f"the consumer gave no answer: {error}") from None
        return request.answer(answer.code, answer.remark, answer.ext, body=answer.body)

    async def _message(self, message_id: str) -> bytes:
        try:
            _, position = parse_offset_message_id(message_id)
        except BadRequest:
            raise Refused(
                ResponseCode.SYSTEM_ERROR, f"{message_id!r} is no offset message id (32 or 56 hex digits)"
            ) from None
        if not 0 <= position < self._replicator.visible():
            raise Refused(ResponseCode.SYSTEM_ERROR, f"no message at position {position} of this group's log")
        try:
            raw = bytes(await self._store.read_record(position))
            unpack_record(raw)
        except (RecordError, StoreError, OSError) as error:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"no message at position {position}: {error}") from None
        return raw
