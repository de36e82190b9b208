"""By processes: a tail that was given up is served by nobody and gone from the log, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.drills.slaves import TAIL, give_up_a_tail, master_and_slaves

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("strategy", ["sync", "async"])
def test_an_old_master_gives_up_its_tail_and_serves_none_of_it(tmp_path: Path, strategy: str) -> None:
    with master_and_slaves(tmp_path, strategy, nodes=2) as cluster:
        seen = trio.run(give_up_a_tail, cluster)
    print(seen)
    assert seen.reopened, "it had dispatched what it gave up"
    assert seen.tail_acked == (TAIL if strategy == "async" else 0)
    assert seen.looks > 0
    assert seen.served == 0
    assert seen.lost == 0
    assert seen.compared_bytes > 0
