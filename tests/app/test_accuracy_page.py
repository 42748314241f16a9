"""The Accuracy page without a browser: what is shown, computed and loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.state import Settings
from app.tradeoff_words import left_out, sentence
from flashsvd.allocate import uniform
from flashsvd.curve_set import CostTable, CurvePart, CurveSet, CurvesRequest, PlanCost
from flashsvd.ranks import RankPlan
from flashsvd.results import Quantiles
from flashsvd.tradeoff import tradeoff
from tests.app import fakes
from tests.app.conftest import Desk, charts, html, link

Open = Callable[..., AppTest]
TITLES = {"svd": "SVD", "whiten": "Whitening"}


def better(method: str = "whiten", gain: float = 0.05) -> Any:
    """A curve of another method that is better by so many points where that can be."""
    points = tuple(
        dataclasses.replace(p, metric=fakes.metric(min(0.89, max(0.0, p.metric.value + gain))))
        for p in fakes.curve_points()
    )
    return dataclasses.replace(fakes.curve(), method=method, points=points)


def costs(ms: float = 70.0) -> CostTable:
    def cost(plan: str, time: float) -> PlanCost:
        return PlanCost(plan, 1, "flash", Quantiles(time, time, time), int(time * 2**16), 2**20)

    plans = tuple(cost(point.plan, ms + index) for index, point in enumerate(fakes.curve_points()))
    return CostTable(
        "2026-11-20", fakes.MACHINE, "stdlib-bert", True, 8, 256, "fp32", 10, cost("", 99.0), plans
    )


def figure(at: AppTest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(charts(at)[0].proto.spec)
    return found


def names(at: AppTest) -> list[str]:
    return [trace["name"] for trace in figure(at)["data"]]


def test_opens_on_the_recorded_curve(open_app: Open) -> None:
    at = open_app("accuracy")
    words = html(at)
    assert "Within 1 point of dense accuracy" in words and "REPLAY · CPU, 2 cores · 12 Nov 2026" in words
    assert {"SVD", "dense", "front: no point beats it", "you are here"} <= set(names(at))


def test_opens_on_all_methods_that_ship(open_app: Open, desk: Desk) -> None:
    desk.curves["stdlib-bert"] = CurveSet((fakes.curve(), better()), (costs(),))
    at = open_app("accuracy")
    assert {"SVD", "Whitening"} <= set(names(at))
    assert at.multiselect(key="w_accuracy_methods").value == ["svd", "whiten"]
    at.multiselect(key="w_accuracy_methods").set_value(["whiten"]).run()
    assert "SVD" not in names(at) and link(at)["p.accuracy_methods"] == "whiten"


def test_axes_and_scores_are_in_the_link(open_app: Open, desk: Desk) -> None:
    desk.curves["stdlib-bert"] = CurveSet((fakes.curve(),), (costs(),))
    at = open_app("accuracy", **{"p.accuracy_axis": "latency"})
    assert "Accuracy against latency" in html(at)
    assert "flash engine, batch 8 x 256, fp32, CPU, 2 cores" in html(at)
    curve = next(trace for trace in figure(at)["data"] if trace["name"] == "SVD")
    assert curve["x"][0] == 70.0
    at.segmented_control(key="w_accuracy_axis").set_value("memory").run()
    assert link(at)["p.accuracy_axis"] == "memory"
    at.segmented_control(key="w_accuracy_score").set_value("kl").run()
    assert "10 points left out" in html(at), "old curves hold no KL"


def test_points_without_a_measurement_are_counted(open_app: Open) -> None:
    at = open_app("accuracy", **{"p.accuracy_axis": "latency"})
    assert "9 points left out: no measurement at batch 8 x 256, fp32" in html(at), "the recorded run is one"


def test_computing_sends_one_job_and_its_points_come_in(open_app: Open, desk: Desk) -> None:
    at = open_app("accuracy")
    at.multiselect(key="w_accuracy_methods").set_value(["svd", "whiten"]).run()
    at.button(key="run_curves").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, CurvesRequest)
    assert request.methods == ("svd", "whiten") and request.timed == (8, 256) and request.task is None
    desk.jobs.points = [CurvePart("whiten", "uniform", fakes.curve_points()[3])]
    at.run()
    assert "Whitening, coming in" in names(at)
    desk.jobs.finish("job0", CurveSet((better("svd"), better()), (costs(12.0),)))
    at.run()
    assert not at.exception and {"SVD", "Whitening"} <= set(names(at))
    assert "LIVE · CPU, 2 cores" in html(at) and len(desk.store.results) == 2
    at.segmented_control(key="w_accuracy_axis").set_value("latency").run()
    assert next(t for t in figure(at)["data"] if t["name"] == "SVD")["x"][0] == 12.0


def test_measured_costs_are_there_again_after_a_restart(open_app: Open, desk: Desk) -> None:
    at = open_app("accuracy")
    at.button(key="run_curves").click().run()
    desk.jobs.finish("job0", CurveSet((better("svd"),), (costs(12.0),)))
    # Another tab knows of it by the store alone.
    again = open_app("accuracy", **{"p.accuracy_axis": "latency", "p.accuracy_methods": "svd"})
    assert next(t for t in figure(again)["data"] if t["name"] == "SVD")["x"][0] == 12.0
    again.segmented_control(key="w_accuracy_axis").set_value("memory").run()
    assert "left out" not in html(again)


def test_a_failed_job_is_one_line_and_the_picture_stays(open_app: Open, desk: Desk) -> None:
    at = open_app("accuracy")
    at.button(key="run_curves").click().run()
    desk.jobs.fail("job0", "text:nowhere.txt cannot be read")
    at.run()
    assert "Curves failed: text:nowhere.txt cannot be read" in html(at) and "SVD" in names(at)


def test_a_plan_of_the_front_is_loaded_and_taken_back(open_app: Open, desk: Desk) -> None:
    desk.curves["stdlib-bert"] = CurveSet((better(),), ())
    at = open_app("accuracy")
    menu = at.selectbox(key="w_accuracy_front")
    option = next(text for text in menu.options if ", 30 % →" in text or ", 29 % →" in text)
    menu.set_value(option).run()
    at.button(key="load_front").click().run()
    assert link(at)["method"] == "whiten" and link(at)["keep"] == "0.3"
    assert "Loaded: Whitening, keep 30 %" in html(at)
    at.slider(key="w_keep").set_value(35).run()
    assert "Loaded:" not in html(at), "the settings have moved on"
    at.button(key="load_front").click().run()
    at.button(key="accuracy_undo").click().run()
    assert link(at)["keep"] == "0.35"
    assert link(at)["method"] == "whiten" and "Loaded:" not in html(at)


def test_undo_brings_the_method_back(open_app: Open, desk: Desk) -> None:
    desk.curves["stdlib-bert"] = CurveSet((better(),), ())
    at = open_app("accuracy")
    at.button(key="load_front").click().run()
    assert link(at)["method"] == "whiten"
    at.button(key="accuracy_undo").click().run()
    assert link(at)["method"] == "svd" and link(at)["keep"] == "0.5"


def test_a_plan_that_is_not_even_is_loaded_as_it_is(open_app: Open, desk: Desk) -> None:
    plan = RankPlan.from_text(fakes.SHAPE, "*.qkv: 20 *.up: 40")
    point = dataclasses.replace(fakes.curve_points()[2], plan=plan.to_text(), metric=fakes.metric(0.88))
    curve = dataclasses.replace(fakes.curve(), points=(point,), allocator="energy")
    desk.recordings["stdlib-bert"].curve = None
    desk.curves["stdlib-bert"] = CurveSet((curve,))
    at = open_app("accuracy", **{"p.accuracy_ranks": "energy"})
    at.button(key="load_front").click().run()
    assert RankPlan.from_text(fakes.SHAPE, link(at)["plan"]) == plan


def test_another_task_has_its_own_curves(open_app: Open, desk: Desk) -> None:
    at = open_app("accuracy", **{"p.accuracy_task": "mine.csv"})
    assert "No curve yet" in html(at) and not charts(at)
    at.button(key="run_curves").click().run()
    assert desk.jobs.requests["job0"].task == "mine.csv"


def test_random_weights_have_no_score(open_app: Open, desk: Desk) -> None:
    desk.recordings["bert-base"] = dataclasses.replace(
        fakes.recording(), comparison=fakes.comparison(info=fakes.preset_info("bert-base")), curve=None
    )
    at = open_app("accuracy", model="bert-base")
    assert "random weights" in html(at) and at.button(key="run_curves").disabled


def test_whole_matrices_have_other_curves(open_app: Open) -> None:
    at = open_app("accuracy", heads="whole")
    assert "No curve yet" in html(at)


def test_the_sentence_is_honest() -> None:
    words = "".join(text for text, _ in sentence([fakes.curve(), better()], TITLES))
    assert words == (
        "Within 1 point of dense accuracy, Whitening keeps 50 % of the factored weights; SVD needs 59 %."
    )
    assert "no method shown" in "".join(text for text, _ in sentence([better(gain=-0.3)], TITLES))
    assert "is not known" in sentence([], TITLES)[0][0]
    language = "".join(text for text, _ in sentence([fakes.language_curve()], TITLES))
    assert language.startswith("Within 5 % of dense perplexity, SVD keeps ")


def test_another_precision_is_said(open_app: Open) -> None:
    assert "Scored in fp32." in html(open_app("accuracy", dtype="bf16"))


def test_nothing_is_said_of_no_points() -> None:
    found = tradeoff([fakes.curve()], "keep", "score", dtype="fp32")
    assert left_out(found, "keep", "score", Settings()) == ""


@pytest.mark.parametrize("value", ["nonsense", "<b>", "latency,keep"])
def test_a_link_with_other_words_shows_the_default(open_app: Open, value: str) -> None:
    query = {f"p.accuracy_{name}": value for name in ("axis", "score", "methods", "ranks", "timed")}
    at = open_app("accuracy", **query)
    assert "Accuracy against keep" in html(at)


def test_an_even_plan_is_the_sliders() -> None:
    point = fakes.curve_points()[2]
    assert uniform(fakes.SHAPE, point.asked_keep).to_text() == point.plan
