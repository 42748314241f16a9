"""What bounds a model, in plain words. No streamlit."""

from __future__ import annotations

from app.state import Settings
from app.words import Segment, article, when
from flashsvd.figures import theme
from flashsvd.figures.least_times import time_unit
from flashsvd.roofline import Ceiling, Total
from flashsvd.roofline_measured import Measured, Mode

ENGINES = {"flash": "FlashSVD, fused", "lowrank": "Low-rank, stored"}
MODES = {"prefill": "Prefill", "decode": "Decode"}

_SHORT = {"flash": "FlashSVD", "lowrank": "low-rank", "dense": "dense"}
_SAME = 0.03


def sentence(
    settings: Settings, mode: Mode, engine: str, dense: Total, compressed: Total, ceiling: Ceiling
) -> list[Segment]:
    """What bounds the dense and the compressed model, and what is to be had at most."""
    where = (
        f"For the next token at batch {settings.batch}, {settings.seq} in the cache"
        if mode == "decode"
        else f"At batch {settings.batch} and {settings.seq} tokens"
    )
    name = "compressed" if mode == "decode" else _SHORT[engine]
    if dense.bound == compressed.bound:
        bound: list[Segment] = [
            (f"{where}, dense and {name} are both bound by ", False),
            (dense.bound, True),
        ]
    else:
        bound = [
            (f"{where}, dense is bound by ", False),
            (dense.bound, True),
            (f", {name} by ", False),
            (compressed.bound, True),
        ]
    # A number and its unit stay on one line.
    mine, theirs = (milliseconds(one.seconds).replace(" ", "\u00a0") for one in (compressed, dense))
    times = f"{mine} instead of {theirs}"
    return [*bound, (f": at least {times} on {article(ceiling.name)}.", False)]


def source(ceiling: Ceiling) -> str:
    """Where a roof comes from."""
    if ceiling.source == "MEASURED":
        return f"MEASURED, {when(ceiling.detail)}"
    return f"DATA SHEET, {ceiling.detail}"


def numbers(dense: Total, compressed: Total, engine: str) -> list[tuple[str, str, str]]:
    """The whole model: least time and what moves."""
    name = _SHORT[engine]
    return [
        ("At least, dense", milliseconds(dense.seconds), _bound(dense)),
        (f"At least, {name}", milliseconds(compressed.seconds), _bound(compressed)),
        (
            "FLOP",
            f"{compressed.flops / dense.flops:.2f}x",
            f"{_tera(compressed.flops)} of {_tera(dense.flops)}",
        ),
        (
            "Bytes moved",
            f"{compressed.bytes / dense.bytes:.2f}x",
            f"{_giga(compressed.bytes)} of {_giga(dense.bytes)}",
        ),
    ]


def key(engine: str, mode: str) -> list[tuple[str, str]]:
    """Colours of the two engines."""
    return [
        (theme.engine_colour("dense", mode), "dense"),
        (theme.engine_colour(engine, mode), _SHORT[engine]),
    ]


def star(point: Measured, ceiling: Ceiling) -> str:
    """The tooltip of a measured model."""
    share = point.flops_s / ceiling.attainable(point.intensity)
    return (
        f"<b>{point.name}</b>: {point.what}<br>{point.milliseconds:.2f} ms, {point.flops_s / 1e12:,.0f} TFLOP/s, "
        f"{100 * share:.0f} % of the roof<br>{point.machine}, {when(point.created)}"
    )


def shape(point: Measured) -> str:
    """A measured setting as one line of a menu."""
    plan = point.settings.get("ranks") or f"keep {100 * float(point.settings.get('keep') or 0):.0f} %"
    tokens = "tokens behind" if point.mode == "decode" else "tokens"
    return f"{point.mode}, {point.batch} x {point.seq} {tokens}, {point.dtype}, {plan}"


def milliseconds(seconds: float) -> str:
    """A time in the unit that it reads best in.

    >>> milliseconds(0.0042), milliseconds(0.00031)
    ('4.2 ms', '310 µs')
    """
    unit, factor = time_unit(seconds)
    value = seconds * factor
    return (
        f"{value:.0f} {unit}"
        if value >= 100
        else f"{value:.{1 if value >= 10 else 2}f} {unit}".replace("0 ", " ")
    )


def _bound(one: Total) -> str:
    share = one.memory_share if one.bound == "memory" else 1 - one.memory_share
    return f"{100 * share:.0f} % bound by {one.bound}"


def _tera(flops: int) -> str:
    return f"{flops / 1e12:.2f} T" if flops >= 1e11 else f"{flops / 1e9:.1f} G"


def _giga(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
