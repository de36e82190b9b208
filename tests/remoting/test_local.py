"""Who sits at the machine."""

from __future__ import annotations

import pytest

from trimq.remoting.local import is_local


@pytest.mark.parametrize(
    ("peer", "local", "allowed", "holds"),
    [
        ("127.0.0.1:5", "10.0.0.1:10911", (), True),
        ("127.8.0.9:5", "", (), True),
        ("[::1]:5", "[::1]:10911", (), True),
        ("10.0.0.1:5", "10.0.0.1:10911", (), True),
        ("10.0.0.2:5", "10.0.0.1:10911", (), False),
        ("10.0.0.2:5", "10.0.0.1:10911", ("10.0.0.0/30",), True),
        ("10.0.0.4:5", "10.0.0.1:10911", ("10.0.0.0/30",), False),
        ("10.0.0.4:5", "10.0.0.1:10911", ("2001:db8::/32",), False),
        ("someone:5", "someone:5", (), False),
        ("", "", (), False),
        ("127.0.0.1:5", "ws://127.0.0.1:10915", (), False),
        ("127.0.0.1:5", "ws://127.0.0.1:10915", ("127.0.0.0/8",), False),
        ("10.0.0.1:5", "ws://10.0.0.1:10915", (), False),
        ("10.0.0.2:5", "ws://10.0.0.1:10915", ("10.0.0.0/30",), True),
    ],
)
def test_local(peer: str, local: str, allowed: tuple[str, ...], holds: bool) -> None:
    assert is_local(peer, local, allowed) is holds
