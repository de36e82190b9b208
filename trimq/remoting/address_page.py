"""Where the name servers are, by HTTP: RocketMQ's *address server*, a page whose text is `host:port;host:port`.

Clients and brokers read it once at their start and again every two minutes, so name servers can move without touching
either. RocketMQ's own path is `http://DOMAIN:8080/rocketmq/nsaddr` (TopAddressing, MixAll.getWSAddr); any page will do.
One request on one connection, by h11 over whatever network was passed in; no redirects, no TLS yet.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import anyio
import h11

from trimq.env import Network, Stream
from trimq.errors import ConnectFailed
from trimq.remoting.client import split_addr

__all__ = ["REFRESH_S", "fetch_addresses", "is_page", "page_of"]

REFRESH_S: Final = 120.0
"""RocketMQ's clients look as often."""
FETCH_S: Final = 5.0
PAGE_MAX_BYTES: Final = 64 << 10
DEFAULT_PORT: Final = 8080


def is_page(text: str) -> bool:
    """Whether a name server setting is the address of a page."""
    return text.strip().startswith(("http://", "https://"))


def page_of(domain: str, group: str) -> str:
    """The page of RocketMQ's settings `rmqAddressServerDomain` and `rmqAddressServerSubGroup`."""
    return f"http://{domain if ':' in domain else f'{domain}:{DEFAULT_PORT}'}/rocketmq/{group}"


async def fetch_addresses(network: Network, page: str) -> tuple[str, ...]:
    """The addresses on the page, in its order. Raises `ConnectFailed`, which says what is wrong, within 5 s."""
    parts = urlsplit(page.strip())
    if parts.scheme != "http" or not parts.hostname:
        raise ConnectFailed(f"{page}: an address page is http://host:port/path (TLS is not built yet)")
    try:
        port = parts.port or 80
        with anyio.fail_after(FETCH_S):
            stream = await network.connect(parts.hostname, port)
            try:
                status, body = await _get(stream, parts.netloc, parts.path or "/")
            finally:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
    except TimeoutError as error:
        raise ConnectFailed(f"{page} did not answer within {FETCH_S:g} s") from error
    except (OSError, ValueError, h11.RemoteProtocolError) as error:
        raise ConnectFailed(f"{page} cannot be read: {error}") from error
    if status != 200:
        raise ConnectFailed(f"{page} answered {status}")
    text = body.decode("utf-8", "replace").replace(",", ";").replace("\n", ";")
    addresses = tuple(dict.fromkeys(part.strip() for part in text.split(";") if part.strip()))
    if not addresses:
        raise ConnectFailed(f"{page} names no name server")
    for address in addresses:
        split_addr(address)
    return addresses


async def _get(stream: Stream, host: str, path: str) -> tuple[int, bytes]:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=PAGE_MAX_BYTES)
    headers = [("Host", host), ("Connection", "close"), ("Accept", "text/plain")]
    await stream.send_all(
        (http.send(h11.Request(method="GET", target=path, headers=headers)) or b"")
        + (http.send(h11.EndOfMessage()) or b"")
    )
    status, body = 0, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(16384))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
            if len(body) > PAGE_MAX_BYTES:
                raise ValueError(f"more than {PAGE_MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return status, body
