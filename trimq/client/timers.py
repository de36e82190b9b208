"""Timed messages that wait: cancelling one, listing them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from trimq.client.instance import Instance, refusal
from trimq.client.model import from_ms
from trimq.wire.body.timers import TimerList
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.timer import ListTimersHeader, ListTimersResponse, RecallHeader

__all__ = ["Timed", "list_timers", "recall"]

PAGE = 500


@dataclass(frozen=True, slots=True)
class Timed:
    """A message that waits for its time."""

    id: str
    topic: str
    group: str
    """The replica group that holds it."""
    queue: int
    """Where it goes."""
    due: datetime
    keys: tuple[str, ...]
    tag: str | None
    sent: datetime
    """When its producer made it, by the producer's clock."""
    body_bytes: int
    rolled: int
    """How often it was placed anew: messages that wait for more than 36 hours are."""
    recall_handle: str


async def recall(instance: Instance, group: str, topic: str, handle: str, producer_group: str) -> bool:
    """True: it will not be delivered. False: it does not wait. Raises `Denied`, or the error of another refusal."""
    header = RecallHeader(producer_group=producer_group, topic=topic, recall_handle=handle, bname=group)
    answer = await instance.call(group, Command(code=RequestCode.RECALL_MESSAGE, ext=header.to_ext()))
    if answer.code == ResponseCode.ILLEGAL_OPERATION:
        return False
    if answer.code != ResponseCode.SUCCESS:
        raise refusal(answer, group)
    return True


async def list_timers(instance: Instance, group: str, topic: str, limit: int) -> list[Timed]:
    """What waits in one replica group; of one topic, or of all ("")."""
    found: list[Timed] = []
    after = ""
    while len(found) < limit:
        header = ListTimersHeader(topic=topic, max_num=min(PAGE, limit - len(found)), after=after, bname=group)
        answer = await instance.call(group, Command(code=RequestCode.LIST_TIMERS, ext=header.to_ext()))
        if answer.code != ResponseCode.SUCCESS:
            raise refusal(answer, group)
        found += [
            Timed(
                each.msgId,
                each.topic,
                group,
                each.queueId,
                from_ms(each.dueMs),
                tuple(each.keys.split()),
                each.tag or None,
                from_ms(each.bornMs),
                each.bodyBytes,
                each.rolled,
                each.recallHandle,
            )
            for each in TimerList.from_json(answer.body).messages
        ]
        after = ListTimersResponse.from_ext(answer.ext).next
        if not after:
            break
    return found
