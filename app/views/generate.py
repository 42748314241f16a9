"""Generate: can I see it?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from app import choices, session, work
from app.components import charts, jobs, markup, text_pair
from app.components.page import page
from app.evidence import Badge, Evidence
from app.state import Settings
from app.words import when
from flashsvd.classification.pair import ClassifyRequest, ClassPair
from flashsvd.errors import FlashSVDError
from flashsvd.figures import theme
from flashsvd.figures.class_bars import class_bars
from flashsvd.generation.ability import Ability, ability_of
from flashsvd.generation.examples import PROMPTS, PROSE, REVIEWS, SNIPPETS
from flashsvd.generation.pair import MOST_NEW, PairRequest, TextPair
from flashsvd.generation.recorded import Recorded, recorded
from flashsvd.models.sources import resolve

_EVERY_SECONDS = 0.25
_LONGEST = 20_000
_SHOWN_CLASSES = 7
_KEPT = 6
# Default, least and most by name; whole numbers where the default is one. No docstring: a page writes bare words.
_NUMBERS: dict[str, tuple[float, float, float]] = {
    "generate_new": (64, 1, MOST_NEW),
    "generate_temperature": (0.0, 0.0, 5.0),
    "generate_top_p": (1.0, 0.01, 1.0),
    "generate_seed": (0, 0, 2**31 - 1),
    "generate_tokens": (64, 1, 65_536),
}


def render(settings: Settings, evidence: Evidence) -> None:
    """A prompt and two texts for a model that writes; a text and two verdicts for one that classifies."""
    try:
        source = resolve(settings.model)
        ability = ability_of(source)
    except FlashSVDError as error:
        if evidence.problem is None:
            markup.notice(str(error), error=True)
        return
    if evidence.problem and evidence.shape is None:
        return
    bundled = source.kind == "bundled"
    if source.kind == "preset" and ability == "classifies":
        _nothing(
            settings,
            "has random weights and no tokenizer: it can read no text. Pick stdlib-bert to classify, a decoder to "
            "write, or see Overview for this model's speed and memory.",
        )
    elif ability == "neither":
        _nothing(
            settings,
            "neither writes text nor says a text's class: expected a causal language model, or a model for sequence "
            "classification.",
        )
    elif _writes(ability):
        _write(settings, evidence, PROMPTS if bundled else PROSE, preset=source.kind == "preset")
    else:
        _classify(settings, evidence, SNIPPETS if bundled else REVIEWS)


def _nothing(settings: Settings, why: str) -> None:
    with st.container(key="panel_generate_empty"):
        markup.empty("Nothing to try here", f"{settings.model} {why}")


def _writes(ability: Ability) -> bool:
    """What the model does or, for a hub id that is not loaded yet, what it is said to do."""
    if ability != "unknown":
        return ability == "writes"
    options = ("write", "classify")
    shown = choices.chosen("generate_as", options, "write")
    _set("w_generate_as", shown)
    st.segmented_control(
        "What this model does",
        options,
        key="w_generate_as",
        required=True,
        on_change=choices.keep,
        args=("generate_as", "w_generate_as", "write"),
        label_visibility="collapsed",
    )
    return shown == "write"


# Writing


def _write(settings: Settings, evidence: Evidence, examples: dict[str, str], *, preset: bool) -> None:
    first = next(iter(examples.values()))
    _title("Can I see it?", {} if preset else examples, "generate_prompt", first)
    with st.container(key="panel_generate_prompt"):
        left, right = st.columns([62, 38], gap="small")
        with left:
            if preset:
                markup.head(settings.model, "random weights: text means nothing here, speed alone is shown")
                _number("Prompt tokens", "generate_tokens")
            else:
                _text("Prompt", "generate_prompt", first)
        with right:
            _options()
            _go("Generate", "generate", lambda: _start_writing(preset, first))
    job = work.active().get("generate")
    if job is not None and job.request.model == settings.model and not preset:
        st.fragment(_coming, run_every=_EVERY_SECONDS)(job)
        return
    found = _latest(settings.model, PairRequest)
    if found is None:
        with st.container(key="panel_generate_empty"):
            markup.empty(
                "Nothing written yet",
                "Generate lets the dense model and your plan's compressed one go on from the prompt, side by side, "
                "and marks the tokens in which they differ.",
            )
        return
    (request, pair), badge = found
    assert isinstance(request, PairRequest) and isinstance(pair, TextPair)
    markup.sentence(text_pair.sentence(pair), badge)
    asked = _pair_request(preset, first)
    _stale(pair, settings, evidence, "text", "written", _same_but_plan(request, asked))
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


def _pair_request(preset: bool, first: str) -> PairRequest:
    now = session.settings()
    heat = _value("generate_temperature")
    top_p = _value("generate_top_p")
    return PairRequest(
        model=now.model,
        choice=now.choice(),
        prompt="" if preset else choices.text("generate_prompt", first),
        prompt_tokens=int(_value("generate_tokens")) if preset else 0,
        method=now.method,
        per_head=now.per_head,
        max_new_tokens=int(_value("generate_new")),
        temperature=heat,
        top_p=top_p if heat and top_p < 1 else None,
        seed=int(_value("generate_seed")) if heat else 0,
        dtype=now.dtype,
    )


def _start_writing(preset: bool, first: str) -> None:
    # What stands in a box at the click may not have been told by its own on_change yet.
    _take_in("generate_prompt", first)
    for name, (default, _, _) in _NUMBERS.items():
        _take_in(name, str(default))
    _start(_pair_request(preset, first))


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


def _classify(settings: Settings, evidence: Evidence, examples: dict[str, str]) -> None:
    first = next(iter(examples.values()))
    _title("Try it: can I see it?", examples, "generate_text", first)
    left, right = st.columns([46, 54], gap="small")
    with left, st.container(key="panel_generate_prompt", height="stretch"):
        markup.head("Your text", _reads(settings))
        _text("Text", "generate_text", first, height=330)
        _go("Classify", "classify", lambda: _start_classifying(first))
    with right, st.container(key="panel_generate_classes", height="stretch"):
        found = _latest(settings.model, ClassifyRequest)
        if found is None:
            markup.empty(
                "No verdict yet",
                "Classify shows how likely each class is to the dense model and to your plan's compressed one.",
            )
            return
        (request, pair), badge = found
        assert isinstance(request, ClassifyRequest) and isinstance(pair, ClassPair)
        _verdict(pair, badge, settings, evidence, request.text == choices.text("generate_text", first))


def _reads(settings: Settings) -> str:
    if settings.model == "stdlib-bert":
        return "Python code: which family of the standard library wrote it?"
    return "the classes are the model's own"


def _verdict(pair: ClassPair, badge: Badge, settings: Settings, evidence: Evidence, same_text: bool) -> None:
    markup.sentence(text_pair.verdict(pair), badge)
    _stale(pair, settings, evidence, "text", "classified", same_text)
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


def _start_classifying(first: str) -> None:
    _take_in("generate_text", first)
    now = session.settings()
    _start(
        ClassifyRequest(
            now.model, choices.text("generate_text", first), now.choice(), now.method, now.per_head, now.dtype
        )
    )


# Both


def _title(words: str, examples: dict[str, str], name: str, first: str) -> None:
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
    default, low, high = _NUMBERS[name]
    kind = int if isinstance(default, int) else float
    value = _value(name)
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


def _value(name: str) -> float:
    """A kept number; the default where the address holds none."""
    default, low, high = _NUMBERS[name]
    try:
        value = float(choices.text(name, str(default)))
    except ValueError:
        return default
    return value if low <= value <= high else default


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


def _start(request: PairRequest | ClassifyRequest) -> None:
    try:
        request.check()
    except FlashSVDError as error:
        session.dismiss()
        session.notify(f"Nothing was started: {error}")
        return
    asked: list[Any] = st.session_state.setdefault("generate_asked", [])
    if request not in asked:
        asked.append(request)
        del asked[:-_KEPT]
    work.start(request)


def _latest(model: str, kind: type) -> tuple[Recorded, Badge] | None:
    """The last result of this tab for a model, with what was asked, or the one that ships."""
    # Kept apart: other pages' results push those of this one out of the session's own few.
    shown: dict[tuple[str, type], Recorded] = st.session_state.setdefault("generate_shown", {})
    for request in st.session_state.setdefault("generate_asked", []):
        result = session.result_of(request)
        key = (request.model, type(request))
        if result is not None and (key not in shown or result.created >= shown[key][1].created):
            shown.pop(key, None)
            shown[key] = (request, result)
    while len(shown) > _KEPT:
        shown.pop(next(iter(shown)))
    live = shown.get((model, kind))
    if live is not None:
        return live, Badge("LIVE", live[1].machine.label)
    found = _recorded(model)
    if found is None or not isinstance(found[0], kind):
        return None
    return found, Badge("REPLAY", f"{found[1].machine.label} · {when(found[1].created)}")


@st.cache_resource(max_entries=8, show_spinner=False)
def _recorded(model: str) -> Recorded | None:
    """Read once per server; frozen, so that tabs may share it. One that cannot be read is none."""
    try:
        return recorded(model)
    except FlashSVDError:
        return None


def _same_but_plan(request: PairRequest, asked: PairRequest) -> bool:
    names = ("prompt", "prompt_tokens", "max_new_tokens", "temperature", "top_p", "seed")
    return all(getattr(request, name) == getattr(asked, name) for name in names)


def _stale(
    pair: TextPair | ClassPair, settings: Settings, evidence: Evidence, what: str, done: str, same_input: bool
) -> None:
    """One line where the controls have moved on."""
    if (pair.method, pair.dtype) != (settings.method, settings.dtype) or (
        evidence.plan is not None and pair.plan != evidence.plan
    ):
        markup.muted(
            f"This {what} was {done} with another plan: keep {100 * pair.plan.keep:.1f} %, {pair.method}."
        )
    elif not same_input:
        markup.muted(f"This {what} was {done} before you changed what is asked.")


page(render)
