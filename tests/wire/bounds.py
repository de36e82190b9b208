"""How much the property tests of wire and message try: bounded, repeatable, leaving nothing behind."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

PROPERTY = settings(max_examples=120, deadline=None, derandomize=True, database=None)
"""Same examples in every run; more of them belong into a fuzzing job, not into the suite."""
FEW = settings(PROPERTY, max_examples=20)
"""For properties that are checked for each of many classes."""

i32 = st.integers(-(2**31), 2**31 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
some_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
