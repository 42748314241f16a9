"""Generate: can I see it?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app import choices, session, work, written
from app.components import charts, jobs, markup, text_pair
from app.components.page import page
from app.evidence import Badge, Evidence
from app.state import Settings
from app.written import Form
from flashsvd.classification.pair import ClassifyRequest, ClassPair
from flashsvd.errors import FlashSVDError
from flashsvd.figures import theme
from flashsvd.figures.class_bars import class_bars
from flashsvd.generation.pair import PairRequest, TextPair

_EVERY_SECONDS = 0.25
_LONGEST = 20_000
_SHOWN_CLASSES = 7


def render(settings: Settings, evidence: Evidence) -> None:
    """A prompt and two texts for a model that writes; a text and two verdicts for one that classifies."""
    try:
        of = written.form(settings.model, choices.here())
    except FlashSVDError as error:
        if evidence.problem is None:
            markup.notice(str(error), error=True)
        return
    if evidence.problem and evidence.shape is None:
        return
    if of.does == "nothing":
        with st.container(key="panel_generate_empty"):
            markup.empty("Nothing to try here", f"{settings.model} {of.why}")
        return
    if of.guessed:
        _what_it_does()
    if of.does == "writes":
        _write(settings, evidence, of)
    else:
        _classify(settings, evidence, of)


def _what_it_does() -> None:
    """For a hub id that is not loaded yet: what it is said to do."""
    options = ("write", "classify")
    _set("w_generate_as", choices.chosen("generate_as", options, "write"))
    st.segmented_control(
        "What this model does",
        options,
        key="w_generate_as",
        required=True,
        on_change=choices.keep,
        args=("generate_as", "w_generate_as", "write"),
        label_visibility="collapsed",
    )


# Writing


def _write(settings: Settings, evidence: Evidence, of: Form) -> None:
    _title("Can I see it?", {} if of.preset else of.examples, "generate_prompt", of.first)
    with st.container(key="panel_generate_prompt"):
        left, right = st.columns([62, 38], gap="small")
        with left:
            if of.preset:
                markup.head(settings.model, "random weights: text means nothing here, speed alone is shown")
                _number("Prompt tokens", "generate_tokens")
            else:
                _text("Prompt", "generate_prompt", of.first)
        with right:
            _options()
            _go("Generate", "generate", lambda: _start_writing(of))
    job = work.active().get("generate")
    if job is not None and job.request.model == settings.model and not of.preset:
        st.fragment(_coming, run_every=_EVERY_SECONDS)(job)
        return
    found = written.latest(settings.model, PairRequest)
    if found is None:
        with st.container(key="panel_generate_empty"):
            markup.empty(
                "Nothing written yet",
                "Generate lets the dense model and your plan's compressed one go on from the prompt, side by side, "
                "and marks the tokens in which they differ.",
            )
        return
    came, badge = found
    pair = came[1]
    assert isinstance(pair, TextPair)
    markup.sentence(text_pair.sentence(pair), badge)
    _stale(written.stale(came, written.request(settings, choices.here(), of), settings, evidence))
    text_pair.both(pair, badge)
    if pair.places:
        with st.container(key="panel_generate_strip"):
            text_pair.strip(pair, badge)


def _options() -> None:
    new, temperature, top_p, seed = st.columns(4, gap="xsmall", wrap=False)
    with new:
        _number("New tokens", "generate_new")
    with temperature:
        heat = _number("Temperature", "generate_temperature", step=0.1)
    with top_p:
        _number("Top-p", "generate_top_p", step=0.05, disabled=heat == 0)
    with seed:
        _number("Seed", "generate_seed", disabled=heat == 0)


def _start_writing(of: Form) -> None:
    # What stands in a box at the click may not have been told by its own on_change yet.
    _take_in("generate_prompt", of.first)
    for name, (default, _, _) in written.NUMBERS.items():
        _take_in(name, str(default))
    _start(of)


def _coming(job: work.Active) -> None:
    """The texts so far, drawn anew a few times a second while the job runs."""
    now = work.status(job)
    if now is None or now.state in work.FINISHED:
        # The page settles the job at its top and draws what came out.
        st.rerun()
    texts: dict[str, str] = {}
    ended: set[str] = set()
    for engine, piece, last in work.partial(job):
        texts[engine] = texts.get(engine, "") + piece
        if last:
            ended.add(engine)
    text_pair.coming(job.request.prompt, texts, ended)


# Classifying


def _classify(settings: Settings, evidence: Evidence, of: Form) -> None:
    _title("Try it: can I see it?", of.examples, "generate_text", of.first)
    left, right = st.columns([46, 54], gap="small")
    with left, st.container(key="panel_generate_prompt", height="stretch"):
        markup.head("Your text", _reads(settings))
        _text("Text", "generate_text", of.first, height=330)
        _go("Classify", "classify", lambda: _start_classifying(of))
    with right, st.container(key="panel_generate_classes", height="stretch"):
        found = written.latest(settings.model, ClassifyRequest)
        if found is None:
            markup.empty(
                "No verdict yet",
                "Classify shows how likely each class is to the dense model and to your plan's compressed one.",
            )
            return
        came, badge = found
        pair = came[1]
        assert isinstance(pair, ClassPair)
        markup.sentence(text_pair.verdict(pair), badge)
        _stale(written.stale(came, written.request(settings, choices.here(), of), settings, evidence))
        _verdict(pair, badge)


def _reads(settings: Settings) -> str:
    if settings.model == "stdlib-bert":
        return "Python code: which family of the standard library wrote it?"
    return "the classes are the model's own"


def _verdict(pair: ClassPair, badge: Badge) -> None:
    shown = pair.likeliest(_SHOWN_CLASSES)
    mode = markup.mode()
    markup.head(
        "How likely each class is",
        f"{pair.tokens} tokens · {len(shown)} of {len(pair.classes)} classes · change in points, "
        f"{100 * pair.moved:.1f} points moved in all",
        badge,
        [(theme.engine_colour("dense", mode), "dense"), (theme.engine_colour("flash", mode), "compressed")],
    )
    figure = class_bars(
        [pair.classes[place] for place in shown],
        [pair.dense[place] for place in shown],
        [pair.compressed[place] for place in shown],
        mode=mode,
        height=300,
        source=pair.machine.label,
    )
    table = pd.DataFrame({"class": pair.classes, "dense": pair.dense, "compressed": pair.compressed})
    charts.chart(figure, key="generate_classes", name="Probabilities of classes", data=table)


def _start_classifying(of: Form) -> None:
    _take_in("generate_text", of.first)
    _start(of)


# Both


def _title(words: str, examples: Mapping[str, str], name: str, first: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="presets"):
        st.html(f'<div class="fs-title">{words}</div>', width="content")
        for label, text in examples.items():
            st.button(
                label,
                key=f"{name}_{label.replace(' ', '_')}",
                on_click=choices.choose,
                args=(name, text, first),
            )


def _text(label: str, name: str, first: str, height: int = 100) -> None:
    _set(f"w_{name}", choices.text(name, first))
    st.text_area(
        label,
        key=f"w_{name}",
        height=height,
        max_chars=_LONGEST,
        label_visibility="collapsed",
        on_change=choices.keep,
        args=(name, f"w_{name}", first),
    )


def _number(label: str, name: str, *, step: float | None = None, disabled: bool = False) -> float:
    default, low, high = written.NUMBERS[name]
    kind = int if isinstance(default, int) else float
    value = written.number(choices.here(), name)
    _set(f"w_{name}", kind(value))
    st.number_input(
        label,
        kind(low),
        kind(high),
        key=f"w_{name}",
        step=kind(step or 1),
        format="%d" if kind is int else "%.2f",
        disabled=disabled,
        on_change=choices.keep,
        args=(name, f"w_{name}", str(default)),
    )
    return value


def _set(widget: str, value: Any) -> None:
    # Only where it differs: to set it anew would take from a person what they are typing.
    if st.session_state.get(widget) != value:
        st.session_state[widget] = value


def _take_in(name: str, first: str) -> None:
    if f"w_{name}" in st.session_state:
        choices.keep(name, f"w_{name}", first)


def _go(label: str, kind: str, start: Callable[[], None]) -> None:
    """The button, or the job that it started."""
    if kind in work.active():
        jobs.panel(kind, low=True)
        return
    st.button(label, key=f"run_{kind}", type="primary", width="stretch", on_click=start)


def _start(of: Form) -> None:
    request = written.request(session.settings(), choices.here(), of)
    try:
        request.check()
    except FlashSVDError as error:
        session.dismiss()
        session.notify(f"Nothing was started: {error}")
        return
    written.ask(request)
    work.start(request)


def _stale(line: str) -> None:
    if line:
        markup.muted(line)


page(render)
