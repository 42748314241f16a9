"""What is asked of the two models that write or classify, and what came: of this tab, or what ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import streamlit as st

from app import session
from app.choices import Choices
from app.evidence import Badge, Evidence
from app.state import Settings
from app.words import when
from flashsvd.classification.pair import ClassifyRequest, ClassPair
from flashsvd.errors import FlashSVDError
from flashsvd.generation import recorded
from flashsvd.generation.ability import ability_of
from flashsvd.generation.examples import PROMPTS, PROSE, REVIEWS, SNIPPETS
from flashsvd.generation.pair import MOST_NEW, PairRequest
from flashsvd.generation.recorded import Recorded
from flashsvd.models.sources import resolve

Request = PairRequest | ClassifyRequest

_KEPT = 6
NUMBERS = MappingProxyType(
    {
        "generate_new": (64, 1, MOST_NEW),
        "generate_temperature": (0.0, 0.0, 5.0),
        "generate_top_p": (1.0, 0.01, 1.0),
        "generate_seed": (0, 0, 2**31 - 1),
        "generate_tokens": (64, 1, 65_536),
    }
)
"""Default, least and most by name; whole numbers where the default is one."""


@dataclass(frozen=True)
class Form:
    """What a model can be tried with. examples: by what their buttons say, the first one stands in the box. preset:
    random weights, of which speed alone is shown. guessed: what it does is for a person to say until it is loaded.
    why: nothing can be tried."""

    does: Literal["writes", "classifies", "nothing"]
    examples: Mapping[str, str]
    preset: bool = False
    guessed: bool = False
    why: str = ""

    @property
    def first(self) -> str:
        return next(iter(self.examples.values()))


def form(model: str, said: Choices) -> Form:
    """What a model can be tried with. Raises FlashSVDError for a model that is not there."""
    source = resolve(model)
    ability = ability_of(source)
    if source.kind == "preset" and ability == "classifies":
        why = (
            "has random weights and no tokenizer: it can read no text. Pick stdlib-bert to classify, a decoder to "
            "write, or see Overview for this model's speed and memory."
        )
        return Form("nothing", {}, why=why)
    if ability == "neither":
        why = (
            "neither writes text nor says a text's class: expected a causal language model, or a model for sequence "
            "classification."
        )
        return Form("nothing", {}, why=why)
    bundled, guessed = source.kind == "bundled", ability == "unknown"
    said_to = said.chosen("generate_as", ("write", "classify"), "write")
    if ability == "writes" or (guessed and said_to == "write"):
        return Form("writes", PROMPTS if bundled else PROSE, source.kind == "preset", guessed)
    return Form("classifies", SNIPPETS if bundled else REVIEWS, guessed=guessed)


def request(settings: Settings, said: Choices, of: Form) -> Request:
    """What the page Generate asks with these choices."""
    if of.does == "classifies":
        text = said.text("generate_text", of.first)
        return ClassifyRequest(
            settings.model, text, settings.choice(), settings.method, settings.per_head, settings.dtype
        )
    heat, top_p = number(said, "generate_temperature"), number(said, "generate_top_p")
    return PairRequest(
        model=settings.model,
        choice=settings.choice(),
        prompt="" if of.preset else said.text("generate_prompt", of.first),
        prompt_tokens=int(number(said, "generate_tokens")) if of.preset else 0,
        method=settings.method,
        per_head=settings.per_head,
        max_new_tokens=int(number(said, "generate_new")),
        temperature=heat,
        top_p=top_p if heat and top_p < 1 else None,
        seed=int(number(said, "generate_seed")) if heat else 0,
        dtype=settings.dtype,
    )


def number(said: Choices, name: str) -> float:
    """A kept number; the default where the choices hold none."""
    default, low, high = NUMBERS[name]
    try:
        value = float(said.text(name, str(default)))
    except ValueError:
        return default
    return value if low <= value <= high else default


def ask(wanted: Request) -> None:
    """Notes that this was asked for in this tab."""
    asked: list[Any] = st.session_state.setdefault("generate_asked", [])
    if wanted not in asked:
        asked.append(wanted)
        del asked[:-_KEPT]


def latest(model: str, kind: type) -> tuple[Recorded, Badge] | None:
    """The last result of this tab for a model, with what was asked, or the one that ships."""
    # Kept apart: other pages' results push those of this one out of the session's own few.
    shown: dict[tuple[str, type], Recorded] = st.session_state.setdefault("generate_shown", {})
    for one in st.session_state.setdefault("generate_asked", []):
        result = session.result_of(one)
        key = (one.model, type(one))
        if result is not None and (key not in shown or result.created >= shown[key][1].created):
            shown.pop(key, None)
            shown[key] = (one, result)
    while len(shown) > _KEPT:
        shown.pop(next(iter(shown)))
    live = shown.get((model, kind))
    if live is not None:
        return live, Badge("LIVE", live[1].machine.label)
    found = _recorded(model)
    if found is None or not isinstance(found[0], kind):
        return None
    return found, Badge("REPLAY", f"{found[1].machine.label} · {when(found[1].created)}")


def answer(wanted: Request) -> tuple[Recorded, Badge] | None:
    """What this tab got for just this, else `latest`."""
    result = session.result_of(wanted)
    if result is not None:
        found: Recorded = (wanted, result)  # type: ignore[assignment]
        return found, Badge("LIVE", result.machine.label)
    return latest(wanted.model, type(wanted))


@st.cache_resource(max_entries=8, show_spinner=False)
def _recorded(model: str) -> Recorded | None:
    """Read once per server; frozen, so that tabs may share it. One that cannot be read is none."""
    try:
        return recorded.recorded(model)
    except FlashSVDError:
        return None


def stale(found: Recorded, wanted: Request, settings: Settings, evidence: Evidence) -> str:
    """One line where what is wanted is something else than what came; empty where it is not."""
    asked, pair = found
    done = "classified" if isinstance(pair, ClassPair) else "written"
    if (pair.method, pair.dtype) != (settings.method, settings.dtype) or (
        evidence.plan is not None and pair.plan != evidence.plan
    ):
        return f"This text was {done} with another plan: keep {100 * pair.plan.keep:.1f} %, {pair.method}."
    names = ("prompt", "prompt_tokens", "max_new_tokens", "temperature", "top_p", "seed", "text")
    if any(getattr(asked, name, None) != getattr(wanted, name, None) for name in names):
        return f"This text was {done} before you changed what is asked."
    return ""
