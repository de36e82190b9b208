"""Where a message goes that shall not be delivered at once: by its DELAY and TIMER_* properties.

One rule for everything that becomes visible: sends, committed transactions. What waits is stored in a topic of the
broker's and remembers its real one.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.config import BrokerConfig
from broker.replication.intake import Intake
from broker.replication.requests import PutMessage, Refused
from broker.service.delay import delayed
from broker.service.timed import TIMER_KEYS, make_handle, time, wanted_due
from broker.service.wheel import TIMER_TOPIC, Wheel
from trimq.env import Clock
from trimq.message import properties
from trimq.wire.codes import ResponseCode

__all__ = ["Placing", "delay_level"]


class Placing:
    """Decides for one replica group, while this replica leads it."""

    def __init__(self, config: BrokerConfig, intake: Intake, wheel: Wheel, clock: Clock) -> None:
        self._config = config
        self._wheel = wheel
        self._clock = clock
        self._levels = len(config.delay_levels_ms)
        self._intake = intake
        self._rotation = 0

    def place(self, message: PutMessage, found: Mapping[str, str]) -> None:
        """Turn `message`, whose properties are `found`, into one that waits, if they say so. Raises `Refused`."""
        level = delay_level(found.get("DELAY", ""), self._levels)
        if level > 0:
            plain = {key: value for key, value in found.items() if key not in TIMER_KEYS}
            delayed(message, plain, level, message.topic.decode(), self.queue_of(message))
        elif any(key in found for key in TIMER_KEYS):
            self._time(message, dict(found))

    def _time(self, message: PutMessage, found: dict[str, str]) -> None:
        if not self._config.timers:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"the broker {self._config.broker_name} takes no timed messages (timerWheelEnable): use a delay level",
            )
        now = self._clock.wall_ms()
        due = wanted_due(found, now)
        if due is None or due <= now:
            return  # due already: a plain message
        longest = self._config.timer_max_delay_s
        if due - now > longest * 1000:
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL,
                f"the message would be due in {(due - now) // 1000} s, longer than the broker's timerMaxDelaySec of"
                f" {longest} s: send it later, or raise that limit",
            )
        if self._intake.view.topic(TIMER_TOPIC.encode()) is None:
            raise Refused(ResponseCode.SERVICE_NOT_AVAILABLE, "this group is being formed: try again in a moment")
        real, queue = message.topic.decode(), self.queue_of(message)
        # Never at or before the log's time: the timer's cursor may stand there (`broker.service.timer`).
        logged = self._intake.log_time()
        due = max(due, logged + 1)
        time(message, found, due, logged, self._wheel, queue)
        unique = found.get(properties.UNIQ_KEY, "")
        if unique:
            message.recall_handle = make_handle(real, self._config.broker_name, due, unique)

    def queue_of(self, message: PutMessage) -> int:
        """The queue that the message is for, creating its topic if need be; one is picked where none is named."""
        info = self._intake.ensure_topic(
            message.topic, default_topic=message.default_topic, default_queues=message.default_queues
        )
        if message.queue_id >= 0:
            return message.queue_id
        self._rotation += 1
        return self._rotation % max(1, info.write_queues)


def delay_level(text: str, highest: int) -> int:
    """The delay level that a DELAY property asks for; 0: none."""
    try:
        return min(int(text), highest) if text else 0
    except ValueError:
        return 0
