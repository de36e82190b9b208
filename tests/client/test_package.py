"""`import trimq` is cheap, and everything it promises is there."""

from __future__ import annotations

import subprocess
import sys

import trimq
from trimq import blocking


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, trimq; print(sorted(m for m in ('trio', 'anyio', 'msgspec', 'asyncio') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in trimq.__all__:
        assert getattr(trimq, name) is not None
    assert dir(trimq) == sorted(trimq.__all__)
    for name in blocking.__all__:
        assert getattr(blocking, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(trimq, "Consumer")


def test_every_public_object_is_documented() -> None:
    for name in trimq.__all__:
        assert getattr(trimq, name).__doc__
