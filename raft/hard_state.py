"""The hard state on disk: term and vote, which must survive every crash (Raft paper §5.2, figure 2).

One preallocated file with two slots that are written alternately; each slot holds two copies of the same record in
different 4 KiB blocks:

    block 0, 1: slot 0 (copy a, copy b)          block 2, 3: slot 1 (copy a, copy b)

A record is `magic u32, version u32, sequence u64, payload length u32, payload (canonical CBOR), CRC32 u32`. The valid
slot with the higher sequence counts.

Why two copies: with one, a rotten newest slot looks like a torn write, and falling back to the older slot would forget
a vote. With two, rot in one of them changes nothing and is mended when the file is opened.

Order of a save, and what a crash leaves:

1. both copies of the slot *not* in use are written and synced in one call. A crash in between leaves the other slot,
   untouched: the old state, which is right, since nobody was told about the new one yet. Or one whole copy of the new
   one, which is right as well.
2. `save` returns, and only then may anything that follows from the new state leave this replica.

No rename, no directory sync after the creation, no free space needed: a full disk cannot stop a vote.
"""

from __future__ import annotations

import enum
import logging
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import cbor2
import trio

from raft.env import File, FileSystem

__all__ = ["HardStateDamaged", "HardStateFile", "HardStateTooNew", "StateVerdict", "StoredState"]

log = logging.getLogger(__name__)

BLOCK_BYTES = 4096
SLOT_BYTES = 2 * BLOCK_BYTES
FILE_BYTES = 2 * SLOT_BYTES
MAGIC = 0x74514853
VERSION = 1
_HEAD = struct.Struct(">IIQI")
_CRC = struct.Struct(">I")
PAYLOAD_MAX_BYTES = BLOCK_BYTES - _HEAD.size - _CRC.size


class StateVerdict(enum.Enum):
    """What was found when the file was opened."""

    FRESH = "fresh"
    """Nothing was ever written (or only by a first save that never finished on an empty store)."""
    FOUND = "found"
    DAMAGED = "damaged"
    """The store is not empty, yet no record is valid: the votes given so far are forgotten."""


class HardStateDamaged(Exception):
    """The file cannot be written any more: the open log is impaired for good."""


class HardStateTooNew(Exception):
    """The record was written by a newer version of this software."""


@dataclass(frozen=True, slots=True)
class StoredState:
    """What is kept. `term` never falls; `vote` belongs to `term` and is never cleared within it."""

    term: int = 0
    vote: str = ""
    """Node id voted for in `term`, "" for none, "-" when the vote is spent without a name."""
    starts: int = 0
    """How often a core was started on this store: replies of an earlier life are told apart by it."""
    suspect: bool = False
    """The log may have lost acknowledged bytes: no vote, no acknowledgement until caught up."""
    store_uuid: str = ""
    """Drawn once for an empty store: tells a wiped replica from the one that was a member."""
    cluster: str = ""
    """Cluster and group the store belongs to: a folder that was mixed up is refused instead of joined."""
    group: str = ""

    def _fields(self) -> dict[str, Any]:
        return {
            "term": self.term,
            "vote": self.vote,
            "starts": self.starts,
            "suspect": self.suspect,
            "uuid": self.store_uuid,
            "cluster": self.cluster,
            "group": self.group,
        }


SPENT_VOTE = "-"
"""A vote nobody gets: set when the term is rebuilt from the peers and what was voted in it is unknown."""


def _encode(sequence: int, state: StoredState) -> bytes:
    payload = cbor2.dumps(state._fields(), canonical=True)
    assert len(payload) <= PAYLOAD_MAX_BYTES, "hard state does not fit its block"
    body = _HEAD.pack(MAGIC, VERSION, sequence, len(payload)) + payload
    return (body + _CRC.pack(zlib.crc32(body))).ljust(BLOCK_BYTES, b"\0")


def _decode(block: bytes) -> tuple[int, StoredState] | None:
    """The record in a block, or None when it is not valid. Raises HardStateTooNew."""
    if len(block) < _HEAD.size + _CRC.size:
        return None
    magic, version, sequence, length = _HEAD.unpack_from(block)
    end = _HEAD.size + length
    if magic != MAGIC or length > PAYLOAD_MAX_BYTES or len(block) < end + _CRC.size:
        return None
    if _CRC.unpack_from(block, end)[0] != zlib.crc32(block[:end]):
        return None
    if version != VERSION:
        raise HardStateTooNew(f"hard state has version {version}; this software reads version {VERSION}")
    fields = cbor2.loads(block[_HEAD.size : end])
    return sequence, StoredState(
        term=fields["term"],
        vote=fields["vote"],
        starts=fields["starts"],
        suspect=fields["suspect"],
        store_uuid=fields["uuid"],
        cluster=fields["cluster"],
        group=fields["group"],
    )


class HardStateFile:
    """The file, open. One task at a time may save (the group's writer)."""

    def __init__(self, file: File, verdict: StateVerdict, state: StoredState, sequence: int) -> None:
        self.verdict = verdict
        self.state = state
        self._file = file
        self._sequence = sequence
        self._failed = False

    @classmethod
    async def open(cls, fs: FileSystem, path: str, *, store_empty: bool) -> HardStateFile:
        """Open or create the file and mend what one good copy can mend.

        `store_empty` says whether the log beside it is empty: it decides whether "no valid record" is a beginning or
        a loss. Raises OSError, HardStateTooNew.
        """
        file = await fs.open(path, create=True)
        try:
            content = await file.pread(0, FILE_BYTES)
            blocks = [_decode(content[at : at + BLOCK_BYTES]) for at in range(0, FILE_BYTES, BLOCK_BYTES)]
            found = max((block for block in blocks if block is not None), key=lambda block: block[0], default=None)
            if found is None:
                if not store_empty:
                    return cls(file, StateVerdict.DAMAGED, StoredState(), 0)
                await file.write(0, [bytes(FILE_BYTES)], sync=True)
                await fs.sync_dir("")
                return cls(file, StateVerdict.FRESH, StoredState(), 0)
            sequence, state = found
            opened = cls(file, StateVerdict.FOUND, state, sequence)
            slot = sequence % 2
            if blocks[2 * slot] != found or blocks[2 * slot + 1] != found:
                log.warning("a copy of the hard state was damaged; mended from the other one", extra={"path": path})
                await opened._advance(state)
            return opened
        except BaseException:
            await file.aclose()
            raise

    async def save(self, state: StoredState) -> None:
        """Make `state` durable. Raises OSError; after that the file refuses every further save.

        Shielded from cancellation: it waits for the disk only.
        """
        if self._failed:
            raise HardStateDamaged("an earlier write of the hard state failed")
        assert state.term >= self.state.term, "the term never falls"
        same_term = state.term == self.state.term
        assert not same_term or self.state.vote in ("", state.vote), "a vote is never changed within its term"
        await self._advance(state)

    async def _advance(self, state: StoredState) -> None:
        """Write the slot that is not in use. Also mends: never rewrite the slot that holds the only good copy."""
        sequence = self._sequence + 1
        block = _encode(sequence, state)
        self._failed = True
        with trio.CancelScope(shield=True):  # waits for the disk only; else memory and disk would part
            await self._file.write(sequence % 2 * SLOT_BYTES, [block, block], sync=True)
        self._failed = False
        self._sequence = sequence
        self.state = state
        self.verdict = StateVerdict.FOUND

    async def aclose(self) -> None:
        """Close the file; nothing is written."""
        await self._file.aclose()
