"""What a group tells whoever uses it: consensus events in, nothing out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from raft.core import RaftCore
from raft.core.ready import InstallNeeded, RoleChange
from raft.core.types import EntryId, Membership, NodeId

__all__ = ["GroupHost"]


class GroupHost(Protocol):
    """Who uses the group. Called from within a turn of the loop: synchronous, short, must not raise."""

    def core_started(self, core: RaftCore) -> None:
        """The replica takes part from now on; `core.commit` is what recovery knows to be committed."""
        ...

    def form_entries(self) -> None:
        """This replica leads: propose what is due (`RaftGroup.may_form`, `RaftGroup.propose`)."""
        ...

    def role_changed(self, change: RoleChange) -> None: ...

    def committed(self, first: int, last: int) -> None:
        """Entries [first, last] are committed; what is durable here may lag behind."""
        ...

    def acknowledged(self, last: int) -> None:
        """Entries up to `last` may be answered "stored". Comes after `committed` in the same turn."""
        ...

    def rewind_needed(self, to: EntryId) -> None:
        """The leader's log leaves ours after `to`, below what was dispatched here: take the store back."""
        ...

    def durable_moved(self) -> None:
        """A write ended."""
        ...

    def members_changed(self, membership: Membership) -> None: ...

    def ticked(self) -> None:
        """For sweeps; called on every tick."""
        ...

    def link_changed(self, node: NodeId, *, up: bool) -> None: ...

    def app_frame(self, node: NodeId, fields: Sequence[Any], body: memoryview) -> None:
        """A frame of the application channel. Raises CodecError."""
        ...

    def driver_message(self, node: NodeId, fields: Sequence[Any], body: memoryview) -> None:
        """A driver message that is not the group's own business (installation, repair). Raises CodecError."""
        ...

    def install_needed(self, need: InstallNeeded) -> None: ...

    def core_stopped(self) -> None:
        """The log is damaged, or held for an installation: no core until `RaftGroup.resume`."""
        ...

    def log_released(self) -> None:
        """Nothing of the stopped core writes any more: the log may be mended."""
        ...
