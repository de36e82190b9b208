"""Who said that it leads: at most one node in any term of a group, whatever happened. Read from the nodes' logs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

__all__ = ["double_terms"]

_READY = re.compile(r"leader is ready +group=(\S+) node=(\S+) term=(\d+)")


def double_terms(logs: Iterable[Path]) -> list[str]:
    """A sentence for each term of a group in which two nodes became ready leaders. A missing log is an empty one."""
    leaders: dict[tuple[str, int], set[str]] = defaultdict(set)
    for path in logs:
        if path.exists():
            for group, node, term in _READY.findall(path.read_text(errors="replace")):
                leaders[group, int(term)].add(node)
    return [
        f"{' and '.join(sorted(nodes))} both led {group} in term {term}"
        for (group, term), nodes in sorted(leaders.items())
        if len(nodes) > 1
    ]
