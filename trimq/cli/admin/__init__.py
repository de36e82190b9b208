"""`trimq admin`: look at a cluster and change it.

Command and option names are mqadmin's, so that hands that know it need not learn again. Each module is imported when
one of its commands runs.
"""

from __future__ import annotations

from trimq.cli.lazy import Entry, LazyGroup

__all__ = ["command"]

command = LazyGroup(
    name="admin",
    help="Look at a cluster and change it. Names and options are those of mqadmin; every command has --json.",
    entries={
        "clusterList": Entry("trimq.cli.admin.cluster:cluster_list", "Brokers, who leads, how far each replica is."),
        "topicList": Entry("trimq.cli.admin.topic:topic_list", "All topics and where they are."),
        "topicRoute": Entry("trimq.cli.admin.topic:topic_route", "Brokers and queues of one topic."),
        "updateTopic": Entry("trimq.cli.admin.topic:update_topic", "Create a topic or change its queues."),
        "consumerProgress": Entry("trimq.cli.admin.consumer:consumer_progress", "How far consumer groups are behind."),
        "consumer": Entry(
            "trimq.cli.admin.moving:consumer", "Move a running consumer group: reset, skip, clone, where."
        ),
        "message": Entry("trimq.cli.admin.message:message", "Messages: show, find, track, consume again."),
        "consumerGroupList": Entry("trimq.cli.admin.consumer_group:list_groups", "All consumer groups."),
        "group": Entry("trimq.cli.admin.group:command", "Replica groups: members, leaders, new groups, strategy."),
        "dlq": Entry("trimq.cli.admin.dlq:dlq", "Dead letters: list, show, redrive, edit."),
        "timer": Entry("trimq.cli.admin.timer:timer", "Messages that wait for their time: list, cancel."),
    },
)
