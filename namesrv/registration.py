"""What brokers send, turned into what the route table takes; everything is checked here.

A name that cannot be written as UTF-8, or with control characters, is refused: it would come back in everybody's topic
list. The address is not checked beyond that: brokers know better than we what clients can reach.
"""

from __future__ import annotations

from namesrv.route_info import HEARTBEAT_LIMIT_S, DataVersion, Registration, TopicQueues
from trimq.errors import ProtocolError
from trimq.wire.body.register import RegisterBrokerBody
from trimq.wire.body.route import TopicRouteData
from trimq.wire.command import Command
from trimq.wire.headers.route import RegisterBrokerHeader

__all__ = ["checked", "read_data_version", "read_registration", "read_topic_queues"]

NAME_MAX = 255
BROKER_ID_MAX = 2**31
HEARTBEAT_MAX_S = 86_400.0


def checked(text: str, what: str, longest: int = NAME_MAX) -> str:
    """`text`, if it is printable and not too long. Raises `ProtocolError` naming `what`."""
    if not text or len(text) > longest or not text.isprintable():
        raise ProtocolError(f"{what} {text[:80]!r}: 1 to {longest} printable characters are needed")
    return text


def read_registration(header: RegisterBrokerHeader, command: Command, *, whole: bool) -> Registration:
    """Read a REGISTER_BROKER request. Raises `ProtocolError`.

    `whole`: take every table as whole; else the sender must say so (`full=true` among the ext fields, ours).
    """
    if not 0 <= header.broker_id <= BROKER_ID_MAX:
        raise ProtocolError(f"brokerId {header.broker_id}: 0 to {BROKER_ID_MAX} is allowed")
    body = RegisterBrokerBody.read(command.body, compressed=header.compressed, crc32=header.body_crc32)
    table = body.topicConfigSerializeWrapper
    topics = {
        checked(name, "topic"): TopicQueues(
            max(0, config.readQueueNums), max(0, config.writeQueueNums), config.perm, config.topicSysFlag
        )
        for name, config in table.topicConfigTable.items()
    }
    millis = header.heartbeat_timeout_millis
    return Registration(
        cluster=checked(header.cluster_name, "clusterName"),
        broker_name=checked(header.broker_name, "brokerName"),
        addr=checked(header.broker_addr, "brokerAddr"),
        broker_id=header.broker_id,
        ha_addr=checked(header.ha_server_addr, "haServerAddr") if header.ha_server_addr else "",
        version=table.dataVersion,
        topics=topics if command.body.strip() else None,
        full=whole or command.ext.get("full") in ("1", "true"),
        heartbeat_s=min(millis / 1000, HEARTBEAT_MAX_S) if millis is not None and millis > 0 else HEARTBEAT_LIMIT_S,
        acting_master=header.enable_acting_master,
        zone=checked(zone, "__ZONE_NAME") if (zone := command.ext.get("__ZONE_NAME", "")) else "",
    )


def read_data_version(body: bytes) -> DataVersion:
    """The body of QUERY_DATA_VERSION. Raises `ProtocolError`."""
    return DataVersion.from_json(body) if body.strip() else DataVersion()


def read_topic_queues(body: bytes) -> list[tuple[str, TopicQueues]]:
    """The body of REGISTER_TOPIC_IN_NAMESRV. Raises `ProtocolError`."""
    return [
        (
            queues.brokerName,
            TopicQueues(max(0, queues.readQueueNums), max(0, queues.writeQueueNums), queues.perm, queues.topicSysFlag),
        )
        for queues in TopicRouteData.from_json(body).queueDatas
    ]
