"""Bugs planted into the running system, which the simulation has to find, each within 500 seeds.

From raft.md's list of what others got wrong, and from faults that tests of brokers must catch. Three kinds: a core that
decides wrongly (`core_type`, shared with the tests of the core), a world that lies (`prepare`), and product code with a
mistake in it (`patch`): driver, store, dispatch, intake, client. Each comes with the faults that give it a chance; the
load, the clocks and everything else are drawn as in any run.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import trio

import broker.replication.sends
import broker.store.recovery
import trimq.client.in_hand
import trimq.client.reader
from broker.metadata import producers
from broker.metadata.offsets import Offsets
from broker.metadata.producers import Producers
from broker.replication.answers import plain_ok
from broker.replication.base import Outcome, Replies
from broker.replication.base import Verdict as Fate
from broker.replication.leader_view import LeaderView
from broker.replication.offset_commits import OffsetCommits
from broker.replication.settling import Settling
from broker.replication.terms import Terms
from broker.replication.tickets import TicketTable
from broker.store.commit_log import CommitLog
from broker.store.dispatch import Dispatcher
from broker.store.fs_memory import _MemoryFile
from broker.store.message_store import MessageStore
from broker.store.recovery import Verdict
from raft.core import InvariantBroken, RaftCore
from raft.hard_state import SLOT_BYTES, HardStateFile, StateVerdict, StoredState, _encode
from tests.raft.core import planted as core_bugs
from tests.raft.core.checker import Violation
from tests.raft.core.fuzz import run_seed
from tests.sim.bug import SEEDS_MAX, Bug, find, replaced
from tests.sim.features.planted import FEATURE_BUGS
from tests.sim.plan import Plan
from tests.sim.world import World
from trimq.client.producer import Producer
from trimq.errors import NotStored
from trimq.sim.deterministic import HOST

__all__ = ["BUGS", "SEEDS_MAX", "Bug", "find", "print_table"]


def _lying_disks(world: World) -> None:
    """A sync succeeds and does nothing, as in a write cache without a battery."""
    for node in world.nodes:
        for disk in node.disks.values():
            disk.lying = True


# -- the driver and the store -----------------------------------------------------------------------------------------


def _unsynced_log() -> AbstractContextManager[None]:
    def make(original: Any) -> Any:
        async def append(self: CommitLog, entries: Any, *, sync: bool = True) -> None:
            await original(self, entries, sync=False)
            self.durable = self.last

        return append

    return replaced(CommitLog, "append", make)


def _unsynced_hard_state() -> AbstractContextManager[None]:
    def make(_: Any) -> Any:
        async def advance(self: HardStateFile, state: StoredState) -> None:
            self._sequence += 1
            block = _encode(self._sequence, state)
            await self._file.write(self._sequence % 2 * SLOT_BYTES, [block, block], sync=False)
            self.state, self.verdict = state, StateVerdict.FOUND

        return advance

    return replaced(HardStateFile, "_advance", make)


def _vote_not_stored() -> AbstractContextManager[None]:
    def make(original: Any) -> Any:
        async def save(self: HardStateFile, state: StoredState) -> None:
            await original(self, replace(state, vote=""))

        return save

    return replaced(HardStateFile, "save", make)


def _sync_error_ignored() -> AbstractContextManager[None]:
    def make(original: Any) -> Any:
        async def write(self: Any, at: int, parts: Any, *, sync: bool) -> None:
            try:
                await original(self, at, parts, sync=sync)
            except OSError as error:
                if "injected" not in str(error):
                    raise
                self._fault = 0  # "a later sync will do"

        return write

    return replaced(_MemoryFile, "write", make)


def _damage_is_cut_off() -> AbstractContextManager[None]:
    """Whatever is bad at the end is called a torn write and dropped."""

    def make(_: Any) -> Any:
        return lambda **_facts: (Verdict.TORN, "planted")

    return replaced(broker.store.recovery, "classify", make)


@contextmanager
def _retention_needs_nobody() -> Iterator[None]:
    """Segments go although no snapshot covers them."""

    def never(_: Any) -> Any:
        async def run_snapshots(self: MessageStore) -> None:
            await trio.sleep_forever()

        return run_snapshots

    def make(original: Any) -> Any:
        async def retain(self: MessageStore, *, removable: int | None = None) -> int:
            found: int = await original(self, removable=self.log.last.index)
            return found

        return retain

    with replaced(MessageStore, "retain", make), replaced(MessageStore, "run_snapshots", never):
        yield


def _failed_write_is_done() -> AbstractContextManager[None]:
    """The error of a write is logged, and the entry counts as written."""

    def make(original: Any) -> Any:
        async def write(self: Any, at: int, parts: Any, *, sync: bool) -> None:
            try:
                await original(self, at, parts, sync=sync)
            except OSError as error:
                if "injected: write" not in str(error):
                    raise
                self._fault = 0

        return write

    return replaced(_MemoryFile, "write", make)


# -- dispatch and applied state ---------------------------------------------------------------------------------------


def _dispatch_before_commit() -> AbstractContextManager[None]:
    def make(_: Any) -> Any:
        def allow(self: Settling, core: RaftCore) -> None:
            self._store.allow(core.durable)

        return allow

    return replaced(Settling, "allow_dispatch", make)


def _restart_skips_an_entry() -> AbstractContextManager[None]:
    """The snapshot is believed to hold one entry more than it does."""

    def make(original: Any) -> Any:
        def start_at(self: Dispatcher, index: int, end: int) -> None:
            following = self._log.entry_id(index + 1)
            if following is not None:
                index, end = index + 1, following.end
            original(self, index, end)

        return start_at

    return replaced(Dispatcher, "start_at", make)


def _leader_skips_its_own_offsets() -> AbstractContextManager[None]:
    """Consumer offsets are not applied on one node: "they were in its memory anyway"."""

    def make(original: Any) -> Any:
        def put(self: Offsets, gid: int, key: int, offset: int) -> None:
            if HOST.get() != "n0":
                original(self, gid, key, offset)

        return put

    return replaced(Offsets, "put", make)


def _snapshot_without_producers() -> AbstractContextManager[None]:
    """The table against duplicates is left out of snapshots."""

    def make(_: Any) -> Any:
        return lambda self, data: None

    return replaced(Producers, "restore", make)


# -- intake -----------------------------------------------------------------------------------------------------------


def _no_tail_scan() -> AbstractContextManager[None]:
    """A new leader counts queue offsets from what is dispatched and does not look at the log behind it."""

    def make(_: Any) -> Any:
        return lambda self, index, changes, heads, ids: None

    return replaced(LeaderView, "_take_in", make)


def _duplicates_not_looked_for() -> AbstractContextManager[None]:
    def make(_: Any) -> Any:
        return lambda state, epoch, first, count, floor: (producers.Verdict.NEW, first)

    return replaced(broker.replication.sends, "judge", make)


def _duplicate_answered_early() -> AbstractContextManager[None]:
    """A repetition of what is still in flight is acknowledged at once."""

    def make(_: Any) -> Any:
        def release_with(self: Any, position: int, answer: Any, frame: bytes) -> None:
            answer.reply.send(frame)

        return release_with

    return replaced(Terms, "release_with", make)


def _answered_when_proposed() -> AbstractContextManager[None]:
    def make(original: Any) -> Any:
        def add(self: TicketTable, ticket: Any, index: int, term: int, deadline: float) -> None:
            original(self, ticket, index, term, deadline)
            replies = Replies()
            self._terms[term].pop().settle(Outcome(Fate.OK), replies)
            replies.flush()

        return add

    return replaced(TicketTable, "add", make)


def _offsets_answered_unapplied() -> AbstractContextManager[None]:
    """A committed offset is told before it is in the log."""

    def make(original: Any) -> Any:
        def commit(self: Any, gid: int, key: int, offset: int, now_ms: int, **rest: Any) -> bool:
            answer = rest["answer"]
            taken: bool = original(self, gid, key, offset, now_ms, **{**rest, "answer": None})
            if answer is not None and not answer.oneway:
                answer.reply.send(plain_ok(answer))
            return taken

        return commit

    return replaced(OffsetCommits, "commit", make)


# -- the client library -----------------------------------------------------------------------------------------------


class _CalledFailed(NotStored):
    """What the library raises when nobody knows, in the clothes of "surely not stored"."""

    def __init__(self, text: str, *, id: str = "") -> None:
        super().__init__(text)


def _unknown_is_called_failed() -> AbstractContextManager[None]:
    return replaced(trimq.client.in_hand, "SendUnknown", lambda _: _CalledFailed)


def _reader_drops_the_last() -> AbstractContextManager[None]:
    """Of a large answer the last message is forgotten, and reading goes on behind it."""

    def make(original: Any) -> Any:
        def decode(*given: Any) -> Any:
            found = original(*given)
            return found[:-1] if len(found) > 3 else found

        return decode

    return replaced(trimq.client.reader, "decode_records", make)


def _repeats_with_new_numbers() -> AbstractContextManager[None]:
    """After a lost connection what was in flight is sent as if it were new, and nobody can tell."""

    def make(original: Any) -> Any:
        def init(self: Producer, *given: Any, **named: Any) -> None:
            original(self, *given, **{**named, "idempotent": False})

        return init

    return replaced(Producer, "__init__", make)


def _no_id_window(world: World) -> None:
    for node in world.nodes:
        made = node.config
        node.config = lambda group, made=made: replace(made(group), duplicate_window_s=0)  # type: ignore[method-assign,misc]


# -- plans that give a bug its chance ---------------------------------------------------------------------------------


def _old(plan: Plan) -> Plan:
    """Small segments, large messages, and everything goes after two seconds."""
    return replace(plan, segment_bytes=64 << 10, body_bytes=6000, retention_s=2, pause_s=0.3, bursts=(1, 4, 16))


def _dense(plan: Plan) -> Plan:
    """Many faults in a short time, on a cluster that gets up quickly."""
    return replace(_busy(plan), fault_every_s=0.4, groups=1, disk_ms=0.1, disk_jitter_ms=0.0)


def _busy(plan: Plan) -> Plan:
    return replace(plan, pause_s=0.3, bursts=(1, 4, 16), election_ms=400, beat_ms=100)


def _impatient(plan: Plan) -> Plan:
    return replace(_busy(plan), client_timeout_s=1.0)


CRASHES = ("kill", "power", "kill all", "power all")

BUGS: tuple[Bug, ...] = (
    Bug("disk: a sync does nothing", ("power all",), prepare=_lying_disks),
    Bug("core: counts itself before its sync", ("power all", "slow disk"), core_type=core_bugs.CountsItselfEarly),
    Bug("core: match is one too high", ("isolate", "kill", "power"), core_type=core_bugs.MatchOffByOne),
    Bug("core: acknowledges before the write", ("power all", "slow disk"), core_type=core_bugs.AcksBeforeTheWrite),
    Bug("core: grants before the write", ("kill", "slow disk"), core_type=core_bugs.GrantsBeforeTheWrite),
    Bug("driver: log written without a sync", ("kill",), patch=_unsynced_log),
    Bug("driver: hard state written without a sync", ("kill",), patch=_unsynced_hard_state),
    Bug("driver: the vote is not stored", ("kill",), patch=_vote_not_stored),
    Bug("driver: a failed sync is tried again later", ("sync error",), patch=_sync_error_ignored),
    Bug("store: damage is cut off as if torn", ("rot", "rot", "kill"), patch=_damage_is_cut_off, change=_dense),
    Bug("store: retention without a snapshot", ("kill",), patch=_retention_needs_nobody, change=_old, fault_s=12.0),
    Bug("store: a failed write counts as done", ("write error", "kill"), patch=_failed_write_is_done),
    Bug("dispatch: before the commit", ("isolate", "kill"), patch=_dispatch_before_commit),
    Bug("dispatch: a restart skips an entry", ("stop", "rolling"), patch=_restart_skips_an_entry),
    Bug("dispatch: a leader skips its own offsets", ("kill",), patch=_leader_skips_its_own_offsets),
    Bug("dispatch: producers missing in snapshots", ("stop",), patch=_snapshot_without_producers),
    Bug("intake: no scan of the tail", (*CRASHES, "isolate"), patch=_no_tail_scan, change=_busy),
    Bug("intake: duplicates are not looked for", ("kill", "resets"), patch=_duplicates_not_looked_for, change=_busy),
    Bug(
        "intake: a duplicate is answered early",
        ("resets", "isolate", "kill", "slow disk"),
        patch=_duplicate_answered_early,
        change=_busy,
    ),
    Bug(
        "intake: answered when proposed", ("power all", "isolate", "kill"), patch=_answered_when_proposed, change=_busy
    ),
    Bug("intake: offsets told unapplied", ("kill", "isolate", "power all"), patch=_offsets_answered_unapplied),
    Bug(
        "client: unknown is called failed",
        ("isolate", "kill majority"),
        patch=_unknown_is_called_failed,
        change=_impatient,
    ),
    Bug("client: a reader drops a message", ("kill",), patch=_reader_drops_the_last, change=_busy),
    Bug(
        "client: repeats with new numbers",
        ("resets", "kill"),
        patch=_repeats_with_new_numbers,
        prepare=_no_id_window,
        change=_busy,
    ),
    *FEATURE_BUGS,
)


def find_in_core(mutant: type[RaftCore], seeds: int = SEEDS_MAX) -> tuple[int, str]:
    """The same for a bug of the core alone, by random runs of pure cores (tests/raft/core/fuzz.py)."""
    focus = core_bugs.FOCUS.get(mutant, ())
    for seed in range(seeds):
        try:
            run_seed(seed, mutant, focus=focus)
        except (Violation, InvariantBroken) as error:
            return seed + 1, str(error)
    return seeds, ""


def _rows() -> list[tuple[str, Callable[[], tuple[int, str]]]]:
    cores = [(f"pure core: {mutant.__name__}", partial(find_in_core, mutant)) for mutant in core_bugs.PLANTED]
    return [*cores, *((bug.name, partial(find, bug)) for bug in BUGS)]


def _search(number: int) -> tuple[int, int, str, float]:
    begun = time.process_time()
    used, violation = _rows()[number][1]()
    return number, used, violation, time.process_time() - begun


def print_table(jobs: int = 1, only: str = "") -> int:
    """Look for all of them; status 1 when one was not found."""
    names = [name for name, _ in _rows()]
    wanted = [number for number, name in enumerate(names) if only in name]
    missed, total = 0, 0.0
    print(f"{'planted bug':45} {'seeds':>5} {'cpu s':>6}  found as")
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=4) as pool:
        for number, used, violation, seconds in pool.imap(_search, wanted):
            missed += not violation
            total += seconds
            print(f"{names[number]:45} {used:5} {seconds:6.1f}  {violation[:100] or 'NOT FOUND'}", flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} planted bugs found, each within {SEEDS_MAX} seeds")
    print(f"{total:.0f} s of one processor")
    return 1 if missed else 0
