"""Once every 10 s: silent clients go, client ids are looked through, rates are sampled."""

from __future__ import annotations

from datetime import datetime

import trio

from broker.metadata.clients import ClientTable
from broker.metrics import SAMPLE_S, Counters, Rates
from broker.service.members import Members
from trimq.env import Clock

__all__ = ["Housekeeping"]


class Housekeeping:
    """The slow loop of one replica."""

    def __init__(self, clients: ClientTable, members: Members, counters: Counters, rates: Rates, clock: Clock) -> None:
        self._clients = clients
        self._members = members
        self._counters = counters
        self._rates = rates
        self._clock = clock

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        task_status.started()
        while True:
            now = trio.current_time()
            # Days are local ones, as operators and deleteWhen count them.
            day = datetime.fromtimestamp(self._clock.wall_ms() / 1000).toordinal()
            self._rates.sample(now, self._counters, day=day)
            changed = self._clients.expire(now)
            if changed:
                self._members.changed(changed)
            self._members.look_for_doubles()
            await trio.sleep(SAMPLE_S)
