"""The roof of a plan: what its operations cost, on which machine, and what was measured there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import roofline_words, services, session
from app.choices import Choices
from app.state import Settings
from app.words import Segment
from flashsvd.figures.roofline import Star, roofline
from flashsvd.jobs.kinds.ceilings import CeilingsRequest, MachineCeiling
from flashsvd.models.family import families
from flashsvd.ranks import RankPlan, bytes_of
from flashsvd.roofline import Ceiling, Engine, Op, Setting, Total, forward_ops, step_ops, totals, whole
from flashsvd.roofline_measured import Bench, Measured, Mode, data_sheets, matches

ENGINES: tuple[Literal["flash"], Literal["lowrank"]] = ("flash", "lowrank")
MODES: tuple[Literal["prefill"], Literal["decode"]] = ("prefill", "decode")


@dataclass(frozen=True)
class Roof:
    """Everything under one machine's roof. known: all ceilings by what a menu says, `name` the chosen one.

    causal: whether the model writes token by token. dense, compressed: each operation; whole_dense, whole: all of them.
    stars: whole models as measured there; here: what was measured of this shape anywhere.
    """

    mode: Mode
    engine: Engine
    causal: bool
    known: Mapping[str, Ceiling]
    name: str
    dense: list[Total]
    compressed: list[Total]
    whole_dense: Total
    whole: Total
    here: list[Measured]
    stars: list[Star]

    @property
    def ceiling(self) -> Ceiling:
        return self.known[self.name]

    def sentence(self, settings: Settings) -> list[Segment]:
        """What bounds the model, in plain words."""
        return roofline_words.sentence(
            settings, self.mode, self.engine, self.whole_dense, self.whole, self.ceiling
        )

    def table(self) -> pd.DataFrame:
        """The numbers behind the pictures."""
        return pd.DataFrame(
            [
                {
                    "engine": kind,
                    "operation": one.name,
                    "layers": one.layers,
                    "flops": one.flops,
                    "bytes": one.bytes,
                    "flop_per_byte": one.intensity,
                    "least_ms": 1e3 * one.seconds,
                    "bound": one.bound,
                }
                for kind, members in (("dense", self.dense), (self.engine, self.compressed))
                for one in members
            ]
        )


def roof(settings: Settings, plan: RankPlan, said: Choices, bench: Bench) -> Roof:
    """Counts a plan under the roof that was chosen. said: the choices of the page Roofline."""
    family = families().get(plan.shape.family)
    causal = family is not None and family.task == "language"
    mode: Mode = (
        "decode" if causal and said.chosen("roofline_mode", MODES, MODES[0]) == "decode" else "prefill"
    )
    engine: Engine = (
        "lowrank" if said.chosen("roofline_engine", ENGINES, ENGINES[0]) == "lowrank" else "flash"
    )
    known = _ceilings(settings, bench)
    name = said.chosen("roofline_gpu", list(known), default(known))
    ceiling = known[name]
    dense, compressed = _operations(
        settings.model, plan, mode, engine, settings.batch, settings.seq, bytes_of(1, settings.dtype)
    )
    shape = (mode, settings.batch, settings.seq, settings.dtype)
    here = [point for point in bench.of_model(settings.model) if point.shape == shape]
    return Roof(
        mode,
        engine,
        causal,
        known,
        name,
        totals(dense, ceiling),
        totals(compressed, ceiling),
        whole(dense, ceiling),
        whole(compressed, ceiling),
        here,
        _stars(here, plan, ceiling),
    )


def picture(found: Roof, mode: str, height: int) -> go.Figure:
    """The roof with every operation under it."""
    return roofline(
        found.ceiling,
        found.dense,
        found.compressed,
        found.engine,
        measured=found.stars,
        mode=mode,
        height=height,
    )


def default(known: Mapping[str, Ceiling]) -> str:
    """The ceiling that a page opens with."""
    return next(iter(known))


def _ceilings(settings: Settings, bench: Bench) -> dict[str, Ceiling]:
    """By what the menu says: measured machines first, then every data sheet that has the precision."""
    found: dict[str, Ceiling] = {}
    live = session.result_of(CeilingsRequest(settings.dtype))
    if isinstance(live, MachineCeiling):
        label = live.machine.label
        found[f"{label}, measured here"] = Ceiling(
            label, live.flops_s, live.bytes_s, "MEASURED", live.created
        )
    for (machine, dtype), ceiling in bench.ceilings.items():
        if dtype == settings.dtype:
            found[f"{machine}, measured"] = ceiling
    found |= {f"{one.name}, data sheet": one for one in data_sheets(settings.dtype)}
    return found


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs={RankPlan: hash})
def _operations(
    model: str, plan: RankPlan, mode: Mode, engine: Engine, batch: int, seq: int, itemsize: int
) -> tuple[list[Op], list[Op]]:
    """Operations of the dense model and of the compressed one."""
    family = families().get(plan.shape.family)
    config = SimpleNamespace(**services.configuration(model))
    causal = family is not None and family.task == "language"

    def window(layer: int) -> int | None:
        try:
            return family.window(config, layer) if family and family.window else None
        except (AttributeError, IndexError, TypeError):
            # transformers knows defaults that the configuration leaves out.
            return None

    setting = Setting(
        batch,
        seq,
        itemsize,
        causal=causal,
        absorbing=family is not None and family.rotary is None and plan.shape.heads == plan.shape.kv_heads,
        window=window,
        vocabulary=getattr(config, "vocab_size", None) if causal else None,
    )
    count = step_ops if mode == "decode" else forward_ops
    return count(plan, "dense", setting), count(plan, engine, setting)


def _stars(here: list[Measured], plan: RankPlan, ceiling: Ceiling) -> list[Star]:
    """The fastest measured way of each engine, of this shape and plan, on the machine whose roof is drawn."""
    found: dict[str, Measured] = {}
    for point in here:
        engine = point.name.partition("-")[0]
        same = point.machine == ceiling.name and matches(point, plan.shape, plan)
        if same and (engine not in found or point.milliseconds < found[engine].milliseconds):
            found[engine] = point
    return [
        Star(engine, point.intensity, point.flops_s, roofline_words.star(point, ceiling))
        for engine, point in found.items()
    ]
