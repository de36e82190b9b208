"""RocketMQ's keys that have no effect here, and those that must not be ignored.

Sample files and ten years of posts set keys that tune Java's thread pools, page cache and file layout. They start
unchanged: such a key is named once at start with the reason. A few promise something to the operator (access control,
TLS only, controller mode): starting without it would be worse than not starting, so those values stop the start.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["NO_EFFECT", "REFUSED"]

_POOL = "no thread pools here"
_LAYOUT = "the layout below storePathRootDir is fixed"
_FLUSH = "group commit decides when to flush"
_QUEUE = "consume queues share one index"
_MEMORY = "nothing is mapped into memory"
_LATER = "not built yet"
_LINKS = "the links between replicas tune themselves"

NO_EFFECT: Mapping[str, str] = {
    "enableAcl": "RocketMQ has no such key either; access control is aclEnable",
    "isolateLogEnable": "one log per process",
    "sendHeartbeatTimeoutMillis": "the registration is the heartbeat",
    "brokerHeartbeatTimeoutMillis": "the registration is the heartbeat",
    "controllerAddr": "there is no controller",
    "rocketmqHome": "no installation directory is needed",
    "storePathCommitLog": _LAYOUT,
    "storePathDLedgerCommitLog": _LAYOUT,
    "storePathConsumeQueue": _LAYOUT,
    "storePathIndex": _LAYOUT,
    "storePathEpochFile": _LAYOUT,
    "storeCheckpoint": _LAYOUT,
    "abortFile": _LAYOUT,
    "mappedFileSizeConsumeQueue": _QUEUE,
    "enableConsumeQueueExt": _QUEUE,
    "mappedFileSizeConsumeQueueExt": _QUEUE,
    "bitMapLengthConsumeQueueExt": _QUEUE,
    "flushIntervalCommitLog": _FLUSH,
    "flushIntervalConsumeQueue": _FLUSH,
    "flushCommitLogLeastPages": _FLUSH,
    "flushConsumeQueueLeastPages": _FLUSH,
    "flushLeastPagesWhenWarmMapedFile": _FLUSH,
    "flushCommitLogThoroughInterval": _FLUSH,
    "flushConsumeQueueThoroughInterval": _FLUSH,
    "flushCommitLogTimed": _FLUSH,
    "commitIntervalCommitLog": _FLUSH,
    "commitCommitLogLeastPages": _FLUSH,
    "commitCommitLogThoroughInterval": _FLUSH,
    "flushConsumerOffsetInterval": "offsets are in the log",
    "flushConsumerOffsetHistoryInterval": "offsets are in the log",
    "flushDelayOffsetInterval": "delay progress is in the log",
    "transientStorePoolEnable": _MEMORY,
    "transientStorePoolSize": _MEMORY,
    "fastFailIfNoBufferInStorePool": _MEMORY,
    "warmMapedFileEnable": _MEMORY,
    "destroyMapedFileIntervalForcibly": _MEMORY,
    "redeleteHangedFileInterval": _MEMORY,
    "deleteCommitLogFilesInterval": _MEMORY,
    "deleteConsumeQueueFilesInterval": _MEMORY,
    "osPageCacheBusyTimeOutMills": _MEMORY,
    "useReentrantLockWhenPutMessage": "one appender, no lock",
    "putThreadPoolQueueCapacity": _POOL,
    "sendMessageThreadPoolNums": _POOL,
    "putMessageFutureThreadPoolNums": _POOL,
    "pullMessageThreadPoolNums": _POOL,
    "litePullMessageThreadPoolNums": _POOL,
    "ackMessageThreadPoolNums": _POOL,
    "queryMessageThreadPoolNums": _POOL,
    "processReplyMessageThreadPoolNums": _POOL,
    "adminBrokerThreadPoolNums": _POOL,
    "clientManageThreadPoolNums": _POOL,
    "consumerManageThreadPoolNums": _POOL,
    "heartbeatThreadPoolNums": _POOL,
    "endTransactionThreadPoolNums": _POOL,
    "serverWorkerThreads": _POOL,
    "serverCallbackExecutorThreads": _POOL,
    "serverSelectorThreads": _POOL,
    "serverOnewaySemaphoreValue": _POOL,
    "serverAsyncSemaphoreValue": _POOL,
    "serverSocketSndBufSize": "the system sizes socket buffers",
    "serverSocketRcvBufSize": "the system sizes socket buffers",
    "serverPooledByteBufAllocatorEnable": _POOL,
    "useEpollNativeSelector": _POOL,
    "brokerFastFailureEnable": "requests are answered in the pass that reads them",
    "waitTimeMillsInSendQueue": "requests are answered in the pass that reads them",
    "waitTimeMillsInPullQueue": "requests are answered in the pass that reads them",
    "checkTransactionMessageEnable": "half messages are always checked",
    "timerPrecisionMs": "due times are kept to the millisecond",
    "timerInterceptDelayLevel": "delay levels are delivered by their own service",
    "filterSupportRetry": "a message that failed comes back whatever its filter says now",
    "enableCalcFilterBitMap": "conditions are evaluated when a consumer reads",
    "expectConsumerNumUseFilter": "conditions are evaluated when a consumer reads",
    "maxErrorRateOfBloomFilter": "conditions are evaluated when a consumer reads",
    "filterServerNums": "class filters are not supported",
    "filterDataCleanTimeSpan": "conditions are evaluated when a consumer reads",
    "fetchNamesrvAddrByDnsLookup": "set namesrvAddr",
    "fetchNameSrvAddrByDnsLookup": "set namesrvAddr",
    "useStaticNameserverAddr": "set namesrvAddr",
    "forceRegister": "a registration is always sent",
    "compressedRegister": "registrations are sent plain",
    "registerBrokerTimeoutMills": "a registration has 3 s",
    "brokerHeartbeatInterval": "the registration is the heartbeat",
    "brokerNotActiveTimeoutMillis": "the registration is the heartbeat",
    "enableSlaveActingMaster": "a slave serves reads and keeps offsets by itself; a Raft group elects its leader",
    "enableRemoteEscape": "a slave writes nothing that could escape",
    "haMasterAddress": "the name server tells a slave who its master is",
    "haMasterAddr": "the name server tells a slave who its master is",
    "haSendHeartbeatInterval": _LINKS,
    "haHousekeepingInterval": _LINKS,
    "haTransferBatchSize": _LINKS,
    "haFlowControlEnable": _LINKS,
    "maxHaTransferByteInSecond": _LINKS,
    "totalReplicas": "the log lists the replicas",
    "allAckInSyncStateSet": "consumers see what all replicas in sync hold; producers are told by inSyncReplicas",
    "syncFromLastFile": "a slave copies the whole log",
    "enableBatchPush": "entries are always sent in batches",
    "disableConsumeIfConsumerReadSlowly": _LATER,
    "consumerFallbehindThreshold": _LATER,
    "messageIndexEnable": "the key index is always kept: repeated sends are looked up in it",
    "diskSpaceWarningLevelRatio": "writes are refused when the disk is really full",
    "maxHashSlotNum": "the key index sizes itself",
    "maxIndexNum": "the key index sizes itself",
    "maxMsgsNumBatch": "a query returns what was asked for, at most 64",
    "traceOn": "message bodies and keys are never logged",
    "metricsExporterType": "metrics are served on listenPort+8",
    "metricsPromExporterPort": "metrics are served on listenPort+8",
    "metricsPromExporterHost": "metrics are served on bindAddress",
    "configBlackList": "no request writes configuration yet",
    "brokerConfigPath": "no request writes configuration yet",
    "startAcceptSendRequestTimeStamp": "admission opens when the replica is ready",
    "duplicationEnable": "the log is checked entry by entry",
    "offsetCheckInSlave": "a replica that does not lead never corrects offsets",
    "cleanResourceInterval": _MEMORY,
    "checkCRCOnRecover": "always on",
}
"""Key (in its newest spelling) → why it changes nothing."""

REFUSED: Mapping[str, tuple[frozenset[str], str]] = {
    "brokerConfigPaths": (
        frozenset(),
        "a container file is not needed: give each of these files to one process with -c",
    ),
    "messageStorePlugIn": (
        frozenset(),
        "store plug-ins (tiered storage) are not supported, and messages would not be where this file says",
    ),
    "enableControllerMode": (
        frozenset({"true"}),
        "controller mode is not supported; use enableDLegerCommitLog for failover",
    ),
    "aclEnable": (
        frozenset({"true"}),
        "access control is not built yet, and starting open would be worse than not starting",
    ),
    "authenticationEnabled": (
        frozenset({"true"}),
        "authentication is not built yet, and starting open would be worse than not starting",
    ),
    "authorizationEnabled": (
        frozenset({"true"}),
        "authorization is not built yet, and starting open would be worse than not starting",
    ),
    "useTLS": (
        frozenset({"true"}),
        "TLS is not built yet, and serving plain text instead would be worse than not starting",
    ),
    "tls.server.mode": (
        frozenset({"enforcing"}),
        "TLS is not built yet, and serving plain text instead would be worse than not starting",
    ),
}
"""Key → (values that stop the start, none: every value; why). Other values of the key have no effect."""
