"""trimq without an event loop: the same names, with `with` and `for`, from plain threads.

    from trimq import blocking

    with blocking.connect("127.0.0.1:9876") as mq:
        mq.send("orders", b"...", tag="paid")
        with mq.subscribe("orders", group="billing") as orders:
            for message in orders:
                with message:
                    ...

One background thread runs the real client; every call here hands its work to that thread and waits. So all promises
are those of `trimq.client`, any thread may use any object, and messages sent by many threads at once share requests.
A call costs about a tenth of a millisecond: programs that need tens of thousands of messages a second use the
asynchronous client. Where a cancel scope would set a deadline there, calls take `timeout` (seconds) here.
"""

from __future__ import annotations

from trimq.blocking.admin import Admin
from trimq.blocking.client import Client, connect
from trimq.blocking.pop_consumer import PopConsumer
from trimq.blocking.producer import Producer, SendStream, Transaction
from trimq.blocking.pull_consumer import PullConsumer
from trimq.blocking.push_consumer import PushConsumer
from trimq.blocking.received import Received
from trimq.client.limits import Limits
from trimq.client.model import Batch, Message, Queue, Receipt, SendStatus, Sql, Start, Tag
from trimq.client.received import DeadLetter, Retry, Suspend
from trimq.client.replies import Reply
from trimq.client.transaction import Outcome
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
]
