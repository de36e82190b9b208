"""Consumers by number: how quickly they catch up from cold, and how soon what is sent arrives at those at the end.

Every consumer is one connection of the thin client, which pulls its share of 100 queues with one request for each
queue in flight. All of them run in this one process, so its own CPU time is among the facts.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from struct import Struct

from bench.peers.base import Address
from bench.peers.trimq import Trimq, opener
from bench.rocketmq_dialect import Sends
from bench.scale import Found, Sizes
from bench.thin import Refused, drive, percentile
from trimq.message.record import unpack_records
from trimq.testing import status
from trimq.wire.codes import RequestCode, ResponseCode

__all__ = ["catch_up", "mixed", "tail"]

_CONSUMERS = (1, 10, 100)
_QUEUES = 100
_BODY = 1024
_BATCH = 32
_SEND_EVERY_S = 0.005
_RATE = 2_000
_WORD = Struct(">I")
_SENT = Struct(">d")
"""When a message was sent, by this process's own clock: the beginning of its body."""


@dataclass(slots=True)
class _Puller:
    """One consumer."""

    link: socket.socket
    topic: str
    queues: Sequence[int]
    hold_ms: int
    offsets: dict[int, int] = field(default_factory=dict)
    _rest: bytes = b""

    def pull(self, queue: int) -> None:
        ext = {
            "consumerGroup": "bench-consume", "topic": self.topic, "queueId": queue, "maxMsgNums": _BATCH,
            "queueOffset": self.offsets.setdefault(queue, 0), "sysFlag": 6 if self.hold_ms else 4, "commitOffset": 0,
            "suspendTimeoutMillis": self.hold_ms, "subscription": "*", "subVersion": 0, "expressionType": "TAG",
        }  # fmt: skip
        fields = {key: str(value) for key, value in ext.items()}
        command = {"code": int(RequestCode.PULL_MESSAGE), "extFields": fields, "flag": 0, "language": "JAVA"}
        header = json.dumps({**command, "opaque": queue, "version": 453}).encode()
        self.link.sendall(_WORD.pack(4 + len(header)) + _WORD.pack(len(header)) + header)

    def receive(self) -> list[tuple[int, bytes]]:
        """What has come: (queue, records), the next pull of each queue already on its way. Raises Refused."""
        data = self.link.recv(1 << 20)
        if not data:
            raise Refused("the server closed a consumer's connection")
        buffer, at, found = self._rest + data, 0, []
        while len(buffer) - at >= 4 and (end := at + 4 + _WORD.unpack_from(buffer, at)[0]) <= len(buffer):
            size = _WORD.unpack_from(buffer, at + 4)[0] & 0xFFFFFF
            head = json.loads(buffer[at + 8 : at + 8 + size])
            queue = head["opaque"]
            if head["code"] not in (0, ResponseCode.PULL_NOT_FOUND, ResponseCode.PULL_RETRY_IMMEDIATELY):
                raise Refused(str(head))
            self.offsets[queue] = int(head["extFields"]["nextBeginOffset"])
            found.append((queue, buffer[at + 8 + size : end]))
            at = end
        self._rest = buffer[at:]
        return found


class _Pullers:
    """All consumers, each with its share of the queues."""

    def __init__(self, address: Address, topic: str, count: int, *, hold_ms: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.all: list[_Puller] = []
        for number in range(count):
            link = socket.create_connection(address, timeout=15)
            puller = _Puller(link, topic, range(number, _QUEUES, count), hold_ms)
            self.selector.register(link, selectors.EVENT_READ, puller)
            self.all.append(puller)

    def close(self) -> None:
        self.selector.close()
        for puller in self.all:
            puller.link.close()

    def ready(self, within_s: float) -> list[_Puller]:
        return [key.data for key, _ in self.selector.select(within_s)]


def catch_up(home: Path, sizes: Sizes, found: Found) -> None:
    """All that is there, read after a restart of all nodes: nothing of it is in their memory or in the page cache."""
    each = max(_BATCH, min(2_000, sizes.backlog // 1_000) // _BATCH * _BATCH)
    with opener("trimq", "")(home) as peer:
        peer.create_topic("cold", _QUEUES)
        places = [("cold", queue) for queue in range(_QUEUES)]
        drive(peer.address(), Sends(places, _BODY, batch=_BATCH), window=16, messages=each * _QUEUES)
        for at in range(min(3, sizes.rounds)):
            for consumers in _CONSUMERS:
                _restart_cold(peer)
                value, cpu = _read_all(peer.address(), consumers, each)
                found(f"catch-up from cold, {consumers} consumers", at, value, "msg/s")
                found(f"catch-up from cold, {consumers} consumers, client's share of a core", at, cpu * 100, "%")


def _restart_cold(peer: Trimq) -> None:
    peer.cluster.kill(*peer.cluster.nodes)
    for path in peer.cluster.directory.rglob("commitlog/*"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    peer.cluster.start()
    status.wait_ready_blocking(peer.cluster, within_s=60)
    time.sleep(1)


def _read_all(address: Address, consumers: int, each: int) -> tuple[float, float]:
    """Messages a second, and the share of a core that this process took."""
    pullers = _Pullers(address, "cold", consumers, hold_ms=0)
    left = dict.fromkeys(range(_QUEUES), each)
    begin, cpu = time.perf_counter(), time.process_time()
    for puller in pullers.all:
        for queue in puller.queues:
            puller.pull(queue)
    while left:
        for puller in pullers.ready(15):
            for queue, _ in puller.receive():
                if puller.offsets[queue] < left.get(queue, 0):
                    puller.pull(queue)
                else:
                    left.pop(queue, None)
    spent = time.perf_counter() - begin
    pullers.close()
    return each * _QUEUES / spent, (time.process_time() - cpu) / spent


def tail(home: Path, sizes: Sizes, found: Found) -> None:
    """From the send of a message to its arrival, for consumers that wait at the end; sent at a fixed rate."""
    with opener("trimq", "")(home) as peer:
        peer.create_topic("tail", _QUEUES)
        for at in range(min(3, sizes.rounds)):
            for consumers in _CONSUMERS:
                waits = _follow(peer.address(), consumers, sizes.seconds * 2)
                what = f"end to end at {_RATE:,}/s, {consumers} consumers"
                found(f"{what}, p50", at, percentile(waits, 0.5) * 1e3, "ms")
                found(f"{what}, p99", at, percentile(waits, 0.99) * 1e3, "ms")


def mixed(home: Path, sizes: Sizes, found: Found) -> None:
    """Sends with 256 in flight, and ten consumers that follow them, at the same time: what each side reaches."""
    with opener("trimq", "")(home) as peer, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        peer.create_topic("mixed", _QUEUES)
        for at in range(sizes.rounds):
            pullers = _Pullers(peer.address(), "mixed", 10, hold_ms=10_000)
            _go_to_the_end(pullers)
            load = pool.submit(_send_over, peer.address(), "mixed", sizes.seconds)
            came, begin, end = 0, 0.0, 0.0
            while not load.done() or pullers.ready(0.3):
                for puller in pullers.ready(0.05):
                    for queue, records in puller.receive():
                        puller.pull(queue)
                        if records:
                            end = time.perf_counter()
                            begin = begin or end
                            came += len(unpack_records(records, check_body=False))
            pullers.close()
            found("mixed, 256 in flight and 10 consumers, sent", at, load.result(), "msg/s")
            found("mixed, 256 in flight and 10 consumers, delivered", at, came / (end - begin), "msg/s")


def _send_over(address: Address, topic: str, seconds: float) -> float:
    places = [(topic, queue) for queue in range(_QUEUES)]
    return drive(address, Sends(places, _BODY), window=256, seconds=seconds).per_second


class _Sender:
    """Sends at fixed moments, whatever has become of the sends before; answers are only counted."""

    def __init__(self, address: Address) -> None:
        self.link = socket.create_connection(address, timeout=15)
        self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0

    def send(self, count: int, due: float) -> None:
        made = []
        for number in range(self.sent, self.sent + count):
            header = (
                b'{"code":310,"extFields":{"a":"bench","b":"tail","c":"TBW102","d":"4","e":"%d","f":"0",'
                b'"g":"1700000000000","h":"0","i":"WAIT\\u0001true\\u0002","j":"0","k":"false","m":"false"},"flag":2,'
                b'"language":"JAVA","opaque":%d,"serializeTypeCurrentRPC":"JSON","version":453}'
            ) % (number % _QUEUES, number)
            body = _SENT.pack(due) + bytes(_BODY - _SENT.size)
            made.append(_WORD.pack(4 + len(header) + len(body)) + _WORD.pack(len(header)) + header + body)
        self.sent += count
        self.link.sendall(b"".join(made))


def _follow(address: Address, consumers: int, seconds: float) -> list[float]:
    """Waits in seconds, ascending. A message counts from when it was due, so a stall is not left out."""
    pullers = _Pullers(address, "tail", consumers, hold_ms=10_000)
    sender = _Sender(address)
    waits: list[float] = []
    _go_to_the_end(pullers)
    begin = due = time.perf_counter()
    count = round(_RATE * _SEND_EVERY_S)
    wanted = round(seconds / _SEND_EVERY_S) * count
    while len(waits) < wanted:
        now = time.perf_counter()
        if now > begin + seconds + 15:
            raise Refused(f"{wanted - len(waits)} of {wanted} messages did not come")
        while due <= now and sender.sent < wanted:
            sender.send(count, due)
            due += _SEND_EVERY_S
        for puller in pullers.ready(max(0.0, due - now) if sender.sent < wanted else 1.0):
            for queue, records in puller.receive():
                puller.pull(queue)
                arrived = time.perf_counter()
                waits += (arrived - _SENT.unpack_from(record.body)[0] for record in unpack_records(records))
    sender.link.close()
    pullers.close()
    waits.sort()
    return waits


def _go_to_the_end(pullers: _Pullers) -> None:
    """Read what earlier rounds left, until every queue's pull is held."""
    for puller in pullers.all:
        for queue in puller.queues:
            puller.pull(queue)
    while ready := pullers.ready(0.5):
        for puller in ready:
            for queue, _ in puller.receive():
                puller.pull(queue)
