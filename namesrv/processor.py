"""Request codes of the name server, each a short function from a request to an answer.

All of them are synchronous, so a change is visible to the very next query, on whatever connection it comes; only
key-value changes wait (for the disk) and are answered by the server's writer task. What a broken request can cost is
that request: a header or body that cannot be read is answered with code 1 and its reason, an unknown code with 3.
There is no code that changes the name server's own configuration: in RocketMQ such requests were a way to execute
code, twice, so 318 is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import UnsetType

from namesrv import answers
from namesrv.config import NamesrvConfig, to_properties
from namesrv.headers import (
    BrokerHeartbeatHeader,
    BrokerNameHeader,
    ClusterHeader,
    CountAdded,
    CountWiped,
    DeleteTopicHeader,
    MemberGroupHeader,
    TopicHeader,
)
from namesrv.kv_config import ORDER_TOPIC_CONFIG, KVConfig
from namesrv.registration import checked, read_data_version, read_registration, read_topic_queues
from namesrv.route_info import RouteTable, TableFull
from trimq.errors import ProtocolError
from trimq.remoting.local import host_of, is_local
from trimq.wire.body.base import UNSET
from trimq.wire.body.route import KVTable, TopicList
from trimq.wire.codes import RequestCode, ResponseCode, code_name
from trimq.wire.command import Command, response_to
from trimq.wire.headers.route import (
    DeleteKVHeader,
    GetKVHeader,
    GetKVListHeader,
    GetKVResponse,
    GetRouteHeader,
    PutKVHeader,
    QueryDataVersionHeader,
    QueryDataVersionResponse,
    RegisterBrokerHeader,
    RegisterBrokerResponse,
    UnregisterBrokerHeader,
)

__all__ = ["KVChange", "Processor", "Request"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A decoded request and where it came from."""

    command: Command
    conn_id: int
    peer: str
    now: float
    """Seconds of the clock that expiry uses."""
    local: str = ""
    """Where the peer reached us."""


@dataclass(frozen=True, slots=True)
class KVChange:
    """A key-value change that is to be made durable before it is answered; `value` None removes the key."""

    namespace: str
    key: str
    value: str | None


Answer = bytes | KVChange


@dataclass(slots=True)
class Processor:
    """The name server's answers."""

    config: NamesrvConfig
    table: RouteTable = field(default_factory=RouteTable)
    kv: KVConfig = field(default_factory=KVConfig)
    """Replaced as a whole by `change_kv`."""
    _routes: dict[str, bytes] = field(default_factory=dict)
    """Encoded route bodies, valid while the table has the generation `_routes_of`."""
    _routes_of: int = -1

    def change_kv(self, kv: KVConfig) -> None:
        self.kv = kv
        self._routes.clear()

    def process(self, request: Request) -> Answer:
        """Answer one request; never raises for what is in it."""
        command = request.command
        handler = _HANDLERS.get(command.code)
        if handler is None:
            return response_to(
                command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, remark=f" request type {command.code} not supported"
            )
        if command.code in _LOCAL_ONLY and not self._may_change(request):
            log.warning("administration refused", extra={"peer": request.peer, "request": code_name(command.code)})
            remark = (
                f"{code_name(command.code)} from {host_of(request.peer)} is refused: it changes what clients are told,"
                " and is served to this machine only; run the tool on the name server's host, or name yours in"
                " adminAllowFrom"
            )
            return response_to(command, ResponseCode.NO_PERMISSION, remark=remark)
        try:
            return handler(self, request)
        except ProtocolError as error:
            log.warning("bad request", extra={"peer": request.peer, "code": command.code, "error": error.message})
            return response_to(command, ResponseCode.SYSTEM_ERROR, remark=error.message)
        except TableFull as error:
            log.warning("registration refused", extra={"peer": request.peer, "error": str(error)})
            return response_to(command, ResponseCode.SYSTEM_ERROR, remark=str(error))
        except Exception:
            log.exception("request failed", extra={"peer": request.peer, "code": command.code})
            return response_to(command, ResponseCode.SYSTEM_ERROR, remark="name server failed: see its log")

    def _may_change(self, request: Request) -> bool:
        allowed = self.config.admin_allow_from
        return is_local(request.peer, request.local, allowed.split(";") if allowed else ())

    # -- brokers -------------------------------------------------------------------------------------------------

    def register(self, request: Request) -> bytes:
        command = request.command
        header = RegisterBrokerHeader.from_ext(command.ext)
        whole = self.config.delete_topic_with_broker_registration
        registration = read_registration(header, command, whole=whole)
        before = self.table.group(header.broker_name)
        addrs_before = before.addrs() if before else {}
        result = self.table.register(registration, conn_id=request.conn_id, now=request.now)
        who = {"broker": header.broker_name, "id": header.broker_id, "addr": header.broker_addr}
        if not result.accepted:
            log.warning("registration refused", extra={**who, "peer": request.peer, "reason": result.reason})
            return response_to(command, ResponseCode.SYSTEM_ERROR, remark=result.reason)
        if addrs_before.get(header.broker_id) != header.broker_addr:
            log.info("broker registered", extra={**who, "state_version": registration.version.stateVersion})
        answer = RegisterBrokerResponse(ha_server_addr=result.ha_addr, master_addr=result.master_addr)
        body = b""
        if self.config.return_order_topic_config_to_broker:
            order = self.kv.namespace(ORDER_TOPIC_CONFIG)
            body = KVTable(table=order).to_json() if order else b""
        return response_to(command, ResponseCode.SUCCESS, ext=answer.to_ext(), body=body)

    def unregister(self, request: Request) -> bytes:
        header = UnregisterBrokerHeader.from_ext(request.command.ext)
        if self.table.unregister(header.broker_name, header.broker_addr):
            log.info("broker unregistered", extra={"broker": header.broker_name, "addr": header.broker_addr})
        return response_to(request.command, ResponseCode.SUCCESS)

    def query_data_version(self, request: Request) -> bytes:
        header = QueryDataVersionHeader.from_ext(request.command.ext)
        told = read_data_version(request.command.body)
        held = self.table.refresh(header.broker_name, header.broker_addr, conn_id=request.conn_id, now=request.now)
        ext = QueryDataVersionResponse(changed=held is None or held != told).to_ext()
        body = held.to_json() if held is not None else b""
        return response_to(request.command, ResponseCode.SUCCESS, ext=ext, body=body)

    def heartbeat(self, request: Request) -> bytes:
        header = BrokerHeartbeatHeader.from_ext(request.command.ext)
        millis = header.heartbeat_timeout_mills
        self.table.refresh(
            header.broker_name,
            header.broker_addr,
            conn_id=request.conn_id,
            now=request.now,
            heartbeat_s=millis / 1000 if millis is not None and millis > 0 else None,
        )
        return response_to(request.command, ResponseCode.SUCCESS)

    def member_group(self, request: Request) -> bytes:
        header = MemberGroupHeader.from_ext(request.command.ext)
        group = self.table.group(header.broker_name)
        body = answers.member_group(header.cluster_name, header.broker_name, group)
        return response_to(request.command, ResponseCode.SUCCESS, body=body)

    # -- clients -------------------------------------------------------------------------------------------------

    def route(self, request: Request) -> bytes:
        topic = GetRouteHeader.from_ext(request.command.ext).topic
        if self._routes_of != self.table.generation:
            self._routes.clear()
            self._routes_of = self.table.generation
        body = self._routes.get(topic)
        if body is None:
            found = self.table.route(topic)
            if found is None:
                return response_to(
                    request.command,
                    ResponseCode.TOPIC_NOT_EXIST,
                    remark=f"No topic route info in name server for the topic: {topic}",
                )
            order = self.kv.get(ORDER_TOPIC_CONFIG, topic) if self.config.order_message_enable else None
            body = self._routes[topic] = answers.route(found, order)
        return response_to(request.command, ResponseCode.SUCCESS, body=body)

    def cluster_info(self, request: Request) -> bytes:
        return response_to(request.command, ResponseCode.SUCCESS, body=answers.cluster_info(self.table.groups()))

    def all_topics(self, request: Request) -> bytes:
        if not self.config.enable_all_topic_list:
            return response_to(request.command, ResponseCode.SYSTEM_ERROR, remark="disable")
        return response_to(
            request.command, ResponseCode.SUCCESS, body=TopicList(topicList=self.table.topics()).to_json()
        )

    def topics_of_cluster(self, request: Request) -> bytes:
        cluster = ClusterHeader.from_ext(request.command.ext).cluster
        return self._topics(request, lambda: self.table.topics_of_cluster(cluster))

    def system_topics(self, request: Request) -> bytes:
        if not self.config.enable_topic_list:
            return response_to(request.command, ResponseCode.SYSTEM_ERROR, remark="disable")
        groups = self.table.groups()
        names = [*sorted({group.cluster for group in groups}), *(group.name for group in groups)]
        addr = next(iter(groups[0].addrs().values())) if groups else UNSET
        return self._topic_list(request, names, addr)

    def unit_topics(self, request: Request) -> bytes:
        return self._topics(request, lambda: self.table.topics_with_flag(1))

    def unit_sub_topics(self, request: Request) -> bytes:
        return self._topics(request, lambda: self.table.topics_with_flag(2))

    def unit_sub_ununit_topics(self, request: Request) -> bytes:
        return self._topics(request, lambda: self.table.topics_with_flag(2, forbidden=1))

    def _topics(self, request: Request, find: Callable[[], list[str]]) -> bytes:
        if not self.config.enable_topic_list:
            return response_to(request.command, ResponseCode.SYSTEM_ERROR, remark="disable")
        return self._topic_list(request, find())

    @staticmethod
    def _topic_list(request: Request, topics: list[str], addr: str | UnsetType = UNSET) -> bytes:
        body = TopicList(topicList=topics, brokerAddr=addr).to_json()
        return response_to(request.command, ResponseCode.SUCCESS, body=body)

    # -- administrators ------------------------------------------------------------------------------------------

    def wipe_write_permission(self, request: Request) -> bytes:
        name = BrokerNameHeader.from_ext(request.command.ext).broker_name
        count = self.table.wipe_write_permission(name)
        log.info("write permission wiped", extra={"broker": name, "topics": count, "peer": request.peer})
        return response_to(request.command, ResponseCode.SUCCESS, ext=CountWiped(wipe_topic_count=count).to_ext())

    def add_write_permission(self, request: Request) -> bytes:
        name = BrokerNameHeader.from_ext(request.command.ext).broker_name
        count = self.table.add_write_permission(name)
        log.info("write permission added", extra={"broker": name, "topics": count, "peer": request.peer})
        return response_to(request.command, ResponseCode.SUCCESS, ext=CountAdded(add_topic_count=count).to_ext())

    def delete_topic(self, request: Request) -> bytes:
        header = DeleteTopicHeader.from_ext(request.command.ext)
        if self.table.delete_topic(header.topic, header.cluster_name):
            log.info("topic deleted", extra={"topic": header.topic, "peer": request.peer})
        return response_to(request.command, ResponseCode.SUCCESS)

    def register_topic(self, request: Request) -> bytes:
        topic = TopicHeader.from_ext(request.command.ext).topic
        self.table.add_topic(checked(topic, "topic"), read_topic_queues(request.command.body))
        return response_to(request.command, ResponseCode.SUCCESS)

    def put_kv(self, request: Request) -> KVChange:
        header = PutKVHeader.from_ext(request.command.ext)
        return KVChange(
            checked(header.namespace, "namespace"), checked(header.key, "key"), checked(header.value, "value", 65536)
        )

    def delete_kv(self, request: Request) -> KVChange:
        header = DeleteKVHeader.from_ext(request.command.ext)
        return KVChange(header.namespace, header.key, None)

    def get_kv(self, request: Request) -> bytes:
        header = GetKVHeader.from_ext(request.command.ext)
        value = self.kv.get(header.namespace, header.key)
        if value is None:
            remark = f"No config item, Namespace: {header.namespace} Key: {header.key}"
            return response_to(request.command, ResponseCode.QUERY_NOT_FOUND, remark=remark)
        return response_to(request.command, ResponseCode.SUCCESS, ext=GetKVResponse(value=value).to_ext())

    def list_kv(self, request: Request) -> bytes:
        namespace = GetKVListHeader.from_ext(request.command.ext).namespace
        table = self.kv.namespace(namespace)
        if table is None:
            remark = f"No config item, Namespace: {namespace}"
            return response_to(request.command, ResponseCode.QUERY_NOT_FOUND, remark=remark)
        return response_to(request.command, ResponseCode.SUCCESS, body=KVTable(table=table).to_json())

    def get_config(self, request: Request) -> bytes:
        return response_to(request.command, ResponseCode.SUCCESS, body=to_properties(self.config).encode())

    def update_config(self, request: Request) -> bytes:
        log.warning("configuration change refused", extra={"peer": request.peer})
        remark = "the name server's configuration is changed in its file, followed by a restart, never by request"
        return response_to(request.command, ResponseCode.NO_PERMISSION, remark=remark)


_LOCAL_ONLY = frozenset(
    {
        RequestCode.PUT_KV_CONFIG,
        RequestCode.DELETE_KV_CONFIG,
        RequestCode.WIPE_WRITE_PERM_OF_BROKER,
        RequestCode.ADD_WRITE_PERM_OF_BROKER,
        RequestCode.DELETE_TOPIC_IN_NAMESRV,
        RequestCode.REGISTER_TOPIC_IN_NAMESRV,
    }
)
"""Until there are accounts: to operators at this machine."""

_HANDLERS: dict[int, Callable[[Processor, Request], Answer]] = {
    RequestCode.PUT_KV_CONFIG: Processor.put_kv,
    RequestCode.GET_KV_CONFIG: Processor.get_kv,
    RequestCode.DELETE_KV_CONFIG: Processor.delete_kv,
    RequestCode.REGISTER_BROKER: Processor.register,
    RequestCode.UNREGISTER_BROKER: Processor.unregister,
    RequestCode.GET_ROUTEINFO_BY_TOPIC: Processor.route,
    RequestCode.GET_BROKER_CLUSTER_INFO: Processor.cluster_info,
    RequestCode.WIPE_WRITE_PERM_OF_BROKER: Processor.wipe_write_permission,
    RequestCode.ADD_WRITE_PERM_OF_BROKER: Processor.add_write_permission,
    RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: Processor.all_topics,
    RequestCode.DELETE_TOPIC_IN_NAMESRV: Processor.delete_topic,
    RequestCode.REGISTER_TOPIC_IN_NAMESRV: Processor.register_topic,
    RequestCode.GET_KVLIST_BY_NAMESPACE: Processor.list_kv,
    RequestCode.GET_TOPICS_BY_CLUSTER: Processor.topics_of_cluster,
    RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS: Processor.system_topics,
    RequestCode.GET_UNIT_TOPIC_LIST: Processor.unit_topics,
    RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST: Processor.unit_sub_topics,
    RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST: Processor.unit_sub_ununit_topics,
    RequestCode.UPDATE_NAMESRV_CONFIG: Processor.update_config,
    RequestCode.GET_NAMESRV_CONFIG: Processor.get_config,
    RequestCode.QUERY_DATA_VERSION: Processor.query_data_version,
    RequestCode.GET_BROKER_MEMBER_GROUP: Processor.member_group,
    RequestCode.BROKER_HEARTBEAT: Processor.heartbeat,
}
