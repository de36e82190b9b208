"""Replies to requests (324, 325): handed to the client that waits for them, and stored.

The request told who asks (REPLY_TO_CLIENT, a client id) and by which number (CORRELATION_ID). The reply is pushed to
that client (326) on its own connection, at whichever replica of the group that is, and then stored in the reply topic,
where it can be looked up later. The answer tells the replier whether the push reached its client: if not it may send
the same reply again (its unique id is stored once).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from broker.config import BrokerConfig
from broker.metrics import Counters
from broker.processor.request import Refused, Request
from broker.processor.send_message import born_host
from broker.replication.intake import Intake
from broker.replication.requests import PutMessage
from broker.service.client_calls import ClientSilent
from broker.service.client_reach import ClientReach, ClientUnknown
from broker.service.delay import PROPERTIES_MAX
from trimq.message import names, properties
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.reply import PushReplyHeader
from trimq.wire.headers.send import SendHeader, SendResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimq.env import Clock

__all__ = ["ReplyProcessor"]

log = logging.getLogger(__name__)

PUSH_S = 2.0
"""How long the asking client has to take a reply: the replier waits 3 s for us."""


class ReplyProcessor:
    """Takes replies. Register it for a leader that admits."""

    def __init__(
        self,
        config: BrokerConfig,
        intake: Intake,
        reach: ClientReach,
        clock: Clock,
        counters: Counters,
        address: Callable[[], str],
    ) -> None:
        self._config = config
        self._intake = intake
        self._reach = reach
        self._clock = clock
        self._counters = counters
        self._address = address

    async def reply(self, request: Request) -> bytes | None:
        """Push, then store. Raises `Refused` for what can be neither."""
        header = SendHeader.from_ext(request.ext)
        self._check(header, request)
        problem = await self._push(header, request)
        if problem:
            log.debug("reply not handed over", extra={"problem": problem})
        self._counters.replies += 1
        if not self._config.store_reply:
            return request.answer(ResponseCode.SYSTEM_ERROR, problem) if problem else self._pushed(header, request)
        failure = request.answer(ResponseCode.SYSTEM_ERROR, problem) if problem else None
        self._intake.put(self._message(header, request), request.later(failure))
        return None

    def _check(self, header: SendHeader, request: Request) -> None:
        if not self._config.permission & 2:
            raise Refused(
                ResponseCode.NO_PERMISSION, f"the broker {self._config.broker_name} is read only (brokerPermission)"
            )
        if names.is_reserved(header.topic):
            raise Refused(
                ResponseCode.NO_PERMISSION,
                f"topic {header.topic} is reserved for the system: replies go to"
                f" {names.reply_topic(self._config.cluster_name)}",
            )
        size = len(request.command.body)
        if size > self._config.max_message_bytes:
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL,
                f"body of {size} bytes is over maxMessageSize, {self._config.max_message_bytes}",
            )
        if len(header.properties.encode("utf-8", "replace")) > PROPERTIES_MAX:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, f"the properties are over the limit of {PROPERTIES_MAX} bytes")

    async def _push(self, header: SendHeader, request: Request) -> str:
        """Hand the reply to the client that waits for it. Returns what went wrong, empty when it has it."""
        found = properties.parse(header.properties)
        client_id = found.get(properties.REPLY_TO_CLIENT, "")
        if not client_id:
            return "REPLY_TO_CLIENT is null, can not find reply client: a reply carries the request's properties"
        now = self._clock.wall_ms()
        found[properties.PUSH_REPLY_TIME] = str(now)
        push = PushReplyHeader(
            producer_group=header.producer_group,
            topic=header.topic,
            default_topic=header.default_topic,
            default_topic_queue_nums=header.default_topic_queue_nums,
            queue_id=header.queue_id,
            sys_flag=header.sys_flag,
            born_timestamp=header.born_timestamp,
            flag=header.flag,
            properties=properties.format(found),
            reconsume_times=header.reconsume_times,
            unit_mode=header.unit_mode,
            born_host=request.reply.peer,
            store_host=self._address(),
            store_timestamp=now,
        )
        command = Command(code=RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, ext=push.to_ext(), body=request.command.body)
        try:
            answer = await self._reach.ask(client_id, command, within_s=PUSH_S)
        except ClientUnknown:
            return f"push reply message fail, channel of <{client_id}> not found: the client that asked is gone"
        except ClientSilent:
            return f"push reply message to <{client_id}> fail: it did not take it within {PUSH_S:g} s"
        if answer.code != ResponseCode.SUCCESS:
            return f"push reply message to <{client_id}> fail: {answer.remark or answer.code}"
        return ""

    def _message(self, header: SendHeader, request: Request) -> PutMessage:
        return PutMessage(
            header.topic.encode(),
            header.queue_id,
            request.command.body,
            header.properties.encode(),
            header.flag,
            header.sys_flag,
            header.born_timestamp,
            born_host(request.reply.peer),
            header.reconsume_times,
            default_topic=header.default_topic.encode(),
            default_queues=header.default_topic_queue_nums,
            producer_group=header.producer_group,
        )

    def _pushed(self, header: SendHeader, request: Request) -> bytes:
        ext = SendResponse(msg_id="0", queue_id=max(header.queue_id, 0), queue_offset=0).to_ext()
        return request.success(ext)
