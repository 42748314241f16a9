"""Present: a talk in steps, full screen."""

from __future__ import annotations

import json

import streamlit as st

from app import choices, echo, session, talk, work
from app.components import jobs, markup
from app.components.page import page
from app.components.slide_parts import Look
from app.components.stage import stage
from app.evidence import Evidence, gather
from app.pages import view_named
from app.slides import slide, wanted
from app.state import Settings, from_query
from app.talk import Step
from flashsvd.errors import FlashSVDError
from flashsvd.jobs.kinds import kind_of
from flashsvd.methods import methods

_LARGEST_BYTES = 2**20


def render(settings: Settings, evidence: Evidence) -> None:
    """One step on a stage, its controls, and the list of steps."""
    steps = _shown(settings)
    at = min(_at(), len(steps) - 1)
    on = choices.chosen("present_stage", ("off", "on"), "off") == "on"
    stage(on=on, turn=lambda move: _turn(move, steps))
    if on:
        # Streamlit has no full screen of its own: the rest of the page is put away.
        st.html('<span class="fs-none fs-on-stage" hidden></span>')
    else:
        _controls(steps, at)
    with st.container(key="slide"):
        _slide(steps[at], at, len(steps))
    if not on:
        _list(steps, at)


def _shown(settings: Settings) -> tuple[Step, ...]:
    """The saved steps; before there are any, what the settings give."""
    if talk.steps():
        return talk.steps()
    query = tuple(session.whole_query().items())
    return tuple(
        Step(view, query) for view in ("overview", "memory", "accuracy", "ranks") if view_named(view)
    )


def _settings(step: Step) -> tuple[Settings, list[str]]:
    """A step's settings, and a line for each that could not be read."""
    query = dict(step.query)
    return from_query(query, session.default_settings(query.get("model", "")), tuple(methods()))


def _look(step: Step) -> tuple[Look, list[str]]:
    settings, problems = _settings(step)
    return Look(settings, gather(settings), choices.saved(dict(step.query))), problems


def _runs(step: Step) -> bool:
    """Whether there is something to run, and it does not run yet."""
    request = wanted(step.view, _look(step)[0])
    return request is not None and kind_of(request).name not in work.active()


def _slide(step: Step, at: int, count: int) -> None:
    look, problems = _look(step)
    view = view_named(step.view)
    question = view.question if view else ""
    title = step.words or question[:1].upper() + question[1:]
    markup.slide_top(title, f"{at + 1} / {count}")
    for line in [*problems, *([look.evidence.problem] if look.evidence.problem else [])]:
        markup.notice(line, error=True)
    slide(step.view, look)
    for kind in work.active():
        jobs.panel(kind, place="_slide")


def _controls(steps: tuple[Step, ...], at: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="present_controls"):
        st.html('<div class="fs-title">A talk in steps</div>', width="content")
        st.button(
            "←",
            key="step_back",
            help="Left arrow",
            disabled=at == 0,
            on_click=_turn,
            args=("back", steps),
        )
        st.button(
            "→", key="step_next", help="Right arrow", disabled=at == len(steps) - 1, on_click=_turn,
            args=("next", steps),
        )  # fmt: skip
        st.button("Full screen", key="stage_on", type="primary", on_click=_stage, args=("on",))
        st.button(
            "Run this step",
            key="run_step",
            help="R, also in full screen. What is recorded stays on screen until the run is done, and if it fails.",
            disabled=not _runs(steps[at]),
            on_click=_turn,
            args=("run", steps),
        )
        st.button("Add the current settings", key="add_step_here", on_click=talk.add_here)
        st.space("stretch")
        _files()


def _files() -> None:
    with st.popover("Talk file"):
        st.download_button(
            "Save",
            data=lambda: json.dumps(talk.to_plain(talk.steps()), indent=1),
            file_name="talk.json",
            mime="application/json",
            on_click="ignore",
            disabled=not talk.steps(),
            width="stretch",
        )
        st.file_uploader("Open", type="json", key="w_talk", on_change=_open, label_visibility="collapsed")


def _open() -> None:
    file = st.session_state.get("w_talk")
    if file is None:
        return
    try:
        if file.size > _LARGEST_BYTES:
            raise FlashSVDError(f"a talk has up to {_LARGEST_BYTES} bytes, this file has {file.size}")
        talk.keep(talk.from_plain(json.loads(file.getvalue())))
    except (FlashSVDError, ValueError) as error:
        session.notify(f"This file is no talk: {str(error).splitlines()[0]}")


def _list(steps: tuple[Step, ...], at: int) -> None:
    if not talk.steps():
        markup.muted(
            "These steps are made of the settings on the left. Save your own with “Add this page to the talk”, in the "
            "menu Copy link · Export of any page.",
            "fs-foot",
        )
        return
    with st.container(key="panel_steps"):
        markup.head("Steps", "the talk is in the page's address")
        for index, step in enumerate(steps):
            _entry(index, step, at)
        if "talk_before" in st.session_state:
            st.button("Undo", key="talk_undo", on_click=talk.undo)


def _entry(index: int, step: Step, at: int) -> None:
    number, words, up, down, off = st.columns([12, 64, 8, 8, 8], vertical_alignment="center", wrap=False)
    view = view_named(step.view)
    with number:
        st.button(
            f"{index + 1}. {view.title if view else step.view}",
            key=f"step_{index}",
            type="primary" if index == at else "secondary",
            on_click=_go,
            args=(index,),
            width="stretch",
        )
    with words:
        key = f"w_step_words_{index}"
        st.session_state[key] = step.words
        st.text_input(
            "Title",
            key=key,
            label_visibility="collapsed",
            placeholder=" · ".join(f"{name} {value}" for name, value in step.query[:4]),
            on_change=echo.heard(key, lambda: _change(index, st.session_state[key])),
        )
    with up:
        st.button("↑", key=f"step_up_{index}", disabled=index == 0, on_click=_swap, args=(index, index - 1))
    with down:
        last = index == len(talk.steps()) - 1
        st.button("↓", key=f"step_down_{index}", disabled=last, on_click=_swap, args=(index, index + 1))
    with off:
        st.button("✕", key=f"step_off_{index}", help="Remove", on_click=_remove, args=(index,))


def _change(index: int, words: str) -> None:
    steps = list(talk.steps())
    steps[index] = Step(steps[index].view, steps[index].query, words.strip())
    talk.keep(tuple(steps))


def _swap(one: int, other: int) -> None:
    steps = list(talk.steps())
    steps[one], steps[other] = steps[other], steps[one]
    talk.keep(tuple(steps))


def _remove(index: int) -> None:
    talk.keep(talk.steps()[:index] + talk.steps()[index + 1 :])


def _at() -> int:
    text = choices.text("present_step", "1")
    return max(0, int(text) - 1) if text.isdecimal() and len(text) < 4 else 0


def _go(index: int) -> None:
    choices.choose("present_step", str(index + 1), "1")


def _turn(move: str, steps: tuple[Step, ...]) -> None:
    last = len(steps) - 1
    at = min(_at(), last)
    if move == "leave":
        _stage("off")
    elif move == "run":
        request = wanted(steps[at].view, _look(steps[at])[0])
        if request is not None:
            work.start(request)
    else:
        place = {"next": at + 1, "back": at - 1, "first": 0, "last": last}[move]
        _go(min(max(place, 0), last))


def _stage(value: str) -> None:
    choices.choose("present_stage", value, "off")


page(render)
