"""One palette for every figure, light and dark, that stays apart for colour-blind eyes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["light", "dark"]

FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
MIB = 2**20


@dataclass(frozen=True)
class Palette:
    """Colours of one mode. Engines: dense grey, lowrank orange, flash blue, everywhere."""

    text: str
    muted: str
    grid: str
    surface: str
    dense: str
    lowrank: str
    flash: str
    weights: str
    mark: str
    scale: tuple[str, str, str]


_PALETTES: dict[str, Palette] = {
    "light": Palette(
        text="#16181d",
        muted="#6a6f7d",
        grid="#e6e6e3",
        surface="#ffffff",
        dense="#868b95",
        lowrank="#d97a00",
        flash="#0b63ce",
        weights="#d5d8df",
        mark="#d97a00",
        scale=("#e4eefb", "#5b9be6", "#0a3f8a"),
    ),
    "dark": Palette(
        text="#eef1f5",
        muted="#929aa7",
        grid="#252a33",
        surface="#161a21",
        dense="#9aa1ad",
        lowrank="#f0a53c",
        flash="#4a9eff",
        weights="#39404c",
        mark="#f0a53c",
        scale=("#16304f", "#2f7fdc", "#e3efff"),
    ),
}


def palette(mode: str) -> Palette:
    """The colours of "light" or "dark"; anything else reads as light."""
    return _PALETTES.get(mode, _PALETTES["light"])


def engine_colour(engine: str, mode: str) -> str:
    """One colour per engine, the same in every figure.

    >>> engine_colour("flash", "light")
    '#0b63ce'
    """
    colours = palette(mode)
    return {"dense": colours.dense, "lowrank": colours.lowrank, "flash": colours.flash}.get(
        engine, colours.text
    )


_METHODS: dict[str, tuple[str, str, str]] = {
    "svd": ("#5a6372", "#aab3c0", "circle"),
    "fwsvd": ("#b5507f", "#e887b5", "square"),
    "asvd": ("#b38a00", "#ecc94b", "diamond"),
    "whiten": ("#00836b", "#37cf94", "triangle-up"),
    "basis_sharing": ("#2b93c9", "#6cc4f2", "cross"),
}
_MORE_METHODS = (
    ("#7a52c7", "#b79bf0", "triangle-down"),
    ("#8c5a2b", "#c99a6b", "pentagon"),
    ("#a3261b", "#ff9b8f", "x"),
    ("#3f6f1f", "#9ccf6b", "hexagon"),
)


def method_style(method: str, mode: str) -> tuple[str, str]:
    """Colour and marker of a compression method, the same in every figure; options after a colon do not matter.

    >>> method_style("whiten", "light"), method_style("whiten:centred=true", "light")[1]
    (('#00836b', 'triangle-up'), 'triangle-up')
    """
    name = method.partition(":")[0]
    light, dark, symbol = _METHODS.get(name) or _MORE_METHODS[sum(name.encode()) % len(_MORE_METHODS)]
    return (dark if mode == "dark" else light), symbol


def cache_colour(mode: str) -> str:
    """The colour of keys and values that are kept, beside those of the engines."""
    return {"dark": "#37cf94"}.get(mode, "#00836b")


def faded(colour: str, alpha: float) -> str:
    """A hex colour with an opacity.

    >>> faded("#0b63ce", 0.5)
    'rgba(11, 99, 206, 0.5)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha:g})"


def layout(mode: str, height: int) -> dict[str, Any]:
    """What all figures share: type, clear paper, no zoom by accident, no legend."""
    colours = palette(mode)
    return {
        "height": height,
        "margin": {"l": 44, "r": 12, "t": 14, "b": 38},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 11.5, "color": colours.muted},
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": {
            "bgcolor": colours.surface,
            "bordercolor": colours.grid,
            "font": {"family": FONT, "size": 12, "color": colours.text},
            "align": "left",
        },
    }


def axis(mode: str, *, grid: bool, **extra: Any) -> dict[str, Any]:
    """A quiet axis: thin grid or none, no zero line."""
    colours = palette(mode)
    return {
        "showgrid": grid,
        "gridcolor": colours.grid,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "fixedrange": True,
        "title": {
            "font": {"size": 11.5, "color": colours.muted},
            "standoff": 6,
            "text": extra.pop("title", ""),
        },
        **extra,
    }


def label(mode: str, text: str, *, colour: str = "", **where: Any) -> dict[str, Any]:
    """An annotation without arrow, set in a colour of the palette."""
    return {
        "text": text,
        "showarrow": False,
        "font": {"size": 11.5, "color": colour or palette(mode).muted},
        **where,
    }
