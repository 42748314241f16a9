"""What slides share: what they look at, the four numbers, the timeline, and type for the back row."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import tradeoff_words
from app.choices import Choices
from app.components import charts, markup
from app.evidence import Badge, Evidence
from app.state import Settings
from app.words import cards, mismatch, provenance, red_gate, sentence
from flashsvd.curve_set import points_table
from flashsvd.figures import theme
from flashsvd.figures.curve import curve
from flashsvd.figures.larger import larger
from flashsvd.figures.timeline import timeline
from flashsvd.methods import methods
from flashsvd.results import Curve, EngineRun

FACTOR = 1.45
"""How much larger a slide's figures are than a page's."""


@dataclass(frozen=True)
class Look:
    """What a slide is of: a step's settings, what is known for them, and the choices that its page was saved with."""

    settings: Settings
    evidence: Evidence
    said: Choices


def chart(
    figure: go.Figure, *, key: str, name: str, data: pd.DataFrame | None = None, factor: float = FACTOR
) -> None:
    """A figure in type that is read from the back row; its height grows as well."""
    charts.chart(larger(figure, factor), key=f"slide_{key}", name=name, data=data)


def numbers(look: Look) -> None:
    """The sentence and the four numbers of a comparison."""
    result = look.evidence.comparison
    if result is None:
        nothing(look)
        return
    markup.sentence(sentence(result), look.evidence.comparison_badge)
    honest(look)
    markup.cards(cards(result, scoring=look.evidence.scoring))


def chosen_run(look: Look) -> EngineRun:
    """The engine that was looked at on the page Memory, else flash. There must be a comparison."""
    result = look.evidence.comparison
    assert result is not None
    names = [run.engine for run in result.runs]
    default = "flash" if "flash" in names else names[-1]
    found = result.run(look.said.chosen("memory_engine", names, default))
    assert found is not None
    return found


def memory(look: Look, height: int) -> None:
    """The timeline of what is on screen, `height` as drawn on a page."""
    result, run = look.evidence.comparison, chosen_run(look)
    assert result is not None
    if run.timeline.empty:
        markup.muted("This run recorded no timeline.")
        return
    colour = theme.engine_colour(run.engine, markup.mode())
    markup.head(
        "Memory while the model runs",
        "MiB beyond the weights · dashed: dense",
        None,
        [(theme.faded(colour, 0.55), "activations"), (colour, "workspace")],
    )
    figure = timeline(
        run,
        len(result.model.shape.layers),
        ghost=result.run("dense"),
        mode=markup.mode(),
        height=height,
        source=provenance(result.machine, result.seed),
    )
    chart(figure, key="timeline", name="Memory while the model runs", data=run.timeline)


def scores(look: Look, result: Curve, badge: Badge) -> None:
    """A curve of the score against keep, with the run on screen where it is of the same method."""
    titles = {name: method.title for name, method in methods().items()}
    markup.sentence(tradeoff_words.sentence([result], titles), badge)
    run = look.evidence.comparison
    flash = run.run("flash") if run else None
    same = run is not None and (run.model.name, run.method) == (result.model.name, result.method)
    here = (run.keep, flash.metric) if run and same and flash and flash.metric else None
    figure = curve(
        result,
        here=here,
        dense=result.dense,
        mode=markup.mode(),
        height=350,
        machine=result.machine.label,
    )
    chart(figure, key="curve", name="What the rank costs", data=points_table([result]))


def honest(look: Look) -> None:
    """Says where the numbers answer something else than the step asks, and where outputs are wrong."""
    result = look.evidence.comparison
    assert result is not None
    wrong = red_gate(result)
    if wrong:
        markup.notice(wrong, error=True)
    if not look.evidence.current:
        markup.notice(mismatch(result, look.settings))


def nothing(look: Look) -> None:
    """What stands where nothing was run and no recording ships."""
    markup.empty(
        f"No run of {look.settings.model} yet",
        "No recording ships for it: run it live before the talk, or pick another.",
    )
    st.space("small")


def unknown(look: Look) -> None:
    """What stands where a slide is counted from layers that are not known."""
    markup.empty(
        f"The layers of {look.settings.model} are not known yet", "Run this step once: it loads the model."
    )
