"""RocketMQ's sample files start unchanged or are refused by name; ours parse without a word.

Keys and values are written down as facts, file by file. `SAYS` is the table of docs/operations.md: what becomes of
every key that occurs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from broker.config import ConfigError, Strategy, parse_settings
from broker.config_file import load_config
from broker.runtime import open_broker
from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from tests.broker.cluster import until
from tests.broker.support import World

ROOT = Path(__file__).parents[2]
DAILY = {"brokerClusterName": "DefaultCluster", "deleteWhen": "04", "fileReservedTime": "48"}
ASYNC = {**DAILY, "brokerId": "0", "brokerRole": "ASYNC_MASTER", "flushDiskType": "ASYNC_FLUSH"}
SYNC = {**ASYNC, "brokerRole": "SYNC_MASTER"}
SLAVE = {**DAILY, "brokerId": "1", "brokerRole": "SLAVE", "flushDiskType": "ASYNC_FLUSH"}
CONTAINER = {
    "brokerClusterName": "DefaultCluster",
    "flushDiskType": "ASYNC_FLUSH",
    "storePathRootDir": "/var/lib/rocketmq/store",
    "storePathCommitLog": "/var/lib/rocketmq/store/commitlog",
    "listenPort": "10911",
    "haListenPort": "10912",
    "totalReplicas": "2",
    "inSyncReplicas": "2",
    "minInSyncReplicas": "1",
    "enableAutoInSyncReplicas": "true",
    "slaveReadEnable": "true",
    "brokerHeartbeatInterval": "1000",
    "brokerNotActiveTimeoutMillis": "5000",
    "sendHeartbeatTimeoutMillis": "1000",
    "enableSlaveActingMaster": "true",
    "isolateLogEnable": "true",
}


def dledger(node: int) -> dict[str, str]:
    return {
        "brokerClusterName": "RaftCluster",
        "brokerName": "RaftNode00",
        "listenPort": str(30911 + 10 * node),
        "namesrvAddr": "127.0.0.1:9876",
        "storePathRootDir": f"/tmp/rmqstore/node0{node}",
        "storePathCommitLog": f"/tmp/rmqstore/node0{node}/commitlog",
        "enableDLegerCommitLog": "true",
        "dLegerGroup": "RaftNode00",
        "dLegerPeers": "n0-127.0.0.1:40911;n1-127.0.0.1:40912;n2-127.0.0.1:40913",
        "dLegerSelfId": f"n{node}",
        "sendMessageThreadPoolNums": "16",
    }


STARTS: dict[str, Mapping[str, str]] = {
    "2m-noslave/broker-a": {**ASYNC, "brokerName": "broker-a"},
    "2m-noslave/broker-b": {**ASYNC, "brokerName": "broker-b"},
    "2m-noslave/broker-trace": {**ASYNC, "brokerName": "broker-trace", "autoTraceBrokerEnable": "true"},
    "2m-2s-async/broker-a": {**ASYNC, "brokerName": "broker-a"},
    "2m-2s-async/broker-a-s": {**SLAVE, "brokerName": "broker-a"},
    "2m-2s-async/broker-b": {**ASYNC, "brokerName": "broker-b"},
    "2m-2s-async/broker-b-s": {**SLAVE, "brokerName": "broker-b"},
    "2m-2s-sync/broker-a": {**SYNC, "brokerName": "broker-a"},
    "2m-2s-sync/broker-a-s": {**SLAVE, "brokerName": "broker-a"},
    "2m-2s-sync/broker-b": {**SYNC, "brokerName": "broker-b"},
    "2m-2s-sync/broker-b-s": {**SLAVE, "brokerName": "broker-b"},
    "broker.conf": {**ASYNC, "brokerName": "broker-a", "enableAcl": "true", "namesrvAddr": "127.0.0.1:9876"},
    "dledger/broker-n0": dledger(0),
    "dledger/broker-n1": dledger(1),
    "dledger/broker-n2": dledger(2),
    "container/broker-a-in-container1": {
        **CONTAINER, "brokerName": "broker-a", "brokerId": "0", "brokerRole": "SYNC_MASTER",
    },
    "container/broker-a-in-container2": {
        **CONTAINER, "brokerName": "broker-a", "brokerId": "1", "brokerRole": "SLAVE",
    },
}  # fmt: skip
POSTS = {
    "brokerClusterName": "rocketmq-cluster",
    "brokerName": "broker-a",
    "brokerId": "0",
    "namesrvAddr": "10.0.1.1:9876",
    "defaultTopicQueueNums": "4",
    "autoCreateTopicEnable": "true",
    "autoCreateSubscriptionGroup": "true",
    "listenPort": "10911",
    "deleteWhen": "04",
    "fileReservedTime": "120",
    "mapedFileSizeCommitLog": "1073741824",
    "mapedFileSizeConsumeQueue": "300000",
    "destroyMapedFileIntervalForcibly": "120000",
    "redeleteHangedFileInterval": "120000",
    "diskMaxUsedSpaceRatio": "88",
    "storePathRootDir": "/usr/local/rocketmq/store",
    "storePathCommitLog": "/usr/local/rocketmq/store/commitlog",
    "storePathConsumeQueue": "/usr/local/rocketmq/store/consumequeue",
    "storePathIndex": "/usr/local/rocketmq/store/index",
    "storeCheckpoint": "/usr/local/rocketmq/store/checkpoint",
    "abortFile": "/usr/local/rocketmq/store/abort",
    "maxMessageSize": "65536",
    "flushCommitLogLeastPages": "4",
    "flushConsumeQueueLeastPages": "2",
    "flushCommitLogThoroughInterval": "10000",
    "flushConsumeQueueThoroughInterval": "60000",
    "brokerRole": "ASYNC_MASTER",
    "flushDiskType": "ASYNC_FLUSH",
    "checkTransactionMessageEnable": "false",
    "sendMessageThreadPoolNums": "128",
    "pullMessageThreadPoolNums": "128",
}
"""What deployment posts carry on from the 3.x samples, old spellings and all."""
STARTS["posts/broker-a"] = POSTS
REFUSED: dict[str, tuple[Mapping[str, str], str]] = {
    "controller/quick-start/broker-n0": (
        {
            "brokerClusterName": "DefaultCluster",
            "brokerName": "broker-a",
            "brokerId": "-1",
            "brokerRole": "SLAVE",
            "enableControllerMode": "true",
            "controllerAddr": "127.0.0.1:9878",
            "allAckInSyncStateSet": "true",
            "listenPort": "30911",
        },
        "enableControllerMode = 'true': controller mode is not supported",
    ),
    "container/broker-container": (
        {"listenPort": "10811", "namesrvAddr": "127.0.0.1:9876", "brokerConfigPaths": "/a.conf:/b.conf"},
        "brokerConfigPaths = '/a.conf:/b.conf': a container file is not needed",
    ),
    "tieredstorage/brokerS3": (
        {**ASYNC, "brokerName": "broker-a", "messageStorePlugIn": "org.apache.rocketmq.tieredstore.TieredMessageStore"},
        "messageStorePlugIn = 'org.apache.rocketmq.tieredstore.TieredMessageStore': store plug-ins",
    ),
}
SAYS: dict[str, str] = {
    "storePathCommitLog": "the layout below storePathRootDir is fixed",
    "storePathConsumeQueue": "the layout below storePathRootDir is fixed",
    "storePathIndex": "the layout below storePathRootDir is fixed",
    "storeCheckpoint": "the layout below storePathRootDir is fixed",
    "abortFile": "the layout below storePathRootDir is fixed",
    "mapedFileSizeConsumeQueue": "consume queues share one index",
    "destroyMapedFileIntervalForcibly": "nothing is mapped into memory",
    "redeleteHangedFileInterval": "nothing is mapped into memory",
    "flushCommitLogLeastPages": "group commit decides when to flush",
    "flushConsumeQueueLeastPages": "group commit decides when to flush",
    "flushCommitLogThoroughInterval": "group commit decides when to flush",
    "flushConsumeQueueThoroughInterval": "group commit decides when to flush",
    "checkTransactionMessageEnable": "half messages are always checked",
    "sendMessageThreadPoolNums": "no thread pools here",
    "pullMessageThreadPoolNums": "no thread pools here",
    "enableAcl": "RocketMQ has no such key either; access control is aclEnable",
    "totalReplicas": "the log lists the replicas",
    "brokerHeartbeatInterval": "the registration is the heartbeat",
    "brokerNotActiveTimeoutMillis": "the registration is the heartbeat",
    "sendHeartbeatTimeoutMillis": "the registration is the heartbeat",
    "enableSlaveActingMaster": "a slave serves reads and keeps offsets by itself; a Raft group elects its leader",
    "isolateLogEnable": "one log per process",
}
"""Keys that are accepted and change nothing, and why; every other key of `STARTS` is taken."""


@pytest.mark.parametrize("name", STARTS)
def test_a_sample_is_taken_and_says_once_what_it_ignores(name: str) -> None:
    settings = STARTS[name]
    loaded = parse_settings(settings)
    named = [notice.removeprefix("no effect: ").partition(" (")[0].split(", ") for notice in loaded.notices]
    ignored = {key for keys in named for key in keys}
    assert ignored == {key for key in settings if key in SAYS}
    for key in ignored:
        (notice,) = [
            each for each in loaded.notices if key in each.removeprefix("no effect: ").replace(" (", ", ").split(", ")
        ]
        assert notice.startswith("no effect: ")
        assert SAYS[key] in notice


@pytest.mark.parametrize("name", REFUSED)
def test_a_sample_that_promises_what_we_do_not_do_is_refused_by_name(name: str) -> None:
    settings, why = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        parse_settings(settings)
    assert str(refused.value).startswith(why)


def test_the_table_in_the_documents_is_this_one() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for key, reason in SAYS.items():
        assert f"| `{key}` | ignored: {reason} |" in text
    for settings, why in REFUSED.values():
        key, _, reason = why.partition(" = ")
        assert f"| `{key}` | refused: " in text, settings
        assert reason


@pytest.mark.trio
@pytest.mark.parametrize(
    ("folder", "mode"), [("2m-2s-sync/", "sync"), ("2m-2s-async/", "async"), ("container/", "sync")]
)
async def test_masters_and_slaves_start_from_the_samples(autojump_clock: MockClock, folder: str, mode: str) -> None:
    world = World()
    files = [name for name in STARTS if name.startswith(folder)]
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_namesrv, NamesrvConfig(), world.at("10.0.1.1")))
        ready: list[tuple[str, ...]] = []

        async def machine(number: int, name: str) -> None:
            # What the process knows of itself: its address and NAMESRV_ADDR. Everything else is the file's.
            host = f"10.0.2.{number}"
            # A folder of its own, too: this world has one tree of files for all machines.
            own = {"namesrvAddr": "10.0.1.1:9876", "brokerIP1": host, "metricsPort": "-1"}
            config = parse_settings({**STARTS[name], "storePathRootDir": name}, defaults=own).config
            assert config.replication in (Strategy.SYNC, Strategy.ASYNC)
            async with open_broker([config], world.env(host)) as broker:
                await broker.wait_ready()
                replicator = broker.replicas[0].replicator
                await until(lambda: len(replicator.replicas.voters) == 2)
                ready.append((name, replicator.strategy))
                await trio.sleep_forever()

        for number, name in enumerate(files):
            nursery.start_soon(machine, number, name)
        await until(lambda: len(ready) == len(files))
        assert sorted(ready) == [(name, mode) for name in sorted(files)]
        nursery.cancel_scope.cancel()


ALONE = [
    name
    for name in STARTS
    if name.startswith(("2m-noslave/", "broker.conf", "posts/", "container/broker-a-in-container1"))
]


@pytest.mark.trio
@pytest.mark.parametrize("name", ALONE)
async def test_a_master_starts_from_its_sample(autojump_clock: MockClock, name: str) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_namesrv, NamesrvConfig(), world.at("10.0.1.1")))
        own = {"namesrvAddr": "10.0.1.1:9876", "brokerIP1": "10.0.2.1", "metricsPort": "-1"}
        # Only the name server of a sample that names one stands elsewhere here.
        settings = {key: value for key, value in STARTS[name].items() if key != "namesrvAddr"}
        async with open_broker([parse_settings(settings, defaults=own).config], world.env("10.0.2.1")) as broker:
            await broker.wait_ready()
            replicator = broker.replicas[0].replicator
            assert replicator.strategy == ("sync" if settings["brokerRole"] == "SYNC_MASTER" else "async")
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_three_dledger_samples_start_on_one_machine(autojump_clock: MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_namesrv, NamesrvConfig(), world.at("127.0.0.1")))
        ready: list[str] = []

        async def process(name: str) -> None:
            config = parse_settings(STARTS[name], defaults={"metricsPort": "-1", "webSocketEnable": "false"}).config
            async with open_broker([config], world.env("127.0.0.1")) as broker:
                replicator = broker.replicas[0].replicator
                await until(lambda: replicator.leader.leader_id)
                ready.append(replicator.strategy)
                await trio.sleep_forever()

        for name in STARTS:
            if name.startswith("dledger/"):
                nursery.start_soon(process, name)
        await until(lambda: len(ready) == 3)
        assert ready == ["raft"] * 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "conf").rglob("*.conf")), ids=lambda path: path.stem)
def test_our_own_samples_are_taken_without_a_word(path: Path) -> None:
    assert load_config(path).notices == ()
