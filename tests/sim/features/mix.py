"""Which features there are, and their life within a run. The plan says which of them a seed has."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import trio

from tests.sim.features.base import Feature
from tests.sim.features.broadcast import Broadcast
from tests.sim.features.delays import Delays
from tests.sim.features.filters import Filters
from tests.sim.features.ordered import Ordered
from tests.sim.features.requests import Requests
from tests.sim.features.resets import Resets
from tests.sim.features.retries import Retries
from tests.sim.features.together import Together
from tests.sim.features.transactions import Transactions
from tests.sim.plan import Plan
from tests.sim.world import World

__all__ = ["FEATURES", "RARE_STATES", "STATES", "Mix", "settings_of"]

KINDS: tuple[type[Feature], ...] = (
    Transactions,
    Delays,
    Retries,
    Ordered,
    Together,
    Filters,
    Broadcast,
    Requests,
    Resets,
)
FEATURES = {kind.name: kind for kind in KINDS}
STATES = tuple(state for kind in KINDS for state in kind.states)
"""What a campaign must reach."""
RARE_STATES = tuple(state for kind in KINDS for state in kind.rare)


def settings_of(plan: Plan) -> dict[str, Any]:
    """What the brokers of a plan have besides: short times for what its features wait for."""
    return {field: value for name in plan.features for field, value in FEATURES[name].broker.items()}


class Mix:
    """The features of one run."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self.world = world
        self.features = [FEATURES[name](world, stack) for name in world.plan.features]

    async def open(self) -> None:
        for feature in self.features:
            await feature.open()
            self.world.oracle.reached[f"feature: {feature.name}"] += 1

    async def run(self, readers: trio.Nursery) -> None:
        async with trio.open_nursery() as nursery:
            for feature in self.features:
                nursery.start_soon(feature.run, readers)

    def stop(self) -> None:
        for feature in self.features:
            feature.stop.set()

    async def finish(self) -> list[str]:
        """Let each come to its end, one after the other; every violation."""
        found: list[str] = []
        for feature in self.features:
            await feature.finish()
            verdict = feature.judge()
            self.world.trace("feature", feature.name, feature.errors, *verdict)
            found += [f"{rule}: {feature.name}:{rest}" for rule, _, rest in (each.partition(":") for each in verdict)]
        return found
