"""A message that is sent exactly when an order is booked: commit, rollback, and a broker that asks.

trimq standalone                     # in another terminal
python examples/transaction.py [NAMESRV]

Prints:

    booked A
    B was not booked: out of stock
    C: its process dies between the halves ...
    asked about C: committed
    seen: A, C
"""

import sqlite3
import sys

import trio

import trimq


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    ours: set[str] = set()
    books = sqlite3.connect(":memory:")
    books.execute("CREATE TABLE booked (message_id TEXT PRIMARY KEY, name TEXT)")

    async def check(message: trimq.Received) -> trimq.Outcome:
        """A broker asks what became of a message: our own books say it."""
        row = books.execute("SELECT name FROM booked WHERE message_id = ?", (message.id,)).fetchone()
        outcome = trimq.Outcome.COMMIT if row else trimq.Outcome.ROLLBACK
        print(f"asked about {message.body.decode()}: {'committed' if row else 'rolled back'}")
        return outcome

    def book(tx: trimq.Transaction, name: str) -> None:
        if name == "B":
            raise RuntimeError("out of stock")
        with books:
            books.execute("INSERT INTO booked VALUES (?, ?)", (tx.id, name))

    async with trimq.connect(address) as mq, mq.producer("booker", check=check) as producer:
        for name in ("A", "B", "C"):
            try:
                async with producer.transaction(trimq.Message(topic="bookings", body=name.encode())) as tx:
                    ours.add(tx.id)
                    book(tx, name)
                    if name == "C":
                        print("C: its process dies between the halves (we only pretend); the broker will ask")
                        tx.unknown()
                    else:
                        print(f"booked {name}")
            except RuntimeError as error:
                print(f"{name} was not booked: {error}")
        seen: list[str] = []
        with trio.fail_after(55):  # brokers look each 30 s for what is undecided for 6 s
            async with mq.pull() as reader:
                async for message in reader.iterate("bookings", follow=True):
                    if message.id in ours:
                        seen.append(message.body.decode())
                    if len(seen) == 2:
                        break
        print("seen:", ", ".join(sorted(seen)))


if __name__ == "__main__":
    trio.run(main)
