"""Broadcasting: each member gets every message, and keeps its place in a file of its own.

trimq standalone                     # in another terminal
python examples/broadcast.py [NAMESRV]

Prints:

    cache of shop A: apple=1 pear=2
    cache of shop B: apple=1 pear=2
    shop A was away, then: plum=3
"""

import sys
import tempfile
from pathlib import Path

import trio

import trimq


async def read(consumer: trimq.PushConsumer, count: int) -> str:
    prices: list[str] = []
    with trio.fail_after(15):
        async for message in consumer:
            async with message:
                prices.append(message.body.decode())
            if len(prices) == count:
                break
    return " ".join(sorted(prices))


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "shop-a.json"
        async with trimq.connect(address) as mq, trimq.connect(address) as other:
            await mq.admin.create_topic("prices", queues=2)
            async with (
                mq.subscribe("prices", group="shops", mode="broadcast", offsets_file=file) as shop_a,
                other.subscribe("prices", group="shops", mode="broadcast") as shop_b,
            ):
                await mq.send("prices", "apple=1")
                await mq.send("prices", "pear=2")
                print("cache of shop A:", await read(shop_a, 2))
                print("cache of shop B:", await read(shop_b, 2))
            await mq.send("prices", "plum=3")
            async with mq.subscribe("prices", group="shops", mode="broadcast", offsets_file=file) as shop_a:
                print("shop A was away, then:", await read(shop_a, 1))


if __name__ == "__main__":
    trio.run(main)
