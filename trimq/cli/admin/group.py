"""`trimq admin group`: run replica groups."""

from __future__ import annotations

from trimq.cli.lazy import Entry, LazyGroup

__all__ = ["command"]

command = LazyGroup(
    name="group",
    help="Replica groups (a brokerName each): who belongs to them, who leads. Changes are taken on the broker's own "
    "machine only.",
    entries={
        "list": Entry("trimq.cli.admin.group_list:list_groups", "Groups, their replicas, who leads, who lags."),
        "create": Entry("trimq.cli.admin.group_create:create", "Let running brokers take a new group."),
        "add-replica": Entry("trimq.cli.admin.group_members:add_replica", "Add a replica, as a learner."),
        "promote-learner": Entry("trimq.cli.admin.group_members:promote_learner", "Make a learner a voter."),
        "remove-replica": Entry("trimq.cli.admin.group_members:remove_replica", "Remove a voter or a learner."),
        "transfer": Entry("trimq.cli.admin.group_leader:transfer", "Hand leadership to another replica."),
        "set-strategy": Entry("trimq.cli.admin.group_strategy:set_strategy", "Move a group to raft, sync or async."),
        "trust-log": Entry("trimq.cli.admin.group_trust:trust_log", "Take a suspect replica's log as it is."),
        "promote": Entry("trimq.cli.admin.group_strategy:promote", "Make a slave the master."),
    },
)
