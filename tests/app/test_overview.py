"""The Overview page without a browser: what it says, and what a run changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from app import services
from flashsvd.results import CompareRequest, CurveRequest
from tests.app import fakes
from tests.app.conftest import Desk, charts, html, link, standing

Open = Callable[..., AppTest]


def test_opens_on_the_recording_with_all_numbers(open_app: Open) -> None:
    words = html(open_app())
    assert "FlashSVD runs this model in <b>4.1 MiB</b> of activations instead of 18" in words
    assert "<b>1.1x slower</b>, for 0.6 points of accuracy." in words
    assert "REPLAY · CPU, 2 cores · 12 Nov 2026" in words
    assert "Accuracy, n = 512" in words and "88.4 ± 2.8" in words
    assert "49.6 % of factored weights" in words
    assert "Fastest: lowrank" in words and "Least memory: flash" in words


def test_both_figures_are_drawn(open_app: Open) -> None:
    assert len(charts(open_app())) == 2


def test_run_live_shows_progress_then_live_numbers_and_stores_them(open_app: Open, desk: Desk) -> None:
    at = open_app()
    at.button(key="run_live").click().run()
    assert isinstance(desk.jobs.requests["job0"], CompareRequest)
    (words,) = standing(at)
    assert "Timing the dense model" in words
    assert at.button(key="run_live").disabled
    assert "REPLAY" in html(at)
    desk.jobs.finish("job0")
    at.run()
    words = html(at)
    assert "LIVE · CPU, 2 cores" in words and "<b>1.4x faster</b>" in words and "80.1 ±" in words
    assert not standing(at) and not at.button(key="run_live").disabled
    assert len(desk.store.results) == 1


def test_a_stored_run_is_found_on_reload(open_app: Open, desk: Desk) -> None:
    desk.store.add(fakes.comparison(score=0.777, created="2026-11-20T10:00:00+00:00"))
    words = html(open_app())
    assert "77.7 ±" in words and "REPLAY · CPU, 2 cores · 20 Nov 2026" in words


def test_cancel_keeps_the_numbers(open_app: Open, desk: Desk) -> None:
    at = open_app()
    at.button(key="run_live").click().run()
    at.button(key="cancel_compare").click().run()
    assert desk.jobs.status("job0").state == "cancelled"
    assert "Live run cancelled" in html(at) and "88.4 ± 2.8" in html(at)
    assert not standing(at)


def test_a_failed_job_is_one_escaped_line_and_loses_nothing(open_app: Open, desk: Desk) -> None:
    at = open_app()
    at.button(key="run_live").click().run()
    desk.jobs.fail("job0", "flash needs 9 GiB but 2 GiB is free <script>")
    at.run()
    words = html(at)
    assert "Live run failed: flash needs 9 GiB but 2 GiB is free &lt;script&gt;" in words
    assert "88.4 ± 2.8" in words
    assert not at.exception
    at.button(key="dismiss").click().run()
    assert "failed" not in html(at)


def test_changed_controls_are_told_apart_from_the_run_on_screen(open_app: Open) -> None:
    at = open_app()
    at.sidebar.slider(key="w_keep").set_value(30).run()
    words = html(at)
    assert "Shown: keep 49.6 %, batch 8 x 256, fp32, svd. Press Run live for your settings." in words
    assert "Your plan keeps" in words and "(PREDICTED)" in words
    assert link(at)["keep"] == "0.3"
    at.sidebar.slider(key="w_keep").set_value(50).run()
    assert "Shown:" not in html(at)


def test_a_red_gate_claims_no_speed(open_app: Open, desk: Desk) -> None:
    desk.recordings["stdlib-bert"].comparison = fakes.comparison(flash_ms=10, gate=fakes.RED)
    words = html(open_app())
    assert "Correctness check failed" in words and "fs-notice error" in words
    assert "faster" not in words and "no speed is claimed" in words


def test_a_language_model_is_told_by_its_perplexity(open_app: Open, desk: Desk) -> None:
    info = dataclasses.replace(fakes.INFO, name="stdlib-llama", shape=services.described("stdlib-llama"))
    run = fakes.language(fakes.comparison(info=info), flash=4.6)
    desk.recordings["stdlib-llama"] = fakes.FakeRecording(run, fakes.language_curve(), {})
    at = open_app(model="stdlib-llama")
    words = html(at)
    assert "and perplexity rises from 4.10 to 4.60." in words
    assert "4.60 ± 0.14" in words and "12.2 % over dense, lower is better" in words
    assert "perplexity, lower is better, log scale, 95 % band" in words and "accuracy" not in words.lower()
    assert '"log"' in charts(at)[1].proto.spec
    at.switch_page("views/ranks.py").run()
    assert "perplexity 4.60 ± 0.14" in html(at)


def test_random_weights_have_no_accuracy(open_app: Open, desk: Desk) -> None:
    info = fakes.preset_info("bert-base")
    desk.recordings["bert-base"] = fakes.FakeRecording(fakes.comparison(info=info), None, {})
    words = html(open_app(model="bert-base"))
    assert "accuracy does not apply: random weights" in words and "does not apply" in words
    assert "No score here" in words


def test_a_preset_without_recording_explains_itself(open_app: Open) -> None:
    at = open_app(model="bert-base")
    assert "No run of bert-base yet" in html(at)
    assert "of 84.9 M factored weights" in html(at)
    assert not at.button(key="run_live").disabled


@pytest.mark.parametrize("model", ["/no/such/folder", "not a model!", "<b>x</b>"])
def test_an_unknown_model_is_one_line(open_app: Open, model: str) -> None:
    at = open_app(model=model)
    assert html(at).count("fs-notice error") == 1
    assert "<b>x</b>" not in html(at)


def test_a_link_restores_everything(open_app: Open) -> None:
    at = open_app(
        model="stdlib-bert", plan="*.qkv: 30 L2.q.h3: 16", batch="4", seq="128", dtype="bf16", heads="each"
    )
    assert at.sidebar.number_input(key="w_batch").value == 4
    assert at.sidebar.number_input(key="w_seq").value == 128
    assert at.sidebar.selectbox(key="w_dtype").value == "bf16"
    assert "own plan" in html(at)
    assert "L2.q.h3: 16" in link(at)["plan"]


@pytest.mark.parametrize("plan", ["nonsense", "L99.q: 3", "*.q: 0", "*.q: 9999", "*.gate: 3"])
def test_a_malformed_or_foreign_plan_is_one_line_and_the_default(open_app: Open, plan: str) -> None:
    at = open_app(plan=plan)
    words = html(at)
    assert words.count("fs-notice error") == 1 and "The link&#x27;s plan was not used" in words
    assert "plan" not in link(at) and link(at)["keep"] == "0.5"
    assert "88.4 ± 2.8" in words


def test_the_curve_is_computed_live_with_points_as_they_come(open_app: Open, desk: Desk) -> None:
    desk.recordings["stdlib-bert"].curve = None
    at = open_app()
    assert "No curve yet" in html(at)
    at.button(key="run_curve").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, CurveRequest) and len(request.keeps) == 10
    desk.jobs.points = list(fakes.curve_points(3))
    at.run()
    assert charts(at)[1].proto.spec.count('"coming"') == 3
    desk.jobs.finish("job0")
    at.run()
    assert "95 % band" in charts(at)[1].proto.spec
    assert len(desk.store.results) == 1


def test_what_a_run_has_measured_is_on_screen_while_its_scores_are_to_come(
    open_app: Open, desk: Desk
) -> None:
    at = open_app(batch="4")
    at.button(key="run_live").click().run()
    answer = fakes.answer(desk.jobs.requests["job0"])
    unscored = tuple(dataclasses.replace(run, metric=None) for run in answer.runs)
    desk.jobs.points = [dataclasses.replace(answer, runs=unscored)]  # type: ignore[list-item]
    at.run()
    assert (
        "LIVE" in html(at)
        and "scoring…" in html(at)
        and "the score is coming" in html(at)
        and "77.0 ms" in html(at)
        and "Shown:" not in html(at)
    )
    assert not desk.store.results
    desk.jobs.finish("job0")
    at.run()
    assert "LIVE" in html(at) and "scoring…" not in html(at) and "80.1" in html(at)


def test_two_tabs_do_not_see_each_other(open_app: Open, desk: Desk) -> None:
    one, two = open_app(), open_app()
    one.sidebar.slider(key="w_keep").set_value(20).run()
    one.button(key="run_live").click().run()
    two.run()
    assert "Shown:" not in html(two) and not standing(two)
    desk.jobs.finish("job0")
    one.run(), two.run()
    assert "LIVE" in html(one) and "LIVE" not in html(two)


def test_the_curve_is_there_as_a_table(open_app: Open) -> None:
    assert "csv_curve" in [button.proto.id.rpartition("-")[2] for button in open_app().get("download_button")]
