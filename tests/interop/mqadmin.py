"""Every command of mqadmin, what it is asked here, and what its answer must say.

`works`: the answer is right, and `says` (a pattern) is part of it. `differs`: it works, but not as on RocketMQ; `why`
tells the difference. `refused`: the command ends with a clear error, whose words `says` gives. Words in braces are
filled in by the test: topic, group, addresses and ids of a real cluster with a real consumer and producer. Patterns are
looked for line by line (MULTILINE), whatever the case of letters.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COMMANDS", "DIFFERS", "REFUSED", "TOOL_ONLY", "WORKS", "Command"]

WORKS = "works"
DIFFERS = "differs"
REFUSED = "refused"
TOOL_ONLY = "asks no server"


@dataclass(frozen=True, slots=True)
class Command:
    """One command line."""

    line: str
    says: str
    verdict: str = WORKS
    why: str = ""
    endless: bool = False
    """It prints for ever; what it printed in a few seconds is looked at."""
    only: str = ""
    """A module, if the versions differ."""
    again: bool = False
    """In a process of its own: the tool keeps a closed client from the first time (an operator never sees that)."""

    @property
    def name(self) -> str:
        return self.line.split()[0]


_NO_CONTROLLER = "there is no controller: each Raft group elects its leader (`run3.sh status`, `haStatus`)"
_ACL1 = "access control of 4.x is not supported"
_ACL2 = "accounts are not built yet"
_COLD = "there is no page cache to protect from cold reads"
_CONTAINER = "a process hosts the groups it was started with"

COMMANDS: tuple[Command, ...] = (
    # topics
    Command(
        "updateTopic -c {c} -t made -r 3 -w 3",
        r"create topic to \S+ success[\s\S]*TopicConfig \[topicName=made, readQueueNums=3",
    ),
    Command("updateTopic -b {b} -t made-too -r 2 -w 2", r"create topic to \S+ success"),
    Command("updateTopicList -c {c} -f {dir}/topics.json", r"submit batch of topic config to", only="client5"),
    Command("updateTopicPerm -c {c} -t made -p 4", r"update topic perm from 6 to 4"),
    Command("topicList", r"^{t}$"),
    Command("topicList -c", r"DefaultCluster\s+{t}\s+{g}"),
    Command("topicRoute -t {t}", r"\"brokerName\":\"broker-c\""),
    Command("topicStatus -t {t}", r"broker-a\s+0\s+0\s+\d+"),
    Command("topicClusterList -t {t}", r"DefaultCluster"),
    Command("allocateMQ -t {t} -i 10.0.0.1,10.0.0.2", r"10\.0\.0\.2[\s\S]*queueId"),
    Command("updateOrderConf -t {t} -m put -v broker-a:4", r"success"),
    Command("updateOrderConf -t {t} -m get", r"orderConf=\[broker-a:4\]"),
    Command("updateOrderConf -t {t} -m delete", r"success"),
    Command(
        "updateStaticTopic -t static -qn 4 -c {c}",
        r"static topics are not supported",
        REFUSED,
        "a topic's queues belong to the replica group that has them",
        only="client5",
    ),
    Command(
        "remappingStaticTopic -t {t} -c {c}",
        r"static|mapping|[Ee]xception",
        REFUSED,
        "static topics are not supported",
        only="client5",
    ),
    Command("deleteTopic -c {c} -t made", r"delete topic \[made\] from cluster \[DefaultCluster\] success"),
    # consumer groups
    Command("updateSubGroup -c {c} -g sleepers -r 5", r"create subscription group to \S+ success"),
    Command(
        "updateSubGroupList -c {c} -f {dir}/groups.json", r"submit batch of group config to|success", only="client5"
    ),
    Command("getConsumerConfig -g sleepers", r"retryMaxTimes\s*=\s*5|retryMaxTimes\s+.*5"),
    Command("setConsumeMode -c {c} -t {t} -g sleepers -m PULL", r"set consume mode to \S+ success", only="client5"),
    Command("consumerProgress -g {g}", r"{t}\s+broker-b\s+\d"),
    Command("consumerProgress", r"{g}\s+1\s"),
    Command("consumerStatus -g {g}", r"Consumer|{client}"),
    Command("consumerStatus -g {g} -i {client}", r"#Consumer MQ Detail#|Consumer MQ Detail"),
    Command("consumerConnection -g {g}", r"{client}[\s\S]*CONSUME_PASSIVELY"),
    Command("producerConnection -g PRODUCERS -t {t}", r"JAVA"),
    Command("producer -b {b}", r"producer group \(PRODUCERS\)|PRODUCERS"),
    Command("brokerConsumeStats -b {b}", r"{t}\s+{g}\s+broker-a"),
    Command("cloneGroupOffset -s {g} -d sleepers -t {t}", r"clone group offset success"),
    Command("resetOffsetByTime -g sleepers -t {t} -s now", r"broker-\w\s+\d\s+\d+|reset consumer offset"),
    Command("skipAccumulatedMessage -g sleepers -t {t}", r"broker-\w\s+\d\s+\d+|skip"),
    Command(
        "deleteSubGroup -c {c} -g sleepers",
        r"delete subscription group \[sleepers\] from broker \[\S+\] in cluster \[DefaultCluster\] success",
    ),
    # messages
    Command("sendMessage -t {t} -p hello", r"SEND_OK"),
    Command("consumeMessage -t {t} -b broker-a -i 0 -o 0 -c 1", r"Consume ok|body"),
    Command("queryMsgById -i {id}", r"Topic:\s+{t}[\s\S]*key-7", only="client4"),
    Command("queryMsgById -i {id} -t {t}", r"Topic:\s+{t}[\s\S]*key-7", only="client5"),
    Command("queryMsgById -i {id} -t {t} -g {g} -d {client}", r"CR_SUCCESS", only="client5"),
    Command("queryMsgByKey -t {t} -k key-7", r"{uniq}"),
    Command("queryMsgByUniqueKey -t {t} -i {uniq}", r"Topic:\s+{t}[\s\S]*CONSUMED"),
    Command("queryMsgByUniqueKey -t {t} -i {uniq} -g {g} -d {client}", r"CR_SUCCESS", again=True),
    Command("queryMsgByOffset -t {t} -b broker-a -i 0 -o 0", r"OffsetID|Message Body|Topic:\s+{t}"),
    Command("queryMsgTraceById -i {uniq} -t RMQ_SYS_TRACE_TOPIC", r"Pub|PRODUCERS"),
    Command("printMsg -t {t} -d true", r"body-7"),
    Command("printMsgByQueue -t {t} -a broker-a -i 0 -p true -d true", r"body-"),
    Command("sendMsgStatus -b broker-a -c 3", r"SEND_OK"),
    Command("checkMsgSendRT -t {t} -a 5", r"Avg RT"),
    Command("clusterRT -a 5 -i 1", r"DefaultCluster\s+broker-\w", endless=True),
    # the cluster
    Command("clusterList", r"DefaultCluster\s+broker-a\s+0\s+127\.0\.0\.1:\d+\s+V5_3_3"),
    Command("clusterList -m", r"DefaultCluster\s+broker-a"),
    Command("brokerStatus -b {b}", r"putTps\s*:"),
    Command("getBrokerConfig -b {b}", r"brokerName\s+=\s+broker-a"),
    Command(
        "updateBrokerConfig -b {b} -k fileReservedTime -v 48",
        r"update broker config success",
        DIFFERS,
        "five keys, of the whole replica group, from the broker's machine only",
    ),
    Command(
        "updateBrokerConfig -b {b} -k storePathRootDir -v /tmp/x",
        r"storePathRootDir cannot be changed",
        REFUSED,
        "never path- or host-like keys",
    ),
    Command("haStatus -b {b}", r"#InSyncSlaveNum\s+2", only="client5"),
    Command("getBrokerEpoch -b broker-a", r"epoch|Epoch", DIFFERS, "epochs are Raft terms", only="client5"),
    Command("statsAll -t {t}", r"{t}\s+{g}"),
    Command("queryCq -t {t} -q 0 -i 0 -b {b}", r"physicOffset|CqUnit|ConsumeQueue|phyOffset"),
    Command("cleanExpiredCQ -b {b}", r"success"),
    Command("cleanUnusedTopic -b {b}", r"success"),
    Command("deleteExpiredCommitLog -b {b}", r"success"),
    Command("exportMetadata -c {c} -f {dir}/export", r"export \S*metadata.json success"),
    Command("exportConfigs -c {c} -f {dir}/export", r"export \S*configs.json success"),
    Command("exportMetrics -c {c} -f {dir}/export", r"export \S*metrics.json success"),
    Command(
        "exportPopRecord -b {b} -d true",
        r"nothing is to be exported",
        REFUSED,
        "what is popped is in the log: there are no records of it to roll back",
        only="client5",
    ),
    Command("startMonitoring", r"", endless=True),
    Command(
        "resetMasterFlushOffset -b {b} -o 0",
        r"not supported: the flush position is not set by request",
        REFUSED,
        "replicas find their common end by comparing terms",
        only="client5",
    ),
    Command(
        "addBroker -c {b} -b {dir}/none.conf",
        r"a process hosts the groups|not supported",
        REFUSED,
        _CONTAINER,
        only="client5",
    ),
    Command(
        "removeBroker -c {b} -b DefaultCluster:broker-a:0",
        r"a process hosts the groups|not supported",
        REFUSED,
        _CONTAINER,
        only="client5",
    ),
    # name server
    Command("updateKvConfig -s space -k key -v value", r"create or update kv config to namespace success"),
    Command("deleteKvConfig -s space -k key", r"delete kv config from namespace success"),
    Command("wipeWritePerm -b broker-c", r"wipe write perm of broker\[broker-c\] in name server\[\S+\] OK, [1-9]"),
    Command("addWritePerm -b broker-c", r"add write perm of broker\[broker-c\] in name server\[\S+\] OK, [1-9]"),
    Command("getNamesrvConfig", r"listenPort\s+=\s+{nsport}"),
    Command(
        "updateNamesrvConfig -k orderMessageEnable -v true",
        r"changed in its file, followed by a restart",
        REFUSED,
        "such requests were a way to execute code; the file and a restart",
    ),
    # controller, accounts, RocksDB
    Command("getControllerMetaData -a {b}", r"there is no controller", REFUSED, _NO_CONTROLLER, only="client5"),
    Command("getControllerConfig -a {b}", r"there is no controller", REFUSED, _NO_CONTROLLER, only="client5"),
    Command(
        "updateControllerConfig -a {b} -k a -v b", r"there is no controller", REFUSED, _NO_CONTROLLER, only="client5"
    ),
    Command(
        "electMaster -a {b} -b 1 -bn broker-a -c {c}",
        r"there is no controller",
        REFUSED,
        _NO_CONTROLLER,
        only="client5",
    ),
    Command(
        "cleanBrokerMetadata -a {b} -bn broker-a -b 1 -c {c}",
        r"there is no controller",
        REFUSED,
        _NO_CONTROLLER,
        only="client5",
    ),
    Command("getSyncStateSet -a {b} -b broker-a", r"there is no controller", REFUSED, _NO_CONTROLLER, only="client5"),
    Command("getColdDataFlowCtrInfo -b {b}", r"there is no cold data", REFUSED, _COLD, only="client5"),
    Command(
        "updateColdDataFlowCtrGroupConfig -b {b} -g {g} -v 100",
        r"there is no cold data",
        REFUSED,
        _COLD,
        only="client5",
    ),
    Command("removeColdDataFlowCtrGroupConfig -b {b} -g {g}", r"there is no cold data", REFUSED, _COLD, only="client5"),
    Command("setCommitLogReadAheadMode -b {b} -m 0", r"there is no cold data", REFUSED, _COLD, only="client5"),
    Command("createUser -b {b} -u alice -p secret-secret", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command("updateUser -b {b} -u alice -p secret-secret", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command("deleteUser -b {b} -u alice", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command("getUser -b {b} -u alice", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command("listUser -b {b}", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command("copyUser -f {b} -t {b2} -u alice", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command(
        "createAcl -b {b} -s User:alice -r Topic:x -a Pub -d Allow",
        r"accounts are not built",
        REFUSED,
        _ACL2,
        only="client5",
    ),
    Command(
        "updateAcl -b {b} -s User:alice -r Topic:x -a Pub -d Allow",
        r"accounts are not built",
        REFUSED,
        _ACL2,
        only="client5",
    ),
    Command("deleteAcl -b {b} -s User:alice", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command("getAcl -b {b} -s User:alice", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command("listAcl -b {b}", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command("copyAcl -f {b} -t {b2} -s User:alice", r"accounts are not built", REFUSED, _ACL2, only="client5"),
    Command(
        "rocksDBConfigToJson -c {c} -t topics",
        r"nothing is stored in RocksDB",
        REFUSED,
        "nothing is stored in RocksDB",
        only="client5",
    ),
    Command(
        "checkRocksdbCqWriteProgress -c {c}",
        r"nothing is stored in RocksDB",
        REFUSED,
        "nothing is stored in RocksDB",
        only="client5",
    ),
    Command("exportMetadataInRocksDB -p {dir} -t topics", r"", TOOL_ONLY, "reads a RocksDB folder", only="client5"),
    Command("dumpCompactionLog -f {dir}/none", r"", TOOL_ONLY, "reads a file of a compacted topic", only="client5"),
    Command(
        "updateAclConfig -b {b} -a accesskey -s secretkey", r"access control of 4\.x", REFUSED, _ACL1, only="client4"
    ),
    Command("deleteAclConfig -b {b} -a accesskey", r"access control of 4\.x", REFUSED, _ACL1, only="client4"),
    Command("clusterAclConfigVersion -b {b}", r"access control of 4\.x", REFUSED, _ACL1, only="client4"),
    Command("updateGlobalWhiteAddr -b {b} -g 127.0.0.1", r"access control of 4\.x", REFUSED, _ACL1, only="client4"),
)
