"""Where to begin reading a queue: an offset, an end of the queue, or a time, resolved to an offset."""

from __future__ import annotations

from datetime import datetime

from trimq.client.broker_api import BrokerApi
from trimq.client.model import Position, Queue, Start, to_ms
from trimq.errors import BadRequest

__all__ = ["resolve"]


async def resolve(api: BrokerApi, queue: Queue, position: Position) -> int:
    """The offset that a position means now. Raises `TrimqError` when the broker cannot be asked."""
    if isinstance(position, datetime):
        return await api.offset_at(queue, to_ms(position))
    if position is Start.FIRST:
        return await api.first_offset(queue)
    if position is Start.LAST:
        return await api.end_offset(queue)
    if position >= 0:
        return position
    raise BadRequest(f"{position!r} is no position in a queue", advice="give an offset from 0, a Start, or a datetime")
