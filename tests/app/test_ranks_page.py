"""The Ranks page without a browser: every way to edit ends in one canonical plan, in the URL."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.components.plan_files import MAX_PLAN_BYTES, read_plan_file
from app.components.plan_typed import with_cells
from flashsvd.allocate import LADDER, energy, ladder, tail_energy, uniform
from flashsvd.curve_set import CurveSet
from flashsvd.errors import PlanError
from flashsvd.ranks import RankPlan
from flashsvd.results import CompareRequest, SpectraRequest
from tests.app import fakes
from tests.app.conftest import Desk, charts, html, link

Open = Callable[..., AppTest]


def plan_of(at: AppTest) -> RankPlan:
    query = link(at)
    if "plan" in query:
        return RankPlan.from_text(fakes.SHAPE, query["plan"])
    return uniform(fakes.SHAPE, float(query["keep"]))


def test_opens_with_predicted_counts(open_app: Open) -> None:
    at = open_app("ranks")
    words = html(at)
    assert "PREDICTED" in words and "49.6 %" in words and "of 5.86 M parameters" in words
    assert "Tail energy" in words and "0 of 90 units dense" in words
    assert len(charts(at)) == 1
    keys = [item.key for item in at.get("bidi_component")]
    assert keys[:2] == ["rank_grid_model", "rank_grid"]
    assert "Measured" in words and "REPLAY" in words


def test_a_slider_changes_numbers_and_link(open_app: Open) -> None:
    at = open_app("ranks")
    before = html(at)
    at.select_slider(key="rank_up").set_value(40).run()
    assert html(at) != before
    assert plan_of(at).get(3, "up") == (40,)
    assert plan_of(at).get(3, "q") == (25,) * 4
    assert "Not run yet" in html(at)


def test_a_layer_slider_touches_that_layer_only(open_app: Open) -> None:
    at = open_app("ranks")
    at.selectbox(key="w_layer").set_value(3).run()
    at.select_slider(key="rank_q").set_value("dense").run()
    plan = plan_of(at)
    assert plan.get(2, "q") == (None,) * 4 and plan.get(1, "q") == (25,) * 4
    assert "4 of 90 units dense" in html(at)


def test_two_edits_in_a_row_both_count_and_undo_takes_them_back(open_app: Open) -> None:
    at = open_app("ranks")
    at.select_slider(key="rank_q").set_value(10).run()
    at.select_slider(key="rank_k").set_value(11).run()
    at.select_slider(key="rank_q").set_value(12).run()
    assert plan_of(at).get(0, "q") == (12,) * 4 and plan_of(at).get(0, "k") == (11,) * 4
    at.button(key="undo").click().run()
    assert plan_of(at).get(0, "q") == (10,) * 4
    at.button(key="undo").click().run()
    at.button(key="undo").click().run()
    assert plan_of(at) == uniform(fakes.SHAPE, 0.5) and at.button(key="undo").disabled
    at.button(key="redo").click().run()
    assert plan_of(at).get(0, "q") == (10,) * 4


def test_presets(open_app: Open) -> None:
    at = open_app("ranks")
    at.button(key="preset_energy_95").click().run()
    assert plan_of(at) == energy(fakes.SHAPE, fakes.sigmas(), 0.95)
    for rung in LADDER:
        at.button(key=f"preset_ladder_{rung.head}").click().run()
        assert plan_of(at) == ladder(fakes.SHAPE, rung)
    at.button(key="preset_dense").click().run()
    assert plan_of(at).dense_units == 90
    at.button(key="preset_uniform").click().run()
    assert plan_of(at) == uniform(fakes.SHAPE, 0.5)


def test_typed_mirror(open_app: Open) -> None:
    at = open_app("ranks")
    at.text_area(key="w_mirror").set_value("*.*: dense *.qkv: 25 L2.q.h3: 16").run()
    assert plan_of(at).get(1, "q") == (25, 25, 16, 25)
    assert at.text_area(key="w_mirror").value.startswith("*.q")
    good = link(at)["plan"]
    at.text_area(key="w_mirror").set_value("*.qkv: 999").run()
    assert "rank must be from 1 to 64" in html(at)
    assert at.text_area(key="w_mirror").value == "*.qkv: 999"
    assert link(at)["plan"] == good
    at.text_area(key="w_mirror").set_value("*.qkv: 20").run()
    assert "rank must be" not in html(at) and plan_of(at).get(0, "v") == (20,) * 4


def test_run_this_plan_sends_it_and_shows_what_it_measured(open_app: Open, desk: Desk) -> None:
    at = open_app("ranks")
    at.select_slider(key="rank_down").set_value(50).run()
    at.button(key="run_plan").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, CompareRequest)
    assert request.choice.resolve(fakes.SHAPE).get(0, "down") == (50,)
    desk.jobs.finish("job0")
    at.run()
    assert "Measured" in html(at) and "80.1 ±" in html(at) and "LIVE" in html(at)


def test_whole_matrices_have_their_own_plan_and_no_head_table(open_app: Open) -> None:
    at = open_app("ranks")
    at.sidebar.selectbox(key="w_heads").set_value("whole").run()
    assert link(at)["heads"] == "whole"
    assert "no heads to set" in html(at)
    assert at.button(key="preset_energy_90").disabled


def test_spectra_are_computed_on_request_for_a_preset(open_app: Open, desk: Desk) -> None:
    at = open_app("ranks", model="bert-base")
    assert at.button(key="preset_energy_90").disabled
    at.button(key="run_spectra").click().run()
    assert isinstance(desk.jobs.requests["job0"], SpectraRequest)
    desk.jobs.finish("job0")
    at.run()
    assert not at.button(key="preset_energy_90").disabled
    assert "Tail energy" in html(at)
    at.button(key="preset_energy_90").click().run()
    assert not at.exception


def test_the_plan_outlives_a_change_of_page(open_app: Open) -> None:
    at = open_app("ranks")
    at.select_slider(key="rank_o").set_value(30).run()
    plan = plan_of(at)
    at.switch_page("views/overview.py").run()
    assert plan_of(at) == plan and "Shown:" in html(at)


def test_cells_of_the_head_table_change_one_head_each() -> None:
    plan = with_cells(uniform(fakes.SHAPE, 0.5), "k", {1: {"h3": 16, "h4": None}, 5: {"h1": 60}})
    assert plan.get(1, "k") == (25, 25, 16, None)
    assert plan.get(5, "k") == (None, 25, 25, 25), "60 is above break-even, so the head stays dense"
    with pytest.raises(PlanError, match=r"L1\.k\.h2"):
        with_cells(plan, "k", {0: {"h2": 65}})


def test_a_plan_file_round_trips() -> None:
    plan = RankPlan.from_text(fakes.SHAPE, "*.qkv: 25 L2.q.h3: 16")
    assert read_plan_file(json.dumps(plan.to_json()).encode(), fakes.SHAPE) == plan


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"format": "flashsvd-plan/1"}',
        b'{"format": "flashsvd-plan/1", "shape": {"layers": 3}}',
        b" " * (MAX_PLAN_BYTES + 1),
        json.dumps(uniform(fakes.bert_shape(2), 0.5).to_json()).encode(),
    ],
)
def test_a_bad_plan_file_is_one_line(data: bytes) -> None:
    with pytest.raises(PlanError) as caught:
        read_plan_file(data, fakes.SHAPE)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_plan_error(data: bytes) -> None:
    with pytest.raises(PlanError):
        read_plan_file(data, fakes.SHAPE)


def test_sensitivity_moves_ranks_where_they_hold_most_at_the_same_size(open_app: Open) -> None:
    at = open_app("ranks")
    before = plan_of(at)
    at.button(key="preset_sensitivity").click().run()
    after, sigmas = plan_of(at), fakes.sigmas()
    assert after != before and 0.98 * before.kept_parameters < after.kept_parameters <= before.kept_parameters
    assert tail_energy(after, sigmas) < tail_energy(before, sigmas)
    at.button(key="undo").click().run()
    assert plan_of(at) == before


def test_sensitivity_needs_the_spectra(open_app: Open, desk: Desk) -> None:
    desk.recordings["stdlib-bert"].sigmas = {}
    assert open_app("ranks").button(key="preset_sensitivity").disabled


def front_buttons(at: AppTest) -> list[str]:
    return [button.label for button in at.button if (button.key or "").startswith("preset_front_")]


def test_a_point_of_the_front_is_one_step_with_its_method(open_app: Open, desk: Desk) -> None:
    best = dataclasses.replace(
        fakes.curve(),
        method="whiten",
        points=tuple(
            dataclasses.replace(point, metric=fakes.metric(0.885), plan="*.*: 9")
            for point in fakes.curve_points(2)[1:]
        ),
        allocator="calibrated",
    )
    desk.curves["stdlib-bert"] = CurveSet((fakes.curve(), best))
    at = open_app("ranks", plan="*.up: 8")
    before = link(at)
    labels = front_buttons(at)
    # Of plain SVD only keep 10 %, which is smaller, and those that score higher are left beside the better method.
    assert labels[0].startswith("SVD, 10 %") and labels[1].startswith("Whitening, 20 % → 88.5 %")
    assert "MiB" in labels[1] and len(labels) < 10
    at.button(key="preset_front_1").click().run()
    assert link(at)["method"] == "whiten" and plan_of(at).get(0, "q") == (9,) * 4
    at.button(key="undo").click().run()
    assert link(at) == before
    at.button(key="redo").click().run()
    assert link(at)["method"] == "whiten"


def test_an_even_point_of_the_front_sets_the_slider(open_app: Open) -> None:
    at = open_app("ranks", plan="*.up: 8")
    at.button(key="preset_front_0").click().run()
    assert link(at)["keep"] == "0.1" and "plan" not in link(at)


def test_no_curve_no_front(open_app: Open, desk: Desk) -> None:
    desk.recordings["stdlib-bert"].curve = None
    assert not front_buttons(open_app("ranks"))


def test_the_spectrum_is_there_as_a_table(open_app: Open) -> None:
    found = open_app("ranks").get("download_button")
    assert "csv_spectrum" in [button.proto.id.rpartition("-")[2] for button in found]
