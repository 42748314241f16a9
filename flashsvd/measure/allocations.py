"""A timeline seen as allocations: when each was born and freed, and how much of each kind is alive at every op."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CATEGORIES = ("kv cache", "activation", "workspace")
"""Beyond the weights, in the order in which they are stacked."""


def allocations(timeline: pd.DataFrame) -> pd.DataFrame:
    """One row per allocation beyond the weights, in order of birth.

    Columns: born and freed (op index; freed after that op, or with the last one), born_ms, freed_ms, op, module, layer,
    category, bytes. A timeline does not number its memory: a death is that of the oldest of equal births, except that
    what an op takes within itself dies with it.
    """
    rows = timeline[timeline["category"] != "weight"]
    event, moved = rows["event"].tolist(), rows["bytes"].tolist()
    time = rows["time_ms"].tolist()
    keys = list(zip(rows["op"], rows["module"], rows["layer"], rows["category"], strict=True))
    last, last_ms = (event[-1], time[-1]) if event else (0, 0.0)
    waiting: dict[object, deque[int]] = defaultdict(deque)
    freed: dict[int, int] = {}
    births: list[int] = []
    for index, count in enumerate(moved):
        key = (*keys[index], abs(count))
        if count > 0:
            births.append(index)
            waiting[key].append(index)
        elif waiting[key]:
            newest = waiting[key][-1]
            at_once = event[newest] == event[index]
            freed[newest if at_once else waiting[key][0]] = index
            waiting[key].pop() if at_once else waiting[key].popleft()
    ends = [freed.get(index) for index in births]
    named = zip(*(keys[index] for index in births), strict=True) if births else ((), (), (), ())
    op, module, layer, category = named
    return pd.DataFrame(
        {
            "born": np.array([event[index] for index in births], dtype=np.int64),
            "freed": np.array([last if end is None else event[end] for end in ends], dtype=np.int64),
            "born_ms": np.array([time[index] for index in births], dtype=float),
            "freed_ms": np.array([last_ms if end is None else time[end] for end in ends], dtype=float),
            "op": list(op),
            "module": list(module),
            "layer": list(layer),
            "category": list(category),
            "bytes": np.array([moved[index] for index in births], dtype=np.int64),
        }
    )


@dataclass(frozen=True)
class Levels:
    """Bytes alive, by category, from each moment to the next. Moments come in pairs: an op with all that it holds,
    and what is left after it.

    x [N] op index, time_ms [N], bytes by category [N]; row [N]: of the timeline, that names what ran.
    """

    x: NDArray[np.float64]
    time_ms: NDArray[np.float64]
    bytes: dict[str, NDArray[np.float64]]
    row: NDArray[np.intp]

    @property
    def total(self) -> NDArray[np.float64]:
        """All categories together."""
        return np.sum(list(self.bytes.values()), axis=0)

    @property
    def peak(self) -> int:
        """The moment with the most alive; 0 of none."""
        return int(np.argmax(self.total)) if len(self.x) else 0


def levels(timeline: pd.DataFrame) -> Levels:
    """How much of each category is alive at every op, weights left out."""
    rows = timeline[timeline["category"] != "weight"]
    event = rows["event"].to_numpy(dtype=np.int64)
    if not len(event):
        none = np.zeros(0)
        return Levels(none, none, dict.fromkeys(CATEGORIES, none), np.zeros(0, dtype=np.intp))
    first = np.flatnonzero(np.diff(event, prepend=event[0] - 1))
    stop = np.append(first[1:], len(event)) - 1
    moved, time = rows["bytes"].to_numpy(dtype=float), rows["time_ms"].to_numpy(dtype=float)
    category = rows["category"].to_numpy()
    x = np.stack([event[first], event[first] + 1], axis=1).ravel().astype(float)
    bytes_of = {}
    for name in CATEGORIES:
        mine = np.where(category == name, moved, 0.0)
        change = np.add.reduceat(mine, first)
        after = np.cumsum(change)
        during = after - change + np.add.reduceat(np.maximum(mine, 0.0), first)
        bytes_of[name] = np.stack([during, after], axis=1).ravel()
    born = np.flatnonzero(moved > 0)
    # What an event is called after: its first birth; ops that only free keep the name of what they free.
    place = np.searchsorted(born, first)
    named = np.where(place < len(born), born[np.minimum(place, len(born) - 1)], first) if len(born) else first
    named = np.where((named >= first) & (named <= stop), named, first)
    return Levels(
        x,
        np.stack([time[first], time[stop]], axis=1).ravel(),
        bytes_of,
        np.repeat(rows.index.to_numpy()[named], 2).astype(np.intp),
    )


def alive(found: pd.DataFrame, event: int) -> pd.DataFrame:
    """The allocations that are there while an op runs, the largest first."""
    here = found[(found["born"] <= event) & (found["freed"] >= event)]
    return here.sort_values("bytes", ascending=False, kind="stable")
