"""One engine's run, as the pictures of memory read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from flashsvd.measure.allocations import Levels, allocations, levels

Axis = Literal["op", "time"]


@dataclass(frozen=True)
class Track:
    """One engine's run, seen as `flashsvd.measure.allocations` sees it."""

    engine: str
    timeline: pd.DataFrame
    found: pd.DataFrame
    levels: Levels
    layers: int

    @classmethod
    def of(cls, engine: str, timeline: pd.DataFrame, layers: int) -> Track:
        """Reads a timeline."""
        return cls(engine, timeline, allocations(timeline), levels(timeline), layers)

    @property
    def last(self) -> int:
        """The op after the last one."""
        return int(self.levels.x[-1]) if len(self.levels.x) else 1

    @property
    def peak_event(self) -> int:
        """The op at which the most is alive."""
        return int(self.levels.x[self.levels.peak]) if len(self.levels.x) else 0

    @property
    def peak_bytes(self) -> int:
        return int(self.levels.total.max()) if len(self.levels.x) else 0

    def place(self, event: float, axis: Axis) -> float:
        """Where an op lies on an axis."""
        if axis == "op" or not len(self.levels.x):
            return float(event)
        return float(np.interp(event, self.levels.x, self.levels.time_ms))

    def layer_window(self, layer: int) -> tuple[int, int]:
        """The ops of one layer; of the whole run where it has none."""
        born = self.found.loc[self.found["layer"] == layer, "born"]
        if born.empty:
            return 0, self.last
        after = self.found.loc[self.found["born"] > born.max(), "born"]
        return int(born.min()), int(after.min()) if len(after) else self.last


def placed(found: pd.DataFrame, axis: Axis) -> pd.DataFrame:
    """Allocations with where they begin and end on an axis, x0 and x1."""
    if axis == "op":
        return found.assign(x0=found["born"].astype(float), x1=found["freed"] + 1.0)
    return found.assign(x0=found["born_ms"], x1=found["freed_ms"])
