"""Pulls: codes 11 and 361, answered synchronously, from slices of the log.

Any replica serves what is committed and dispatched there; only a ready leader says where a queue ends ("no message",
"offset moved"). What cannot be answered yet is held (see `broker.service.hold`), not waited for. Facts: checks and
result table of the remoting protocol; what replicas that do not lead may say: docs/architecture.md, "One read".

Two rules protect consumers: a replica that is not the ready leader never corrects an offset (code 21), since its own
end may be behind what was read elsewhere; and tag hashes are computed here from the expression, never taken from
clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig
from broker.filter.cache import FilterCache
from broker.filter.selection import FilterError, Selection, SqlFilter
from broker.filter.tags import TagFilter
from broker.metadata.clients import ClientTable
from broker.metadata.group_settings import settings_of
from broker.metadata.ops import key_of
from broker.metadata.state import GroupState
from broker.metrics import Counters
from broker.processor.lane import Lane
from broker.processor.offsets import OffsetCommits
from broker.processor.redirect import Redirect
from broker.processor.request import Refused, Typed, client_of
from broker.replication.base import NotLeader, Replicator
from broker.replication.intake import Intake
from broker.service.hold import HeldPull, HoldTable
from broker.store.errors import StoreError
from broker.store.message_store import Found, MessageStore, NeedDisk
from trimq.wire.codes import ResponseCode
from trimq.wire.command import encode_response
from trimq.wire.headers.pull import PullFlag, PullHeader
from trimq.wire.responses import encode_pull_head

if TYPE_CHECKING:
    from broker.replication.base import ReplyTo

__all__ = ["PullProcessor", "check_type", "parse_failed"]

HOLD_MAX_S = 30.0
"""No pull is held longer, whatever the client asks: its own timeout is 30 s."""
CROWDED_BYTES = 4 << 20
"""With so much queued for a connection, further pulls of it wait until it has read some."""
LINE_S = 0.02
IN_FLIGHT_S = 0.2
"""How long a pull that does not wait may wait for a message that is being stored."""
OURS_COUNT_MAX = 1024
OURS_BYTES_MAX = 1 << 20
"""For clients that said HELLO: one answer may be larger than RocketMQ's 32 messages, 256 KiB."""


def check_type(config: BrokerConfig, expression_type: str) -> None:
    """Raises `Refused` for a kind of filter that this broker does not evaluate."""
    if expression_type in ("", "TAG") or (expression_type == "SQL92" and config.property_filter):
        return
    advice = "set enablePropertyFilter=true, or use TAG" if expression_type == "SQL92" else "use TAG or SQL92"
    raise Refused(
        ResponseCode.SYSTEM_ERROR,
        f"The broker does not support consumer to filter message by {expression_type}: {advice}",
    )


def parse_failed(error: FilterError) -> Refused:
    """The refusal of an expression."""
    return Refused(ResponseCode.SUBSCRIPTION_PARSE_FAILED, f"parse the subscription failed: {error}")


FORMER_MASTER = "this replica was the master, and does not know yet whether what it alone holds still counts"


class PullProcessor:
    """Serves pulls of one replica and owns what happens to those that are held."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        clients: ClientTable,
        commits: OffsetCommits,
        holds: HoldTable,
        disk: Lane,
        counters: Counters,
        redirect: Redirect,
    ) -> None:
        self._config = config
        self._redirect = redirect
        self._state = state
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._clients = clients
        self._commits = commits
        self._holds = holds
        self._disk = disk
        self._counters = counters
        self._filters = FilterCache()
        self._line: list[tuple[HeldPull, bool]] = []
        self._in_line = trio.Event()

    # --- a new pull

    def pull(self, request: Typed[PullHeader], reply: ReplyTo) -> bytes | None:
        """Answer, read from disk, or hold. Raises `Refused` for what cannot be pulled at all."""
        header = request.header
        self._check_group(header)
        name = header.topic.encode()
        topic = self._state.topics.get(name)
        if topic is None and self._replicator.admitting:
            topic = self._intake.view.topic(name)  # on its way: its first message was acknowledged a moment ago
        if topic is None:
            raise Refused(
                ResponseCode.TOPIC_NOT_EXIST,
                f"topic {header.topic} does not exist here: create it or refresh the route",
            )
        if not topic.perm & 4:
            raise Refused(ResponseCode.NO_PERMISSION, f"topic {header.topic} is not readable (perm {topic.perm})")
        if not 0 <= header.queue_id < topic.read_queues:
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"queueId {header.queue_id} is out of range: topic {header.topic} has read queues"
                f" 0 to {topic.read_queues - 1}",
            )
        wanted = self._filter(header, reply)
        if not isinstance(wanted, TagFilter | SqlFilter):
            self._compile_first(request, reply, *wanted)
            return None
        self._commits.pulled(header, reply)
        now = trio.current_time()
        count, size = self._limits(reply, header)
        pull = HeldPull(
            reply=reply,
            opaque=request.opaque,
            serialize=request.serialize,
            group=header.consumer_group,
            topic=header.topic,
            key=key_of(topic.tid, header.queue_id),
            offset=header.queue_offset,
            filter=wanted,
            max_count=count,
            max_bytes=size,
            deadline=now + self._hold_s(header) if header.sys_flag & PullFlag.SUSPEND else 0.0,
        )
        self.look(pull, pull.deadline > now)
        return None

    def _check_group(self, header: PullHeader) -> None:
        if not self._config.permission & 4:
            raise Refused(
                ResponseCode.NO_PERMISSION, f"the broker {self._config.broker_name} is write only (brokerPermission)"
            )
        group = self._state.groups.get(header.consumer_group)
        if group is None:
            if not self._intake.config.creation.auto_create_group:
                raise Refused(
                    ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                    f"consumer group {header.consumer_group} does not exist here: create it"
                    " (autoCreateSubscriptionGroup is off)",
                )
            return
        if not settings_of(group.settings).consume_enable:
            raise Refused(
                ResponseCode.NO_PERMISSION, f"consumer group {header.consumer_group} may not consume (consumeEnable)"
            )

    def _filter(self, header: PullHeader, reply: ReplyTo) -> Selection | tuple[str, str]:
        """What the client wants; as words when that has to be compiled first."""
        if header.sys_flag & PullFlag.SUBSCRIPTION:
            return self._parse(header.subscription, header.expression_type)
        found = self._clients.consumer_group(header.consumer_group)
        if found is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_NOT_EXIST,
                f"consumer group {header.consumer_group} has no consumer here: send a heartbeat first",
            )
        if found.broadcast and not self._may_broadcast(header.consumer_group):
            raise Refused(
                ResponseCode.NO_PERMISSION,
                f"consumer group {header.consumer_group} may not consume by broadcast (consumeBroadcastEnable)",
            )
        subscription = found.subscription(header.topic, reply)
        if subscription is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_NOT_EXIST,
                f"consumer group {header.consumer_group} does not subscribe to {header.topic}: send a heartbeat first",
            )
        if subscription.version < header.sub_version:
            raise Refused(
                ResponseCode.SUBSCRIPTION_NOT_LATEST,
                f"the subscription of {header.consumer_group} to {header.topic} is older than the pull's:"
                " send a heartbeat first",
            )
        if subscription.filter is None:
            return self._parse(subscription.expression, subscription.expression_type)
        return subscription.filter

    def _parse(self, expression: str, expression_type: str) -> Selection | tuple[str, str]:
        check_type(self._config, expression_type)
        kind = expression_type or "TAG"
        try:
            return self._filters.known(expression, kind) or (expression, kind)
        except FilterError as error:
            raise parse_failed(error) from None

    def _compile_first(self, request: Typed[PullHeader], reply: ReplyTo, expression: str, kind: str) -> None:
        """A condition that nobody has used yet: compile it in a turn of its own, then pull."""

        async def work() -> None:
            try:
                self._filters.compile(expression, kind)
                self.pull(request, reply)
            except FilterError as error:
                refuse(parse_failed(error))
            except Refused as refusal:  # what was right a moment ago
                refuse(refusal)

        def refuse(why: Refused) -> None:
            reply.send(encode_response(request.opaque, request.serialize, why.code, why.ext, why.remark))

        if not self._disk.offer(work, len(expression)):
            busy = "[OVERLOAD]too many new filters at once: try again in a second"
            refuse(Refused(ResponseCode.SYSTEM_BUSY, busy))

    def _may_broadcast(self, group: str) -> bool:
        info = self._state.groups.get(group)
        return info is None or settings_of(info.settings).consume_broadcast_enable

    def _limits(self, reply: ReplyTo, header: PullHeader) -> tuple[int, int]:
        ours = client_of(reply) is not None
        count = OURS_COUNT_MAX if ours else self._config.hot_count
        size = OURS_BYTES_MAX if ours else self._config.hot_bytes
        if header.max_msg_bytes is not None and header.max_msg_bytes > 0:
            size = min(size, header.max_msg_bytes)
        return min(count, max(1, header.max_msg_nums)), size

    def _hold_s(self, header: PullHeader) -> float:
        asked = (
            header.suspend_timeout_millis / 1000 if self._config.long_polling else self._config.short_polling_ms / 1000
        )
        return min(max(0.0, asked), HOLD_MAX_S)

    # --- any pull, new or held

    def look(self, pull: HeldPull, may_hold: bool) -> None:
        """Read what is there, and answer or hold."""
        if getattr(pull.reply, "queued", 0) > CROWDED_BYTES:
            self._wait_in_line(pull, may_hold)
            return
        if self._intake.fenced and (target := self._intake.moved_to(pull.group, pull.key)) is not None:
            self._respond(pull, ResponseCode.PULL_OFFSET_MOVED, target, remark="OFFSET_RESET")
            return
        if not self._replicator.serves_reads:
            if not (may_hold and self._hold(pull)):
                self._respond(pull, ResponseCode.PULL_RETRY_IMMEDIATELY, pull.offset, remark=FORMER_MASTER)
            return
        low, end = self._bounds(pull.key)
        if not low <= pull.scanned < end:
            self._outside(pull, low, end, may_hold)
            return
        found = self._store.get(
            pull.key, pull.scanned, pull.max_count, pull.max_bytes, pull.filter.codes, pull.filter.test
        )
        if isinstance(found, NeedDisk):
            self._from_disk(pull, may_hold)
        else:
            self._found(pull, found, may_hold)

    def _wait_in_line(self, pull: HeldPull, may_hold: bool) -> None:
        """The client has not read its earlier answers: a thousand pulls of one pass must not become a gigabyte."""
        if len(self._line) >= self._config.held_pulls_max:
            self._respond(pull, ResponseCode.SYSTEM_BUSY, 0, remark="[OVERLOAD]read your answers, then pull again")
            return
        self._line.append((pull, may_hold))
        self._in_line.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again at pulls whose clients were behind with reading, until cancelled."""
        task_status.started()
        while True:
            await self._in_line.wait()
            await trio.sleep(LINE_S)
            line, self._line = self._line, []
            self._in_line = trio.Event()
            for pull, may_hold in line:
                if not getattr(pull.reply, "closed", False):
                    self.look(pull, may_hold and trio.current_time() < pull.deadline)

    def _bounds(self, key: int) -> tuple[int, int]:
        queues = self._store.queues
        return queues.first_offset(key), queues.next_offset(key)

    def _from_disk(self, pull: HeldPull, may_hold: bool) -> None:
        async def work() -> None:
            count, size = pull.max_count, pull.max_bytes
            if client_of(pull.reply) is None:
                count, size = min(count, self._config.cold_count), min(size, self._config.cold_bytes)
            try:
                found = await self._store.get_from_disk(
                    pull.key, pull.scanned, count, size, pull.filter.codes, pull.filter.test
                )
            except LookupError:
                self._outside(pull, *self._bounds(pull.key), False)  # retention was faster
                return
            except (OSError, StoreError) as error:
                self._respond(pull, ResponseCode.SYSTEM_ERROR, 0, remark=f"the message cannot be read: {error}")
                return
            self._found(pull, found, may_hold and trio.current_time() < pull.deadline)

        if not self._disk.offer(work, 0):
            self._respond(
                pull, ResponseCode.SYSTEM_BUSY, 0, remark="[OVERLOAD]too many reads from disk: try again in a second"
            )

    def _found(self, pull: HeldPull, found: Found, may_hold: bool) -> None:
        pull.scanned = found.next_offset
        if found.count:
            self._counters.get_requests_found += 1
            self._counters.get_messages += found.count
            self._respond(pull, ResponseCode.SUCCESS, found.next_offset, parts=found.parts, remark="FOUND")
            return
        low, end = self._bounds(pull.key)
        if low <= pull.scanned < end:
            # The scan limit of one look was reached, or messages came meanwhile. The client asks again at once from
            # the new offset, so nobody's loop is held up by a long scan.
            self._respond(pull, ResponseCode.PULL_RETRY_IMMEDIATELY, pull.scanned, remark="NO_MATCHED_MESSAGE")
            return
        self._outside(pull, low, end, may_hold)

    def _outside(self, pull: HeldPull, low: int, end: int, may_hold: bool) -> None:
        """Nothing at this offset: decide by where it lies and by what this replica is."""
        offset, moved = pull.scanned, pull.scanned != pull.offset
        ready = self._replicator.is_ready
        # Acknowledged messages are readable a moment later: offsets up to the leader view's end are no mistake.
        if ready and not moved and offset < low:
            self._respond(pull, ResponseCode.PULL_OFFSET_MOVED, low, remark="OFFSET_MOVED")
            return
        if ready and not moved and offset > self._intake.view.next_offset(pull.key):
            self._correct_offset(pull, may_hold)
            return
        if not ready and offset < low and not self._replicator.admitting:
            # Our log may begin later than the leader's: let the client ask there.
            self._respond(pull, ResponseCode.PULL_RETRY_IMMEDIATELY, offset, remark="ask the leader (broker id 0)")
            return
        if not may_hold and ready and pull.deadline == 0 and self._intake.view.next_offset(pull.key) > offset:
            # Something is on its way to this very offset, perhaps acknowledged already: that is worth a moment.
            pull.deadline = trio.current_time() + IN_FLIGHT_S
            may_hold = True
        if may_hold:
            if self._hold(pull):
                return
            self._respond(
                pull, ResponseCode.SYSTEM_BUSY, 0, remark="[OVERLOAD]too many pulls are held: try again in a second"
            )
            return
        self._counters.get_requests_missed += 1
        if ready and not moved:
            self._respond(pull, ResponseCode.PULL_NOT_FOUND, offset, remark="OFFSET_OVERFLOW_ONE")
        else:
            self._respond(pull, ResponseCode.PULL_RETRY_IMMEDIATELY, offset, remark="NO_MATCHED_MESSAGE")

    def _correct_offset(self, pull: HeldPull, may_hold: bool) -> None:
        """The consumer is ahead of us: it is sent back only by a leader who has made sure that it still leads.

        One that was frozen or cut off knows nothing yet of its successor, nor of what that one has stored since.
        """

        async def work() -> None:
            try:
                await self._replicator.barrier()
            except NotLeader:
                self._respond(
                    pull, ResponseCode.PULL_RETRY_IMMEDIATELY, pull.offset, remark="ask the leader (broker id 0)"
                )
                return
            if self._replicator.is_ready and pull.offset > self._intake.view.next_offset(pull.key):
                _, end = self._bounds(pull.key)
                self._respond(pull, ResponseCode.PULL_OFFSET_MOVED, end, remark="OFFSET_MOVED")
            else:
                self.look(pull, may_hold and trio.current_time() < pull.deadline)

        if not self._disk.offer(work, 0):
            busy = "[OVERLOAD]too many pulls beyond the end of a queue: try again in a second"
            self._respond(pull, ResponseCode.SYSTEM_BUSY, 0, remark=busy)

    def _hold(self, pull: HeldPull) -> bool:
        if getattr(pull.reply, "closed", False):
            return True  # nobody waits for the answer any more
        if not self._holds.add(pull):
            return False
        self._counters.pulls_held += 1
        return True

    def _respond(
        self, pull: HeldPull, code: int, next_offset: int, *, parts: list[bytes] | None = None, remark: str = ""
    ) -> None:
        low, end = self._bounds(pull.key)
        size = sum(map(len, parts)) if parts else 0
        if size and next_offset < end:
            suggest = self._redirect.suggest(pull.group, self._store.position_of(pull.key, next_offset))
        else:
            suggest = self._redirect.at_end()
        head = encode_pull_head(
            pull.opaque, pull.serialize, code, next_offset, low, end, size, suggest=suggest, remark=remark
        )
        self._counters.get_bytes += size
        pull.reply.send(b"".join((head, *parts)) if parts else head)
