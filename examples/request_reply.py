"""Request and reply: a price service, and a client that asks it.

Prints:

    ACME costs 12.5
    nobody sells UNOBTAINIUM: code 404

trimq standalone                     # in another terminal
python examples/request_reply.py [NAMESRV]
"""

import sys

import trio

import trimq

PRICES = {"ACME": "12.5", "INITECH": "3.1"}


async def answer(request: trimq.Received) -> None:
    price = PRICES.get(request.body.decode())
    if price is None:
        await request.reply(b"", properties={"code": "404"})
    else:
        await request.reply(price, properties={"code": "200"})


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9876"
    async with (
        trimq.connect(address) as service,
        trimq.connect(address) as client,
        trio.open_nursery() as nursery,
        service.subscribe("price-requests", group="price-service") as requests,
    ):
        await nursery.start(requests.run, answer)
        reply = await client.request("price-requests", "ACME")
        print(f"ACME costs {reply.body.decode()}")
        reply = await client.request("price-requests", "UNOBTAINIUM")
        print(f"nobody sells UNOBTAINIUM: code {reply.properties['code']}")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
