"""The configuration of one replica: RocketMQ's own keys in a frozen dataclass.

One `-c` file is one replica of one group. Fields are snake case; each names the key that sets it, its older spellings,
how its text is read and what is allowed. A bad value stops the start with key, value and allowed range; a key we do not
have is reported once, by name; keys of RocketMQ's that mean nothing here are accepted with a reason
(`broker.config_known`). Reading files is `broker.config_file`'s part.

Defaults are RocketMQ's unless the field says otherwise. Our own keys are few: `replicationStrategy`,
`raftHeartbeatMs`, `raftElectionMs`, `raftUnsafeAsyncFlush`, `duplicateWindowSeconds`, `fileReservedSeconds`,
`metricsPort`, `maxFrameSize`, `adminAllowFrom`, `webSocketEnable`, `webSocketAllowedOrigins`, `vipChannelEnable`,
`timerRollSeconds`.
"""

# `_key` wraps `dataclasses.field`, and its defaults are immutable:
# ruff: noqa: RUF009

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

from broker import config_values as values
from broker.config_known import NO_EFFECT, REFUSED
from broker.config_values import DEFAULT_DELAY_LEVELS, ConfigError, Parser, Peer
from trimq.remoting.address_page import page_of

__all__ = ["BrokerConfig", "BrokerRole", "ConfigError", "FlushDiskType", "Loaded", "Peer", "Strategy", "parse_settings"]


class BrokerRole(StrEnum):
    ASYNC_MASTER = "ASYNC_MASTER"
    SYNC_MASTER = "SYNC_MASTER"
    SLAVE = "SLAVE"


class FlushDiskType(StrEnum):
    SYNC_FLUSH = "SYNC_FLUSH"
    ASYNC_FLUSH = "ASYNC_FLUSH"


class Strategy(StrEnum):
    """How the log is replicated. `auto` follows enableDLegerCommitLog and brokerRole."""

    AUTO = "auto"
    RAFT = "raft"
    SYNC = "sync"
    ASYNC = "async"
    LOCAL = "local"


_BROKER_ID_MAX = 255
"""It is the low byte of the epochs that a replica may open."""
_MIB = 1 << 20
_GIB = 1 << 30


def _key(name: str, parser: Parser, default: Any, *older: str) -> Any:
    """A field set by the key `name`; `older` are other spellings in the wild. (Any: as `dataclasses.field` does.)"""
    return field(default=default, metadata={"key": name, "parser": parser, "older": older})


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Everything one replica needs to know. Build it with `parse_settings` or, in code, by keyword."""

    # --- who this is
    cluster_name: str = _key(
        "brokerClusterName",
        values.text(r"[\w.%-]{1,127}", "a name of up to 127 letters, digits, . _ -"),
        "DefaultCluster",
    )
    broker_name: str = _key(
        "brokerName", values.text(r"[\w.%-]{1,127}", "a name of up to 127 letters, digits, . _ -"), "broker-a"
    )
    broker_id: int = _key("brokerId", values.integer(0, 1 << 31), 0)
    """Master-slave only: 0 is the master. Under Raft ids follow from the sorted voters."""
    broker_role: BrokerRole = _key("brokerRole", values.choice(BrokerRole), BrokerRole.ASYNC_MASTER)
    flush_disk_type: FlushDiskType = _key("flushDiskType", values.choice(FlushDiskType), FlushDiskType.ASYNC_FLUSH)

    # --- where it listens and what it tells others
    namesrv: tuple[str, ...] = _key("namesrvAddr", values.address_list(), ())
    fetch_namesrv: bool = _key("fetchNamesrvAddrByAddressServer", values.boolean(), False)
    """Without namesrvAddr: name servers come from the page http://rmqAddressServerDomain:8080/rocketmq/nsaddr."""
    address_server: str = _key("rmqAddressServerDomain", values.text(r"[\w.:-]*", "a host, or host:port"), "")
    address_group: str = _key("rmqAddressServerSubGroup", values.text(r"[\w.-]{1,64}", "a name"), "nsaddr")
    listen_port: int = _key("listenPort", values.integer(0, 65535), 10911)
    """0 picks a free port (tests, standalone)."""
    bind_address: str = _key("bindAddress", values.text(r"[\w.:%-]*", "an address to listen on"), "0.0.0.0")  # noqa: S104 (a server)
    broker_ip: str = _key("brokerIP1", values.text(r"[\w.:%-]*", "an address that clients can reach"), "")
    """What clients are told. Empty: the address by which this host reaches its name server."""
    ha_listen_port: int = _key("haListenPort", values.integer(0, 65535), 0)
    """Where the replicas of a master-slave group reach this one. 0: listenPort + 1."""
    ha_ip: str = _key("brokerIP2", values.text(r"[\w.:%-]*", "an address that the other replicas can reach"), "")
    """What the other replicas are told. Empty: brokerIP1."""
    metrics_port: int = _key("metricsPort", values.integer(-1, 65535), 0)
    """HTTP /health and /metrics. 0: listenPort + 8; -1: none."""
    web_socket: bool = _key("webSocketEnable", values.boolean(), True)
    """The WebSocket gateway on listenPort + 4: a fixed distance, since clients find it from the address in a route."""
    web_socket_origins: tuple[str, ...] = _key("webSocketAllowedOrigins", values.origins(), ())
    """Web pages that may connect, besides those that this very address serves."""
    vip_channel: bool = _key("vipChannelEnable", values.boolean(), False)
    """Also listen on listenPort - 2, where Java clients with their VIP channel on send everything but pulls."""
    register_period_s: float = _key("registerNameServerPeriod", values.integer(10_000, 60_000, unit="ms"), 30.0)

    # --- the store
    store_dir: str = _key("storePathRootDir", values.text(), "~/store")
    segment_bytes: int = _key(
        "mappedFileSizeCommitLog",
        values.integer(8 * _MIB, 4 * _GIB, unit="bytes", sizes=True),
        _GIB,
        "mapedFileSizeCommitLog",
    )
    """Counts when the group is formed, never after."""
    reserved_hours: int = _key("fileReservedTime", values.integer(1, 24 * 366 * 10, unit="hours"), 72)
    reserved_s: int = _key("fileReservedSeconds", values.integer(0, 366 * 86_400, unit="seconds"), 0)
    """Above 0: messages are kept so long and go at any hour, whatever fileReservedTime and deleteWhen say."""
    delete_when: tuple[int, ...] = _key("deleteWhen", values.hours(), (4,))
    disk_used_ratio: int = _key("diskMaxUsedSpaceRatio", values.integer(10, 95, unit="percent"), 75)
    disk_clean_ratio: int = _key("diskSpaceCleanForciblyRatio", values.integer(30, 99, unit="percent"), 85)
    clean_forcibly: bool = _key("cleanFileForciblyEnable", values.boolean(), True)

    # --- topics and consumer groups
    default_topic_queues: int = _key("defaultTopicQueueNums", values.integer(1, 65_535), 8)
    auto_create_topic: bool = _key("autoCreateTopicEnable", values.boolean(), True)
    auto_create_group: bool = _key("autoCreateSubscriptionGroup", values.boolean(), True)
    cluster_topic: bool = _key("clusterTopicEnable", values.boolean(), True)
    broker_topic: bool = _key("brokerTopicEnable", values.boolean(), True)
    trace_topic: bool = _key("traceTopicEnable", values.boolean(), False, "autoTraceBrokerEnable")
    trace_topic_name: str = _key(
        "msgTraceTopicName", values.text(r"[%|\w-]{1,127}", "a topic name"), "RMQ_SYS_TRACE_TOPIC"
    )
    permission: int = _key("brokerPermission", values.permission(), 6)
    admin_allow: tuple[str, ...] = _key("adminAllowFrom", values.networks(), ())
    """Hosts and networks, besides this machine, that may change configuration or destroy data by request."""
    region_id: str = _key(
        "regionId", values.text(r"[\w.-]{1,64}", "a name of up to 64 letters, digits, . _ -"), "DefaultRegion"
    )
    delay_levels_ms: tuple[int, ...] = _key(
        "messageDelayLevel",
        values.delay_levels(),
        values.delay_levels().parse("messageDelayLevel", DEFAULT_DELAY_LEVELS),
    )
    """Index 0 is level 1."""
    strict_subscription: bool = _key("strictSubscription", values.boolean(), False)
    """Refuse a consumer that subscribes differently than the rest of its group, or whose client id is in use."""
    server_side_reset: bool = _key("useServerSideResetOffset", values.boolean(), True)
    """False: every member of a consumer group is told of a reset (220), and one that has no member is refused."""
    store_reply: bool = _key("storeReplyMessageEnable", values.boolean(), True)
    """Whether a reply is stored after it was handed to the client that waits for it."""
    property_filter: bool = _key("enablePropertyFilter", values.boolean(), True)
    """Whether SQL92 subscriptions are taken. On, unlike in RocketMQ: what one may cost is bounded here."""
    notify_ids_changed: bool = _key("notifyConsumerIdsChangedEnable", values.boolean(), True)

    # --- transactions
    reject_transactions: bool = _key("rejectTransactionMessage", values.boolean(), False)
    transaction_timeout_ms: int = _key("transactionTimeOut", values.integer(100, 86_400_000, unit="ms"), 6_000)
    """Age at which the producer of a half message is asked for the first time."""
    transaction_check_interval_ms: int = _key(
        "transactionCheckInterval", values.integer(100, 86_400_000, unit="ms"), 30_000
    )
    transaction_check_max: int = _key("transactionCheckMax", values.integer(1, 10_000), 15)
    """Checks without an answer that decides, then the half message is given up."""

    # --- any-time delay
    timers: bool = _key("timerWheelEnable", values.boolean(), True)
    timer_max_delay_s: int = _key(
        "timerMaxDelaySec", values.integer(1, 100 * 366 * 86_400, unit="seconds"), 157_680_000
    )
    """Five years. (RocketMQ: three days.)"""
    timer_roll_s: int = _key("timerRollSeconds", values.integer(1, 150_000, unit="seconds"), 129_600)
    """A message that is due later than this is appended anew so often. Counts for the life of the group's log."""
    recall: bool = _key("recallMessageEnable", values.boolean(), True)

    # --- limits
    max_message_bytes: int = _key("maxMessageSize", values.integer(1, 4 * _MIB, unit="bytes", sizes=True), 4 * _MIB)
    long_polling: bool = _key("longPollingEnable", values.boolean(), True)
    short_polling_ms: int = _key("shortPollingTimeMills", values.integer(1, 60_000, unit="ms"), 1_000)
    hot_bytes: int = _key(
        "maxTransferBytesOnMessageInMemory", values.integer(1024, 8 * _MIB, unit="bytes", sizes=True), 256 << 10
    )
    hot_count: int = _key("maxTransferCountOnMessageInMemory", values.integer(1, 1024), 32)
    cold_bytes: int = _key(
        "maxTransferBytesOnMessageInDisk", values.integer(1024, 8 * _MIB, unit="bytes", sizes=True), 256 << 10
    )
    cold_count: int = _key("maxTransferCountOnMessageInDisk", values.integer(1, 1024), 32)
    """RocketMQ's 64 KiB and 8 are of the time of turning disks; here a read brings a whole entry in any case."""
    lane_queue: int = _key("sendThreadPoolQueueCapacity", values.integer(16, 1_000_000), 10_000)
    """Requests that may wait in one slow lane before SYSTEM_BUSY."""
    held_pulls_max: int = _key("pullThreadPoolQueueCapacity", values.integer(16, 10_000_000), 100_000)
    max_frame_bytes: int = _key("maxFrameSize", values.integer(1 << 16, 16 * _MIB, unit="bytes", sizes=True), 16 * _MIB)

    # --- master-slave
    in_sync_replicas: int = _key("inSyncReplicas", values.integer(1, 255), 2)
    """SYNC_MASTER: replicas, the master included, that hold a message before it is acknowledged. (5.x ships 1, with
    which SYNC_MASTER would wait for nobody; 4.9 knows no such key and waits for one slave.)"""
    min_in_sync_replicas: int = _key("minInSyncReplicas", values.integer(1, 255), 1)
    auto_in_sync: bool = _key("enableAutoInSyncReplicas", values.boolean(), False)
    slave_timeout_s: float = _key("slaveTimeout", values.integer(1, 600_000, unit="ms"), 3.0)
    flush_timeout_s: float = _key("syncFlushTimeout", values.integer(1, 600_000, unit="ms"), 5.0)
    gap_bytes: int = _key(
        "haMaxGapNotInSync",
        values.integer(1024, 64 * _GIB, unit="bytes", sizes=True),
        256 * _MIB,
        "haSlaveFallbehindMax",
    )

    slave_read: bool = _key("slaveReadEnable", values.boolean(), False)
    """Consumers that are far behind are sent to a replica that does not lead."""
    memory_ratio: int = _key("accessMessageInMemoryMaxRatio", values.integer(1, 100, unit="percent"), 40)
    """Far behind: by more than so much of the machine's memory."""

    # --- replication
    strategy: Strategy = _key("replicationStrategy", values.choice(Strategy), Strategy.AUTO)
    dleger: bool = _key("enableDLegerCommitLog", values.boolean(), False, "enableDLedgerCommitLog")
    peers: tuple[Peer, ...] = _key("dLegerPeers", values.peers(), (), "dLedgerPeers")
    self_id: str = _key("dLegerSelfId", values.text(r"[\w.]*", "one of the ids in dLegerPeers"), "", "dLedgerSelfId")
    dleger_group: str = _key("dLegerGroup", values.text(r"[\w.%-]{0,127}", "the brokerName"), "", "dLedgerGroup")
    preferred_leader: str = _key(
        "preferredLeaderId", values.text(r"[\w.]*", "one of the ids in dLegerPeers"), "", "preferredLeaderIds"
    )
    heartbeat_ms: int = _key("raftHeartbeatMs", values.integer(10, 10_000, unit="ms"), 100)
    election_ms: int = _key("raftElectionMs", values.integer(40, 60_000, unit="ms"), 400)
    unsafe_async_flush: bool = _key("raftUnsafeAsyncFlush", values.boolean(), False)
    """Raft acknowledges before the disk has it: loses acknowledged messages when power fails. For comparison only."""
    duplicate_window_s: int = _key("duplicateWindowSeconds", values.integer(0, 3600, unit="seconds"), 30)
    """How long a foreign client's message id is remembered; 0 turns the check off."""

    @property
    def replication(self) -> Strategy:
        """The strategy that the keys ask for: never `auto`."""
        if self.strategy is not Strategy.AUTO:
            return self.strategy
        if self.dleger:
            return Strategy.RAFT
        return Strategy.SYNC if self.broker_role is BrokerRole.SYNC_MASTER else Strategy.ASYNC

    @property
    def master_slave(self) -> bool:
        """Is a group that is formed here replicated from a master to slaves (of which there may be none)?"""
        return self.replication in (Strategy.SYNC, Strategy.ASYNC)

    @property
    def sync_flush(self) -> bool:
        """Whether an acknowledgement waits for this replica's own disk."""
        if self.replication is Strategy.RAFT:
            return not self.unsafe_async_flush
        return self.flush_disk_type is FlushDiskType.SYNC_FLUSH

    @property
    def own_peer(self) -> Peer | None:
        return next((peer for peer in self.peers if peer.id == self.self_id), None)

    @property
    def node_id(self) -> str:
        """The name of this replica within its group."""
        return self.self_id or f"n{self.broker_id}"

    @property
    def address_page(self) -> str:
        """The page that names the name servers; empty when they are configured, or nobody is to be asked."""
        return page_of(self.address_server, self.address_group) if self.fetch_namesrv and not self.namesrv else ""

    def check(self) -> Self:
        """Return self, or raise `ConfigError` where two settings contradict each other."""
        if self.replication is Strategy.RAFT:
            self._check_raft()
        if self.master_slave:
            self._check_master_slave()
        if self.disk_clean_ratio < self.disk_used_ratio:
            raise ConfigError(
                f"diskSpaceCleanForciblyRatio = {self.disk_clean_ratio}: allowed is diskMaxUsedSpaceRatio"
                f" ({self.disk_used_ratio}) or more"
            )
        if self.segment_bytes % 4096:
            raise ConfigError(f"mappedFileSizeCommitLog = {self.segment_bytes}: allowed is a multiple of 4096")
        if self.fetch_namesrv and not self.namesrv and not self.address_server:
            raise ConfigError("fetchNamesrvAddrByAddressServer = 'true': needs rmqAddressServerDomain (or namesrvAddr)")
        if self.listen_port == 1:
            raise ConfigError("listenPort = 1: allowed is 0, or a port from 3")
        return self

    def _check_master_slave(self) -> None:
        if self.broker_role is BrokerRole.SLAVE and self.broker_id == 0:
            raise ConfigError("brokerRole = 'SLAVE': needs brokerId above 0")
        if self.broker_role is not BrokerRole.SLAVE and self.broker_id:
            raise ConfigError(
                f"brokerId = {self.broker_id}: allowed is 0 for brokerRole {self.broker_role.value}; above 0 is a SLAVE"
            )
        if self.broker_id > _BROKER_ID_MAX:
            raise ConfigError(f"brokerId = {self.broker_id}: allowed is a whole number from 0 to {_BROKER_ID_MAX}")
        if self.min_in_sync_replicas > self.in_sync_replicas:
            raise ConfigError(
                f"minInSyncReplicas = {self.min_in_sync_replicas}: allowed is at most inSyncReplicas"
                f" ({self.in_sync_replicas})"
            )

    def _check_raft(self) -> None:
        ids = [peer.id for peer in self.peers]
        if not ids:
            raise ConfigError(
                "dLegerPeers is missing: Raft needs it, for example n0-10.0.0.1:40911;n1-10.0.0.2:40911;..."
            )
        if self.self_id not in ids:
            raise ConfigError(
                f"dLegerSelfId = {self.self_id!r}: allowed is one of the ids in dLegerPeers: {', '.join(ids)}"
            )
        if self.preferred_leader and self.preferred_leader not in ids:
            raise ConfigError(
                f"preferredLeaderId = {self.preferred_leader!r}: allowed is one of the ids in dLegerPeers:"
                f" {', '.join(ids)}"
            )
        if self.dleger_group and self.dleger_group != self.broker_name:
            raise ConfigError(f"dLegerGroup = {self.dleger_group!r}: allowed is the brokerName, {self.broker_name!r}")
        if self.heartbeat_ms * 4 > self.election_ms:
            raise ConfigError(
                f"raftHeartbeatMs = {self.heartbeat_ms}: allowed is at most a quarter of raftElectionMs"
                f" ({self.election_ms})"
            )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and what its operator should be told once."""

    config: BrokerConfig
    notices: tuple[str, ...] = ()


def _spellings() -> dict[str, tuple[str, Parser, str]]:
    table: dict[str, tuple[str, Parser, str]] = {}
    for each in fields(BrokerConfig):
        for spelling in (each.metadata["key"], *each.metadata["older"]):
            table[spelling] = (each.name, each.metadata["parser"], each.metadata["key"])
    return table


_SPELLINGS = _spellings()
_OLDER = {
    "mapedFile": "mappedFile",
    "isEnableBatchPush": "enableBatchPush",
}


def parse_settings(settings: Mapping[str, str], *, defaults: Mapping[str, str] | None = None) -> Loaded:
    """Turn keys and texts into a checked configuration.

    `defaults` are keys that count only when `settings` leaves them out (the process knows host name and environment;
    nothing here reads them). Raises `ConfigError` for the first bad value.
    """
    found: dict[str, Any] = {}  # Any: values of every field type
    unknown: list[str] = []
    idle: dict[str, list[str]] = {}
    for key, value in settings.items():  # first of all: what must not be ignored explains the rest of such a file
        stopping, why = REFUSED.get(key, (frozenset[str](), ""))
        if why and value.strip() and (value.strip().lower() in stopping or not stopping):
            raise ConfigError(f"{key} = {value!r}: {why}")
    for key, value in {**(defaults or {}), **settings}.items():
        spec = _SPELLINGS.get(key)
        if spec is not None:
            name, parser, _ = spec
            found[name] = parser.parse(key, value)
        elif key in REFUSED:
            continue
        elif (reason := NO_EFFECT.get(_newest(key))) is not None:
            idle.setdefault(reason, []).append(key)
        else:
            unknown.append(key)
    for name in ("register_period_s", "slave_timeout_s", "flush_timeout_s"):
        if name in found:
            found[name] = found[name] / 1000
    if "disk_used_ratio" in found:  # alone in a file it moves the limit above it along, which RocketMQ does not compare
        found.setdefault("disk_clean_ratio", max(BrokerConfig().disk_clean_ratio, found["disk_used_ratio"]))
    notices = [f"unknown setting, ignored: {key}" for key in unknown]
    notices += [f"no effect: {', '.join(keys)} ({reason})" for reason, keys in idle.items()]
    return Loaded(replace(BrokerConfig(), **found).check(), tuple(notices))


def _newest(key: str) -> str:
    for old, new in _OLDER.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
