"""Terms by index, without I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.store.term_table import TermStart, TermTable


def table(terms: list[int], base_index: int = 0, base_term: int = 0) -> TermTable:
    made = TermTable(base_index, base_term)
    for index, term in enumerate(terms, base_index + 1):
        made.note(index, term, index * 100)
    return made


def test_it_answers_for_every_index_and_for_the_base() -> None:
    t = table([2, 2, 5, 5, 5, 9], base_index=10, base_term=1)
    assert [t.term_of(i) for i in range(10, 17)] == [1, 2, 2, 5, 5, 5, 9]
    with pytest.raises(LookupError):
        t.term_of(9)
    assert t.starts() == [TermStart(2, 11, 1100), TermStart(5, 13, 1300), TermStart(9, 16, 1600)]


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=20).map(sorted), st.integers(0, 7), st.integers(0, 20), st.data()
)
def test_it_agrees_with_the_plain_list(terms: list[int], asked: int, cut: int, data: st.DataObject) -> None:
    t = table(terms)
    cut = min(cut, len(terms))
    t.truncate_after(cut)
    terms = terms[:cut]
    base = data.draw(st.integers(0, len(terms)))
    t.drop_to(base)
    assert [t.term_of(i) for i in range(max(base, 1), len(terms) + 1)] == terms[max(base, 1) - 1 :]
    at_most = [i for i, term in enumerate(terms, 1) if term <= asked and i >= base]
    assert t.last_index_of_term(asked, len(terms)) == max(at_most, default=base)
    t.note(len(terms) + 1, 9, 0)
    assert t.term_of(len(terms) + 1) == 9


def test_a_falling_term_is_a_broken_law() -> None:
    t = table([3])
    with pytest.raises(AssertionError):
        t.note(2, 2, 0)
