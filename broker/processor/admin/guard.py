"""Requests that change configuration or destroy data: served to this machine only (`trimq.remoting.local`).

For a forwarded request the addresses are those of the original connection.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from broker.processor.registry import Slow
from broker.processor.request import Refused, Request
from trimq.remoting.local import host_of, is_local
from trimq.wire.codes import ResponseCode, code_name

__all__ = ["guarded"]

log = logging.getLogger(__name__)


def guarded(handler: Slow, allowed: Sequence[str]) -> Slow:
    """The same handler, for local requests only."""

    async def serve(request: Request) -> bytes | None:
        peer, local = request.reply.peer, request.reply.local
        name = code_name(request.command.code)
        if not is_local(peer, local, allowed):
            log.warning("administration refused", extra={"request": name, "peer": peer})
            raise Refused(
                ResponseCode.NO_PERMISSION,
                f"{name} from {host_of(peer)} is refused: it destroys data or changes configuration, and is served to"
                " this machine only; run the tool on the broker's host, or name yours in adminAllowFrom",
            )
        log.info("administration", extra={"request": name, "peer": peer, **_about(request)})
        return await handler(request)

    return serve


def _about(request: Request) -> dict[str, str]:
    return {key: request.ext[key] for key in ("topic", "groupName", "group") if key in request.ext}
