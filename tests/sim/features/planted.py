"""Bugs planted into the message features, at least one each, which the checkers have to find."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import trio

import broker.filter.selection
import broker.service.schedule
from broker.filter.selection import SqlFilter
from broker.filter.tags import TagFilter
from broker.metadata.locks import LockLeases, LockVerdict
from broker.metadata.timer_ops import TimerCancel
from broker.processor.end_transaction import TransactionProcessor
from broker.processor.reply_message import ReplyProcessor
from broker.processor.send_back import SendBackProcessor
from broker.processor.timers import TimerProcessor
from broker.replication.offset_commits import OffsetCommits
from broker.service.half import committed
from broker.service.offset_resets import OffsetResets
from broker.service.schedule import ScheduleService
from broker.service.transaction import TransactionChecks
from tests.sim.bug import Bug, replaced
from trimq.client.delivery import Delivery
from trimq.client.producer import Producer
from trimq.client.rebalance import Shares
from trimq.client.replies import Replies
from trimq.message import names, properties
from trimq.sim.deterministic import HOST

__all__ = ["FEATURE_BUGS"]

Patch = AbstractContextManager[Any]


# -- transactions and delays -----------------------------------------------------------------------------------------


def _commit_leaves_the_half() -> Patch:
    """The message becomes visible, and the half message stays open: op 17 is forgotten."""

    def make(_: Any) -> Any:
        def commit(self: TransactionProcessor, half: Any, request: Any) -> None:
            message = committed(half)
            assert message is not None
            self._intake.put_batch([message], request.later())

        return commit

    return replaced(TransactionProcessor, "_commit", make)


def _one_node_checks() -> Patch:
    """Check-back begins with the process, not with the term: only the first leader ever asks."""

    def make(original: Any) -> Any:
        async def run_term(self: TransactionChecks) -> None:
            if HOST.get() == "n0":
                await original(self)
            await trio.sleep_forever()

        return run_term

    return replaced(TransactionChecks, "run_term", make)


def _progress_apart() -> Patch:
    """Delayed messages are delivered, and how far that is stays in memory."""

    def make(original: Any) -> Any:
        def deliver(self: ScheduleService, level: Any, records: Any) -> None:
            messages = [message for record in records if (message := self._real(record)) is not None]
            self._intake.put_batch(messages, settled=self._settled)
            level.next = records[-1].queue_offset + 1

        return deliver

    return replaced(ScheduleService, "_deliver", make)


def _all_are_due() -> Patch:
    """When the head of a level is due, whatever was read with it goes along."""

    def make(original: Any) -> Any:
        def due_count(records: Sequence[Any], stored_until: int) -> int:
            return len(records) if original(records, stored_until) else 0

        return due_count

    return replaced(broker.service.schedule, "_due_count", make)


def _cancels_its_neighbour() -> Patch:
    def make(_: Any) -> Any:
        def cancel(self: TimerProcessor, request: Any, record: Any, unique: str) -> None:
            ops = [TimerCancel(record.queue_id, record.queue_offset + 1)]
            self._intake.put_batch([], request.later(request.success()), ops=ops)

        return cancel

    return replaced(TimerProcessor, "_cancel", make)


# -- retries and order -----------------------------------------------------------------------------------------------


def _attempts_not_counted() -> Patch:
    def make(original: Any) -> Any:
        def retry(self: SendBackProcessor, message: Any, *rest: Any) -> None:
            message.reconsume_times -= 1
            original(self, message, *rest)

        return retry

    return replaced(SendBackProcessor, "_retry", make)


def _buried_elsewhere() -> Patch:
    """The last failure lands in somebody else's dead letters."""

    def make(original: Any) -> Any:
        def bury(self: SendBackProcessor, message: Any, found: Any, group: str) -> None:
            original(self, message, found, "others")
            assert message.topic == names.dlq_topic("others").encode()

        return bury

    return replaced(SendBackProcessor, "_bury", make)


def _locks_for_everybody() -> Patch:
    def make(_: Any) -> Any:
        return lambda self, gid, client, keys, now, **rest: LockVerdict(list(keys), [])

    return replaced(LockLeases, "lock", make)


def _ordered_consumer_runs_ahead() -> Patch:
    """What arrives together is handed out together."""

    def make(_: Any) -> Any:
        def arrived(self: Delivery, holding: Any, messages: Any) -> None:
            self._bytes_held += sum(len(message.body) for message in messages)
            self.offered.offer(messages)

        return arrived

    return replaced(Delivery, "arrived", make)


# -- sent together, selected, for everybody --------------------------------------------------------------------------


def _one_by_one(name: str) -> Patch:
    """What belongs together is sent as single messages."""

    def make(_: Any) -> Any:
        async def send(self: Producer, messages: Any, /, **rest: Any) -> Any:
            return [await self.send(message, **rest) for message in messages]

        return send

    return replaced(Producer, name, make)


def _last_tag_forgotten() -> Patch:
    def make(original: Any) -> Any:
        def parse(expression: str, kind: str = "TAG") -> TagFilter:
            found: TagFilter = original(expression, kind)
            if len(found.tags) < 2:
                return found
            first: TagFilter = original(found.tags[0], kind)
            return replace(first, expression=found.expression, tags=found.tags)

        return parse

    return replaced(broker.filter.selection, "parse_tags", make)


def _conditions_always_hold() -> Patch:
    return replaced(SqlFilter, "__call__", lambda _: lambda self, raw: True)


def _listeners_share() -> Patch:
    """A broadcasting member takes its share of the queues, as if it were in a cluster."""

    def make(original: Any) -> Any:
        def init(self: Shares, *given: Any, everything: bool) -> None:
            original(self, *given, everything=False)

        return init

    return replaced(Shares, "__init__", make)


# -- requests and resets ---------------------------------------------------------------------------------------------


def _reply_to_whoever_waits() -> Patch:
    def make(original: Any) -> Any:
        def pushed(self: Replies, addr: str, command: Any) -> Any:
            if self._open and (found := properties.parse(command.ext.get("properties", "").encode())):
                found[properties.CORRELATION_ID] = next(iter(self._open))
                command = msgspec.structs.replace(command, ext={**command.ext, "properties": properties.format(found)})
            return original(self, addr, command)

        return pushed

    return replaced(Replies, "_pushed", make)


def _replies_stay_here() -> Patch:
    """A reply is stored, and nobody hands it over."""

    def make(_: Any) -> Any:
        async def push(self: ReplyProcessor, header: Any, request: Any) -> str:
            return ""

        return push

    return replaced(ReplyProcessor, "_push", make)


@contextmanager
def _resets_not_told() -> Any:
    """The offset is set, the members are not moved, and their next commit overwrites it."""
    with (
        replaced(OffsetResets, "_tell", lambda _: lambda self, *given: None),
        replaced(OffsetCommits, "_fence", lambda _: lambda self, gid, key: None),
    ):
        yield


CHANGES = ("kill", "transfer")

FEATURE_BUGS: tuple[Bug, ...] = (
    Bug("transactions: a commit leaves its half", ("kill",), patch=_commit_leaves_the_half, feature="transactions"),
    Bug("transactions: one node checks", CHANGES, patch=_one_node_checks, feature="transactions"),
    Bug("delays: progress is not in the entry", CHANGES, patch=_progress_apart, feature="delays", fault_s=8.0),
    Bug("delays: all are due with the first", ("kill",), patch=_all_are_due, feature="delays"),
    Bug("delays: a neighbour is cancelled", ("kill",), patch=_cancels_its_neighbour, feature="delays"),
    Bug("retries: attempts are not counted", ("kill",), patch=_attempts_not_counted, feature="retries"),
    Bug("retries: buried elsewhere", ("kill",), patch=_buried_elsewhere, feature="retries"),
    Bug("ordered: locks for everybody", ("kill",), patch=_locks_for_everybody, feature="ordered", fault_s=8.0),
    Bug("ordered: a consumer runs ahead", ("pause",), patch=_ordered_consumer_runs_ahead, feature="ordered"),
    Bug(
        "together: a batch goes one by one",
        ("kill", "resets"),
        patch=lambda: _one_by_one("send_batch"),
        feature="together",
    ),
    Bug(
        "together: an atomic send is several",
        ("kill majority", "isolate"),
        patch=lambda: _one_by_one("send_atomic"),
        feature="together",
        change=lambda plan: replace(plan, client_timeout_s=1.0),
    ),
    Bug("filters: the last tag is forgotten", ("kill",), patch=_last_tag_forgotten, feature="filters"),
    Bug("filters: conditions always hold", ("kill",), patch=_conditions_always_hold, feature="filters"),
    Bug("broadcast: the members share", ("kill",), patch=_listeners_share, feature="broadcast"),
    Bug("requests: a reply to whoever waits", ("kill",), patch=_reply_to_whoever_waits, feature="requests"),
    Bug("requests: replies are not handed over", ("kill",), patch=_replies_stay_here, feature="requests"),
    Bug("resets: not told, and no fence", ("kill",), patch=_resets_not_told, feature="resets"),
)
