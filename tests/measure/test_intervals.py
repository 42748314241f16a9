"""Do 95 % intervals hold the truth 95 times in 100?"""

from __future__ import annotations

import math

import numpy as np
import pytest

from flashsvd.errors import InputError
from flashsvd.measure.intervals import bootstrap_interval, wilson_interval


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [100, 1000])
def test_wilson_covers(share: float, n: int) -> None:
    """Exact coverage by the binomial law. An interval of share ± 2·√(p(1-p)/n) covers 0.99 at n = 100 in 63 %."""

    def chance(correct: int) -> float:
        log = math.lgamma(n + 1) - math.lgamma(correct + 1) - math.lgamma(n - correct + 1)
        return math.exp(log + correct * math.log(share) + (n - correct) * math.log1p(-share))

    def held(correct: int) -> bool:
        low, high = wilson_interval(correct, n)
        return low <= share <= high

    covered = sum(chance(correct) for correct in range(n + 1) if held(correct))
    assert 0.92 < covered < 0.99
    if (share, n) == (0.99, 100):
        plain = sum(
            chance(k) for k in range(n + 1) if abs(k / n - share) <= 1.96 * math.sqrt(k / n * (1 - k / n) / n)
        )
        assert plain < 0.7


def test_the_bootstrap_covers() -> None:
    """Of 400 samples; the bounds are 4 standard deviations about 0.94, and an interval of 80 % is outside."""
    random = np.random.default_rng(0)
    samples = random.exponential(size=(400, 100))
    held = np.mean([low <= 1 <= high for low, high in (bootstrap_interval(s, draws=300) for s in samples)])
    assert 0.89 < held < 0.985


def test_the_width_is_that_of_the_law_of_large_numbers() -> None:
    values = np.random.default_rng(0).normal(size=2500)
    low, high = bootstrap_interval(values)
    assert (high - low) / (2 * 1.96 * values.std() / 50) == pytest.approx(1, abs=0.12)


def test_a_statistic_of_ones_own() -> None:
    values = np.arange(101.0)
    low, high = bootstrap_interval(values, lambda drawn: np.median(drawn, axis=1))
    assert low < 50 < high and bootstrap_interval(values, lambda drawn: drawn.max(1))[1] == 100


def test_draws_depend_on_the_seed_and_not_on_how_they_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    once = bootstrap_interval(values, seed=3)
    assert once == bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    monkeypatch.setattr("flashsvd.measure.intervals._CHUNK", 500)
    assert bootstrap_interval(values, seed=3) == pytest.approx(once)


def test_what_has_no_interval() -> None:
    assert bootstrap_interval([2.0]) == (2.0, 2.0)
    with pytest.raises(InputError, match="at least one value"):
        bootstrap_interval([])
    with pytest.raises(InputError, match="finite"):
        bootstrap_interval([math.nan])
    with pytest.raises(InputError, match="draws"):
        bootstrap_interval([1.0], draws=0)
    assert wilson_interval(0, 0) == (0.0, 1.0)
