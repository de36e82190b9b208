"""Foreign clients live apart: one virtual environment each, made once from the package registry and kept.

Eleven distributions on PyPI install a top-level package `rocketmq`, so no two of them share an environment, and none
shares ours.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HOME = Path(__file__).resolve().parents[2] / ".interop"
"""Ignored by git; safe to delete."""


def python_with(requirement: str) -> Path:
    """The interpreter of an environment that holds exactly `requirement`. Raises CalledProcessError when it cannot."""
    home = HOME / requirement.replace("==", "-")
    python = home / "bin" / "python"
    stamp = home / "installed"
    if not stamp.exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
            check=True,
            stdout=sys.stderr,
        )
        stamp.touch()
    return python
