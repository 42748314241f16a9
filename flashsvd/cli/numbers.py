"""Scores as tables show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashsvd.results import Metric


def number(value: float | None, digits: int = 3) -> str:
    """A share, a perplexity or a count of nats; - for none.

    >>> number(0.8951), number(52489.34), number(None)
    ('0.895', '52,489.3', '-')
    """
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:,.1f}"


def interval(metric: Metric, digits: int = 3, between: str = "-") -> str:
    """The 95 % interval of a score."""
    return f"{number(metric.low, digits)}{between}{number(metric.high, digits)}"
