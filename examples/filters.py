"""Filters: by tag, by a SQL92 condition over properties, and a replay of one key within a window of time.

Prints:

    by price: ['deal 10', 'deal 12', 'deal 14', 'deal 16', 'deal 18', 'deal 20']
    replayed: ['deal 3', 'deal 8', 'deal 13', 'deal 18', 'deal 23', 'deal 28']

trimq standalone                     # in another terminal
python examples/filters.py [NAMESRV]
"""

import sys
from datetime import UTC, datetime

import trio

import trimq

TOPIC = "deals"


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    began = datetime.now(UTC)
    async with (
        trimq.connect(address) as mq,
        mq.subscribe(TOPIC, group="by-tag", filter=trimq.Tag("sell || swap")) as tagged,
        # Evaluated by the broker: what it does not want never travels.
        mq.subscribe(TOPIC, group="by-price", filter=trimq.Sql("price BETWEEN 10 AND 20 AND venue <> 'otc'")) as priced,
    ):
        for number in range(30):
            await mq.send(
                TOPIC,
                f"deal {number}",
                tag=("buy", "sell", "swap")[number % 3],
                keys=[f"customer-{number % 5}"],
                properties={"price": str(number), "venue": "otc" if number % 2 else "exchange"},
            )
        print("by tag:  ", await collect(tagged, 20))
        print("by price:", await collect(priced, 6))
        async with mq.pull() as reader:
            replayed = [deal async for deal in reader.iterate(TOPIC, start=began, key="customer-3")]
            print("replayed:", [deal.body.decode() for deal in replayed])


async def collect(deals: trimq.PushConsumer, count: int) -> list[str]:
    found: list[str] = []
    with trio.fail_after(20):
        async for deal in deals:
            async with deal:
                found.append(deal.body.decode())
            if len(found) == count:
                break
    return sorted(found, key=lambda text: int(text.split()[1]))


if __name__ == "__main__":
    trio.run(main)
