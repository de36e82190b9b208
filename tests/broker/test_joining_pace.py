"""A replica that finds no master asks the name servers less and less often."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.config import Strategy
from broker.service.joining import Joining
from tests.broker.cluster import in_sync, open_master_slave, until

pytestmark = pytest.mark.trio


async def test_a_slave_without_a_master_asks_ever_less_often_and_joins_soon_all_the_same(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    look = Joining._look

    async def counted(self: Joining) -> None:
        asked.append(trio.current_time())
        await look(self)

    monkeypatch.setattr(Joining, "_look", counted)
    async with open_master_slave(Strategy.SYNC, slaves=1) as cluster:
        master, _slave = cluster.nodes
        await master.kill()
        await trio.sleep(63)
        del asked[:]
        await trio.sleep(60)
        assert 25 <= len(asked) <= 35, "every two seconds by now"
        await master.start()
        back = trio.current_time()
        await until(lambda: len(in_sync(cluster)) == 2)
        assert trio.current_time() - back < 3
