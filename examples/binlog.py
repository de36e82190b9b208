"""A table copied by its change log, strictly in order: the strict order survives failovers.

One queue is one strict order (a *global* one when the topic has one queue). The copy checks that no change is missing
and none comes before another: each carries its number, like a position in a database's binlog.

trimq standalone                     # in another terminal (or deploy/run3.sh, and kill a leader while it runs)
python examples/binlog.py [NAMESRV]

Prints:

    300 changes applied in order
    the copy equals the table
"""

import json
import sys

import trio

import trimq

CHANGES = 300


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    table: dict[str, int] = {}
    copy: dict[str, int] = {}
    applied = 0
    async with trimq.connect(address) as mq:
        broker = sorted((await mq.admin.cluster()).groups, key=lambda group: group.name)[0].name
        await mq.admin.create_topic("accounts-binlog", queues=1, groups=[broker])
        async with (
            mq.subscribe("accounts-binlog", group="replica", ordered=True) as changes,
            trio.open_nursery() as nursery,
        ):

            async def write() -> None:
                async with mq.producer() as producer, producer.stream() as log:
                    for position in range(1, CHANGES + 1):
                        row, amount = f"account-{position % 7}", position * 31 % 17 - 8
                        table[row] = table.get(row, 0) + amount
                        change = {"position": position, "row": row, "to": table[row]}
                        await log.send(
                            trimq.Message(topic="accounts-binlog", body=json.dumps(change).encode(), order_key="log")
                        )

            nursery.start_soon(write)
            with trio.fail_after(40):
                async for message in changes:
                    async with message:
                        change = json.loads(message.body)
                        if change["position"] <= applied:
                            continue  # delivered again after a failover: it has been applied
                        assert change["position"] == applied + 1, f"{applied} and then {change['position']}"
                        copy[change["row"]] = change["to"]
                        applied = change["position"]
                    if applied == CHANGES:
                        break
    print(f"{applied} changes applied in order")
    print("the copy equals the table" if copy == table else f"the copy differs: {copy} is not {table}")


if __name__ == "__main__":
    trio.run(main)
