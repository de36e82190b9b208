"""Telling protocols apart by their first bytes."""

from __future__ import annotations

import pytest

from trimq.remoting.sniff import FirstBytes, sniff


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x00\x00\x00\x10", FirstBytes.REMOTING),
        (b"\x01\x00\x00\x00", FirstBytes.REMOTING),
        (b"\x16\x03\x01\x02\x00\x01", FirstBytes.TLS),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FirstBytes.HTTP2),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", FirstBytes.PROXY),
        (b"\r\n\r\n\x00\r\nQUIT\n!", FirstBytes.PROXY),
        (b"GET / HTTP/1.1\r\n", FirstBytes.HTTP1),
        (b"SSH-2.0-OpenSSH", FirstBytes.UNKNOWN),
        (b"\x16\x02", FirstBytes.UNKNOWN),
        (b"PRX", FirstBytes.UNKNOWN),
        (b"\xff", FirstBytes.UNKNOWN),
    ],
)
def test_first_bytes_name_the_protocol(head: bytes, kind: FirstBytes) -> None:
    assert sniff(head) is kind


@pytest.mark.parametrize("signature", [b"\x16\x03", b"PRI * HTTP/2.0", b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n", b"POST "])
def test_a_signature_that_arrives_byte_by_byte_is_undecided_until_it_is_whole(signature: bytes) -> None:
    assert [sniff(signature[:n]) for n in range(len(signature))] == [None] * len(signature)
    assert sniff(signature) is not None
