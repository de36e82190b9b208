"""Configuration: RocketMQ's keys and files as they occur in the wild."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.config import BrokerRole, ConfigError, FlushDiskType, Strategy, parse_settings
from broker.config_file import load_config, read_properties, read_toml
from broker.wiring import store_config

# Same keys and values as the sample files that RocketMQ ships, written down here as facts.
SAMPLES = {
    "2m-noslave": (
        "brokerClusterName=DefaultCluster\nbrokerName=broker-a\nbrokerId=0\ndeleteWhen=04\nfileReservedTime=48\n"
        "brokerRole=ASYNC_MASTER\nflushDiskType=ASYNC_FLUSH\n"
    ),
    "2m-2s-async slave": (
        "brokerClusterName=DefaultCluster\nbrokerName=broker-a\nbrokerId=1\ndeleteWhen=04\nfileReservedTime=48\n"
        "brokerRole=SLAVE\nflushDiskType=ASYNC_FLUSH\n"
    ),
    "2m-2s-sync": (
        "brokerClusterName=DefaultCluster\nbrokerName=broker-b\nbrokerId=0\ndeleteWhen=04\nfileReservedTime=48\n"
        "brokerRole=SYNC_MASTER\nflushDiskType=ASYNC_FLUSH\n"
    ),
    "dledger": (
        "brokerClusterName = RaftCluster\nbrokerName=RaftNode00\nlistenPort=30911\nnamesrvAddr=127.0.0.1:9876\n"
        "storePathRootDir=/tmp/rmqstore/node00\nstorePathCommitLog=/tmp/rmqstore/node00/commitlog\n"
        "enableDLegerCommitLog=true\ndLegerGroup=RaftNode00\n"
        "dLegerPeers=n0-127.0.0.1:40911;n1-127.0.0.1:40912;n2-127.0.0.1:40913\n"
        "## must be unique\ndLegerSelfId=n0\nsendMessageThreadPoolNums=16\n"
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_files_of_rocketmq_parse_without_an_unknown_key(name: str, tmp_path: Path) -> None:
    path = tmp_path / "broker.conf"
    path.write_text(SAMPLES[name])
    loaded = load_config(path)
    assert not [notice for notice in loaded.notices if notice.startswith("unknown")]


def test_dledger_sample_means_raft(tmp_path: Path) -> None:
    config = parse_settings(read_properties(SAMPLES["dledger"])).config
    assert config.replication is Strategy.RAFT
    assert config.sync_flush
    assert [(peer.id, peer.address) for peer in config.peers][1] == ("n1", "127.0.0.1:40912")
    assert config.own_peer is not None
    assert config.own_peer.port == 40911
    assert config.namesrv == ("127.0.0.1:9876",)


def test_master_slave_samples_mean_their_roles() -> None:
    slave = parse_settings(read_properties(SAMPLES["2m-2s-async slave"])).config
    assert slave.broker_role is BrokerRole.SLAVE
    assert slave.replication is Strategy.ASYNC
    sync = parse_settings(read_properties(SAMPLES["2m-2s-sync"])).config
    assert sync.replication is Strategy.SYNC
    assert sync.flush_disk_type is FlushDiskType.ASYNC_FLUSH
    assert not sync.sync_flush


@pytest.mark.parametrize("key", ["mapedFileSizeCommitLog", "mappedFileSizeCommitLog"])
def test_both_spellings_of_the_segment_size_count(key: str) -> None:
    assert parse_settings({key: "67108864"}).config.segment_bytes == 64 << 20
    assert parse_settings({key: "64MiB"}).config.segment_bytes == 64 << 20


def test_a_key_we_do_not_have_is_reported_once_by_name() -> None:
    loaded = parse_settings({"brokerNmae": "x", "flushCommitLogLeastPages": "4", "mapedFileSizeConsumeQueue": "300000"})
    assert "unknown setting, ignored: brokerNmae" in loaded.notices
    assert sum("flushCommitLogLeastPages" in notice for notice in loaded.notices) == 1
    assert sum("mapedFileSizeConsumeQueue" in notice for notice in loaded.notices) == 1


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("listenPort", "70000", "0 to 65535"),
        ("flushDiskType", "SYNC", "SYNC_FLUSH or ASYNC_FLUSH"),
        ("autoCreateTopicEnable", "maybe", "true or false"),
        ("brokerPermission", "7", "6 (both)"),
        ("messageDelayLevel", "1s 5x", "1 to 64 delays"),
        ("dLegerPeers", "n0", "id-host:port"),
        ("namesrvAddr", "localhost", "host:port"),
        ("deleteWhen", "24", "00 to 23"),
    ],
)
def test_a_bad_value_names_key_value_and_allowed_range(key: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings({key: value})
    assert key in str(caught.value)
    assert value in str(caught.value)
    assert allowed in str(caught.value)


def test_peer_hosts_may_contain_hyphens_and_brackets() -> None:
    config = parse_settings(
        {"enableDLegerCommitLog": "true", "dLegerPeers": "n0-my-host-0:40911;n1-[::1]:40912", "dLegerSelfId": "n1"}
    ).config
    assert [(peer.host, peer.port) for peer in config.peers] == [("my-host-0", 40911), ("::1", 40912)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"enableDLegerCommitLog": "true"}, "dLegerPeers is missing"),
        ({"enableDLegerCommitLog": "true", "dLegerPeers": "n0-a:1", "dLegerSelfId": "n9"}, "dLegerSelfId"),
        (
            {"enableDLegerCommitLog": "true", "dLegerPeers": "n0-a:1", "dLegerSelfId": "n0", "dLegerGroup": "other"},
            "dLegerGroup",
        ),
        ({"brokerRole": "SLAVE"}, "brokerId above 0"),
        ({"aclEnable": "true"}, "access control is not built yet"),
        ({"enableControllerMode": "true"}, "controller mode"),
    ],
)
def test_settings_that_contradict_or_promise_too_much_stop_the_start(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_settings(settings)


def test_properties_syntax() -> None:
    assert read_properties("# c\n! c\n a = 1 \nb:2\nc 3\nd = x\\\n  y\ne=\\u0041\\:\n") == {
        "a": "1",
        "b": "2",
        "c": "3",
        "d": "xy",
        "e": "A:",
    }
    with pytest.raises(ConfigError, match="line 2"):
        read_properties("a=1\nbroken\n")


def test_toml_gives_the_same_keys() -> None:
    settings = read_toml('listenPort = 10911\nautoCreateTopicEnable = false\nnamesrvAddr = ["a:1", "b:2"]\n')
    config = parse_settings(settings).config
    assert config.listen_port == 10911
    assert not config.auto_create_topic
    assert config.namesrv == ("a:1", "b:2")
    with pytest.raises(ConfigError, match="without tables"):
        read_toml("[broker]\nx = 1\n")


def test_an_unreadable_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.conf: cannot be read"):
        load_config(tmp_path / "missing.conf")


def test_defaults_count_only_where_the_file_is_silent() -> None:
    config = parse_settings({"brokerName": "b"}, defaults={"brokerName": "host", "namesrvAddr": "ns:9876"}).config
    assert config.broker_name == "b"
    assert config.namesrv == ("ns:9876",)


def test_seconds_of_retention_count_at_any_hour_and_instead_of_hours() -> None:
    keys = {"fileReservedTime": "48", "deleteWhen": "04"}
    by_hours = store_config(parse_settings(keys).config).retention
    assert (by_hours.reserved_ms, by_hours.delete_hours) == (48 * 3_600_000, frozenset({4}))
    by_seconds = store_config(parse_settings({**keys, "fileReservedSeconds": "5"}).config).retention
    assert (by_seconds.reserved_ms, by_seconds.delete_hours) == (5_000, frozenset(range(24)))
