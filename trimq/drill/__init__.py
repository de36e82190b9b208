"""The failover drill: load a running cluster, break it on purpose, and say what was lost.

`history` holds what the drill's own clients saw, `verdict` judges it (pure), `load` and `watch` produce it,
`faults` breaks the cluster, `reader` reads everything back through every node, `runner` puts them together.
"""
