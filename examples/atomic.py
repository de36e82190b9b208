"""Several topics at once: the order and the stock movement are both there, or neither is.

trimq standalone                     # in another terminal
python examples/atomic.py [NAMESRV]

Prints:

    stored together in ...
    seen: order 7, stock -1, stock -2
"""

import sys

import trio

import trimq
from trimq import Message


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with trimq.connect(address) as mq, mq.producer() as producer:
        # Topics that exist lie on every replica group; a send creates a new one wherever it happens to go.
        for topic in ("shop-orders", "shop-stock"):
            await mq.admin.create_topic(topic, queues=4)
        together = [
            Message(topic="shop-orders", body=b"order 7"),
            Message(topic="shop-stock", body=b"stock -1", order_key="sku-1"),
            Message(topic="shop-stock", body=b"stock -2", order_key="sku-1"),
        ]
        with trio.fail_after(20):
            receipts = await producer.send_atomic(together)
        print(f"stored together in {receipts[0].queue.group}: {', '.join(str(receipt.queue) for receipt in receipts)}")
        seen: list[str] = []
        async with mq.pull() as reader:
            for receipt in receipts:
                batch = await reader.read(receipt.queue, receipt.offset, max=1)
                seen += [message.body.decode() for message in batch.messages]
        print("seen:", ", ".join(seen))


if __name__ == "__main__":
    trio.run(main)
