"""How a score is drawn: a share in percent on an even axis, perplexity on a logarithmic one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flashsvd.figures import theme
from flashsvd.results import Metric


@dataclass(frozen=True)
class ScoreAxis:
    """Places of values on an axis. percent: of shares; else values are drawn as they are, on a logarithmic axis."""

    percent: bool

    @classmethod
    def of(cls, metric: Metric | None) -> ScoreAxis:
        """The axis of a metric; of shares where there is none yet."""
        return cls(metric is None or metric.unit == "%")

    def at(self, value: float) -> float:
        """Where traces and lines have a value."""
        return 100 * value if self.percent else value

    def noted(self, value: float) -> float:
        """Where annotations have it: plotly wants their exponents on a logarithmic axis."""
        return self.at(value) if self.percent else math.log10(value)

    def words(self, value: float) -> str:
        """A value as people read it, without a unit.

        >>> ScoreAxis(percent=True).words(0.884), ScoreAxis(percent=False).words(4.218)
        ('88.4', '4.22')
        """
        if self.percent:
            return f"{100 * value:.1f}"
        return f"{value:.2f}" if value < 100 else f"{value:,.0f}"

    def settings(self, mode: str, values: list[float]) -> dict[str, Any]:
        """The y axis of a figure that shows all of these values."""
        if not self.percent:
            return self._logarithmic(mode, values)
        if not values:
            return theme.axis(mode, grid=True, range=[0.0, 100.0], nticks=6)
        low, high = 100 * min(values), 100 * max(values)
        pad = max(2.0, 0.08 * (high - low))
        return theme.axis(
            mode, grid=True, range=[max(-2.0, low - pad), min(108.0, high + pad * 1.5)], nticks=6
        )

    def _logarithmic(self, mode: str, values: list[float]) -> dict[str, Any]:
        low, high = math.log10(min(values)), math.log10(max(values))
        pad = max(0.04, 0.08 * (high - low))
        low, high = low - pad, high + 1.5 * pad
        shown = _marks(10**low, 10**high)
        return theme.axis(
            mode,
            grid=True,
            type="log",
            range=[low, high],
            tickvals=shown,
            ticktext=[f"{mark:g}" if mark < 1000 else f"{mark / 1000:,g}k" for mark in shown],
        )


def _marks(low: float, high: float) -> list[float]:
    """Round numbers within a range: evenly where it is less than a decade, else at 1, 2 and 5 of every decade, and at
    fewer of them the more decades there are.
    """
    if high / low < 5:
        step = 10 ** math.floor(math.log10((high - low) / 2))
        step *= next(size for size in (1, 2, 5, 10) if (high - low) / (size * step) <= 6)
        first = math.ceil(low / step)
        return [round(number * step, 9) for number in range(first, math.floor(high / step) + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1, 3) if high / low < 10_000 else (1,)
    return [step * 10**power for power in powers for step in steps if low <= step * 10**power <= high]
