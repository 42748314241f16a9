"""A finished comparison in plain words, honest in every direction. No streamlit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from app.state import Settings
from flashsvd.errors import format_bytes
from flashsvd.figures.score_axis import ScoreAxis
from flashsvd.ranks import RankPlan, bytes_of
from flashsvd.results import Comparison, EngineRun, Machine, Metric, Quantiles

Segment = tuple[str, bool]
"""Words, and whether they are stressed."""

Tone = Literal["good", "bad", "plain"]

_SAME = 0.03
"""Two medians within 3 % are called equal: repeats on a busy machine differ by more."""


@dataclass(frozen=True)
class Card:
    """One number against dense. `bar` is its size as a share of the dense run's, from 0 to 1."""

    label: str
    value: str
    note: str
    tone: Tone
    bar: float
    hover: str = ""


def count(parameters: float) -> str:
    """Parameters in thousands, millions or billions.

    >>> count(54_800_000), count(4_718_592), count(980)
    ('54.8 M', '4.72 M', '980')
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            value = parameters / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{parameters:.0f}"


def milliseconds(value: float) -> str:
    """Latency with three digits at most.

    >>> milliseconds(4.31), milliseconds(118.4)
    ('4.3 ms', '118 ms')
    """
    return f"{value:.{1 if value < 100 else 0}f} ms"


def duration(seconds: float) -> str:
    """How long something takes, in words that do not flicker.

    >>> duration(4.2), duration(48), duration(130), duration(5000)
    ('5 s', '50 s', '2 min', '1.4 h')
    """
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """A share in percent, no decimals where they say nothing.

    >>> percent(0.5), percent(0.4963)
    ('50 %', '49.6 %')
    """
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def when(created: str) -> str:
    """An ISO 8601 time as a short date.

    >>> when("2026-11-12T09:30:00+00:00")
    '12 Nov 2026'
    """
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%b %Y}"


def article(name: str) -> str:
    """A machine's name after "on".

    >>> article("H200"), article("T4"), article("CPU, 2 cores")
    ('an H200', 'a T4', 'CPU, 2 cores')
    """
    return name if name.startswith("CPU") else f"{'an' if name[:1] in 'AHL' else 'a'} {name}"


def weight_bytes(parameters: int, dtype: str) -> str:
    """What parameters take in a precision.

    >>> weight_bytes(2**20, "bf16")
    '2 MiB'
    """
    return format_bytes(bytes_of(parameters, dtype))


def provenance(machine: Machine, seed: int) -> str:
    """Machine and seed, for hover texts."""
    return f"{machine.label}, seed {seed}"


def sentence(result: Comparison, *, scoring: bool = False) -> list[Segment]:
    """What came out, in one sentence: memory, then speed if the outputs are right, then what it cost in score.

    scoring: the run goes on, and the score is still to come.
    """
    flash, dense = result.run("flash"), result.run("dense")
    if flash is None or dense is None:
        return [("This run holds no flash and dense pair, so nothing can be compared.", False)]
    memory = _memory(flash.peak_activation_bytes, dense.peak_activation_bytes)
    if flash.gate is not None and not flash.gate.passed:
        return [*memory, (", but its outputs fail the correctness check, so no speed is claimed.", False)]
    if scoring and (flash.metric is None or dense.metric is None):
        return [*memory, *_speed(flash, dense), ("; the score is coming.", False)]
    return [*memory, *_speed(flash, dense), *_cost(flash.metric, dense.metric, result.model.trained)]


def _memory(flash: int, dense: int) -> list[Segment]:
    mine, theirs = format_bytes(flash), format_bytes(dense)
    if mine == theirs:
        return [
            ("FlashSVD runs this model in ", False),
            (mine, True),
            (" of activations, the same as dense", False),
        ]
    if mine.split()[1] == theirs.split()[1]:
        theirs = theirs.split()[0]
    against = (
        " of activations instead of " if flash < dense else " of activations, more than the dense run's "
    )
    return [("FlashSVD runs this model in ", False), (mine, True), (f"{against}{theirs}", False)]


def _speed(flash: EngineRun, dense: EngineRun) -> list[Segment]:
    if flash.gate is None:
        return [(", speed not compared (no correctness check was run)", False)]
    change = times(flash.latency_ms, dense.latency_ms)
    return [(", at the same speed", False)] if change is None else [(", ", False), (change, True)]


def times(mine: Quantiles, other: Quantiles) -> str | None:
    """'1.6x faster' or '1.1x slower'; None where the medians are too close to tell apart.

    >>> times(Quantiles(9, 10, 11), Quantiles(15, 16, 17))
    '1.6x faster'
    """
    ratio = mine.p50 / other.p50 if other.p50 else 1.0
    overlap = mine.p20 <= other.p50 <= mine.p80 and other.p20 <= mine.p50 <= other.p80
    if overlap or abs(ratio - 1) <= _SAME:
        return None
    return f"{_factor(ratio)}x slower" if ratio > 1 else f"{_factor(1 / ratio)}x faster"


def _factor(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}" if value < 1.1 else f"{value:.1f}"


def _cost(flash: Metric | None, dense: Metric | None, trained: bool) -> list[Segment]:
    if flash is None or dense is None:
        return [
            (
                f"; {'accuracy was not measured' if trained else 'accuracy does not apply: random weights'}.",
                False,
            )
        ]
    if flash.lower_is_better:
        mine, other = (ScoreAxis.of(flash).words(metric.value) for metric in (flash, dense))
        if mine == other:
            return [(f", at the same {flash.name}.", False)]
        change = "rises" if flash.value > dense.value else "falls"
        return [(f", and {flash.name} {change} from {other} to {mine}.", False)]
    lost = round(100 * (dense.value - flash.value), 1)
    if lost > 0:
        return [(f", for {lost:.1f} points of {flash.name}.", False)]
    if lost < 0:
        return [(f", and gains {-lost:.1f} points of {flash.name}.", False)]
    return [(f", at the same {flash.name}.", False)]


def cards(result: Comparison, *, scoring: bool = False) -> list[Card]:
    """Peak activation memory, latency, accuracy or perplexity, and parameters, each against dense.

    scoring: the score is on its way.
    """
    flash, dense = result.run("flash"), result.run("dense")
    if flash is None or dense is None:
        return []
    return [
        _peak(flash, dense),
        _latency(flash, dense),
        Card("Score", "scoring…", "on held-out text", "plain", 0.0)
        if scoring and (flash.metric is None or dense.metric is None)
        else _score(flash.metric, dense.metric, result.model.trained),
        _parameters(result),
    ]


def _peak(flash: EngineRun, dense: EngineRun) -> Card:
    mine, other = flash.peak_activation_bytes, dense.peak_activation_bytes
    share = mine / other if other else 1.0
    note, tone = _against(share, "less than dense", "more than dense", "the same as dense")
    hover = f"dense {format_bytes(other)}; peak of what the forward allocates, weights left out"
    return Card("Peak activation memory", format_bytes(mine), note, tone, min(share, 1.0), hover)


def _against(share: float, less: str, more: str, same: str) -> tuple[str, Tone]:
    if abs(share - 1) <= 0.01 or share <= 0:
        return same, "plain"
    return (f"{_factor(1 / share)}x {less}", "good") if share < 1 else (f"{_factor(share)}x {more}", "bad")


def _latency(flash: EngineRun, dense: EngineRun) -> Card:
    mine, other = flash.latency_ms, dense.latency_ms
    change = times(mine, other)
    hover = (
        f"p20 {milliseconds(mine.p20)}, p80 {milliseconds(mine.p80)}, {flash.repeats} repeats; "
        f"dense median {milliseconds(other.p50)}"
    )
    tone: Tone = "plain"
    if flash.gate is None:
        note = "no correctness check, so not compared"
    elif not flash.gate.passed:
        note, tone = "outputs differ: no speed claimed", "bad"
    elif change is None:
        note = "as fast as dense"
    else:
        note, tone = f"{change} than dense", "good" if "faster" in change else "bad"
    longest = max(mine.p50, other.p50) or 1.0
    return Card("Latency, median", milliseconds(mine.p50), note, tone, mine.p50 / longest, hover)


def _score(flash: Metric | None, dense: Metric | None, trained: bool) -> Card:
    if (flash is None or dense is None) and trained:
        return Card("Accuracy", "not measured", "no held-out samples come with it", "plain", 0.0)
    if flash is None or dense is None:
        note = "random weights: speed and memory only"
        return Card("Accuracy", "does not apply", note, "plain", 0.0)
    if flash.lower_is_better:
        return _perplexity(flash, dense)
    label = f"{flash.name.capitalize()}, n = {flash.n}"
    value = f"{100 * flash.value:.1f} ± {50 * (flash.high - flash.low):.1f}"
    lost = round(100 * (dense.value - flash.value), 1)
    inside = flash.low <= dense.value <= flash.high
    tone: Tone = "plain" if inside else "bad" if lost > 0 else "good"
    if lost == 0:
        note = "the same as dense"
    else:
        note = f"{abs(lost):.1f} {'under' if lost > 0 else 'over'} dense" + (", inside ±" if inside else "")
    floor = "" if flash.floor is None else f"; always naming the commonest class {100 * flash.floor:.1f} %"
    hover = (
        f"95 % interval {100 * flash.low:.1f} to {100 * flash.high:.1f} %, seed {flash.seed}; dense "
        f"{100 * dense.value:.1f} %{floor}"
    )
    return Card(label, value, note, tone, flash.value, hover)


def _perplexity(flash: Metric, dense: Metric) -> Card:
    words = ScoreAxis.of(flash).words
    rise = flash.value / dense.value - 1
    inside = flash.low <= dense.value <= flash.high
    tone: Tone = "plain" if inside else "bad" if rise > 0 else "good"
    if words(flash.value) == words(dense.value):
        note = "the same as dense"
    elif rise >= 1:
        note = f"{_factor(1 + rise)}x dense, lower is better"
    else:
        size = f"{100 * abs(rise):.1f} % {'over' if rise > 0 else 'under'} dense"
        note = f"{size}, inside ±" if inside else f"{size}, lower is better"
    hover = (
        f"as unsure of every next token as between {words(flash.value)} equally likely ones, dense "
        f"{words(dense.value)}; 95 % interval {words(flash.low)} to {words(flash.high)}, "
        f"{flash.n:,} {flash.counted} of held-out text, seed {flash.seed}"
    )
    half = (flash.high - flash.low) / 2
    value = f"{words(flash.value)} ± {half:,.{0 if flash.value >= 100 else 2}f}"
    label = f"{flash.name.capitalize()}, n = {count(flash.n)}"
    return Card(label, value, note, tone, min(1.0, dense.value / flash.value), hover)


def score_words(metric: Metric | None) -> str:
    """What a figure of scores shows, in the line below its title."""
    if metric is None:
        return "95 % band"
    if metric.lower_is_better:
        return f"{metric.name}, lower is better, log scale, 95 % band"
    return f"{metric.name} %, 95 % band"


def _parameters(result: Comparison) -> Card:
    kept, whole = result.kept_model_parameters, result.model.parameters
    hover = (
        f"factored weights {count(result.plan.kept_parameters)} of {count(result.plan.shape.dense_parameters)}; "
        f"whole model {count(kept)} of {count(whole)}"
    )
    note = f"{percent(result.keep)} of factored weights"
    tone: Tone = "good" if kept < whole else "plain" if kept == whole else "bad"
    return Card(f"Parameters, dense {count(whole)}", count(kept), note, tone, min(kept / whole, 1.0), hover)


def winners(result: Comparison) -> str:
    """Which engine is fastest and which is smallest, whoever it is. An engine with wrong outputs does not race."""
    racing = [run for run in result.runs if run.gate is None or run.gate.passed]
    if len(racing) < 2:
        return ""
    fast = sorted(racing, key=lambda run: run.latency_ms.p50)
    small = sorted(racing, key=lambda run: run.peak_activation_bytes)
    return (
        f"Fastest: {fast[0].engine}, {milliseconds(fast[0].latency_ms.p50)} ("
        + ", ".join(f"{run.engine} {milliseconds(run.latency_ms.p50)}" for run in fast[1:])
        + f"). Least memory: {small[0].engine}, {format_bytes(small[0].peak_activation_bytes)} ("
        + ", ".join(f"{run.engine} {format_bytes(run.peak_activation_bytes)}" for run in small[1:])
        + ")."
    )


def red_gate(result: Comparison) -> str | None:
    """One line where the flash run's outputs are wrong; None where they are right or were not checked."""
    flash = result.run("flash")
    if flash is None or flash.gate is None or flash.gate.passed:
        return None
    gate = flash.gate
    return (
        f"Correctness check failed: flash differs from {gate.reference} by {gate.error:.2g} (limit {gate.limit:.2g}, "
        f"rounding of {gate.reference} itself {gate.baseline_error:.2g}). Its latency is not compared."
    )


def shown_for(result: Comparison) -> str:
    """The settings of the run on screen."""
    keep = f"keep {percent(result.keep)}"
    return f"{keep}, batch {result.batch} x {result.seq}, {result.dtype}, {result.method}"


def predicted(plan: RankPlan, parameters: int | None) -> str:
    """What a plan that was not run will keep."""
    text = f"{count(plan.kept_parameters)} of {count(plan.shape.dense_parameters)} factored weights"
    if parameters is not None:
        kept = parameters - plan.shape.dense_parameters + plan.kept_parameters
        text += f", {count(kept)} of {count(parameters)} in all"
    return text


def mismatch(result: Comparison, settings: Settings) -> str:
    """Says that the numbers on screen answer other settings than the controls'."""
    whose = "" if result.model.name == settings.model else f"{result.model.name}, "
    return f"Shown: {whose}{shown_for(result)}. Press Run live for your settings."
