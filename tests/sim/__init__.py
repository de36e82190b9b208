"""Deterministic simulation: whole clusters in one thread, on a seed, in virtual time.

Real code everywhere: name server, brokers (replicas, Raft, store, listeners), client library. Replaced are only what
the code takes as parameters anyway: network, disks, clocks, chance. So a seed and a commit give one trace, byte for
byte, and that no run ever differs proves that nothing escapes the injected interfaces.

    python -m tests.sim --seeds 50            # ends with one `ledger` line; status 0 only without a violation
    python -m tests.sim --first-seed 17 --seeds 1 --verbose

Layout: `deterministic.py` (Trio made repeatable, the trace), `net.py` (TCP as it behaves), `plan.py` (what a seed
draws), `world.py` (machines with brokers, killed and started), `nemesis.py` (faults), `workload.py` (clients and
their history), `oracle.py` (what must hold inside the cores), `run.py` (one seed), `planted.py` (bugs that must be
found).
"""
