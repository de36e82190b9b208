"""Deterministic simulation: whole clusters in one thread, on a seed, in virtual time (docs/simulation.md).

The reusable part is `trimq.sim`: Trio made repeatable, network, disks, machines. Here is what breaks it and judges it:

- `plan.py` what a seed draws, `world.py` a plan's cluster, `nemesis.py` faults, `workload.py` clients;
- `history.py` what they saw, and the verdict; `oracle.py` what must hold inside the replicas;
- `run.py` one seed, `campaign.py` many and the ledger, `shrink.py` failing runs made smaller;
- `planted.py` bugs that must be found.
"""
