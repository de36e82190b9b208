"""Every cell of flush × replication × fault keeps its promise, and those that may lose are seen to lose."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from broker.config import FlushDiskType, Strategy
from tests.drills.matrix import FOLLOWED, Blow, Cell, cells, run_cell

pytestmark = [pytest.mark.trio, pytest.mark.slow, pytest.mark.computes]


@pytest.mark.parametrize("cell", list(cells()), ids=lambda c: f"{c.strategy.value}-{c.flush.value}-{c.blow.name}")
async def test_a_cell_keeps_its_promise(autojump_clock: MockClock, cell: Cell) -> None:
    seen = await run_cell(cell)
    print(f"{cell}: {seen}")
    assert seen.acked >= FOLLOWED
    if not cell.may_lose:
        assert seen.lost == 0


async def test_the_matrix_can_see_a_loss(autojump_clock: MockClock) -> None:
    seen = await run_cell(Cell(FlushDiskType.SYNC_FLUSH, Strategy.ASYNC, Blow.MACHINE))
    assert seen.lost > 0
