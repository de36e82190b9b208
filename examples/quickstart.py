"""Send one order and bill it, in one program.

trimq standalone                     # in another terminal
python examples/quickstart.py [NAMESRV]

Prints:

    stored at orders@...
"""

import sys

import trio

import trimq


async def main() -> None:
    billed = trio.Event()

    async def bill(order: trimq.Received) -> None:
        print(f"billing order {order.order_key}: {order.body.decode()} (from {order.queue}, offset {order.offset})")
        billed.set()

    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with (
        trimq.connect(address) as mq,
        trio.open_nursery() as nursery,
        mq.subscribe("orders", group="billing", filter=trimq.Tag("paid")) as orders,
    ):
        await nursery.start(orders.run, bill)
        receipt = await mq.send("orders", b'{"id": 42}', tag="paid", order_key="42")
        print(f"stored at {receipt.queue}, offset {receipt.offset}")
        with trio.fail_after(10):
            await billed.wait()


if __name__ == "__main__":
    trio.run(main)
