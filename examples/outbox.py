"""A message that is sent exactly when a database transaction commits, without half messages and checks: an outbox.

trimq standalone                     # in another terminal
python examples/outbox.py [NAMESRV]

Prints:

    order 1 and its message are in the database
    order 2 was rolled back, and its message with it
    sent: order 1, order 3
"""

import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import trio

import trimq
from trimq import outbox


def place_order(db: sqlite3.Connection, number: int, *, fail: bool = False) -> str:
    """Your transaction: the order and its message, both or neither."""
    with db:
        db.execute("INSERT INTO orders VALUES (?)", (number,))
        message = trimq.Message(topic="placed-orders", body=f"order {number}".encode(), order_key="shop")
        outbox.put(db, message)
        if fail:
            raise RuntimeError("no stock")
    return message.id


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.db"
        with closing(sqlite3.connect(path)) as db:
            outbox.create(db)
            db.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)")
            ours = {place_order(db, 1)}
            print("order 1 and its message are in the database; no broker is needed for that")
            try:
                place_order(db, 2, fail=True)
            except RuntimeError:
                print("order 2 was rolled back, and its message with it")
            ours.add(place_order(db, 3))
        async with trimq.connect(address) as mq, outbox.open_relay(mq, path) as relay:
            with trio.fail_after(30):
                await relay.drain()
            async with mq.pull() as reader:
                found = [m.body.decode() async for m in reader.iterate("placed-orders") if m.id in ours]
            print("sent:", ", ".join(found))


if __name__ == "__main__":
    trio.run(main)
