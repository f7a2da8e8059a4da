"""The arithmetic of ratios: from the times of rounds to the rows of a result. No I/O."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Rounds = Mapping[str, Sequence[float]]
"""For each variant its time in each round; the rounds of all variants belong together."""


def paired_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over rounds of the ratio to the base in the same round.

    A disturbance that lasts longer than a round slows both, and cancels out.
    """
    return statistics.median(time / floor for time, floor in zip(times, base, strict=True))


def unrest(times: Sequence[float]) -> float:
    """Return the ratio of the median round to the quiet ones.

    It is high on a busy machine, where everything takes longer and ratios get smaller.
    """
    quiet = statistics.quantiles(times, n=10, method="inclusive")[0]
    return statistics.median(times) / quiet


def row(name: str, base: str, runs: Sequence[Rounds], unit: str) -> dict[str, Any]:
    """Build a row: the median run, by time and by ratio, and the ratio of each run."""
    ratios = [round(paired_ratio(run[name], run[base]), 4) for run in runs]
    medians = [statistics.median(run[name]) for run in runs]
    return {
        "name": name,
        f"median_{unit}": round(statistics.median(medians), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": ratios,
    }


def rows(base: str, runs: Sequence[Rounds], unit: str) -> list[dict[str, Any]]:
    """Build the rows of all variants, in their order."""
    return [row(name, base, runs, unit) for name in runs[0]]
