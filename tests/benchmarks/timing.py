"""Two ways of doing the same work, timed in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median


def compare(title: str, slow: Callable[[], object], fast: Callable[[], object], runs: int = 5) -> None:
    """Print the median of the paired ratios slow / fast, their range, and both median times."""
    slow(), fast()  # neither is timed cold
    pairs = [(_seconds(slow), _seconds(fast)) for _ in range(runs)]
    ratios = sorted(long / short for long, short in pairs)
    long, short = (median(times) for times in zip(*pairs, strict=True))
    print(
        f"{title}: {median(ratios):.2f} (lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f}; "
        f"{long:.2f} s / {short:.2f} s, {runs} paired runs)",
        flush=True,
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
