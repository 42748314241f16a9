"""What runs when: the layers of a window, or the modules of a few layers, one after another."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

_FEW_LAYERS = 3
_MOST = 90


@dataclass(frozen=True)
class Stretch:
    """Ops from `start` to `stop`, in one layer or module. layer: from 0, -1 outside."""

    start: float
    stop: float
    label: str
    layer: int


def lane(found: pd.DataFrame, low: float, high: float, start: str = "x0") -> list[Stretch]:
    """The stretches of a window, by the births in it: by layer, or by module where it holds three layers at most."""
    rows = found[(found[start] >= low) & (found[start] < high)]
    layers = rows["layer"].tolist()
    if not layers:
        return []
    depths = (2, 1, 0) if len({layer for layer in layers if layer >= 0}) <= _FEW_LAYERS else (0,)
    stretches: list[Stretch] = []
    for depth in depths:
        labels = [
            module_label(module, layer, depth) for module, layer in zip(rows["module"], layers, strict=True)
        ]
        stretches = _joined(rows[start].tolist(), labels, layers, low, high)
        if len(stretches) <= _MOST:
            break
    return stretches


def _joined(at: list[float], labels: list[str], layers: list[int], low: float, high: float) -> list[Stretch]:
    begins = [0] + [
        index
        for index in range(1, len(at))
        if (labels[index], layers[index]) != (labels[index - 1], layers[index - 1])
    ]
    ends = [*begins[1:], len(at)]
    return [
        Stretch(
            max(at[first], low) if first else low,
            at[end] if end < len(at) else high,
            labels[first],
            layers[first],
        )
        for first, end in zip(begins, ends, strict=True)
    ]


def module_label(module: str, layer: int, depth: int) -> str:
    """A module's name within its layer, `depth` parts of it; 0 for the layer alone.

    >>> module_label("encoder.layer.3.attention.self.query", 3, 2), module_label("encoder.layer.3.attention", 3, 0)
    ('attention.self', '4')
    >>> module_label("bert.embeddings.word_embeddings", -1, 2), module_label("", -1, 0)
    ('embeddings', 'model')
    """
    if layer < 0:
        parts = module.split(".")
        return (parts[1] if len(parts) > 1 else parts[0]) or "model"
    if depth == 0:
        return str(layer + 1)
    inside = re.split(rf"(?:^|\.){layer}(?:\.|$)", module, maxsplit=1)[-1]
    return ".".join(inside.split(".")[:depth]) or f"layer {layer + 1}"
