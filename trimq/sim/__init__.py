"""A whole cluster in one deterministic simulation, for the tests of applications.

    from trimq.sim import Simulation, run_simulation

    async def scenario(sim: Simulation) -> None:
        async with sim.client() as mq:
            await mq.send("orders", b"1")
            await sim.nodes[0].kill(power=True)
            ...

    run_simulation(scenario, seed=7)

Name server, brokers and client are the real ones; network, disks, time and chance are simulated, so a run takes no
waiting and the same seed gives the same run, in any process. What the scenario itself does must keep to the same rules:
wait with `trio.sleep`, draw from `sim.rng`, use no threads, sockets or files. See docs/simulation.md.

Needs the server packages (`broker`, `namesrv`, `raft`), which come with the distribution. It reaches into Trio's
scheduler, so it is for tests and nothing else.
"""

from trimq.sim.cluster import SimNode, SimSettings, Simulation, run_simulation
from trimq.sim.deterministic import Trace

__all__ = ["SimNode", "SimSettings", "Simulation", "Trace", "run_simulation"]
