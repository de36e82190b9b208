"""The samples as a page: every goal with figure, peer, ratio and verdict, then every figure that was taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.goals import Row, rows
from bench.results import Samples, Spread

__all__ = ["goals_table", "page", "publish"]

_MARKS = ("<!-- figures begin -->", "<!-- figures end -->")


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(found: Spread | None) -> str:
    return number(found.median) if found is not None else "–"


def _markdown(head: tuple[str, ...], lines: list[tuple[str, ...]], left: int) -> str:
    rule = "|" + "|".join("---" if at < left else "---:" for at in range(len(head))) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)])


def _line(row: Row) -> tuple[str, ...]:
    goal = row.goal
    sign = "≤" if goal.at_most else "≥"
    ratio = _spread(row.value) if goal.unit == "×" else "–"
    spread = f"{number(row.value.low)}–{number(row.value.high)}" if row.value and row.value.count > 1 else "–"
    unit = "" if goal.unit == "×" else f" {goal.unit}"
    verdict = row.verdict + (", stretch too" if row.stretched else "")
    bound = f"{sign} {number(goal.bound)}{unit}"
    return (
        goal.number,
        goal.what,
        goal.peer or "–",
        _spread(row.ours),
        _spread(row.peer),
        ratio,
        spread,
        bound,
        verdict,
    )


def goals_table(samples: Samples) -> str:
    head = ("#", "what", "peer", "ours", "peer's", "ratio", "min–max", "goal", "verdict")
    return _markdown(head, [_line(row) for row in rows(samples)], 3)


def _figures(samples: Samples) -> str:
    head = (
        "step",
        "scenario",
        "subject",
        "median",
        "min",
        "max",
        "runs",
        "p50 ms",
        "p99 ms",
        "CPU µs a message",
        "bytes written",
    )
    lines: list[tuple[str, ...]] = []
    for step, scenario, subject in dict.fromkeys((s.step, s.scenario, s.subject) for s in samples.all):
        taken = list(samples.of(scenario, subject, step))
        spread = Spread.of(s.value for s in taken)
        assert spread is not None

        def fact(name: str, at: tuple[str, str, str] = (scenario, subject, step)) -> Spread | None:
            return samples.spread(at[0], at[1], name, at[2])

        roles = dict.fromkeys(key for s in taken for key in s.facts if key.startswith("cpu_us:"))
        cpu = ", ".join(f"{role.removeprefix('cpu_us:')} {_spread(fact(role))}" for role in roles) or "–"
        lines.append(
            (
                step, scenario, subject, f"{number(spread.median)} {taken[0].unit}", number(spread.low),
                number(spread.high), str(spread.count), _spread(fact("p50_ms")), _spread(fact("p99_ms")), cpu,
                _spread(fact("written_per_message")),
            )
        )  # fmt: skip
    return _markdown(head, lines, 3)


def page(samples: Samples, facts: Mapping[str, str], plots: list[str]) -> str:
    """What stands between the marks of docs/performance.md."""
    parts = [", ".join(f"{name}: {text}" for name, text in facts.items()) + ".", goals_table(samples)]
    if samples.notes:
        parts.append("What could not be measured:\n\n" + "\n".join(f"- {k}: {v}" for k, v in samples.notes.items()))
    parts += [f"![{name}](performance/{name}.png)" for name in plots]
    parts.append("### Every figure\n\n" + (_figures(samples) if samples.all else "None yet."))
    return "\n\n".join(parts)


def publish(path: Path, text: str) -> None:
    """Put the text between the marks, whatever stands around them."""
    begin, end = _MARKS
    before, _, rest = path.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{path} has no {begin} ... {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
