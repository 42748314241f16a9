"""Can I see it: two texts side by side, or two verdicts on one text."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import written
from app.components import markup, slide_parts, text_pair
from app.components.slide_parts import Look
from app.evidence import Badge
from flashsvd.classification.pair import ClassPair
from flashsvd.errors import FlashSVDError
from flashsvd.figures import theme
from flashsvd.figures.class_bars import class_bars

_CLASSES = 5
_SHOWN = 700


def show(look: Look) -> None:
    try:
        of = written.form(look.settings.model, look.said)
    except FlashSVDError:
        # What is wrong with the model stands above the slide.
        return
    if of.does == "nothing":
        markup.empty("Nothing to try here", f"{look.settings.model} {of.why}")
        return
    asked = written.request(look.settings, look.said, of)
    found = written.answer(asked)
    if found is None:
        markup.empty(
            f"Nothing of {look.settings.model} to read yet",
            "No text ships for it: press Run this step before the talk, or pick another model.",
        )
        return
    came, badge = found
    pair = came[1]
    line = written.stale(came, asked, look.settings, look.evidence)
    if isinstance(pair, ClassPair):
        _verdict(pair, badge, line)
        return
    markup.sentence(text_pair.sentence(pair), badge)
    if line:
        markup.notice(line)
    text_pair.both(pair, badge)


def wanted(look: Look) -> written.Request | None:
    """The text or the verdict of this slide."""
    try:
        of = written.form(look.settings.model, look.said)
        if of.does == "nothing":
            return None
        asked = written.request(look.settings, look.said, of)
        asked.check()
    except FlashSVDError:
        return None
    return asked


def _verdict(pair: ClassPair, badge: Badge, line: str) -> None:
    markup.sentence(text_pair.verdict(pair), badge)
    if line:
        markup.notice(line)
    shown = pair.likeliest(_CLASSES)
    mode = markup.mode()
    left, right = st.columns([42, 58], gap="medium")
    with left, st.container(key="panel_slide_text", height="stretch"):
        markup.head("The text", f"{pair.tokens} tokens")
        st.html(text_pair.plain_html(pair.text, _SHOWN))
    with right:
        markup.head(
            "How likely each class is",
            f"{len(shown)} of {len(pair.classes)} classes",
            None,
            [
                (theme.engine_colour("dense", mode), "dense"),
                (theme.engine_colour("flash", mode), "compressed"),
            ],
        )
        figure = class_bars(
            [pair.classes[place] for place in shown],
            [pair.dense[place] for place in shown],
            [pair.compressed[place] for place in shown],
            mode=mode,
            height=275,
            source=pair.machine.label,
        )
        table = pd.DataFrame({"class": pair.classes, "dense": pair.dense, "compressed": pair.compressed})
        slide_parts.chart(figure, key="classes", name="Probabilities of classes", data=table)
