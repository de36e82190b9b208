"""What is believed of a log, from stop to stop: only a leader's commit ends a doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from broker.replication.ha.rules import GroupRules
from broker.replication.ha.trust import Trust
from broker.store.boot import Belief
from broker.store.commit_log import CommitLog, Verdict
from broker.store.fs_memory import MemoryFileSystem
from tests.replication.small import memory_fs

pytestmark = pytest.mark.trio


@dataclass
class Log:
    verdict: Verdict


async def started(fs: MemoryFileSystem, boot: str, verdict: Verdict) -> tuple[Trust, GroupRules]:
    """A replica that starts in this life of the machine, its log found in this state."""
    rules = GroupRules()
    trust = Trust(fs, boot, rules)
    await trust.judge(cast("CommitLog", Log(verdict)))
    return trust, rules


async def test_a_process_that_dies_costs_nothing_a_machine_may() -> None:
    fs = memory_fs("trust")
    assert (await started(fs, "1", Verdict.UNFORMED))[0].whole
    assert (await started(fs, "1", Verdict.CRASH))[0].whole
    assert (await started(fs, "2", Verdict.NORMAL))[0].whole, "a clean stop has synced everything"
    assert (await started(fs, "3", Verdict.CRASH))[1].belief is Belief.DOUBTED
    assert (await started(fs, "", Verdict.CRASH))[1].belief is Belief.DOUBTED, "nobody knows"


async def test_doubt_stays_until_a_leader_ends_it() -> None:
    fs = memory_fs("trust")
    await started(fs, "1", Verdict.UNFORMED)
    await started(fs, "2", Verdict.CRASH)
    assert (await started(fs, "2", Verdict.CRASH))[1].belief is Belief.DOUBTED, "a restart brings nothing back"
    trust, rules = await started(fs, "2", Verdict.NORMAL)
    assert rules.belief is Belief.DOUBTED, "nor does a clean stop"
    await trust.prove()()
    assert trust.whole
    assert (await started(fs, "2", Verdict.CRASH))[0].whole


async def test_an_operators_word_is_remembered_as_one() -> None:
    fs = memory_fs("trust")
    trust, rules = await started(fs, "1", Verdict.UNFORMED)
    await trust.accept()
    assert rules.belief is Belief.ACCEPTED
    assert (await started(fs, "1", Verdict.CRASH))[1].belief is Belief.ACCEPTED
    assert (await started(fs, "2", Verdict.CRASH))[1].belief is Belief.DOUBTED, "it did not know of this stop"
