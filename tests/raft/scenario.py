"""Scenarios of the Raft core as text: a script, and under each of its commands everything that the replicas put out.

A line that begins with `>` is a command, a line that begins with `#` a remark; what follows a command, indented, is its
trace. The files in `scenarios/` are compared exactly, so they pin who says what in which order, how often, and what is
written before it. They are written anew by

    python -m tests.raft.scenario

and then read: a trace that nobody has read proves nothing.

Words of the trace: `a -> b` leaves a for b (`x` behind it: the link is cut, it is lost); `a writes ...` is queued for
the disk of a; `a wrote` is the answer of the disk, and what rode on that write follows; an entry is `index/term`. Beats
are left out unless a command asks for them (`beats on`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from raft.core import (
    AppendReply,
    AppendRequest,
    Beat,
    BeatReply,
    CampaignNow,
    HardState,
    InvariantBroken,
    Membership,
    Message,
    RaftConfig,
    Ready,
    Refused,
    StorageFault,
    VoteReply,
    VoteRequest,
)
from raft.core.types import EntryIdLike
from tests.raft.core.cluster import Cluster, Replica
from tests.raft.core.model import members, seal_terms

__all__ = ["SCENARIOS", "play"]

SCENARIOS = Path(__file__).with_name("scenarios")
_KINDS = {
    "vote": VoteRequest,
    "grant": VoteReply,
    "append": AppendRequest,
    "ack": AppendReply,
    "beat": Beat,
    "campaign": CampaignNow,
}


class Traced(Cluster):
    """A cluster that says what it does."""

    def __init__(self, *args: object, **options: object) -> None:
        self.out: list[str] = []
        self.beats = False
        super().__init__(*args, **options)  # type: ignore[arg-type]  # those of Cluster

    def carry_out(self, replica: Replica, ready: Ready) -> None:
        node, core = replica.id, replica.core
        if ready.role is not None:
            leader = f", leader {ready.role.leader}" if ready.role.leader else ""
            self.out.append(f"{node} is {ready.role.role.name.lower()} in term {ready.role.term}{leader}")
        if ready.membership is not None:
            self.out.append(f"{node} goes by {_members(ready.membership[1])} of entry {ready.membership[0]}")
        for batch in ready.appends:
            parts = []
            if batch.hard_state is not None:
                parts.append(_hard(batch.hard_state))
            if batch.truncate_to is not None:
                parts.append(f"a cut behind {_id(batch.truncate_to)}")
            if batch.entries:
                parts.append(" ".join(_id(entry) for entry in batch.entries))
            if batch.release:
                parts.append("then " + "; ".join(_message(m) for m in batch.release))
            self.out.append(f"{node} writes {', '.join(parts) or 'nothing'}")
        for message in ready.send:
            if self.beats or not isinstance(message, Beat | BeatReply):
                lost = "   x" if (message.sender, message.to) in self.down else ""
                self.out.append(f"{_message(message)}{lost}")
        if ready.committed is not None:
            self.out.append(f"{node} commits up to {_id(core.entry_id(ready.committed[1]))}")
        for grant in ready.reads:
            self.out.append(f"{node} grants read {grant.token}" + (f" at {grant.index}" if grant.index else ": lost"))
        for need in ready.installs:
            self.out.append(f"{node} cannot feed {need.peer}: entry {need.next} is gone here")
        if ready.transfer is not None:
            how = "is done" if ready.transfer.done else f"failed: {ready.transfer.reason}"
            self.out.append(f"{node} transfer to {ready.transfer.target} {how}")
        super().carry_out(replica, ready)


def _id(entry: EntryIdLike | None) -> str:
    return f"{entry.index}/{entry.term}" if entry is not None else "?"


def _hard(state: HardState) -> str:
    return f"term {state.term} vote {state.vote or '-'}" + (" suspect" if state.suspect else "")


def _members(membership: Membership) -> str:
    learners = f"+{''.join(membership.learner_ids)}" if membership.learners else ""
    return "".join(membership.voter_ids) + learners


def _message(message: Message) -> str:
    return f"{message.sender} -> {message.to}  {_content(message)}"


def _content(message: Message) -> str:
    match message:
        case VoteRequest():
            kind = "pre-vote?" if message.pre else "vote?"
            return f"{kind} term {message.term} last {_id(message.last)}" + (" by transfer" if message.transfer else "")
        case VoteReply():
            word = "yes" if message.granted else "no, a leader is heard" if message.sticky else "no"
            return f"{'pre-vote' if message.pre else 'vote'} {word}, term {message.term}"
        case AppendRequest():
            empty = message.last.index == message.prev.index
            span = "nothing" if empty else f"up to {_id(message.last)}"
            return f"append term {message.term} behind {_id(message.prev)} {span}, commit {message.commit}"
        case AppendReply():
            health = f", {message.health.name.lower()}" if message.health else ""
            if message.rejected >= 0:
                hint = f"{message.hint_index}/{message.hint_term}"
                return f"refuse term {message.term} at {message.rejected}, try {hint}{health}"
            return f"have term {message.term} up to {message.match}{health}"
        case Beat():
            return f"beat term {message.term} commit {message.commit}"
        case BeatReply():
            return f"beat heard, term {message.term}"
        case CampaignNow():
            return f"campaign now, term {message.term}"


class ScriptWrong(Exception):
    """A command asks for what is not there: the script is wrong, or the core does not do what it describes."""


class Player:
    """Carries out commands."""

    def __init__(self) -> None:
        self.cluster: Traced | None = None

    def do(self, command: str) -> list[str]:
        """One command; returns its trace."""
        words = command.split()
        verb, rest = words[0].replace("-", "_"), words[1:]
        if verb == "nodes":
            return self._nodes(rest)
        if self.cluster is None:
            raise ScriptWrong("a scenario begins with `nodes`")
        cluster = self.cluster
        cluster.out.clear()
        try:
            getattr(self, f"_{verb}")(cluster, *rest)
        except Refused as error:
            cluster.out.append(f"refused: {error}")
        except InvariantBroken as error:
            cluster.out.append(f"broken: {error}")
        return list(cluster.out)

    def _nodes(self, words: Sequence[str]) -> list[str]:
        """`nodes abc [learners=d] [term=3] [window=1] [a=1,1,2 ...]`: members and the terms of their logs."""
        voters, options = words[0], dict(word.split("=", 1) for word in words[1:])
        learners = options.pop("learners", "")
        extra = options.pop("others", "")
        term = int(options.pop("term", "0"))
        window = options.pop("window", "")
        config = RaftConfig(node_id="")
        if window:
            size = int(window) * 100
            config = RaftConfig(node_id="", window_bytes=size, request_bytes=size, probe_bytes=size)
        everybody = voters + learners + extra
        logs = {node: seal_terms([int(term) for term in terms.split(",")]) for node, terms in options.items()}
        self.cluster = cluster = Traced(
            everybody,
            membership=members(voters, learners),
            logs=logs,
            hard={node: HardState(term=term) for node in everybody} if term else None,
            config=config,
        )
        cluster.out.clear()
        return []

    def _beats(self, cluster: Traced, word: str) -> None:
        cluster.beats = word == "on"

    def _elect(self, cluster: Traced, node: str) -> None:
        cluster.elect(node)

    def _tick(self, cluster: Traced, node: str, ms: str) -> None:
        cluster[node].tick(int(ms))

    def _time(self, cluster: Traced, ms: str, *nodes: str) -> None:
        cluster.time(int(ms), *nodes)

    def _settle(self, cluster: Traced) -> None:
        cluster.settle()

    def _propose(self, cluster: Traced, node: str, *payloads: str) -> None:
        cluster[node].propose(*payloads)

    def _deliver(self, cluster: Traced, *which: str) -> None:
        if not cluster.deliver(lambda m: _matches(m, which)):
            raise ScriptWrong("nothing to deliver")

    def _lose(self, cluster: Traced, *which: str) -> None:
        cluster.out.append(f"lost: {cluster.lose(lambda m: _matches(m, which))}")

    def _hold(self, cluster: Traced, node: str) -> None:
        cluster.held.add(node)

    def _release(self, cluster: Traced, node: str) -> None:
        cluster.held.discard(node)

    def _finish(self, cluster: Traced, node: str) -> None:
        replica = cluster[node]
        if not replica.disk.queue:
            raise ScriptWrong(f"{node} has nothing to write")
        seq = replica.disk.finish()
        replica.core.append_done(seq, replica.now_ms)
        cluster.out.append(f"{node} wrote, durable {replica.core.durable}")
        replica.turn()

    def _crash(self, cluster: Traced, node: str, steps: str = "0") -> None:
        cluster[node].crash(int(steps))
        cluster.out.append(f"{node} keeps {_id(cluster[node].disk.last)}, {_hard(cluster[node].disk.hard)}")

    def _start(self, cluster: Traced, node: str) -> None:
        cluster[node].start()
        cluster[node].turn()

    def _cut(self, cluster: Traced, one: str, other: str, how: str = "") -> None:
        cluster.cut(one, other, one_way=how == "one-way")

    def _isolate(self, cluster: Traced, node: str) -> None:
        cluster.isolate(node)

    def _heal(self, cluster: Traced) -> None:
        cluster.heal()

    def _gone(self, cluster: Traced, node: str) -> None:
        """The node's process died: the others' links to it are refused."""
        for other, replica in cluster.replicas.items():
            if other != node and replica.alive:
                replica.core.link_down(node, replica.now_ms)
                replica.turn()

    def _transfer(self, cluster: Traced, node: str, target: str = "") -> None:
        replica = cluster[node]
        chosen = replica.core.transfer(target or None, replica.now_ms)
        cluster.out.append(f"{node} hands over to {chosen}")
        replica.turn()

    def _change(self, cluster: Traced, node: str, voters: str, learners: str = "") -> None:
        replica = cluster[node]
        replica.core.change_membership(members(voters, learners), replica.now_ms)
        cluster.checker.entry(node, replica.core.pending(1, replica.core.last.index)[-1])
        replica.turn()

    def _disk(self, cluster: Traced, node: str, what: str) -> None:
        replica = cluster[node]
        if what == "ok":
            replica.core.storage_recovered(replica.now_ms)
        else:
            replica.core.storage_failed(StorageFault(what), replica.now_ms)
        replica.turn()

    def _read(self, cluster: Traced, node: str, token: str) -> None:
        cluster[node].barrier(int(token))

    def _show(self, cluster: Traced, *nodes: str) -> None:
        for node in nodes or tuple(cluster.replicas):
            replica = cluster[node]
            core = replica.core
            terms = ",".join(map(str, replica.terms))
            state = "down" if not replica.alive else core.role.name.lower()
            line = f"{node} {state}, term {core.term}, log [{terms}], durable {core.durable}, commit {core.commit}"
            peers = [f"{p.id} {p.state.name.lower()} {p.match}<{p.next}" for p in core.status().peers]
            cluster.out.append(line + (f"; {', '.join(peers)}" if replica.alive and peers else ""))


def _matches(message: Message, which: Sequence[str]) -> bool:
    for word in which:
        if ">" in word:
            sender, to = word.split(">")
            if (sender or message.sender) != message.sender or (to or message.to) != message.to:
                return False
        elif not isinstance(message, _KINDS[word]):
            return False
    return True


def play(text: str) -> str:
    """The script with the trace that it gives now."""
    player = Player()
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(">"):
            lines.append(line)
            try:
                lines += [f"    {out}" for out in player.do(line[1:].strip())]
            except (ScriptWrong, AssertionError) as error:
                raise ScriptWrong(f"line {number}, {line}: {error}\n" + "\n".join(lines[-12:])) from error
        elif not line.startswith("    "):
            lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all scenario files anew."""
    changed = 0
    for path in sorted(SCENARIOS.glob("*.txt")):
        old = path.read_text()
        try:
            new = play(old)
        except ScriptWrong as error:
            sys.exit(f"{path.name}: {error}")
        if new != old:
            path.write_text(new)
            changed += 1
            sys.stdout.write(f"{path.name}: changed, read it\n")
    sys.stdout.write(f"{changed} changed\n")


if __name__ == "__main__":
    main()
