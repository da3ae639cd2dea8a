"""Ways of doing the same work, timed in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def compare(title: str, slow: Callable[[], object], fast: Callable[[], object], runs: int = 5) -> None:
    """Print the median of the paired ratios slow / fast, their range, and both median times."""
    times = rounds({"slow": slow, "fast": fast}, runs)
    print_ratio(title, times["slow"], times["fast"])


def rounds(works: Mapping[str, Callable[[], object]], runs: int = 5) -> dict[str, list[float]]:
    """Seconds of each work in every round; in a round each is done once, and none is timed cold."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return times


def print_ratio(title: str, slow: list[float], fast: list[float]) -> None:
    """Print the median of the paired ratios slow / fast, their range, and both median times."""
    ratios = sorted(long / short for long, short in zip(slow, fast, strict=True))
    print(
        f"{title}: {median(ratios):.2f} (lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f}; "
        f"{median(slow):.2f} s / {median(fast):.2f} s, {len(ratios)} paired runs)",
        flush=True,
    )
