"""Producer sequences: what our own clients' sends are recognised by. A function of op 7.

Per producer (`pid`): epoch, next sequence, and the *runs* above the producer's floor: which sequences were stored
together and where. A producer's state is one immutable tuple, replaced whole: so the leader's overlay can share it and
a snapshot is a copy of one dict. The floor is in the op, so every replica prunes alike, and memory is what is in
flight. Above `PRODUCERS_MAX` producers the least recently used, in log order, goes.

Judging a request (`judge`) and advancing the state (`advance`) are pure functions, used by the leader before an entry
exists and by every replica when it is applied. Applying never judges: what is in the log counts.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "PRODUCERS_MAX",
    "RUNS_MAX",
    "ProducerState",
    "Producers",
    "Run",
    "Verdict",
    "advance",
    "find_run",
    "judge",
    "pack_positions",
    "unpack_positions",
]

PRODUCERS_MAX = 65_536
RUNS_MAX = 1_024
"""More runs above the floor than this are refused: our client has at most 64 unsettled requests."""


class Run(NamedTuple):
    """Sequences `first .. first + size` and the records they became, consecutive in one queue."""

    first: int
    size: int
    queue_id: int
    queue_offset: int
    """Of the first record."""
    position: int
    """Of the first record."""
    more: bytes = b""
    """Positions of the other records (`pack_positions`)."""


class ProducerState(NamedTuple):
    """One producer. Invariant: `floor <= next`, every run ends above `floor` and at or below `next`."""

    epoch: int
    next: int
    floor: int
    runs: tuple[Run, ...]
    """Ascending by `first`."""


UNKNOWN = ProducerState(0, 0, 0, ())


class Verdict(enum.Enum):
    """What a request's sequence says about it."""

    NEW = enum.auto()
    """The next one: store it."""
    DUPLICATE = enum.auto()
    """Stored before, under the same sequence and count."""
    STALE = enum.auto()
    """Below the next one and not remembered: the producer itself declared it settled."""
    EARLY = enum.auto()
    """Sequences before it are missing: resend in order."""


def judge(state: ProducerState | None, epoch: int, first: int, count: int, floor: int) -> tuple[Verdict, int]:
    """The verdict and the sequence that is expected next. An unknown producer's next counts as 0.

    A higher epoch starts afresh; a lower one is fenced off: stale.
    """
    if state is None or epoch > state.epoch:
        state = UNKNOWN
    elif epoch < state.epoch:
        return Verdict.STALE, state.next
    expected = state.next if state.next > floor else floor
    if first == expected:
        return Verdict.NEW, expected
    if first > expected:
        return Verdict.EARLY, expected
    if find_run(state, first, count) is not None:
        return Verdict.DUPLICATE, expected
    return Verdict.STALE, expected


def find_run(state: ProducerState, first: int, count: int) -> Run | None:
    """The run of exactly these sequences."""
    for run in state.runs:
        if run.first == first:
            return run if run.size == count else None
    return None


def advance(state: ProducerState | None, epoch: int, run: Run, floor: int) -> ProducerState:
    """The state after `run` was stored and everything below `floor` declared settled."""
    end = run.first + run.size
    if state is None or epoch > state.epoch:
        return ProducerState(epoch, end, floor if floor < end else end, (run,))
    if floor < state.floor:
        floor = state.floor
    runs = state.runs
    keep = 0
    for old in runs:
        if old[0] + old[1] > floor:
            break
        keep += 1
    return ProducerState(state.epoch, end, floor, (*runs[keep:], run))


def pack_positions(positions: Sequence[int]) -> bytes:
    """Positions behind the first one of a run, 8 bytes each."""
    return struct.pack(f">{len(positions)}Q", *positions) if positions else b""


def unpack_positions(run: Run) -> list[int]:
    """Positions of all records of a run."""
    return [run.position, *struct.unpack(f">{len(run.more) // 8}Q", run.more)]


class Producers:
    """pid → state, least recently used first."""

    __slots__ = ("_limit", "_states")

    def __init__(self, limit: int = PRODUCERS_MAX) -> None:
        self._states: dict[int, ProducerState] = {}
        self._limit = limit

    def __len__(self) -> int:
        return len(self._states)

    def get(self, pid: int) -> ProducerState | None:
        return self._states.get(pid)

    def apply(self, pid: int, epoch: int, run: Run, floor: int) -> None:
        """A run of the log."""
        states = self._states
        # Taken out and put back: the dict's order is the order of last use.
        states[pid] = advance(states.pop(pid, None), epoch, run, floor)
        if len(states) > self._limit:
            del states[next(iter(states))]

    def items(self) -> Mapping[int, ProducerState]:
        return self._states

    def flat(self) -> dict[str, Any]:
        return {"states": dict(self._states)}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "states": [
                [pid, state.epoch, state.next, state.floor, [list(run) for run in state.runs]]
                for pid, state in flat["states"].items()
            ]
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self._states = {
            pid: ProducerState(epoch, after, floor, tuple(Run(*run) for run in runs))
            for pid, epoch, after, floor, runs in data["states"]
        }
