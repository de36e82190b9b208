"""The quick search finds exactly what the careful one finds."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from broker.store.index_values import index_values
from trimq.message.properties import get

pieces = st.sampled_from(
    [b"TAGS", b"KEYS", b"UNIQ_KEY", b"XKEYS", b"\x01", b"\x01", b"\x02", b"\x02", b"a", b"b c", b"KEY", b"S", b""]
)


@given(st.one_of(st.lists(pieces, max_size=20).map(b"".join), st.binary(max_size=60)))
@example(b"KEYS\x01a\x02KEYS\x01")
@example(b"UNIQ_KEY\x01TAGS\x01x")
@example(b"TAGS\x01\x02TAGS\x01x")
def test_it_agrees_with_the_property_reader(raw: bytes) -> None:
    tag, uniq, words = index_values(raw)
    assert (tag or None, uniq or None, words or None) == (get(raw, b"TAGS"), get(raw, b"UNIQ_KEY"), get(raw, b"KEYS"))
