"""A disk whose power can be cut: ext4 on a loop device, shut down without a flush.

What was synced is there after the next mount, everything else is gone: unsynced appends, files whose directory was not
synced, renames. `kill -9` proves nothing of the kind, since the page cache survives a process. Needs root and loop
devices; `available` says whether this machine has them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FS_IOC_SHUTDOWN = 0x8004587D
_NO_FLUSH = 2


@dataclass(frozen=True, slots=True)
class LoopDisk:
    """One mounted image."""

    image: Path
    mount: Path

    def cut(self) -> None:
        """Cut the power now: nothing more reaches the image. Processes that have files open get errors."""
        descriptor = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_FLUSH))
        finally:
            os.close(descriptor)

    def restore(self) -> None:
        """Mount what was synced. Every process that used the disk must be gone."""
        _run("umount", str(self.mount))
        _run("mount", "-o", "loop", str(self.image), str(self.mount))


def available(scratch: Path) -> str | None:
    """None when a loop disk can be made here, else why not."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    try:
        with loop_disk(scratch, megabytes=16) as disk:
            disk.cut()
            disk.restore()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"loop mounts do not work here: {error}"
    return None


@contextmanager
def loop_disk(scratch: Path, *, megabytes: int) -> Iterator[LoopDisk]:
    """Make, mount, and afterwards unmount and delete a disk of its own."""
    scratch.mkdir(parents=True, exist_ok=True)
    image, mount = scratch / "disk.img", scratch / "disk"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    _run("mkfs.ext4", "-q", "-F", str(image))
    _run("mount", "-o", "loop", str(image), str(mount))
    try:
        yield LoopDisk(image, mount)
    finally:
        _run("umount", str(mount))
        image.unlink()
        mount.rmdir()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
