"""The message features in the simulation's load, each with a checker of its own (docs/simulation.md)."""
