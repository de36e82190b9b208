"""The decision which segments go: a table."""

from __future__ import annotations

import pytest

from broker.store.retention import RetentionConfig, SealedSegment, expired

HOUR = 3_600_000
NOW = 1_700_000_000_000
ANY_HOUR = RetentionConfig(reserved_ms=10 * HOUR, delete_hours=frozenset(range(24)))
NO_HOUR = RetentionConfig(reserved_ms=10 * HOUR, delete_hours=frozenset())


def segments(*ages_h: float) -> list[SealedSegment]:
    return [SealedSegment(100 * (n + 1), NOW - int(age * HOUR)) for n, age in enumerate(ages_h)]


@pytest.mark.parametrize(
    ("ages", "config", "used", "removable", "count"),
    [
        ((30, 20, 5, 1), ANY_HOUR, 0.1, 10_000, 2),  # by age
        ((30, 20, 5, 1), NO_HOUR, 0.1, 10_000, 0),  # not at this hour
        ((30, 20, 5, 1), NO_HOUR, 0.8, 10_000, 2),  # the disk fills: at any hour, but only expired ones
        ((5, 4, 3, 1), NO_HOUR, 0.9, 10_000, 3),  # the disk is full: oldest first, the newest two segments stay
        ((30, 20, 15, 12), ANY_HOUR, 0.1, 150, 1),  # nobody may need it
        ((30,), ANY_HOUR, 0.9, 10_000, 0),  # the active one and one more always stay
        ((), ANY_HOUR, 0.9, 10_000, 0),
    ],
)
def test_segments_go_by_age_hour_and_pressure(
    ages: tuple[float, ...], config: RetentionConfig, used: float, removable: int, count: int
) -> None:
    assert expired(segments(*ages), config, now_ms=NOW, used_share=used, removable=removable) == count
