"""Sending: codes 10, 310 and 320, their answer, and handing a message back (36).

One class for both spellings of the send header: V1 uses long names, V2 the letters a to n. Fields without a letter are
ours and the same in both: the producer's sequence (`pid pe ps pf`), `again` for a message that is sent anew after an
unknown outcome, `fwd`/`fwdFrom` on a request that a replica passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self, cast

import msgspec

from trimq.errors import ProtocolError
from trimq.wire.headers.base import I32, I64, Header

__all__ = ["SendBackHeader", "SendHeader", "SendHeaderV2", "SendResponse", "Sequence"]

Sequence = tuple[int, int, int, int]
"""A producer's (id, epoch, first sequence, floor)."""

_SHORT_NAMES: Final = {
    "producer_group": "a",
    "topic": "b",
    "default_topic": "c",
    "default_topic_queue_nums": "d",
    "queue_id": "e",
    "sys_flag": "f",
    "born_timestamp": "g",
    "flag": "h",
    "properties": "i",
    "reconsume_times": "j",
    "unit_mode": "k",
    "max_reconsume_times": "l",
    "batch": "m",
    "broker_name": "n",
}

_U64_MAX: Final = 2**64 - 1


class SendHeader(Header, frozen=True, kw_only=True):
    """The header of a send. `to_ext` writes the long names, `to_short_ext` the letters."""

    quiet = frozenset({"pe", "ps", "pf", "again", "fwd"})

    producer_group: str
    topic: str
    default_topic: str = "TBW102"
    default_topic_queue_nums: I32 = 4
    queue_id: I32
    """Negative: the broker picks."""
    sys_flag: I32
    born_timestamp: I64
    flag: I32 = 0
    properties: str = ""
    reconsume_times: I32 = 0
    unit_mode: bool = False
    max_reconsume_times: I32 | None = None
    batch: bool = False
    broker_name: str = msgspec.field(name="bname", default="")
    pid: str = ""
    """Ours: 16 hex digits, random per producer; empty for a send without a sequence."""
    pe: I32 = -1
    ps: I64 = -1
    pf: I64 = -1
    again: bool = False
    fwd: bool = False
    fwd_from: str = ""

    @classmethod
    def from_ext(cls, ext: Mapping[str, object]) -> Self:
        """Read either spelling; which one it is shows in the field names."""
        if cls is SendHeader and "topic" not in ext and "b" in ext:
            return cast(Self, SendHeaderV2.from_ext(ext))
        return super().from_ext(ext)

    def to_short_ext(self) -> dict[str, str]:
        """The fields as text under their V2 letters, for codes 310 and 320."""
        ext = self.to_ext()
        return {_LETTERS.get(key, key): value for key, value in ext.items()}

    @property
    def sequence(self) -> Sequence | None:
        """The producer's sequence, or None when the client numbers nothing; `ProtocolError` when it is malformed."""
        if not self.pid:
            return None
        try:
            pid = int(self.pid, 16)
        except ValueError:
            pid = -1
        if not 0 <= pid <= _U64_MAX or self.pe < 0 or self.ps < 0 or self.pf < 0 or self.pf > self.ps:
            raise ProtocolError(f"SendHeader: bad sequence pid={self.pid!r:.40} pe={self.pe} ps={self.ps} pf={self.pf}")
        return pid, self.pe, self.ps, self.pf


def _short(cls: type[SendHeader]) -> type[SendHeader]:
    fields: list[Any] = []  # Any: defstruct takes a union of tuple shapes
    for f in msgspec.structs.fields(cls):
        name = _SHORT_NAMES.get(f.name, f.encode_name)
        fields.append((f.name, f.type, msgspec.field(name=name, default=f.default)))
    made = msgspec.defstruct("SendHeaderV2", fields, bases=(cls,), module=__name__, frozen=True, gc=False, kw_only=True)
    return cast("type[SendHeader]", made)


SendHeaderV2: Final = _short(SendHeader)
"""The same fields read from, and by `to_ext` written to, their V2 letters."""

_LETTERS: Final = dict(zip(SendHeader.__struct_encode_fields__, SendHeaderV2.__struct_encode_fields__, strict=True))


class SendResponse(Header, frozen=True, kw_only=True):
    """The answer to a send; accompanies codes 0, 10, 11 and 12."""

    quiet = frozenset({"dup"})

    msg_id: str = ""
    """Offset message id of the stored message; of a batch all of them, joined by commas."""
    queue_id: I32 = 0
    queue_offset: I64 = -1
    """Of a batch: the first one's."""
    transaction_id: str = ""
    batch_uniq_id: str = ""
    recall_handle: str = ""
    """Of a timed message: give it back with code 370 to cancel it."""
    dup: bool = False
    """Ours: this is the answer that the first copy got; nothing was stored now."""
    region: str = msgspec.field(name="MSG_REGION", default="DefaultRegion")
    trace_on: bool = msgspec.field(name="TRACE_ON", default=True)


class SendBackHeader(Header, frozen=True, kw_only=True):
    """Code 36: a consumer could not process a message. Old C++ clients send only the first three."""

    offset: I64
    """Position of the message in the log."""
    group: str
    delay_level: I32
    """Negative: to the dead letters; 0: by the number of retries; else that level."""
    origin_msg_id: str = ""
    origin_topic: str = ""
    unit_mode: bool = False
    max_reconsume_times: I32 | None = None
    bname: str = ""
