"""What can be wrong around a broker process, as a value that travels in a file.

A drill writes one such file per node; the node's process (`trimq.testing.troubled_broker`) reads it when it changes and
behaves accordingly: links to peers stall, the disk is full, slow, hangs or fails, the wall clock is off, the loop stops
for a while. So real processes meet these faults without any privilege, on any machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

__all__ = ["Trouble", "read_trouble", "write_trouble"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """The faults of one node at one time; the default is a healthy world."""

    cut_to: tuple[int, ...] = ()
    """Peer ports: what this node sends there does not arrive until it is mended."""
    cut_from: tuple[int, ...] = ()
    """Peer ports: what is sent from there does not arrive here."""
    disk_full: bool = False
    """Whatever needs new room fails with ENOSPC: longer files, new files. Bytes that are allocated can be written."""
    sync_fails: bool = False
    """Every sync fails with EIO, after the write."""
    sync_delay_ms: int = 0
    """Every sync takes so much longer."""
    disk_hangs: bool = False
    """No write or sync returns until it is mended."""
    wall_offset_ms: int = 0
    """The wall clock is off by so much."""
    stall_ms: int = 0
    """The event loop does nothing at all for so long, once for each new `stall_number`."""
    stall_number: int = 0

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError for anything that is no trouble."""
        raw: Any = json.loads(text)
        known = {each.name for each in fields(cls)}
        if not isinstance(raw, dict) or not known.issuperset(raw):
            raise ValueError(f"not a description of trouble: {text!r:.80}")
        values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in raw.items()}
        return cls(**values)


def write_trouble(path: Path, trouble: Trouble) -> None:
    """Replace the file at once, so that a reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(trouble.as_json())
    temporary.replace(path)


def read_trouble(path: Path) -> Trouble:
    """The trouble in a file; no file, no trouble."""
    try:
        return Trouble.from_json(path.read_text())
    except FileNotFoundError:
        return Trouble()
