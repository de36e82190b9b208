"""Old rot is found in the background; a stranger's folder is refused at the door."""

from __future__ import annotations

import pytest
import trio

from broker.store.commit_log import open_commit_log
from broker.store.errors import StoreRefused
from broker.store.identity import check_identity
from broker.store.scrub import scrub, scrub_once
from broker.store.segment import HEADER_BLOCK_BYTES
from tests.store.support import data, fill, memory, whole


@pytest.mark.trio
async def test_rot_in_an_old_segment_is_found_repaired_and_the_pass_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        entries = await fill(log, 300)
        for victim in (entries[4], entries[8]):
            fs.flip("commitlog/00000000000000000000", HEADER_BLOCK_BYTES + victim.position + 100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub, log)
            found = []
            for _ in range(2):
                while log.fault is None:  # noqa: ASYNC110  # virtual time
                    await trio.sleep(0.1)
                assert log.fault.damage is not None
                found.append(log.fault.damage.first_index)
                await log.repair(entries[found[-1] - 1 : found[-1]])
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        assert found == [5, 9]
        assert log.fault is None
        assert await scrub_once(log) == sum(map(len, data(entries)))
        assert data(await whole(log)) == data(entries)


@pytest.mark.trio
async def test_a_store_of_another_cluster_or_group_is_refused() -> None:
    fs = memory()
    await check_identity(fs, cluster="one", group="broker-a")
    await check_identity(fs, cluster="one", group="broker-a")
    with pytest.raises(StoreRefused, match="cluster 'one', the configuration says 'two'"):
        await check_identity(fs, cluster="two", group="broker-a")
    with pytest.raises(StoreRefused, match="group 'broker-a'"):
        await check_identity(fs, cluster="one", group="broker-b")
    fs.flip("identity", 6)
    await check_identity(fs, cluster="one", group="broker-a")


@pytest.mark.trio
async def test_a_newer_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = memory()
    with monkeypatch.context() as patch:
        patch.setattr("broker.store.identity.FORMAT", 2)
        await check_identity(fs, cluster="one", group="broker-a")
    with pytest.raises(StoreRefused, match="format 2"):
        await check_identity(fs, cluster="one", group="broker-a")
