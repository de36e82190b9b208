"""Master-slave replication (`sync`, `async`) as a regime of the group that Raft drives too.

The log, its matching by term boundaries, truncation, links, repair and installation are the same under every strategy
(package `raft`); an epoch *is* a term. What master-slave decides otherwise is here, and nothing else:

- `rules`: when an entry counts, who may lead, how many grants make a master; also while a group moves between
  strategies, when the old and the new regime hold together. Pure.
- `in_sync`: which slaves are in sync. Pure.
- `tickets`: what a producer is told when, with RocketMQ's put statuses. Pure.
- `master`, `promotion`, `move`, `rewind`: what a master does beside leading, how a slave is made one, how a group comes
  under another strategy, and how a replica whose acknowledged tail was given up takes its store back.
"""
