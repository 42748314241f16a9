"""The Memory page without a browser: measured and predicted runs, windows, what was clicked."""

from __future__ import annotations

from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from flashsvd.measure.predicted import PredictedRun, Prediction, PredictRequest
from flashsvd.results import ModelInfo
from tests.app import fakes
from tests.app.conftest import Desk, charts, html, link

Open = Callable[..., AppTest]


def prediction(request: PredictRequest, missing: dict[str, str] | None = None) -> Prediction:
    shape = fakes.SHAPE
    runs = tuple(
        PredictedRun(
            engine,
            fakes.MIB,
            peak,
            6,
            3,
            {"encoder.layer.*": "BertLayer · transformers/bert.py:7"},
            fakes.events(peak, weight_bytes=fakes.MIB),
        )
        for engine, peak in (("dense", 30 * fakes.MIB), ("flash", 3 * fakes.MIB))
        if engine not in (missing or {})
    )
    info = ModelInfo(request.model, "bundled", True, 1, shape)
    return Prediction(request, info, request.choice.resolve(shape), runs, missing or {}, 1.5)


def test_opens_on_the_measured_run(open_app: Open) -> None:
    at = open_app("memory")
    words = html(at)
    assert "At its peak, in layer 1, flash holds" in words and "dense holds" in words and "REPLAY" in words
    assert "What makes up the peak" in words and "each a band over its life" in words
    assert len(charts(at)) == 1
    assert "The largest of them" in words and "known once this model is predicted" in words


def test_another_engine_and_axis_are_in_the_address(open_app: Open) -> None:
    at = open_app("memory")
    at.button_group(key="w_memory_engine").set_value("dense").run()
    at.button_group(key="w_memory_axis").set_value("time").run()
    assert not at.exception
    assert link(at)["p.memory_engine"] == "dense" and link(at)["p.memory_axis"] == "time"
    assert "At its peak, in layer 1, dense holds" in html(at) and "dense over time" in html(at)
    again = open_app("memory", **link(at))
    assert "dense over time" in html(again)


def slider(at: AppTest) -> object:
    return next(item for item in at.slider if item.key.startswith("w_memory_window"))


def test_the_window_is_chosen_by_range_by_layer_and_by_peak(open_app: Open) -> None:
    at = open_app("memory")
    slider(at).set_value((10, 60)).run()
    assert link(at)["p.memory_window"] == "10-60"
    key = slider(at).key
    slider(at).set_value((12, 60)).run()
    # The same widget, so that arrow keys go on working.
    assert slider(at).key == key and link(at)["p.memory_window"] == "12-60"
    layer = next(item for item in at.selectbox if item.key.startswith("w_memory_layer"))
    layer.set_value("layer 3").run()
    assert link(at)["p.memory_window"] == "81-121"
    at.button(key="memory_whole").click().run()
    assert "p.memory_window" not in link(at)
    at.button(key="memory_peak").click().run()
    assert link(at)["p.memory_window"] == "1-41" and not at.exception


def test_a_window_of_nonsense_is_the_whole_run(open_app: Open) -> None:
    for text in ("9-3", "x-y", "0-999999999999", "<b>-1"):
        at = open_app("memory", **{"p.memory_window": text})
        assert "of weights" in html(at) and slider(at).value[0] == 0


def test_a_click_shows_the_allocation_or_the_op(open_app: Open) -> None:
    at = open_app("memory")
    at.session_state["memory_pick"] = ("flash", "a", 5)
    at.run()
    assert "This allocation" in html(at) and "encoder.layer.0" in html(at)
    at.session_state["memory_pick"] = ("flash", "e", 30)
    at.run()
    assert "Alive during op 30" in html(at) and "frees" in html(at)
    # Of a run that is not on screen any more.
    at.session_state["memory_pick"] = ("flash", "a", 10**6)
    at.run()
    assert not at.exception and "The largest of them" in html(at)


def test_a_prediction_is_asked_for_shown_and_badged(open_app: Open, desk: Desk) -> None:
    at = open_app("memory")
    at.button_group(key="w_memory_from").set_value("predicted").run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, PredictRequest)
    assert (request.batch, request.seq, request.dtype, request.cached) == (8, 256, "fp32", False)
    assert "Predicting" in html(at) and not charts(at)
    desk.jobs.finish("job0", prediction(request))
    at.run()
    words = html(at)
    assert "PREDICTED" in words and "3 of 6 layers were run" in words and len(charts(at)) == 1
    at.session_state["memory_pick"] = ("flash", "a", 5)
    at.run()
    assert "BertLayer · transformers/bert.py:7" in html(at)
    # No time was measured.
    assert not [item for item in at.get("button_group") if item.key == "w_memory_axis"]
    at.number_input(key="w_batch").set_value(64).run()
    assert "Not predicted yet" in html(at)
    at.button(key="run_predict").click().run()
    assert desk.jobs.requests["job1"].batch == 64


def test_a_failed_prediction_is_one_line(open_app: Open, desk: Desk) -> None:
    at = open_app("memory", **{"p.memory_from": "predicted"})
    at.button(key="run_predict").click().run()
    desk.jobs.fail("job0", "seq must be from 1 to 256, got 999")
    at.run()
    assert "Prediction failed: seq must be from 1 to 256" in html(at) and not at.exception


def test_engines_that_cannot_be_predicted_are_named(open_app: Open, desk: Desk) -> None:
    at = open_app("memory", **{"p.memory_from": "predicted"})
    at.button(key="run_predict").click().run()
    desk.jobs.finish("job0", prediction(desk.jobs.requests["job0"], {"flash": "no kernel for <this>"}))
    at.run()
    assert "Not predicted: flash: no kernel for &lt;this&gt;" in html(at)
    assert "At its peak, in layer 1, dense holds" in html(at)


def test_a_model_without_a_run_offers_a_prediction(open_app: Open) -> None:
    at = open_app("memory", model="llama-2-70b", batch="64", seq="4096", dtype="bf16")
    assert "64 x 4096 tokens of llama-2-70b" in html(at)
    assert at.toggle(key="w_memory_cache").value is True
    at.toggle(key="w_memory_cache").set_value(False).run()
    assert link(at)["p.memory_cache"] == "off"


def test_names_from_outside_are_escaped(open_app: Open, desk: Desk) -> None:
    run = desk.recordings["stdlib-bert"].comparison.run("flash")
    run.timeline["module"] = "<img src=x>"
    at = open_app("memory")
    assert "<img" not in html(at) and "&lt;img src=x&gt;" in html(at)
