"""Slides: each page's answer for a step's settings and for what was chosen on the page when the step was saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import choices, links
from app.components import run_words
from app.pages import view_named
from app.slides import slides
from app.state import Settings, to_query
from flashsvd.classification.pair import ClassifyRequest
from flashsvd.onchip.request import CompileRequest
from flashsvd.side_by_side import numbers
from flashsvd.store import RunStore
from tests.app import fakes
from tests.app.conftest import Desk, charts, html

Talk = Callable[..., AppTest]


@pytest.fixture
def talk(
    open_app: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., AppTest]:
    """Opens a talk of one step: a page, its settings and choices."""
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))

    def opened(view: str, settings: Settings | None = None, **said: str) -> AppTest:
        query = to_query(settings or Settings()) | {f"p.{name}": value for name, value in said.items()}
        digest = links.keep([{"view": view, "query": query, "words": ""}])
        return open_app("present", **{"p.present_talk": digest})

    return opened


@pytest.fixture
def store(desk: Desk, tmp_path: Path) -> RunStore:
    made = RunStore(tmp_path / "runs.sqlite")
    desk.store = made  # type: ignore[assignment]
    return made


def shown(at: AppTest) -> Sequence[str]:
    return [chart.key for chart in charts(at)]


def test_every_slide_is_of_a_page_and_draws() -> None:
    for name, module in slides().items():
        assert view_named(name) is not None and callable(module.show), name
    assert {"tiles", "generate", "roofline", "runs"} <= set(slides())


def test_memory_shows_the_engine_of_the_step_against_dense(talk: Talk) -> None:
    assert "At its peak flash holds <b>" in html(talk("memory")) and "; dense holds <b>" in html(
        talk("memory")
    )
    words = html(talk("memory", memory_engine="lowrank"))
    assert "At its peak lowrank holds <b>" in words
    words = html(talk("memory", memory_engine="dense"))
    assert "At its peak dense holds <b>" in words and "; dense holds" not in words


def test_accuracy_says_how_small_the_method_gets(talk: Talk) -> None:
    at = talk("accuracy")
    assert "Within 1 point of dense accuracy" in html(at) and shown(at) == ["slide_curve"]


def test_tiles_shows_the_kernel_and_the_gpu_of_the_step(talk: Talk) -> None:
    at = talk("tiles", tiles_gpu="L4", tiles_kernel="rank_space")
    words = html(at)
    assert "Rank space keeps" in words and "busy on an L4" in words and "COMPILED" in words
    assert "rank 25 pads to 32" in words
    assert shown(at) == ["slide_occupancy"]
    words = html(talk("tiles"))
    assert "FFN v1 keeps" in words and "busy on an H200" in words


def test_tiles_compiles_its_sizes_where_the_table_has_none(talk: Talk, desk: Desk) -> None:
    at = talk("tiles", Settings(plan="*.*: 20 *.up: 60 *.down: 90"))
    assert "not compiled yet" in html(at)
    at.button(key="run_step").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, CompileRequest) and request.call.rank == 64


def test_generate_shows_two_texts_and_their_badge(talk: Talk) -> None:
    words = html(talk("generate", Settings(model="stdlib-llama")))
    assert "REPLAY" in words and "of next tokens agree" in words
    assert words.count('class="fs-text fs-of-') == 2
    assert "with another plan" in words


def test_try_it_shows_both_verdicts_and_runs_the_text_of_the_step(talk: Talk, desk: Desk) -> None:
    at = talk("generate", Settings(), generate_text="import asyncio")
    assert "REPLAY" in html(at) and shown(at) == ["slide_classes"]
    at.button(key="run_step").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, ClassifyRequest) and request.text == "import asyncio"


def test_a_model_that_reads_no_text_says_so(talk: Talk) -> None:
    at = talk("generate", Settings(model="bert-base"))
    assert "Nothing to try here" in html(at)
    assert at.button(key="run_step").disabled


def test_roofline_stands_under_the_roof_of_the_step(talk: Talk) -> None:
    at = talk("roofline", Settings(model="llama-2-7b", dtype="bf16"), roofline_mode="decode")
    words = html(at)
    assert "For the next token" in words and "PREDICTED" in words and shown(at) == ["slide_roofline"]
    other = talk("roofline", Settings(dtype="bf16"), roofline_gpu="L4, data sheet", roofline_engine="lowrank")
    assert "on an L4" in html(other) and "low-rank" in html(other)


def test_two_picked_runs_stand_side_by_side(talk: Talk, store: RunStore) -> None:
    store.add(fakes.comparison(0.5))
    store.add(fakes.comparison(0.3, flash_ms=80.0, score=0.777), "smaller")
    at = talk("runs", runs_pick="1.2")
    words = html(at)
    assert "1.5x faster" in words and "#2 smaller" in words and words.count("fs-badge fs-REPLAY") >= 2
    assert shown(at) == ["slide_runs_memory"]
    assert "is <b>1.5x slower</b>" in html(talk("runs", runs_pick="2.1"))


def test_one_picked_run_is_shown_whatever_the_settings_say(talk: Talk, store: RunStore) -> None:
    store.add(fakes.comparison(0.3, flash_ms=80.0, score=0.777))
    words = html(talk("runs", Settings(keep=0.9), runs_pick="1"))
    assert "77.7" in words and "80.0 ms" in words


def test_runs_without_a_pick_are_listed_and_without_any_the_recording_stands(
    talk: Talk, store: RunStore
) -> None:
    assert "FlashSVD runs this model in" in html(talk("runs"))
    store.add(fakes.comparison(0.3), "<b>mine")
    store.add(fakes.curve())
    words = html(talk("runs"))
    assert "#1 &lt;b&gt;mine" in words and "The last <b>2 runs</b>" in words
    assert "#1" not in html(talk("runs", runs_kind="curve")).split("<tbody>")[1]
    assert "is not kept here any more" in html(talk("runs", runs_pick="77"))


def test_a_step_keeps_a_prompt_that_is_too_long_for_an_address() -> None:
    said = choices.saved({"p.generate_prompt": "x" * 5000, "model": "m", "p.../x": "no"})
    assert len(said.text("generate_prompt")) == 5000 and set(said.values) == {"generate_prompt"}


def test_what_may_not_be_compared_is_not_said() -> None:
    a, b = fakes.comparison(0.5), fakes.comparison(0.3, flash_ms=60.0, gate=fakes.RED)
    words = "".join(text for text, _ in run_words.pair_sentence(numbers(a, b, "flash")))
    assert "faster" not in words and "keeps 29.7 %" in words
    other = dataclasses.replace(a, batch=1)
    words = "".join(text for text, _ in run_words.pair_sentence(numbers(a, other, "flash")))
    assert words == "A and B are alike as far as they can be compared."
