"""Offsets of a broadcast consumer, in a file of its own: each member reads everything, so no broker can keep them.

The file is JSON, replaced as a whole and only when something changed: every five seconds, and on the way out. A crash
repeats at most what came since. A file that cannot be read is an error at the start, never silently a fresh beginning.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread

from trimq.client.model import Queue
from trimq.client.offset_store import COMMIT_EVERY_S
from trimq.errors import BadRequest

__all__ = ["LocalOffsets"]

log = logging.getLogger(__name__)


class LocalOffsets:
    """The offsets of one consumer group in one file."""

    def __init__(self, path: Path, consumer_group: str, current: Callable[[], Mapping[Queue, int]]) -> None:
        self._path = path
        self._group = consumer_group
        self._current = current
        self._known: dict[Queue, int] = {}
        self._written: dict[Queue, int] = {}

    async def load(self) -> None:
        """Take over what an earlier run wrote. Raises `BadRequest` for a file that is something else."""
        try:
            text = await anyio.to_thread.run_sync(self._path.read_text)
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise self._unusable(error) from error
        try:
            data = json.loads(text)
            if data["group"] != self._group:
                raise ValueError(f"it belongs to consumer group {data['group']!r}")
            self._known = {Queue(topic, group, int(number)): int(at) for topic, group, number, at in data["offsets"]}
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable(error) from error
        self._written = dict(self._known)

    def _unusable(self, error: Exception) -> BadRequest:
        return BadRequest(
            f"{self._path} does not hold the offsets of {self._group!r}: {error}",
            advice="name another file, or remove this one to begin anew",
        )

    def get(self, queue: Queue) -> int | None:
        """Where to go on; None for a queue that was never read."""
        return self._known.get(queue)

    async def run(self) -> None:
        """Write every five seconds until cancelled."""
        while True:
            await anyio.sleep(COMMIT_EVERY_S)
            await self.flush()

    async def flush(self, queues: Mapping[Queue, int] | None = None) -> None:
        """Write what changed; a failure is logged and tried again next time."""
        self._known.update(self._current() if queues is None else queues)
        if self._known == self._written:
            return
        offsets = dict(self._known)
        rows = [[queue.topic, queue.group, queue.id, at] for queue, at in sorted(offsets.items())]
        text = json.dumps({"group": self._group, "offsets": rows})
        try:
            await anyio.to_thread.run_sync(self._write, text)
        except OSError as error:
            log.warning("offsets not written", extra={"path": str(self._path), "error": error})
        else:
            self._written = offsets

    def _write(self, text: str) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
