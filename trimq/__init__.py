"""trimq: a message broker that speaks RocketMQ's wire protocol; this package is what applications import.

    import trimq

    async with trimq.connect("127.0.0.1:9876") as mq:
        await mq.send("orders", b"...", tag="paid")

Names are loaded when they are first used, so `import trimq` costs next to nothing. Programs without an event loop use
`trimq.blocking`, which has the same names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimq import errors
    from trimq.client.admin import Admin
    from trimq.client.client import Client, connect
    from trimq.client.limits import Limits
    from trimq.client.model import (
        Batch,
        Message,
        Queue,
        Rebalance,
        Receipt,
        SendStatus,
        Sql,
        Start,
        Tag,
    )
    from trimq.client.pop_consumer import PopConsumer
    from trimq.client.producer import Producer
    from trimq.client.pull_consumer import PullConsumer
    from trimq.client.push_consumer import PushConsumer
    from trimq.client.received import DeadLetter, Received, Retry, Suspend
    from trimq.client.replies import Reply
    from trimq.client.send_stream import SendStream
    from trimq.client.transaction import Outcome, Transaction
    from trimq.message.allocation import (
        Averagely,
        AveragelyByCircle,
        ByConfig,
        ByMachineRoom,
        ConsistentHash,
        MachineRoomNearby,
    )

__all__ = [
    "Admin",
    "Averagely",
    "AveragelyByCircle",
    "Batch",
    "ByConfig",
    "ByMachineRoom",
    "Client",
    "ConsistentHash",
    "DeadLetter",
    "Limits",
    "MachineRoomNearby",
    "Message",
    "Outcome",
    "PopConsumer",
    "Producer",
    "PullConsumer",
    "PushConsumer",
    "Queue",
    "Rebalance",
    "Receipt",
    "Received",
    "Reply",
    "Retry",
    "SendStatus",
    "SendStream",
    "Sql",
    "Start",
    "Suspend",
    "Tag",
    "Transaction",
    "connect",
    "errors",
]

_HOME = {
    "Admin": "trimq.client.admin",
    "Batch": "trimq.client.model",
    "Client": "trimq.client.client",
    "DeadLetter": "trimq.client.received",
    "Message": "trimq.client.model",
    "Outcome": "trimq.client.transaction",
    "PopConsumer": "trimq.client.pop_consumer",
    "Producer": "trimq.client.producer",
    "PullConsumer": "trimq.client.pull_consumer",
    "PushConsumer": "trimq.client.push_consumer",
    "Queue": "trimq.client.model",
    "Rebalance": "trimq.client.model",
    "Receipt": "trimq.client.model",
    "Received": "trimq.client.received",
    "Reply": "trimq.client.replies",
    "Retry": "trimq.client.received",
    "SendStatus": "trimq.client.model",
    "SendStream": "trimq.client.send_stream",
    "Sql": "trimq.client.model",
    "Start": "trimq.client.model",
    "Tag": "trimq.client.model",
    "Transaction": "trimq.client.transaction",
    "Averagely": "trimq.message.allocation",
    "AveragelyByCircle": "trimq.message.allocation",
    "ByConfig": "trimq.message.allocation",
    "ByMachineRoom": "trimq.message.allocation",
    "ConsistentHash": "trimq.message.allocation",
    "MachineRoomNearby": "trimq.message.allocation",
    "Limits": "trimq.client.limits",
    "Suspend": "trimq.client.received",
    "connect": "trimq.client.client",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("trimq.errors")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'trimq' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
