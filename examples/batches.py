"""Many messages in one request, all or none; and large bodies that travel and lie compressed.

Prints:

    batch: 100 values in one queue, offsets without a gap
    compressed: 65536 bytes come back as they were
    refused: a body that is too large: ...

trimq standalone                     # in another terminal
python examples/batches.py [NAMESRV]
"""

import random
import sys

import trio

import trimq
import trimq.errors

TOPIC = "meter-values"


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with trimq.connect(address) as mq, mq.producer("meters", compression="zlib") as producer:
        # A batch goes to one queue. It is for those who have many messages in hand: single sends that come together
        # share requests by themselves.
        receipts = await producer.send_batch([trimq.Message(topic=TOPIC, body=b"value %d" % n) for n in range(100)])
        offsets = [receipt.offset for receipt in receipts]
        assert {receipt.queue for receipt in receipts} == {receipts[0].queue}
        assert offsets == list(range(offsets[0], offsets[0] + 100))
        print("batch: 100 values in one queue, offsets without a gap")

        table = b"0 kWh\t" * 11_000
        table = table[: 64 * 1024]
        receipt = await producer.send(trimq.Message(topic=TOPIC, body=table))
        async with mq.pull("auditor") as reader:
            found = await reader.read(receipt.queue, receipt.offset, max=1)
        assert found.messages[0].body == table
        print("compressed:", len(table), "bytes come back as they were")

        try:
            await producer.send(trimq.Message(topic=TOPIC, body=random.randbytes(5 << 20)))
        except trimq.errors.BadRequest as error:
            print("refused: a body that is too large:", error)


if __name__ == "__main__":
    trio.run(main)
