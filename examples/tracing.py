"""Who sent a message, who consumed it, and one consumed again on demand.

Prints:

    found: parcel 7
    track: tracking-office CONSUMED
    again: CR_SUCCESS
    trace: Pub SubBefore SubAfter

trimq standalone                     # in another terminal
python examples/tracing.py [NAMESRV]
"""

import sys

import trio

import trimq

TOPIC, GROUP = "parcels", "tracking-office"


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    scanned = 0
    arrived = trio.Event()

    async def scan(parcel: trimq.Received) -> None:
        nonlocal scanned
        scanned += 1
        arrived.set()

    async with trimq.connect(address, trace=True) as mq, trio.open_nursery() as nursery:
        async with mq.subscribe(TOPIC, group=GROUP) as parcels:
            await nursery.start(parcels.run, scan)
            receipt = await mq.send(TOPIC, "parcel 7", keys=["7"])
            with trio.fail_after(20):
                await arrived.wait()
                await parcels.commit()
                (parcel,) = [each for each in await mq.admin.find(TOPIC, "7") if each.id == receipt.id]
                print("found:", parcel.body.decode())
                for track in await mq.admin.track(parcel):
                    print("track:", track.group, track.kind.value)
                result = await mq.admin.consume_directly(GROUP, mq.instance.client_id, parcel)
                print("again:", result.consumeResult)
                assert scanned >= 2
                while len(steps := await mq.admin.trace(receipt.id)) < 3:  # noqa: ASYNC110  (nobody tells us)
                    await trio.sleep(0.1)  # traces are written twice a second
                print("trace:", *[step.what for step in steps])
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
