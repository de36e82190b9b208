"""Finding the end of the log after a stop, and saying how much can be believed.

Cutting at the first bad checksum would turn one rotten sector into the loss of an acknowledged entry as soon as this
replica votes (Alagappan et al., "Protocol-Aware Recovery", FAST'18). So the end is classified:

    =========================================================================== ======= =============================
    what follows the good prefix                                                verdict action
    =========================================================================== ======= =============================
    zeros or end of file, exactly at the end that a clean mark names            NORMAL  go on
    zeros or end of file, no clean mark, at or above the marks' floor           CRASH   go on
    a bad record, no proof that it was ever synced, bytes look partial          TORN    cut there
    the same, but the bytes do not look partial                                 SUSPECT cut; no vote until caught up
    a bad record with proof; an end below a mark; a missing or foreign segment  DAMAGED cut nothing; refetch from peers
    =========================================================================== ======= =============================

**Proof that a record was once synced**: a later segment was begun; it lies below the end that a clean mark names, or
below the marks' floor, or at or below a commit hint of any valid record; or a valid record starts more than one sync
group (8 MiB) behind it. A valid record closer than that proves nothing: the sectors of one unsynced group reach the
disk in any order, and calling that damage would stop a whole cluster after a power cut.

**While the machine stays up** (a process that was killed) nothing that was written is lost, so a torn write can only be
the *beginning* of a record with zeros behind it. Zeros in the middle are content then, and what is bad is rot: SUSPECT.
After a power cut the sectors of a write arrive in any order, and a rotten record with a sector of zeros in it that was
acknowledged within the last second (the age of the floor) cannot be told from a torn one.

`recover` only reads. What it found is carried out by `commit_log.py`, in this order: the suspect mark is durable before
anything is cut; the cut is durable before anything is written; everything above the floor is written once more and
synced, because after a failed sync the page cache shows bytes that the disk does not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import trio

from .entry import ENTRY_MAX_BYTES, START, EntryId
from .errors import StoreRefused
from .fs import FileSystem, read_whole
from .marks import MarkValues
from .scan import Beyond, Walk, is_prefix, look_beyond, walk
from .segment import HEADER_BLOCK_BYTES, LOG_DIR, Segment, SegmentHeader, segment_base, segment_path
from .side_file import side_path, unpack_side
from .term_table import TermTable

__all__ = ["Damage", "Recovered", "Verdict", "classify", "recover"]


class Verdict(Enum):
    UNFORMED = "unformed"
    NORMAL = "normal"
    CRASH = "crash"
    TORN = "torn"
    SUSPECT = "suspect"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Damage:
    """What is missing, as far as it is known: entries `[first_index, next_index)`."""

    first_index: int
    position: int
    prev: EntryId
    """The good entry before the damage."""
    next_index: int = 0
    """First good entry behind the damage; 0 when there is none to be seen."""
    next_position: int = 0
    next_prev_crc: int = 0
    needs_install: bool = False
    """More is gone than entries can mend (a segment, the chain): install from a peer."""
    detail: str = ""


@dataclass(slots=True)
class Recovered:
    verdict: Verdict
    detail: str = ""
    segments: list[Segment] = field(default_factory=list)
    """Good segments, oldest first; the last is the one that is written to."""
    terms: TermTable = field(default_factory=TermTable)
    last: EntryId = START
    hint: int = 0
    """Largest commit hint seen: a lower bound of what is committed."""
    damage: Damage | None = None
    cut: bool = False
    """Cut the last segment's file at its end (torn or suspect bytes lie behind it)."""
    headers_to_mend: list[SegmentHeader] = field(default_factory=list)
    """Header blocks that were bad in part and are known in full."""
    unused: list[str] = field(default_factory=list)
    """Files without content of ours: a segment prepared ahead, leftovers of a crash."""


def classify(
    *, last: EntryId, beyond: Beyond, partial: bool, marks: MarkValues, later_segment: bool
) -> tuple[Verdict, str]:
    """The table of the module's docstring. `last` is the good entry at which the walk of the newest segment ended."""
    lower, name = (marks.floor.end, "the marks' floor")
    if marks.clean is not None and marks.clean.end >= lower:
        lower, name = marks.clean.end, "the clean mark"
    if last.end < lower:
        return Verdict.DAMAGED, f"the log ends at {last.end}, below {name} at {lower}"
    if later_segment:
        return Verdict.DAMAGED, f"the log breaks off at {last.end}, before the end of a sealed segment"
    if beyond.all_zero:
        if marks.clean is not None and marks.clean == last:
            return Verdict.NORMAL, ""
        return Verdict.CRASH, ""
    if max(beyond.hint, marks.floor.index) > last.index:
        return Verdict.DAMAGED, f"the entry at {last.end} is bad and was committed: a later entry says so"
    if beyond.last is not None and beyond.last.position - last.end > ENTRY_MAX_BYTES:
        return Verdict.DAMAGED, f"the entry at {last.end} is bad, with good ones more than one sync group behind it"
    if partial:
        return Verdict.TORN, f"a write at {last.end} arrived in part"
    return Verdict.SUSPECT, f"the entry at {last.end} is bad, and its bytes do not look like a torn write"


async def recover(
    fs: FileSystem, marks: MarkValues, *, marks_lost: bool = False, machine_stayed_up: bool = False
) -> Recovered:
    """Read the log; `machine_stayed_up` since the last write to it (False: not known).

    Raises `StoreRefused` (a newer format) and `OSError`; changes nothing.
    """
    names = await fs.listdir(LOG_DIR)
    bases = [base for name in names if (base := segment_base(name)) is not None]
    unused = [f"{LOG_DIR}/{name}" for name in names if name.endswith(".new")]
    if not bases:
        return _without_files(marks, unused)
    blocks = [await _read_header(fs, base) for base in bases]
    first = blocks[0][0]
    if first is None and bases[0] == 0 and marks.lineage:
        first = SegmentHeader.after(START, lineage=marks.lineage, segment_bytes=marks.segment_bytes)
    if first is None:
        damage = Damage(0, bases[0], START, needs_install=True, detail="the first segment's header is unreadable")
        return Recovered(Verdict.DAMAGED, damage.detail, damage=damage)
    if marks.lineage and first.lineage != marks.lineage:
        raise StoreRefused(
            f"the log under {LOG_DIR}/ is of lineage {first.lineage:08x}, this store's is {marks.lineage:08x}: "
            "the files of another replica group were put here"
        )
    found = Recovered(Verdict.CRASH, terms=TermTable(first.base_index - 1, first.prev_term), last=first.prev)
    found.unused = unused
    await _Reader(fs, marks, bases, blocks, found, first, machine_stayed_up).run()
    if found.verdict is not Verdict.DAMAGED:
        _check_marks(found, marks)
    if found.verdict is not Verdict.DAMAGED:
        fresh = found.last == START and not marks.lineage and not marks_lost
        if fresh:
            return Recovered(Verdict.UNFORMED, unused=[*unused, *(segment_path(base) for base in bases)])
        if marks.suspect or marks_lost:
            found.verdict = Verdict.SUSPECT
            found.detail = found.detail or (
                "the marks file is unreadable" if marks_lost else "a tail was cut earlier and has not been made good"
            )
    return found


def _without_files(marks: MarkValues, unused: list[str]) -> Recovered:
    if not marks.lineage:
        return Recovered(Verdict.UNFORMED, unused=unused)
    damage = Damage(1, 0, START, needs_install=True, detail="the log's files are gone")
    return Recovered(Verdict.DAMAGED, damage.detail, damage=damage)


async def _read_header(fs: FileSystem, base: int) -> tuple[SegmentHeader | None, bool]:
    file = await fs.open(segment_path(base))
    try:
        return SegmentHeader.parse(await file.pread(0, HEADER_BLOCK_BYTES))
    finally:
        with trio.CancelScope(shield=True):
            await file.aclose()


def _check_marks(found: Recovered, marks: MarkValues) -> None:
    """The entries that the marks name must be the ones in the log: an older copy of a file put back is damage."""
    for name, mark in (("floor", marks.floor), ("clean mark", marks.clean)):
        if mark is None or not mark.index or mark.index <= found.segments[0].base_index - 1:
            continue
        segment = next((s for s in reversed(found.segments) if s.base_index <= mark.index), None)
        if segment is None or mark.index > segment.last_index or segment.crc_of(mark.index) != mark.crc:
            found.verdict = Verdict.DAMAGED
            found.detail = f"entry {mark.index} is not the one that the {name} names"
            found.damage = Damage(mark.index, mark.end, START, needs_install=True, detail=found.detail)


class _Reader:
    """Goes through the segments in order and fills in a `Recovered`."""

    def __init__(
        self,
        fs: FileSystem,
        marks: MarkValues,
        bases: list[int],
        blocks: list[tuple[SegmentHeader | None, bool]],
        found: Recovered,
        first: SegmentHeader,
        machine_stayed_up: bool,
    ) -> None:
        self._stayed_up = machine_stayed_up
        self._fs = fs
        self._marks = marks
        self._bases = bases
        self._blocks = blocks
        self._found = found
        self._first = first

    async def run(self) -> None:
        found = self._found
        for at, base in enumerate(self._bases):
            header, intact = self._blocks[at]
            if at == 0:
                expected = self._first
            elif found.last.end == base:
                expected = SegmentHeader.after(
                    found.last, lineage=self._first.lineage, segment_bytes=self._first.segment_bytes
                )
            elif await self._nothing_from(at):
                found.unused.extend(segment_path(b) for b in self._bases[at:])
                break
            else:
                self._gap(f"the segment at {found.last.end} is missing, the next one begins at {base}")
                return
            if header is None and at > 0 and at == len(self._bases) - 1 and await self._empty(at, expected):
                found.unused.append(segment_path(base))
                break
            if header is not None and header != expected:
                self._gap(f"segment {base} does not continue the one before it")
                return
            if not intact:
                found.headers_to_mend.append(expected)
            if not await self._segment(at, expected):
                return
        # The log ends exactly with a full segment.
        nothing = Beyond(True, 0, None, None, 0)
        found.verdict, found.detail = classify(
            last=found.last, beyond=nothing, partial=False, marks=self._marks, later_segment=False
        )
        if found.verdict is Verdict.DAMAGED:
            found.damage = Damage(found.last.index + 1, found.last.end, found.last, detail=found.detail)

    async def _nothing_from(self, first: int) -> bool:
        for at in range(first, len(self._bases)):
            if not await self._empty(at, self._first):
                return False
        return True

    async def _empty(self, at: int, header: SegmentHeader) -> bool:
        """A segment that was prepared ahead and never written to."""
        file = await self._fs.open(segment_path(self._bases[at]))
        try:
            block = await file.pread(0, HEADER_BLOCK_BYTES)
            return not any(block) and (await look_beyond(file, header, 0)).all_zero
        finally:
            with trio.CancelScope(shield=True):
                await file.aclose()

    async def _segment(self, at: int, header: SegmentHeader) -> bool:
        """Read one segment; False when the log ends in it."""
        found = self._found
        after = self._blocks[at + 1][0] if at + 1 < len(self._blocks) else None
        if after is not None and after.base_position == header.base_position + header.segment_bytes:
            known = await self._from_side(header, after.prev)
            if known:
                return True
        file = await self._fs.open(segment_path(header.base_position))
        try:
            result = await walk(file, header, found.terms, bodies_from=self._marks.floor.end)
            found.segments.append(result.segment)
            found.last = result.last
            found.hint = max(found.hint, result.hint)
            if result.bad is None:
                result.segment.grown = header.segment_bytes
                if after is not None and after.prev != found.last:
                    self._gap(f"segment {after.base_position} does not continue the one before")
                    return False
                return True
            beyond = await look_beyond(file, header, result.segment.end)
        finally:
            with trio.CancelScope(shield=True):
                await file.aclose()
        result.segment.grown = min(beyond.file_end, header.segment_bytes)
        await self._end(at, result, beyond)
        return False

    async def _from_side(self, header: SegmentHeader, end: EntryId) -> bool:
        found = self._found
        if end.end > self._marks.floor.end:
            return False  # its bodies are to be checked
        try:
            data = await read_whole(self._fs, side_path(header.base_position))
        except FileNotFoundError:
            return False
        known = unpack_side(data, header, end)
        if known is None:
            return False
        segment, starts = known
        for index, term in starts:
            found.terms.note(index, term, segment.base_position + segment.start_of(index))
        found.segments.append(segment)
        found.last = end
        return True

    async def _end(self, at: int, result: Walk, beyond: Beyond) -> None:
        """The chain broke off in this segment: say what that means."""
        found = self._found
        assert result.bad is not None
        follower = await self._follower(at)
        verdict, detail = classify(
            last=found.last,
            beyond=beyond,
            partial=is_prefix(result.bad, beyond) if self._stayed_up else result.bad.partial,
            marks=self._marks,
            later_segment=follower is not None,
        )
        found.verdict, found.detail = verdict, detail
        if verdict is not Verdict.DAMAGED:
            found.cut = verdict in (Verdict.TORN, Verdict.SUSPECT)
            found.unused.extend(segment_path(base) for base in self._bases[at + 1 :])
            return
        first = found.last.index + 1
        detail = f"{detail} ({result.bad.reason})"
        if beyond.first is not None and beyond.first.index > first - 1:
            h = beyond.first
            found.damage = Damage(first, found.last.end, found.last, h.index, h.position, h.prev_crc, detail=detail)
        elif follower is not None:
            found.damage = Damage(
                first, found.last.end, found.last,
                follower.base_index, follower.base_position, follower.prev_crc, detail=detail,
            )  # fmt: skip
        else:
            found.damage = Damage(first, found.last.end, found.last, detail=detail)
        found.detail = detail

    async def _follower(self, at: int) -> SegmentHeader | None:
        """The segment behind this one if it was ever used."""
        if at + 1 == len(self._bases):
            return None
        header = self._blocks[at + 1][0]
        if header is not None:
            return header
        # Its header block is unreadable or was never written. Valid entries in it tell that it was used.
        base = self._bases[at + 1]
        guess = SegmentHeader(self._first.lineage, self._first.segment_bytes, 0, base, 0, 0)
        file = await self._fs.open(segment_path(base))
        try:
            first = (await look_beyond(file, guess, -1)).first
        finally:
            with trio.CancelScope(shield=True):
                await file.aclose()
        if first is None:
            return None
        return SegmentHeader(guess.lineage, guess.segment_bytes, first.index, first.position, 0, first.prev_crc)

    def _gap(self, detail: str) -> None:
        found = self._found
        found.verdict, found.detail = Verdict.DAMAGED, detail
        found.damage = Damage(found.last.index + 1, found.last.end, found.last, needs_install=True, detail=detail)
