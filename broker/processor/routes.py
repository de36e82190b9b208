"""The table of request codes: who serves what, where, and what the replica must be for it.

The one place to read what this broker answers. Codes that are missing are answered REQUEST_CODE_NOT_SUPPORTED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.processor.ack_message import AckProcessor
from broker.processor.admin.routes import Administration, admin_routes
from broker.processor.assignment import AssignmentProcessor
from broker.processor.atomic import AtomicProcessor
from broker.processor.client_manage import ClientProcessor
from broker.processor.consumer_manage import ConsumerProcessor
from broker.processor.end_transaction import TransactionProcessor
from broker.processor.lane import Lane
from broker.processor.offsets import OffsetCommits
from broker.processor.plain_sends import PlainSends
from broker.processor.pop_message import PopProcessor
from broker.processor.pop_questions import PopQuestions
from broker.processor.pull_message import PullProcessor
from broker.processor.query_message import QueryProcessor
from broker.processor.registry import Needs, Route, hot, slow
from broker.processor.reply_message import ReplyProcessor
from broker.processor.send_back import SendBackProcessor
from broker.processor.send_message import SendProcessor
from broker.processor.timers import TimerProcessor
from trimq.wire.codes import RequestCode as Code
from trimq.wire.requests import (
    decode_ack,
    decode_atomic_send,
    decode_change_invisible,
    decode_notification,
    decode_pop,
    decode_pull,
    decode_send,
    decode_update_offset,
)

__all__ = ["Lanes", "Processors", "make_routes"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Lanes:
    """The pools for requests that may wait. Workers are tasks, not threads: they bound how much waits at once."""

    client: Lane
    """Heartbeats, offsets, locks, send-back."""
    query: Lane
    disk: Lane
    """Pulls of what is not in the cache."""
    admin: Lane
    relay: Lane
    """What waits for a client's answer: replies."""

    @classmethod
    def of(cls, requests_max: int) -> Lanes:
        return cls(
            Lane("client", workers=32, requests_max=requests_max, bytes_max=32 * MIB),
            Lane("query", workers=4, requests_max=1_024, bytes_max=8 * MIB),
            Lane("disk", workers=8, requests_max=requests_max, bytes_max=8 * MIB),
            Lane("admin", workers=8, requests_max=1_024, bytes_max=8 * MIB),
            Lane("relay", workers=64, requests_max=requests_max, bytes_max=32 * MIB),
        )

    def all(self) -> tuple[Lane, ...]:
        return (self.client, self.query, self.disk, self.admin, self.relay)


@dataclass(frozen=True, slots=True)
class Processors:
    """Everything that serves requests in one replica."""

    send: SendProcessor
    plain: PlainSends
    atomic: AtomicProcessor
    pull: PullProcessor
    pop: PopProcessor
    pop_questions: PopQuestions
    acks: AckProcessor
    assignments: AssignmentProcessor
    offsets: OffsetCommits
    send_back: SendBackProcessor
    timers: TimerProcessor
    transactions: TransactionProcessor
    clients: ClientProcessor
    consumers: ConsumerProcessor
    query: QueryProcessor
    replies: ReplyProcessor
    admin: Administration
    admin_allow: Sequence[str] = ()
    """Hosts and networks from which destructive requests are taken, besides this machine."""


def make_routes(serving: Processors, lanes: Lanes) -> Mapping[int, Route]:
    """Request code → route."""
    send = hot(decode_send, serving.send.send, Needs.ADMITTING)
    pull = hot(decode_pull, serving.pull.pull)
    client, query, admin = lanes.client, lanes.query, lanes.admin
    consumers = serving.consumers
    leader = Needs.READY
    return {
        # hot: answered in the pass that reads them
        Code.SEND_MESSAGE: send,
        Code.SEND_MESSAGE_V2: hot(decode_send, serving.send.send, Needs.ADMITTING, serving.plain.take),
        Code.SEND_BATCH_MESSAGE: send,
        Code.SEND_ATOMIC: hot(decode_atomic_send, serving.atomic.send, Needs.ADMITTING),
        Code.PULL_MESSAGE: pull,
        Code.LITE_PULL_MESSAGE: pull,
        Code.UPDATE_CONSUMER_OFFSET: hot(decode_update_offset, serving.offsets.update, Needs.ADMITTING),
        # pop
        Code.POP_MESSAGE: hot(decode_pop, serving.pop.pop, Needs.ADMITTING),
        Code.NOTIFICATION: hot(decode_notification, serving.pop.notification, Needs.ADMITTING),
        Code.ACK_MESSAGE: hot(decode_ack, serving.acks.ack, Needs.ADMITTING),
        Code.CHANGE_MESSAGE_INVISIBLETIME: hot(decode_change_invisible, serving.acks.change_invisible, Needs.ADMITTING),
        Code.BATCH_ACK_MESSAGE: slow(serving.acks.batch_ack, client, Needs.ADMITTING),
        Code.PEEK_MESSAGE: slow(serving.pop_questions.peek, query, leader),
        Code.POLLING_INFO: slow(serving.pop_questions.polling_info, query, leader),
        Code.QUERY_ASSIGNMENT: slow(serving.assignments.query, client, leader),
        Code.SET_MESSAGE_REQUEST_MODE: slow(serving.assignments.set_mode, admin, leader),
        Code.GET_ALL_MESSAGE_REQUEST_MODE: slow(serving.assignments.all_modes, admin),
        # clients
        Code.HEART_BEAT: slow(serving.clients.heartbeat, client),
        Code.UNREGISTER_CLIENT: slow(serving.clients.unregister, client),
        Code.CHECK_CLIENT_CONFIG: slow(serving.clients.check_client, client),
        Code.HELLO: slow(serving.clients.hello, client),
        Code.CONSUMER_SEND_MSG_BACK: slow(serving.send_back.send_back, client, Needs.ADMITTING),
        # transactions
        Code.END_TRANSACTION: slow(serving.transactions.end, client, leader),
        Code.RESUME_CHECK_HALF_MESSAGE: slow(serving.transactions.resume, admin, leader),
        # timed messages
        Code.RECALL_MESSAGE: slow(serving.timers.recall, client, leader),
        Code.LIST_TIMERS: slow(serving.timers.list_waiting, query, leader),
        Code.SEND_REPLY_MESSAGE: slow(serving.replies.reply, lanes.relay, Needs.ADMITTING),
        Code.SEND_REPLY_MESSAGE_V2: slow(serving.replies.reply, lanes.relay, Needs.ADMITTING),
        # consumers, at the ready leader
        Code.GET_CONSUMER_LIST_BY_GROUP: slow(consumers.consumer_list, client, leader),
        Code.QUERY_CONSUMER_OFFSET: slow(consumers.query_offset, client, leader),
        Code.GET_MAX_OFFSET: slow(consumers.max_offset, client, leader),
        Code.GET_MIN_OFFSET: slow(consumers.min_offset, client, leader),
        Code.SEARCH_OFFSET_BY_TIMESTAMP: slow(consumers.search_offset, query, leader),
        Code.GET_EARLIEST_MSG_STORETIME: slow(consumers.earliest_time, query, leader),
        Code.LOCK_BATCH_MQ: slow(consumers.lock, client, leader),
        Code.UNLOCK_BATCH_MQ: slow(consumers.unlock, client, leader),
        # finding messages: any replica
        Code.QUERY_MESSAGE: slow(serving.query.query, query),
        Code.VIEW_MESSAGE_BY_ID: slow(serving.query.view, query),
        # operators
        **admin_routes(serving.admin, admin, serving.admin_allow),
    }
