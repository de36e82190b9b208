"""A handler that cannot do its work: retries, dead letters, a mended copy, and everything sent again.

trimq standalone                     # in another terminal
python examples/dead_letters.py [NAMESRV]

Prints:

    invoice 1: attempt 1 fails
    dead letter: invoice 1 ...
    invoice 1 (mended): done
"""

import logging
import sys
from dataclasses import replace

import trio

import trimq
from trimq.client.dead_letters import Buried


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    done = trio.Event()

    async def book(invoice: trimq.Received) -> None:
        text = invoice.body.decode()
        if "mended" in text:
            print(f"{text}: done")
            done.set()
            return
        print(f"{text}: attempt {invoice.attempt} fails")
        # After max_attempts of these it would be put aside by itself, 10 s, 30 s, 1 min ... later; here it is hopeless.
        raise trimq.DeadLetter("no amount")

    def mend(letter: Buried) -> Buried:
        return replace(letter, body=letter.body + b" (mended)")

    async with (
        trimq.connect(address) as mq,
        mq.subscribe("invoices", group="books") as invoices,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(invoices.run, book)
        await mq.send("invoices", "invoice 1", keys=["invoice-1"])
        async with mq.admin.dead_letters("books") as letters:
            found: list[Buried] = []
            with trio.fail_after(20):
                while not found:
                    found = [letter async for letter in letters.read(again=False)]
                    await trio.sleep(0.1)
            for letter in found:
                print(f"dead letter: {letter.body.decode()} of {letter.topic}, tried {letter.attempts} times")
            async for result in letters.redrive(edit=mend):
                print(f"sent again: {result.letter.id} {'stored' if result.ok else result.error}")
            with trio.fail_after(20):
                await done.wait()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # the library warns of every dead letter
    trio.run(main)
