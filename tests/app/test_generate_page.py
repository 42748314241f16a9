"""The Generate page without a browser or a worker: what is asked for, what comes in, what is said when it cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.components import text_pair
from flashsvd.allocate import uniform
from flashsvd.classification.pair import ClassifyRequest, ClassPair
from flashsvd.errors import InputError
from flashsvd.generation import recorded
from flashsvd.generation.pair import PairRequest, Place, Side, TextPair
from flashsvd.models.sources import resolve, shape_of
from flashsvd.results import Metric, PlanChoice, Quantiles
from tests.app import fakes
from tests.app.conftest import Desk, charts, html, link

Open = Callable[..., AppTest]

SHIPPED = recorded.recorded
LLAMA = {"model": "stdlib-llama", "method": "svd", "keep": "0.5"}
BERT = {"model": "stdlib-bert", "method": "svd", "keep": "0.3"}


@pytest.fixture(autouse=True)
def nothing_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "recorded", lambda model: None)


def side(engine: str, pieces: tuple[str, ...], tokens: tuple[int, ...] | None = None) -> Side:
    return Side(
        engine,
        tokens or tuple(map(hash, pieces)),
        pieces,
        "length",
        8.0 if engine == "dense" else 0.5,
        61.04 if engine == "dense" else 75.0,
        0.125,
        Quantiles(15.0, 16.4, 17.0),
        21 * fakes.MIB,
        2 * fakes.MIB,
    )


def pair(keep: float = 0.5, created: str = "2026-11-20T10:00:00+00:00", **changes: Any) -> TextPair:
    shape = shape_of(resolve("stdlib-llama"))
    assert shape is not None
    dense = ("Read", " lines", "\n", " <script>alert(1)</script>")
    mine = ("Read", " files", "\n")
    ranked = ((" lines", 0.5), ("<b>", 0.25), ("\n", 0.1))
    made = TextPair(
        created=created,
        machine=fakes.MACHINE,
        model="stdlib-llama",
        trained=True,
        method="svd",
        plan=uniform(shape, keep),
        prompt="def f():\n    <script>",
        prompt_tokens=7,
        dense=side("dense", dense),
        compressed=side("flash", mine),
        places=tuple(
            Place(piece, 0.3 * index, index != 1, ranked, ranked) for index, piece in enumerate(dense)
        ),
        agreement=Metric("agreement", 0.75, 4, 0.3, 0.95, None, 0, "tokens"),
        kl=Metric("kl", 0.45, 4, 0.2, 0.7, None, 0, "tokens"),
        seed=0,
        dtype="fp32",
        prefill="",
    )
    return dataclasses.replace(made, **changes)


def classes(keep: float = 0.3) -> ClassPair:
    return ClassPair(
        "2026-11-20T10:00:00+00:00",
        fakes.MACHINE,
        "stdlib-bert",
        "svd",
        uniform(fakes.SHAPE, keep),
        "fp32",
        "x",
        33,
        ("asyncio", "<i>web</i>", "xml"),
        (0.9, 0.06, 0.04),
        (0.3, 0.6, 0.1),
    )


def finished(at: AppTest, desk: Desk, result: Any, button: str = "run_generate") -> AppTest:
    """Presses the button and ends the job that it starts."""
    at.button(key=button).click().run()
    desk.jobs.finish(f"job{len(desk.jobs.requests) - 1}", result)
    return at.run()


def test_opens_with_a_prompt_and_an_empty_place(open_app: Open) -> None:
    at = open_app("generate", **LLAMA)
    assert at.text_area(key="w_generate_prompt").value.startswith("class Stack:")
    assert at.number_input(key="w_generate_new").value == 64
    assert (
        at.number_input(key="w_generate_top_p").disabled and at.number_input(key="w_generate_seed").disabled
    )
    assert "Nothing written yet" in html(at) and not charts(at)
    assert not at.markdown, "a page writes bare words of its file"


def test_a_click_asks_for_what_is_on_the_page(open_app: Open, desk: Desk) -> None:
    at = open_app("generate", **{**LLAMA, "keep": "0.7"})
    at.button(key="generate_prompt_a_test").click().run()
    at.number_input(key="w_generate_new").set_value(32).run()
    at.number_input(key="w_generate_temperature").set_value(0.8).run()
    at.number_input(key="w_generate_top_p").set_value(0.9).run()
    at.number_input(key="w_generate_seed").set_value(5).run()
    at.button(key="run_generate").click().run()
    assert desk.jobs.requests["job0"] == PairRequest(
        "stdlib-llama",
        PlanChoice(keep=0.7),
        prompt="import unittest\n\nclass TestParser(unittest.TestCase):\n    def test_",
        max_new_tokens=32,
        temperature=0.8,
        top_p=0.9,
        seed=5,
    )
    assert "run_generate" not in [button.key for button in at.button] and at.button(key="cancel_generate")


def test_greedy_needs_no_seed_and_no_top_p(open_app: Open, desk: Desk) -> None:
    at = open_app("generate", **LLAMA, **{"p.generate_top_p": "0.5", "p.generate_seed": "7"})
    at.button(key="run_generate").click().run()
    request = desk.jobs.requests["job0"]
    assert (request.temperature, request.top_p, request.seed) == (0.0, None, 0)


def test_the_prompt_and_the_options_are_in_the_address_where_they_are_short(open_app: Open) -> None:
    at = open_app("generate", **LLAMA)
    at.text_area(key="w_generate_prompt").set_value("for x in\n  y").run()
    at.number_input(key="w_generate_new").set_value(9).run()
    assert link(at)["p.generate_prompt"] == "for x in\n  y" and link(at)["p.generate_new"] == "9"
    again = open_app("generate", **link(at))
    assert again.text_area(key="w_generate_prompt").value == "for x in\n  y"
    assert again.number_input(key="w_generate_new").value == 9
    at.text_area(key="w_generate_prompt").set_value("long " * 100).run()
    assert "p.generate_prompt" not in link(at)
    at.switch_page("views/overview.py").run()
    at.switch_page("views/generate.py").run()
    assert at.text_area(key="w_generate_prompt").value == "long " * 100


@pytest.mark.parametrize("value", ["-4", "many", "1e9", "nan", ""])
def test_a_bad_number_in_the_address_is_the_default(open_app: Open, value: str) -> None:
    at = open_app("generate", **LLAMA, **{"p.generate_new": value, "p.generate_temperature": value})
    assert at.number_input(key="w_generate_new").value == 64
    assert at.number_input(key="w_generate_temperature").value == 0.0


def test_texts_stream_in_while_the_job_runs(open_app: Open, desk: Desk) -> None:
    at = open_app("generate", **LLAMA)
    at.button(key="run_generate").click().run()
    assert html(at).count("waiting") == 2
    desk.jobs.points = [["dense", "Read <b>", False]]  # type: ignore[list-item]
    at.run()
    assert "Read &lt;b&gt;" in html(at) and "writing" in html(at) and "<b>Read" not in html(at)
    desk.jobs.points += [["dense", " on", True], ["flash", "Re", False]]  # type: ignore[list-item]
    at.run()
    words = html(at)
    assert "Read &lt;b&gt; on" in words and "written" in words and words.count("fs-caret") == 1


def test_a_finished_pair_is_marked_measured_and_escaped(open_app: Open, desk: Desk) -> None:
    at = finished(open_app("generate", **LLAMA), desk, pair())
    words = html(at)
    assert (
        "They part after <b>1 token</b>; over the dense text <b>75 %</b>" in words and "<b>75 %</b>" in words
    )
    assert words.count("LIVE") >= 4
    assert "<b>61.0</b> tokens/s steady" in words and "8.0 cold" in words
    assert "<b>75.0</b> tokens/s steady" in words and "0.5 cold" in words
    assert "<mark> lines</mark>" in words and "<mark> files</mark>" in words
    assert "same next token 75 % of 4 (95 %: 30 to 95) · mean KL 0.45 nats a token" in words
    assert "<script" not in words.replace("&lt;script", "") and "&lt;script&gt;alert(1)" in words
    assert "␣lines" in words and "50.0 %" in words and words.count('role="tooltip"') == 4


def test_another_plan_is_said_in_one_line_and_the_text_stays(open_app: Open, desk: Desk) -> None:
    at = finished(open_app("generate", **LLAMA), desk, pair())
    assert "was written" not in html(at)
    at.sidebar.slider(key="w_keep").set_value(80).run()
    words = html(at)
    assert "This text was written with another plan: keep 49." in words and "<mark> lines</mark>" in words
    at.sidebar.slider(key="w_keep").set_value(50).run()
    assert "was written" not in html(at)
    at.number_input(key="w_generate_new").set_value(9).run()
    assert "This text was written before you changed what is asked." in html(at)


def test_the_last_result_stays_until_the_next_and_a_cancel_brings_it_back(open_app: Open, desk: Desk) -> None:
    at = finished(open_app("generate", **LLAMA), desk, pair())
    at.text_area(key="w_generate_prompt").set_value("other").run()
    at.button(key="run_generate").click().run()
    assert "<mark>" not in html(at) and "waiting" in html(at)
    at.button(key="cancel_generate").click().run()
    at.run()
    assert "Writing cancelled" in html(at) and "<mark> lines</mark>" in html(at)
    newer = pair(created="2026-11-21T10:00:00+00:00", dense=side("dense", ("new",)), places=())
    at = finished(at, desk, newer)
    assert "new" in html(at) and "<mark> lines</mark>" not in html(at)


def test_a_result_outlives_those_of_other_pages(open_app: Open, desk: Desk) -> None:
    at = finished(open_app("generate", **LLAMA), desk, pair())
    at.session_state["results"] = {}
    at.switch_page("views/overview.py").run()
    at.switch_page("views/generate.py").run()
    assert "<mark> lines</mark>" in html(at)


def test_a_failure_is_one_line(open_app: Open, desk: Desk) -> None:
    at = open_app("generate", **LLAMA)
    at.button(key="run_generate").click().run()
    line = "prompt 1 has 600 tokens, but the context of stdlib-llama is 512"
    desk.jobs.fail("job0", line)
    at.run()
    assert f"Writing failed: {line}" in html(at) and "Nothing written yet" in html(at)


@pytest.mark.parametrize(
    ("query", "box", "button", "words"),
    [
        (LLAMA, "w_generate_prompt", "run_generate", "the prompt is empty: give the text to go on from"),
        (BERT, "w_generate_text", "run_classify", "the text is empty: give something to classify"),
    ],
)
def test_an_empty_text_starts_nothing(
    open_app: Open, desk: Desk, query: dict[str, str], box: str, button: str, words: str
) -> None:
    at = open_app("generate", **query)
    at.text_area(key=box).set_value("  \n").run()
    at.button(key=button).click().run()
    assert words in html(at) and not desk.jobs.requests


def test_random_weights_show_speed_alone(open_app: Open, desk: Desk) -> None:
    at = open_app("generate", model="gpt2", method="svd", keep="0.5")
    assert "random weights: text means nothing here, speed alone is shown" in html(at) and not at.text_area
    at.number_input(key="w_generate_tokens").set_value(128).run()
    at.button(key="run_generate").click().run()
    assert (desk.jobs.requests["job0"].prompt, desk.jobs.requests["job0"].prompt_tokens) == ("", 128)
    shape = shape_of(resolve("gpt2"))
    assert shape is not None
    speed = pair(
        model="gpt2",
        trained=False,
        plan=uniform(shape, 0.5),
        prompt="",
        dense=side("dense", (), (1, 2)),
        compressed=side("flash", (), (3, 4)),
        places=(),
        agreement=None,
        kl=None,
    )
    desk.jobs.finish("job0", speed)
    words = html(at.run())
    assert "dense writes <b>61.0</b> tokens a second, compressed <b>75.0</b>" in words and "16.4 ms" in words
    assert "fs-text" not in words and "fs-tok" not in words


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("bert-base", "has random weights and no tokenizer: it can read no text"),
        ("no such model", "unknown model &#x27;no such model&#x27;"),
    ],
)
def test_what_can_be_tried_on_nothing_is_one_line(open_app: Open, model: str, words: str) -> None:
    at = open_app("generate", model=model)
    assert words in html(at) and not at.text_area


def test_a_model_that_neither_writes_nor_classifies(open_app: Open, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    at = open_app("generate", model=str(tmp_path))
    assert "neither writes text nor says a text&#x27;s class" in html(at) and not at.text_area


def test_a_hub_id_is_asked_what_it_does(open_app: Open) -> None:
    at = open_app("generate", model="someone/some-model")
    assert at.text_area(key="w_generate_prompt").value == "Once upon a time"
    at.button_group(key="w_generate_as").set_value("classify").run()
    assert at.text_area(key="w_generate_text") and link(at)["p.generate_as"] == "classify"


def test_an_encoder_classifies_a_persons_own_text(open_app: Open, desk: Desk) -> None:
    at = open_app("generate", **BERT)
    assert "which family of the standard library" in html(at) and "No verdict yet" in html(at)
    at.button(key="generate_text_headers").click().run()
    assert at.text_area(key="w_generate_text").value.startswith("def getheader")
    at.button(key="run_classify").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, ClassifyRequest) and request.choice == PlanChoice(keep=0.3)
    desk.jobs.finish("job0", classes())
    words = html(at.run())
    assert "Dense says " in words and "<b>asyncio</b>" in words and "<b>&lt;i&gt;web&lt;/i&gt;</b>" in words
    assert "60.0 points moved" in words and len(charts(at)) == 1
    at.sidebar.slider(key="w_keep").set_value(80).run()
    assert "This text was classified with another plan" in html(at)


@pytest.mark.parametrize(("model", "words"), [("stdlib-llama", "They part"), ("stdlib-bert", "Both say")])
def test_what_ships_is_shown_before_anything_runs(
    open_app: Open, desk: Desk, monkeypatch: pytest.MonkeyPatch, model: str, words: str
) -> None:
    request, result = SHIPPED(model) or pytest.fail("nothing ships")
    monkeypatch.setattr(recorded, "recorded", lambda name: (request, result) if name == model else None)
    at = open_app("generate", model=model, method=result.method, plan=result.plan.to_text())
    assert words in html(at) and "REPLAY · " in html(at) and "was written" not in html(at)
    assert "was classified" not in html(at) and not desk.jobs.requests
    at.sidebar.slider(key="w_keep").set_value(90).run()
    assert "with another plan" in html(at) and words in html(at)


def test_what_ships_but_cannot_be_read_is_not_there(open_app: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: str) -> None:
        raise InputError("torn")

    monkeypatch.setattr(recorded, "recorded", broken)
    assert "Nothing written yet" in html(open_app("generate", **LLAMA))


def test_both_may_say_the_same() -> None:
    same = dataclasses.replace(classes(), compressed=(0.8, 0.1, 0.1))
    assert "".join(text for text, _ in text_pair.verdict(same)) == (
        "Both say asyncio: dense with 90\xa0%, compressed with 80\xa0%."
    )


def test_sentences_of_equal_and_of_wholly_other_texts() -> None:
    same = pair(compressed=side("flash", pair().dense.pieces))
    other = pair(compressed=side("flash", ("Other",)))
    assert (
        "".join(text for text, _ in text_pair.sentence(same))
        == "Both write the same 4 tokens; over the dense text 75 % of next tokens agree."
    )
    assert "They part at the first token; " in "".join(text for text, _ in text_pair.sentence(other))


@given(
    st.text("a<>&\"'\n ", max_size=8),
    st.lists(st.tuples(st.text("b<>&\n ", max_size=4), st.booleans()), max_size=8),
    st.none() | st.integers(0, 8),
)
def test_a_text_with_its_marks_reads_as_the_text(
    prompt: str, tokens: list[tuple[str, bool]], place: int | None
) -> None:
    from html.parser import HTMLParser

    found: list[str] = []
    tags: set[str] = set()

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.add(tag)

    reader = Reader()
    pieces, marks = [piece for piece, _ in tokens], [mark for _, mark in tokens]
    reader.feed(text_pair.text_html(prompt, pieces, marks, place, "dense"))
    reader.close()
    assert "".join(found) == text_pair.end_of(prompt) + "".join(pieces)
    assert prompt.endswith(text_pair.end_of(prompt).removeprefix("⋯"))
    assert tags <= {"div", "span", "i", "mark"}
    if place is not None and place <= len(tokens):
        assert "i" in tags


@given(st.floats(0, 50), st.floats(0, 50))
def test_more_divergence_is_a_darker_shade(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert 0 <= text_pair.shade(low) <= text_pair.shade(high) <= 1
