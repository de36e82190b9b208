"""The control payload of an entry: what changes the tables, in the log's own words.

A payload is canonical CBOR, `[1, t, [op, ...]]`, and an op is `[code, field, ...]`. `t` is the log time of the entry:
wall clock of the leader, never less than the log time before it. The payload is applied *before* the records of its
entry, so a message and what belongs to it (its topic, its producer sequence) are one: both or neither.

Promise: an op that this version does not know is never skipped. Tables are functions of the log; skipping one op would
make two replicas differ for ever. `NewerVersion` therefore stops the replica group, and a leader writes a code only at
or below the feature level that all members announced (`LEVEL_OF`, op 15).

A *membership* entry carries a map instead of the list of ops: see `broker.metadata.membership`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeAlias

import cbor2

from broker.metadata.op_fields import (
    I64_MAX,
    ID_MAX,
    QUEUE_MAX,
    Raw,
    Scalar,
    boolean,
    integer,
    scalar,
    text,
    texts,
)
from broker.metadata.pop_ops import OrderTake, PopDone, PopHide, PopTake, RequestMode
from broker.metadata.timer_ops import TimerCancel, TimerDone
from broker.metadata.transaction_ops import Half, HalfChecked, HalfEnd

__all__ = [
    "FORMAT",
    "LEVEL_OF",
    "OP_BYTES_MAX",
    "ConfigPut",
    "ControlError",
    "Feature",
    "GroupDel",
    "GroupPut",
    "InSync",
    "Locks",
    "MembersPut",
    "NewerVersion",
    "OffsetsPut",
    "Op",
    "OwnRecords",
    "ProducerRun",
    "Producers",
    "Progress",
    "Reset",
    "Scalar",
    "TopicDel",
    "TopicPut",
    "assemble",
    "decode_payload",
    "encode_op",
    "encode_payload",
    "key_of",
    "queue_of",
    "tid_of",
]

FORMAT = 1
OP_BYTES_MAX = 8 << 20
"""No op may be larger than the largest entry."""
_U64_MAX = (1 << 64) - 1


class ControlError(Exception):
    """The payload cannot be applied. The replica group stops: its log is not understood."""


class NewerVersion(ControlError):
    """The payload was written by a newer version of this program."""


def key_of(tid: int, queue: int) -> int:
    """The queue key that indexes and tables use: `tid << 16 | queue`."""
    return tid << 16 | queue


def tid_of(key: int) -> int:
    """The topic id of a queue key."""
    return key >> 16


def queue_of(key: int) -> int:
    """The queue number of a queue key."""
    return key & QUEUE_MAX


@dataclass(frozen=True, slots=True)
class TopicPut:
    """Create a topic or change its settings. `tid` = highest ever + 1 for a new one."""

    code: ClassVar[int] = 1
    tid: int
    name: str
    read_queues: int
    write_queues: int
    perm: int = 6
    filter_type: int = 0
    """0 single tag, 1 multi tag."""
    sys_flag: int = 0
    order: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> list[Raw]:
        return [
            self.tid,
            self.name,
            self.read_queues,
            self.write_queues,
            self.perm,
            self.filter_type,
            self.sys_flag,
            self.order,
            dict(self.attributes),
        ]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> TopicPut:
        tid, name, read, write, perm, filter_type, sys_flag, order, attributes = raw
        return cls(
            integer(tid, 1, ID_MAX),
            text(name),
            integer(read, 0, QUEUE_MAX + 1),
            integer(write, 0, QUEUE_MAX + 1),
            integer(perm),
            integer(filter_type),
            integer(sys_flag),
            boolean(order),
            texts(attributes),
        )


@dataclass(frozen=True, slots=True)
class TopicDel:
    """Delete a topic with its queues, offsets and locks. The same name later gets a new tid."""

    code: ClassVar[int] = 2
    tid: int

    def fields(self) -> list[Raw]:
        return [self.tid]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> TopicDel:
        (tid,) = raw
        return cls(integer(tid, 1, ID_MAX))


@dataclass(frozen=True, slots=True)
class GroupPut:
    """Create a consumer group or change its settings; its retry topic comes in the same payload."""

    code: ClassVar[int] = 3
    gid: int
    name: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)

    def fields(self) -> list[Raw]:
        return [self.gid, self.name, dict(self.settings)]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> GroupPut:
        gid, name, settings = raw
        if not isinstance(settings, Mapping):
            raise ValueError(f"settings are {settings!r}")
        return cls(integer(gid, 1, ID_MAX), text(name), {text(k): scalar(v) for k, v in settings.items()})


@dataclass(frozen=True, slots=True)
class GroupDel:
    """Delete a consumer group; without `drop_offsets` a group of the same name finds its offsets again."""

    code: ClassVar[int] = 4
    gid: int
    drop_offsets: bool = True

    def fields(self) -> list[Raw]:
        return [self.gid, self.drop_offsets]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> GroupDel:
        gid, drop = raw
        return cls(integer(gid, 1, ID_MAX), boolean(drop))


@dataclass(frozen=True, slots=True)
class OffsetsPut:
    """Consumer offsets: `(gid, tid, queue, offset)` each."""

    code: ClassVar[int] = 5
    offsets: Sequence[tuple[int, int, int, int]]

    def fields(self) -> list[Raw]:
        return [[list(each) for each in self.offsets]]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> OffsetsPut:
        (rows,) = raw
        return cls([(integer(g), integer(t), integer(q, 0, QUEUE_MAX), integer(o)) for g, t, q, o in rows])


@dataclass(frozen=True, slots=True)
class Reset:
    """An operator sets offsets `(tid, queue, offset)` of a consumer group, to any value."""

    code: ClassVar[int] = 6
    gid: int
    offsets: Sequence[tuple[int, int, int]]
    who: str = ""

    def fields(self) -> list[Raw]:
        return [self.gid, [list(each) for each in self.offsets], self.who]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> Reset:
        gid, rows, who = raw
        return cls(integer(gid), [(integer(t), integer(q, 0, QUEUE_MAX), integer(o)) for t, q, o in rows], text(who))


class ProducerRun(NamedTuple):
    """`size` consecutive sequences of one producer, stored in this entry from record `ordinal` on."""

    pid: int
    epoch: int
    first: int
    size: int
    floor: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class Producers:
    """Producer sequences of the records of this entry."""

    code: ClassVar[int] = 7
    runs: Sequence[ProducerRun]

    def fields(self) -> list[Raw]:
        return [[list(run) for run in self.runs]]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> Producers:
        (rows,) = raw
        return cls([_run(row) for row in rows])


@dataclass(frozen=True, slots=True)
class OwnRecords:
    """Records that the broker appended itself: `(first ordinal, count)`. They are outside the id window."""

    code: ClassVar[int] = 8
    ranges: Sequence[tuple[int, int]]

    def fields(self) -> list[Raw]:
        return [[list(each) for each in self.ranges]]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> OwnRecords:
        (rows,) = raw
        return cls([(integer(first), integer(count)) for first, count in rows])


@dataclass(frozen=True, slots=True)
class MembersPut:
    """Who belongs to a consumer group (client ids, sorted)."""

    code: ClassVar[int] = 9
    gid: int
    clients: Sequence[str]

    def fields(self) -> list[Raw]:
        return [self.gid, list(self.clients)]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> MembersPut:
        gid, clients = raw
        return cls(integer(gid), tuple(text(each) for each in clients))


@dataclass(frozen=True, slots=True)
class Locks:
    """Queues `(tid, queue)` of a consumer group change owner; "" frees them. Renewals are not logged."""

    code: ClassVar[int] = 10
    gid: int
    client: str
    queues: Sequence[tuple[int, int]]

    def fields(self) -> list[Raw]:
        return [self.gid, self.client, [list(each) for each in self.queues]]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> Locks:
        gid, client, rows = raw
        return cls(integer(gid), text(client), [(integer(t), integer(q, 0, QUEUE_MAX)) for t, q in rows])


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a service of the broker is (delay level → next queue offset ...), with what it delivered."""

    code: ClassVar[int] = 11
    kind: str
    key: int | str
    value: Scalar

    def fields(self) -> list[Raw]:
        return [self.kind, self.key, self.value]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> Progress:
        kind, key, value = raw
        checked = scalar(key)
        if isinstance(checked, bytes):
            raise ValueError("the key is bytes")
        return cls(text(kind), checked, scalar(value))


@dataclass(frozen=True, slots=True)
class ConfigPut:
    """A setting of the whole replica group; "" as value takes it back."""

    code: ClassVar[int] = 12
    key: str
    value: str
    who: str = ""

    def fields(self) -> list[Raw]:
        return [self.key, self.value, self.who]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> ConfigPut:
        key, value, who = raw
        return cls(text(key), text(value), text(who))


@dataclass(frozen=True, slots=True)
class InSync:
    """Master-slave: the replicas that hold every acknowledged entry of `epoch`."""

    code: ClassVar[int] = 14
    epoch: int
    replicas: Sequence[str]
    required: int

    def fields(self) -> list[Raw]:
        return [self.epoch, list(self.replicas), self.required]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> InSync:
        epoch, replicas, required = raw
        return cls(integer(epoch), tuple(text(each) for each in replicas), integer(required))


@dataclass(frozen=True, slots=True)
class Feature:
    """All members understand ops up to this level."""

    code: ClassVar[int] = 15
    level: int

    def fields(self) -> list[Raw]:
        return [self.level]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> Feature:
        (level,) = raw
        return cls(integer(level))


Op: TypeAlias = (
    TopicPut
    | TopicDel
    | GroupPut
    | GroupDel
    | OffsetsPut
    | Reset
    | Producers
    | OwnRecords
    | MembersPut
    | Locks
    | Progress
    | ConfigPut
    | InSync
    | Feature
    | Half
    | HalfEnd
    | HalfChecked
    | TimerDone
    | TimerCancel
    | PopTake
    | PopDone
    | PopHide
    | OrderTake
    | RequestMode
)

_READERS: dict[int, Callable[[Sequence[Raw]], Op]] = {
    TopicPut.code: TopicPut.read,
    TopicDel.code: TopicDel.read,
    GroupPut.code: GroupPut.read,
    GroupDel.code: GroupDel.read,
    OffsetsPut.code: OffsetsPut.read,
    Reset.code: Reset.read,
    Producers.code: Producers.read,
    OwnRecords.code: OwnRecords.read,
    MembersPut.code: MembersPut.read,
    Locks.code: Locks.read,
    Progress.code: Progress.read,
    ConfigPut.code: ConfigPut.read,
    InSync.code: InSync.read,
    Feature.code: Feature.read,
    Half.code: Half.read,
    HalfEnd.code: HalfEnd.read,
    HalfChecked.code: HalfChecked.read,
    TimerDone.code: TimerDone.read,
    TimerCancel.code: TimerCancel.read,
    PopTake.code: PopTake.read,
    PopDone.code: PopDone.read,
    PopHide.code: PopHide.read,
    OrderTake.code: OrderTake.read,
    RequestMode.code: RequestMode.read,
}

LEVEL_OF: Mapping[int, int] = dict.fromkeys(_READERS, 1)
"""The feature level from which a code may be written. Everything so far belongs to the first level."""


def encode_op(op: Op) -> bytes:
    """One op as canonical CBOR, to be put together by `assemble`."""
    return cbor2.dumps([op.code, *op.fields()], canonical=True)


def assemble(log_time_ms: int, ops: Sequence[bytes]) -> bytes:
    """The payload around ops that are encoded already. No ops: no payload."""
    if not ops:
        return b""
    return b"".join((b"\x83\x01", cbor2.dumps(log_time_ms), _array_head(len(ops)), *ops))


def encode_payload(log_time_ms: int, ops: Sequence[Op]) -> bytes:
    """The payload of `ops`, in their order."""
    return assemble(log_time_ms, [encode_op(op) for op in ops])


def decode_payload(payload: bytes | memoryview) -> tuple[int, list[Op]]:
    """Return log time and ops. Raises `NewerVersion` for what is unknown, `ControlError` for what is malformed."""
    try:
        raw = cbor2.loads(payload)
    except Exception as problem:  # whatever the decoder raises: the bytes are no CBOR
        raise ControlError(f"control payload of {len(payload)} bytes is not CBOR: {problem}") from problem
    if not isinstance(raw, list) or len(raw) != 3:
        raise ControlError("control payload is not [version, time, ops]")
    version, log_time, rows = raw
    if version != FORMAT:
        raise NewerVersion(f"control payload version {version!r}: written by a newer version; this one knows {FORMAT}")
    if type(log_time) is not int or log_time < 0 or not isinstance(rows, list):
        raise ControlError("control payload is not [version, time, ops]")
    return log_time, [_decode_op(row) for row in rows]


def _decode_op(row: Raw) -> Op:
    if not isinstance(row, list) or not row:
        raise ControlError(f"op is not an array: {row!r:.80}")
    reader = _READERS.get(row[0]) if type(row[0]) is int else None
    if reader is None:
        raise NewerVersion(f"op code {row[0]!r:.20}: written by a newer version of this program")
    try:
        return reader(row[1:])
    except (TypeError, ValueError) as problem:
        raise ControlError(f"op code {row[0]} is malformed: {problem}") from problem


def _array_head(count: int) -> bytes:
    if count < 24:
        return bytes((0x80 | count,))
    if count < 0x100:
        return bytes((0x98, count))
    return b"\x99" + count.to_bytes(2, "big") if count < 0x10000 else b"\x9a" + count.to_bytes(4, "big")


def _run(row: Sequence[Raw]) -> ProducerRun:
    # One for nearly every message of our own clients: checked in one go, and slowly only to name what is wrong.
    run = ProducerRun(*row)
    pid, epoch, first, size, floor, ordinal = run
    if (
        type(pid) is type(epoch) is type(first) is type(size) is type(floor) is type(ordinal) is int
        and 0 <= pid <= _U64_MAX
        and 0 <= epoch <= I64_MAX
        and 0 <= first <= I64_MAX
        and 0 < size <= QUEUE_MAX
        and 0 <= floor <= I64_MAX
        and 0 <= ordinal <= QUEUE_MAX
    ):
        return run
    raise ValueError(f"{list(row)!r:.120} is no producer run")
