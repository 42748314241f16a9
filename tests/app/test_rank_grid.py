"""The rank grid without a browser: what is handed over, what comes back, and that both sides count alike."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from hypothesis import given
from hypothesis import strategies as strategies
from streamlit.testing.v1 import AppTest

from app import echo
from app.components import rank_grid
from app.components.plan_files import rank_table
from app.components.rank_grid import model_data, runs_of
from app.words import count, percent
from flashsvd.allocate import tail_energy, uniform
from flashsvd.errors import PlanError, format_bytes
from flashsvd.jobs.kinds.search import FoundPlan, SearchRequest
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.models.sources import resolve, shape_of
from flashsvd.plan_edits import apply_edits, edits_between, read_edits, step_rank
from flashsvd.ranks import RankPlan
from flashsvd.results import CompareRequest
from flashsvd.tail_curves import tail_curves
from tests.app import fakes
from tests.app.conftest import Desk, html, link, standing

NODE = shutil.which("node")
SHARED = fakes.bert_shape(5).with_per_head(False).with_sharing(2, ("q", "k", "v"))
CUT = 1e-5


def large() -> ModelShape:
    """80 layers, 64 query heads, 8 key and value heads, as Llama-2-70B."""
    layer = (
        Slot("q", 8192, 8192, heads=64),
        Slot("k", 1024, 8192, heads=8),
        Slot("v", 1024, 8192, heads=8),
        Slot("o", 8192, 8192),
        Slot("gate", 28672, 8192),
        Slot("up", 28672, 8192),
        Slot("down", 8192, 28672),
    )
    return ModelShape("llama", 8192, 64, 8, 128, 4096, (layer,) * 80)


LARGE = large()


def grouped() -> ModelShape:
    shape = shape_of(resolve("stdlib-llama"))
    assert shape is not None and shape.kv_heads < shape.heads
    return shape


def random_plan(shape: ModelShape, rng: random.Random) -> RankPlan:
    drawn: dict[tuple[int, str, int], int | None] = {}

    def rank(layer: int, slot: Any, unit: int) -> int | None:
        first = shape.group(layer, slot.name)[0]
        key = (first, slot.name, unit)
        if key not in drawn:
            drawn[key] = rng.choice([None, rng.randint(1, slot.full_rank), rng.randint(1, slot.full_rank)])
        return drawn[key]

    return RankPlan.build(shape, rank)


JS = """
import { readFileSync } from "node:fs";
import * as grid from "./grid.mjs";
const input = JSON.parse(readFileSync(0, "utf-8"));
const output = input.map(({ data, before, after, steps }) => {
  const model = grid.readModel(data);
  const [a, b] = [before, after].map((runs) => grid.readRanks(runs, model.unitCount));
  const edits = grid.editsBetween(model, a, b);
  const made = a.slice();
  grid.applyEdits(model, made, edits);
  const now = grid.counts(model, b);
  return {
    counts: now,
    words: [grid.countWords(now.kept), grid.percentWords(now.keep), grid.byteWords(now.bytes)],
    edits,
    same: made.every((rank, i) => rank === b[i]),
    steps: steps.map(([kind, rank, by]) => grid.stepRank(model.kinds[kind], rank, by)),
    said: grid.cellWords(model, b, 1, 0, 0),
    detail: grid.cellDetail(model, b, 1, 1, 0),
    columns: grid.fit(model, 900).columns.length,
    cells: [[30, 40], [-1, 0], [12, 40], [40, 5], [40, 22], [5000, 40], [40, 5000]].map(([x, y]) =>
      grid.hit(grid.fit(model, 900), model, x, y)?.part ?? null),
  };
});
process.stdout.write(JSON.stringify(output));
"""


@pytest.mark.skipif(NODE is None, reason="no node on this machine")
@pytest.mark.parametrize("shape", [fakes.SHAPE, SHARED, grouped()], ids=["heads", "shared", "grouped"])
def test_the_browser_counts_as_the_library_does(shape: ModelShape, tmp_path: Path) -> None:
    """Random plans: parameters, bytes, energy cut off, words, edits and steps, in JavaScript and in Python."""
    rng = random.Random(0)
    sigmas = fakes.sigmas(shape)
    data = model_data(shape, tail_curves(shape, sigmas), parameters=9_000_000, dtype="bf16")
    pairs = [(random_plan(shape, rng), random_plan(shape, rng)) for _ in range(12)]
    kinds = list(dict.fromkeys(slot for _, slot in shape))
    steps = [
        (kind, rng.choice([0, rng.randint(1, kinds[kind].full_rank)]), rng.randint(-4, 4))
        for kind in (rng.randrange(len(kinds)) for _ in range(40))
    ]
    cases = [
        {"data": data, "before": runs_of(before), "after": runs_of(after), "steps": steps}
        for before, after in pairs
    ]
    for (_, after), found in zip(pairs, node(cases, tmp_path), strict=True):
        counts = found["counts"]
        assert counts["kept"] == after.kept_parameters
        assert counts["whole"] == 9_000_000 - shape.dense_parameters + after.kept_parameters
        assert counts["bytes"] == 2 * counts["whole"]
        assert counts["cut"] == pytest.approx(tail_energy(after, sigmas), abs=CUT)
        assert counts["denseUnits"] == after.dense_units
        assert found["words"][0] == count(after.kept_parameters)
        assert found["words"][1] == percent(after.keep)
        assert found["words"][2] == format_bytes(counts["bytes"])
        assert found["same"]
        rank = after.get(1, shape.slot_names[0])[0]
        head = ", head 1" if shape.slot(1, shape.slot_names[0]).units > 1 else ""
        assert found["said"] == f"layer 2, {shape.slot_names[0]}{head}: " + (
            "dense" if rank is None else f"rank {rank}"
        )
        assert found["steps"] == [step_rank(kinds[kind], rank or None, by) or 0 for kind, rank, by in steps]
        assert found["cells"] == ["cell", None, "row", "strip", "column", None, None]
    for (before, after), found in zip(pairs, node(cases, tmp_path), strict=True):
        edits = read_edits(shape, found["edits"])
        assert apply_edits(before, edits) == after and edits == edits_between(before, after)


@pytest.mark.skipif(NODE is None, reason="no node on this machine")
def test_a_grouped_head_says_which_query_heads_it_is_for(tmp_path: Path) -> None:
    shape = grouped()
    data = model_data(shape, None, parameters=None, dtype="fp32")
    plan = runs_of(uniform(shape, 0.5))
    (found,) = node([{"data": data, "before": plan, "after": plan, "steps": []}], tmp_path)
    assert f"for query heads 1 to {shape.heads // shape.kv_heads}" in found["detail"]
    assert found["counts"]["cut"] is None and found["counts"]["whole"] is None
    assert found["columns"] == sum(strip["units"] for strip in data["strips"])


def node(cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    assert NODE is not None
    (folder / "grid.mjs").write_text(rank_grid.script(), "utf-8")
    (folder / "run.mjs").write_text(JS, "utf-8")
    done = subprocess.run(
        [NODE, "run.mjs"], cwd=folder, input=json.dumps(cases), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_pasted_text_is_ranks_or_nothing(tmp_path: Path) -> None:
    if NODE is None:
        pytest.skip("no node on this machine")
    (tmp_path / "grid.mjs").write_text(rank_grid.script(), "utf-8")
    texts = ["16\t32\n\tdense\n", "16", "", "\t\n", "abc", "16 32", "0", "1e9", "<b>1</b>", "1\r\n2"]
    (tmp_path / "run.mjs").write_text(
        f'import {{ readPaste }} from "./grid.mjs"; console.log(JSON.stringify({json.dumps(texts)}.map(readPaste)))'
    )
    done = subprocess.run([NODE, "run.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == [
        [[16, 32], [None, 0]], [[16]], None, None, None, None, None, None, None, [[1], [2]],
    ]  # fmt: skip


def test_runs_hold_every_rank_in_order() -> None:
    plan = RankPlan.from_text(fakes.SHAPE, "*.*: 25 L2.q.h3: 16 L6.down: dense")
    runs = runs_of(plan)
    ranks = [rank for rank, many in zip(runs[::2], runs[1::2], strict=True) for _ in range(many)]
    assert ranks == [rank or 0 for layer, slot in fakes.SHAPE for rank in plan.get(layer, slot.name)]
    assert len(ranks) == plan.units


def test_the_table_of_ranks_adds_up_to_the_plan() -> None:
    plan = RankPlan.from_text(fakes.SHAPE, "*.*: 25 L2.q.h3: 16 L6.down: dense")
    table = rank_table(plan)
    assert len(table) == plan.units and table["parameters"].sum() == plan.kept_parameters
    assert table["rank"].isna().sum() == plan.dense_units == 1


def test_the_model_has_an_id_of_its_content() -> None:
    first = model_data(fakes.SHAPE, None, parameters=None, dtype="fp32")
    assert first == model_data(fakes.SHAPE, None, parameters=None, dtype="fp32")
    assert first["id"] != model_data(fakes.SHAPE, None, parameters=None, dtype="bf16")["id"]
    assert first["groups"] == [] and [2, 0, 2] in [
        list(group) for group in model_data(SHARED, None, parameters=None, dtype="fp32")["groups"]
    ]


def edit(number: int, *edits: list[Any], at: Any = None) -> dict[str, Any]:
    return {"gestures": [{"n": number, "do": "edit", "edits": list(edits)}], "at": at}


def test_a_message_is_read_once() -> None:
    value = {
        "gestures": [
            {"n": 3, "do": "edit", "edits": [[0, "q", 0, 1, 16]]},
            {"n": 4, "do": "undo"},
            {"n": 5, "do": "look"},
        ],
        "at": [2, "k", 3],
    }
    message = rank_grid.message(value, fakes.SHAPE, 3)
    assert [(one.number, one.kind) for one in message.gestures] == [(4, "undo"), (5, "look")]
    assert message.at == (2, "k", 3) and rank_grid.last_number(value) == 5


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"gestures": 3},
        {"gestures": [3]},
        {"gestures": [{"n": "1", "do": "undo"}]},
        {"gestures": [{"n": True, "do": "undo"}]},
        {"gestures": [{"n": 1, "do": "format c:"}]},
        {"gestures": [{"n": 1, "do": "undo"}] * 201},
        edit(1, [99, "q", 0, 0, 8]),
        edit(1, [0, "q", 0, 0, 8], at=[0, "q"]),
        edit(1, [0, "q", 0, 0, 8], at=[0, "q", 9]),
        edit(1, [0, "<img src=x>", 0, 0, 8]),
    ],
)
def test_a_message_that_is_nonsense_is_one_line(value: object) -> None:
    with pytest.raises(PlanError) as caught:
        rank_grid.message(value, fakes.SHAPE, 0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@given(
    strategies.dictionaries(
        strategies.text(max_size=8), strategies.none() | strategies.lists(strategies.integers())
    )
)
def test_any_numbers_are_counted_without_an_error(value: dict[str, Any]) -> None:
    assert rank_grid.last_number(value) == 0


# What a gesture does to a page, without the browser that sends it.

Open = Callable[..., AppTest]
MODEL = "the model on screen"


@pytest.fixture
def page(open_app: Open, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The Ranks page, which takes in what `send` leaves for it as its callback would."""
    from app.components import plan_gestures

    def take_sent() -> None:
        if "sent" in st.session_state:
            sent = st.session_state.pop("sent")
            plan_gestures.take_gestures(sent, fakes.SHAPE, MODEL)
            st.rerun()

    monkeypatch.setattr(plan_gestures, "run_again", take_sent)
    return open_app("ranks")


def send(at: AppTest, value: Any) -> RankPlan:
    at.session_state["sent"] = {"model": MODEL, **value} if isinstance(value, dict) else value
    at.run()
    assert not at.exception
    query = link(at)
    return RankPlan.from_text(fakes.SHAPE, query["plan"]) if "plan" in query else uniform(fakes.SHAPE, 0.5)


def test_a_drag_is_one_edit_of_the_plan_and_one_undo(page: AppTest) -> None:
    plan = send(page, edit(1, [0, "q", 0, 3, 16], [1, "q", 1, 2, None], at=[1, "q", 2]))
    assert plan.get(0, "q") == (16,) * 4 and plan.get(1, "q") == (25, None, None, 25)
    assert page.text_area(key="w_mirror").value == plan.to_text()
    assert page.selectbox(key="w_unit_slot").value == "q" and page.selectbox(key="w_unit_head").value == 2
    assert "Layer 2" in html(page)
    page.button(key="undo").click().run()
    assert "plan" not in link(page)


def test_undo_and_redo_from_the_keyboard(page: AppTest) -> None:
    plan = send(page, edit(1, [0, "o", 0, 0, 32]))
    assert send(page, {"gestures": [{"n": 2, "do": "undo"}], "at": None}) == uniform(fakes.SHAPE, 0.5)
    assert send(page, {"gestures": [{"n": 3, "do": "redo"}], "at": None}) == plan


def test_what_was_not_acknowledged_is_made_once(page: AppTest) -> None:
    first = {"n": 1, "do": "edit", "edits": [[0, "o", 0, 0, 32]]}
    second = {"n": 2, "do": "edit", "edits": [[1, "o", 0, 0, 48]]}
    send(page, {"gestures": [first], "at": None})
    plan = send(page, {"gestures": [first, second], "at": None})
    assert plan.get(0, "o") == (32,) and plan.get(1, "o") == (48,)
    page.button(key="undo").click().run()
    assert send(page, {"gestures": [first, second], "at": None}).get(1, "o") == (64,)


def test_nonsense_leaves_the_plan_and_is_not_heard_again(page: AppTest) -> None:
    bad = edit(7, [0, "q", 0, 9, 16])
    assert send(page, bad) == uniform(fakes.SHAPE, 0.5)
    assert "The grid&#x27;s edit was not made: L1.q has units 1 to 4" in html(page)
    page.button(key="dismiss").click().run()
    send(page, bad)
    assert "was not made" not in html(page)
    for value in (None, "x", [1], {"gestures": "x"}):
        assert send(page, value) == uniform(fakes.SHAPE, 0.5)


def test_edits_of_another_model_are_dropped(page: AppTest) -> None:
    value = {"model": "another", **edit(1, [0, "q", 0, 0, 16])}
    assert send(page, value) == uniform(fakes.SHAPE, 0.5)


def test_run_on_release_starts_the_run_of_the_newest_plan(page: AppTest, desk: Desk) -> None:
    send(page, edit(1, [0, "o", 0, 0, 32]))
    assert not desk.jobs.requests, "off unless one asks for it on a CPU"
    page.toggle(key="w_ranks_run").set_value(True).run()
    assert link(page)["p.ranks_run"] == "on"
    plan = send(page, edit(2, [0, "o", 0, 0, 48]))
    request = desk.jobs.requests["job0"]
    assert isinstance(request, CompareRequest) and request.choice.resolve(fakes.SHAPE) == plan
    send(page, edit(3, [0, "o", 0, 0, 64]))
    assert desk.jobs.states["job0"].state == "cancelled"


def test_looking_at_a_cell_runs_nothing(page: AppTest, desk: Desk) -> None:
    page.toggle(key="w_ranks_run").set_value(True).run()
    send(page, {"gestures": [{"n": 1, "do": "look"}], "at": [3, "down", 0]})
    assert not desk.jobs.requests and "Layer 4" in html(page)


def test_a_gesture_for_layers_of_any_size_is_quick() -> None:
    """80 layers of 64 heads with 8 key heads: a stroke over everything is applied in well under a frame's rerun."""
    plan = uniform(LARGE, 0.5)
    edits = [[layer, slot.name, 0, slot.units - 1, 16] for layer, slot in LARGE]
    started = time.perf_counter()
    edited = apply_edits(plan, read_edits(LARGE, edits))
    assert time.perf_counter() - started < 1.0
    assert edited.get(79, "q") == (16,) * 64 and edited.get(0, "k") == (16,) * 8


def test_a_value_that_the_page_replaced_is_no_change_when_it_comes_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a browser sends with a gesture may be older than the plan on screen: it must not undo it."""

    def tab() -> None:
        import streamlit as st

        from app import echo

        found = []
        st.session_state["slider"] = 25
        st.session_state["later"] = 0
        echo.show("slider", 25)
        echo.show("slider", 32)
        cases = ((25, False, 1), (25, False, 5), (25, True, 5), (40, True, 1), (32, True, 1), (25, True, 60))
        for sent, gestured, later in cases:
            st.session_state["later"] = later
            st.session_state[echo.GRID] = {"gesture": {"gestures": []}} if gestured else {}
            st.session_state["slider"] = sent
            found.append(echo.is_echo("slider"))
        st.session_state["found"] = found

    monkeypatch.setattr(echo, "monotonic", lambda: 100.0 + st.session_state["later"])
    at = AppTest.from_function(tab).run()
    assert at.session_state["found"] == [True, False, True, False, False, False]


# The budget.


@pytest.mark.parametrize(
    ("typed", "share"), [("60 %", 0.6), ("4.0M", 4.0e6 / 5_860_000), ("14 MB", 14e6 / 4 / 5_860_000)]
)
def test_a_budget_finds_a_plan_without_a_worker(open_app: Open, desk: Desk, typed: str, share: float) -> None:
    at = open_app("ranks")
    at.text_input(key="w_budget").set_value(typed).run()
    at.button(key="budget_find").click().run()
    assert not at.exception and not desk.jobs.requests
    plan = RankPlan.from_text(fakes.SHAPE, link(at)["plan"])
    whole = fakes.INFO.parameters - fakes.SHAPE.dense_parameters + plan.kept_parameters
    assert 0.97 * share <= whole / fakes.INFO.parameters <= share


@pytest.mark.parametrize("typed", ["", "many", "-3", "1 k", "0 %"])
def test_a_budget_that_cannot_be_read_is_one_line(open_app: Open, typed: str) -> None:
    at = open_app("ranks")
    at.text_input(key="w_budget").set_value(typed).run()
    at.button(key="budget_find").click().run()
    assert "Budget: " in html(at) and "plan" not in link(at)


def test_a_search_on_the_worker_becomes_the_plan(open_app: Open, desk: Desk) -> None:
    at = open_app("ranks")
    at.text_input(key="w_budget").set_value("60 %").run()
    at.selectbox(key="w_budget_by").set_value("calibrated").run()
    at.button(key="budget_find").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, SearchRequest) and request.amount == pytest.approx(0.6 * 5_860_000)
    assert standing(at) and at.button(key="cancel_search")
    plan = uniform(fakes.SHAPE, 0.4)
    desk.jobs.finish("job0", FoundPlan(plan, 3e6, "calibrated", 0.021, 0.058, 12.0))
    at.run()
    assert RankPlan.from_text(fakes.SHAPE, link(at)["plan"]) == plan
    assert "expected KL to dense 0.0210, uniform 0.0580" in html(at)
    at.button(key="undo").click().run()
    assert "plan" not in link(at) and "expected KL" not in html(at)
