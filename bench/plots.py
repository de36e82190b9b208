"""The figures as pictures, small enough to live in the repository. Needs matplotlib (`pip install trimq[bench]`)."""

from __future__ import annotations

from pathlib import Path

from bench.goals import rows
from bench.results import Samples

__all__ = ["draw"]


def draw(samples: Samples, folder: Path) -> list[str]:
    """Write the plots; returns their names. None without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    found = [row for row in rows(samples) if row.value is not None and row.goal.unit == "×"]
    if found:
        figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.28 * len(found)))
        shares = [row.value.median / row.goal.bound if row.value else 0.0 for row in found]
        met = [row.verdict == "met" for row in found]
        labels = [f"{row.goal.number}: {row.goal.what} ÷ {row.goal.peer}" for row in found]
        axes.barh(range(len(found)), shares, color=["#2a7" if good else "#c53" for good in met])
        axes.set_yticks(range(len(found)), labels, fontsize=6)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xlabel('ratio ÷ goal (1 = the goal; green = met; for the goals "at most" lower is better)', fontsize=7)
        figure.tight_layout()
        figure.savefig(folder / "goals.png", dpi=80)
        pyplot.close(figure)
        made.append("goals")
    windows = [(1, "one by one"), *((w, f"{w:,} in flight") for w in (64, 256, 512, 2048))]
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    drawn = False
    for subject in samples.subjects():
        for size in ("100 B", "1 KiB"):
            points = [(w, samples.spread(f"{size}, {how}", subject)) for w, how in windows]
            there = [(w, spread) for w, spread in points if spread is not None]
            if len(there) > 1:
                axes.plot([w for w, _ in there], [s.median for _, s in there], marker="o", label=f"{subject}, {size}")
                drawn = True
    if drawn:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("requests in flight")
        axes.set_ylabel("messages/s")
        axes.legend(fontsize=6)
        figure.tight_layout()
        figure.savefig(folder / "rates.png", dpi=80)
        made.append("rates")
    pyplot.close(figure)
    return made
