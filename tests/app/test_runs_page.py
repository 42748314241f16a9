"""The Runs page without a browser: the list, what is done with picked runs, two side by side, files in and out."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import services
from app.components.run_files import name_of
from app.components.run_list import frame
from app.components.run_words import score_words
from flashsvd.errors import InputError
from flashsvd.results import CompareRequest, PlanChoice
from flashsvd.store import RunStore
from tests.app import fakes
from tests.app.conftest import Desk, charts, html, link

Open = Callable[..., AppTest]
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def store(desk: Desk, tmp_path: Path) -> RunStore:
    """A real store behind the pages."""
    made = RunStore(tmp_path / "runs.sqlite")
    desk.store = made  # type: ignore[assignment]
    return made


@pytest.fixture
def three(store: RunStore) -> RunStore:
    """Runs 1 and 2 of one machine, alike but for the plan, and curve 3."""
    store.add(fakes.comparison(0.5, gate=fakes.GREEN, created="2026-11-12T09:30:00+00:00"))
    store.add(fakes.comparison(0.3, flash_ms=80.0, score=0.777, gate=fakes.GREEN), "smaller")
    store.add(fakes.curve())
    return store


def shown(at: AppTest) -> list[int]:
    """Numbers in the table, from the top."""
    tables = [table for table in at.dataframe if "run" in table.value.columns]
    return [int(number) for table in tables for number in table.value["run"]]


def picked(open_app: Open, *numbers: int, **choices: str) -> AppTest:
    """The page with runs picked, as its address says it."""
    query = {"p.runs_pick": ".".join(map(str, numbers)), **{f"p.runs_{k}": v for k, v in choices.items()}}
    return open_app("runs", **query)


def test_no_runs_yet_says_how_to_get_some(open_app: Open, store: RunStore) -> None:
    words = html(open_app("runs"))
    assert "No runs kept yet" in words and "Press Run live" in words


def test_runs_are_listed_newest_first_with_pinned_ones_above(open_app: Open, three: RunStore) -> None:
    assert shown(open_app("runs")) == [3, 2, 1]
    three.pin((1,))
    at = open_app("runs")
    assert shown(at) == [1, 3, 2] and "3 runs" in html(at)
    table = at.dataframe[0].value
    assert table["pin"].tolist() == ["★", "", ""] and table["name"].tolist() == ["", "", "smaller"]
    assert table["peak"][0] == pytest.approx(4.1, abs=0.01) and table["peak"].isna().tolist() == [
        False,
        True,
        False,
    ]


def test_the_queue_shows_the_jobs_of_all_tabs_and_stops_any(
    open_app: Open, desk: Desk, store: RunStore
) -> None:
    """Also one whose tab was closed, behind which everybody else would wait."""
    closed = desk.jobs.submit(CompareRequest("bert-base", PlanChoice(keep=0.5)))
    at = open_app("runs")
    assert "The queue of all tabs" in html(at) and "1 running, 0 waiting" in html(at)
    (bar,) = at.get("progress")
    assert bar.proto.text == "Live run · bert-base · Timing the dense model · 3 s"
    at.button(key=f"queue_cancel_{closed}").click().run()
    assert not at.exception and desk.jobs.states[closed].state == "cancelled"
    assert "The queue of all tabs" not in html(at)


def test_filters_and_order_land_in_the_address(open_app: Open, three: RunStore) -> None:
    at = open_app("runs")
    at.selectbox(key="w_runs_kind").set_value("compare").run()
    assert shown(at) == [2, 1] and link(at)["p.runs_kind"] == "compare"
    at.selectbox(key="w_runs_order").set_value("oldest").run()
    assert shown(at) == [1, 2] and link(at)["p.runs_order"] == "oldest"
    at.text_input(key="w_runs_text").set_value("smaller").run()
    assert shown(at) == [2]
    at.text_input(key="w_runs_text").set_value("no such run").run()
    assert "No run matches" in html(at)
    at.button(key="runs_clear").click().run()
    assert shown(at) == [1, 2, 3] and "p.runs_kind" not in link(at)
    again = open_app("runs", **{"p.runs_kind": "curve", "p.runs_order": "nonsense", "p.runs_model": "gone"})
    assert "No run matches" in html(again)


def test_a_click_in_the_table_picks_a_run(open_app: Open, three: RunStore) -> None:
    at = open_app("runs")
    assert "Tick a run" in html(at)
    at = picked(open_app, 2)
    words = html(at)
    assert "#2 smaller" in words and "REPLAY · CPU, 2 cores · 12 Nov 2026" in words
    assert "80.0 ms" in words and "outputs agree" in words and "77.7" in words
    assert at.dataframe[0].value["run"].tolist() == [3, 2, 1]


def test_a_run_is_named_and_pinned(open_app: Open, three: RunStore) -> None:
    at = picked(open_app, 1)
    at.text_input(key="w_runs_name").set_value(f"  {EVIL} ").run()
    row = three.row(1)
    assert row is not None and row.name == EVIL
    assert EVIL not in html(at) and "#1 &lt;script&gt;alert(1)&lt;/script&gt;" in html(at)
    at.button(key="runs_pin").click().run()
    assert shown(at) == [1, 3, 2]
    at.button(key="runs_pin").click().run()
    assert shown(at) == [3, 2, 1]


def test_delete_is_undone_and_deleted_runs_can_be_brought_back_later(open_app: Open, three: RunStore) -> None:
    at = picked(open_app, 1, 2)
    at.button(key="runs_delete").click().run()
    assert shown(at) == [3] and "Deleted 2 runs" in html(at) and "p.runs_pick" not in link(at)
    at.button(key="runs_undo_button").click().run()
    assert shown(at) == [3, 2, 1] and "Deleted" not in html(at)
    three.delete((2,))
    at = picked(open_app, 2)
    assert shown(at) == [3, 1] and "Tick a run" in html(at)
    at.button(key="runs_bin").click().run()
    assert shown(at) == [2] and "Deleted runs" in html(at)
    at = picked(open_app, 2, bin="yes")
    at.button(key="runs_restore").click().run()
    assert shown(at) == [3, 2, 1] and "#2 smaller" in html(at)


def test_a_loaded_run_is_on_the_overview_and_in_the_address(open_app: Open, three: RunStore) -> None:
    at = picked(open_app, 2)
    at.button(key="runs_load").click().run()
    at.switch_page("views/overview.py").run()
    words = html(at)
    assert "77.7 ±" in words and "REPLAY · CPU, 2 cores · 12 Nov 2026" in words and "Shown:" not in words
    query = link(at)
    assert query["keep"] == "0.3" and query["p.runs_shown"] == three.rows()[1].digest
    # A newer run of the model is kept meanwhile; the address alone still brings the loaded one back.
    three.add(fakes.comparison(0.9))
    assert "77.7 ±" in html(open_app(**query))


def test_what_is_measured_next_takes_the_place_of_a_loaded_run(
    open_app: Open, three: RunStore, desk: Desk
) -> None:
    at = picked(open_app, 2)
    at.button(key="runs_load").click().run()
    at.switch_page("views/overview.py").run()
    at.button(key="run_live").click().run()
    request = desk.jobs.requests["job0"]
    assert isinstance(request, CompareRequest) and request.choice.keep == 0.3
    desk.jobs.finish("job0")
    at.run()
    assert "LIVE" in html(at) and "80.1 ±" in html(at) and "p.runs_shown" not in link(at)
    assert len(three.rows()) == 4


def test_a_loaded_curve_is_drawn_on_the_overview(open_app: Open, three: RunStore) -> None:
    three.add(dataclasses.replace(fakes.curve("2026-11-25T00:00:00+00:00"), method="asvd"))
    at = picked(open_app, 4)
    assert "score against keep" in html(at)
    at.button(key="runs_load").click().run()
    assert link(at)["method"] == "asvd"


def test_a_loaded_run_of_a_model_that_is_not_here_is_shown_all_the_same(
    open_app: Open, store: RunStore
) -> None:
    store.add(fakes.comparison(info=dataclasses.replace(fakes.INFO, name="/no/such/folder")))
    at = picked(open_app, 1)
    at.button(key="runs_load").click().run()
    at.switch_page("views/overview.py").run()
    assert "88.4 ± 2.8" in html(at) and html(at).count("fs-notice error") == 1


@pytest.mark.parametrize("change", [{"method": "of-the-future"}, {"batch": 100_000}])
def test_a_run_that_does_not_fit_the_controls_is_one_line(
    open_app: Open, store: RunStore, change: dict[str, Any]
) -> None:
    store.add(dataclasses.replace(fakes.comparison(), **change))
    at = picked(open_app, 1)
    before = link(at)
    at.button(key="runs_load").click().run()
    at.run()
    assert html(at).count("fs-notice error") == 1 and link(at) == before


def test_two_runs_side_by_side(open_app: Open, three: RunStore) -> None:
    at = picked(open_app, 1, 2)
    at.button(key="runs_compare").click().run()
    words = html(at)
    assert "Two runs side by side" in words and "Not comparable" not in words
    assert '<span class="t">#1 stdlib-bert svd 50 %</span>' in words and "#2 smaller" in words
    assert "Latency, median" in words and "x)</td>" in words and "points</td>" in words
    assert [chart.key for chart in charts(at)] == ["runs_memory", "runs_latency"]
    at.segmented_control(key="w_runs_below").set_value("ranks").run()
    assert [chart.key for chart in charts(at)] == ["runs_memory", "runs_ranks"] and "36 of 36" in html(at)
    at.segmented_control(key="w_runs_beside").set_value("ops").run()
    assert {"layer", "op", "A", "B", "B − A"} == set(at.dataframe[0].value.columns)
    assert link(at)["p.runs_below"] == "ranks" and link(at)["p.runs_beside"] == "ops"
    at.segmented_control(key="w_runs_beside").set_value("numbers").run()
    at.segmented_control(key="w_runs_engine").set_value("dense").run()
    assert "Numbers of dense" in html(at) and link(at)["p.runs_engine"] == "dense"
    at.button(key="runs_swap").click().run()
    assert '<b>A</b> <span class="t">#2 smaller</span>' in html(at)
    at.button(key="runs_back").click().run()
    assert shown(at) == [3, 2, 1]


def test_other_machines_are_warned_of_in_one_line(open_app: Open, three: RunStore) -> None:
    machine = dataclasses.replace(fakes.MACHINE, accelerator="NVIDIA H200")
    three.add(dataclasses.replace(fakes.comparison(0.5), machine=machine, dtype="bf16"))
    words = html(picked(open_app, 1, 4, view="compare", below="ranks"))
    line = "Not comparable: A and B differ in machine (CPU, 2 cores / H200) and precision (fp32 / bf16)."
    assert words.count(line) == 1
    assert "The two plans are the same." in words and "REPLAY · H200" in words


def test_two_curves_side_by_side(open_app: Open, three: RunStore) -> None:
    three.add(dataclasses.replace(fakes.curve(), method="asvd"))
    at = picked(open_app, 3, 4, view="compare")
    assert len(charts(at)) == 1 and "Not comparable" not in html(at)
    three.add(fakes.language_curve())
    assert "A is scored by accuracy, B by perplexity" in html(picked(open_app, 3, 5, view="compare"))


def test_runs_of_two_kinds_are_not_compared(open_app: Open, three: RunStore) -> None:
    at = picked(open_app, 1, 3)
    assert at.button(key="runs_compare").disabled
    assert "nothing in common" in html(picked(open_app, 1, 3, view="compare"))
    assert shown(picked(open_app, 1, 99, view="compare")) == [3, 2, 1]
    three.add(dataclasses.replace(fakes.comparison(), runs=fakes.comparison().runs[:1]))
    three.add(dataclasses.replace(fakes.comparison(), runs=fakes.comparison().runs[1:]))
    assert "No engine ran in both" in html(picked(open_app, 4, 5, view="compare"))


def uploader(at: AppTest) -> Any:
    return next(item for item in at.file_uploader if item.key.startswith("w_runs_import"))


def test_runs_are_imported_and_picked(open_app: Open, three: RunStore, tmp_path: Path) -> None:
    from flashsvd.runs.export import read_kept, to_file

    other = RunStore(tmp_path / "other" / "runs.sqlite")
    other.add(fakes.comparison(0.7), EVIL)
    data = to_file(read_kept(other, other.rows()))
    at = open_app("runs")
    uploader(at).set_value(("../../runs.json", data, "application/json"))
    at.run()
    words = html(at)
    assert "Imported #4." in words and shown(at) == [4, 3, 2, 1] and link(at)["p.runs_pick"] == "4"
    assert EVIL not in words and "#4 &lt;script&gt;" in words
    uploader(at).set_value(("again.json", data, "application/json"))
    at.run()
    assert "Kept already: #4." in html(at) and len(three.rows()) == 4


@pytest.mark.parametrize(
    "name,data",
    [
        ("runs.parquet", b"\x80\x04\x95" + bytes(50)),
        ("runs.json", b"PK\x03\x04" + bytes(50)),
        ("runs.parquet", b"PAR1" + bytes(50)),
        (f"{EVIL}.json", json.dumps({"format": EVIL}).encode()),
        ("large.json", b" " * (9 * 2**20)),
    ],
)
def test_a_file_that_is_no_run_is_one_line_and_nothing_is_kept(
    open_app: Open, three: RunStore, name: str, data: bytes
) -> None:
    at = open_app("runs")
    uploader(at).set_value((name, data, "application/octet-stream"))
    at.run()
    assert html(at).count("fs-notice error") == 1 and "Nothing was imported: " in html(at)
    assert EVIL not in html(at) and len(three.rows()) == 3 and not at.exception


def test_a_store_that_cannot_be_opened_is_one_line_and_the_app_works(
    open_app: Open, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> RunStore:
        raise InputError("runs cannot be kept in /x <b>: set FLASHSVD_HOME to another")

    monkeypatch.setattr(services, "store", broken)
    at = open_app("runs")
    assert html(at).count("fs-notice error") == 1 and "Kept runs cannot be shown" in html(at)
    assert "<b>:" not in html(at)
    at.switch_page("views/overview.py").run()
    assert "88.4 ± 2.8" in html(at) and html(at).count("fs-notice error") == 1 and not at.exception


def test_a_run_that_another_tab_deleted_is_not_shown_any_more(open_app: Open, three: RunStore) -> None:
    at = picked(open_app, 1, 2, view="compare")
    three.delete((2,))
    three.purge(datetime(2100, 1, 1, tzinfo=UTC))
    at.run()
    assert not at.exception and shown(at) == [3, 1]


def test_words_of_a_score_and_of_a_file(three: RunStore) -> None:
    rows = three.rows()
    assert [score_words(row) for row in rows] == ["accuracy", "77.7 accuracy", "88.4 accuracy"]
    assert name_of(rows[:1]) == "run-3" and name_of(rows) == "runs-3-2"
    assert frame(rows)["input"].tolist() == ["10 points, fp32", "8 x 256, fp32", "8 x 256, fp32"]


@pytest.mark.slow
@pytest.mark.quiet
def test_two_thousand_runs_cost_the_page_little(open_app: Open, store: RunStore) -> None:
    """Against the same page with 20 runs on the same machine: a page may take a second in all."""

    def seconds() -> float:
        best = 9.0
        at = open_app("runs")
        for _ in range(3):
            start = time.perf_counter()
            at.run()
            best = min(best, time.perf_counter() - start)
        return best

    result = fakes.comparison()
    for _ in range(20):
        store.add(result)
    few = seconds()
    with store._open(write=True) as connection:
        for table, key in (("runs", "id"), ("entries", "run")):
            names = [column[1] for column in connection.execute(f"PRAGMA table_info({table})")]
            others = ", ".join(name for name in names if name != key)
            for copy in range(1, 100):
                connection.execute(
                    f"INSERT INTO {table} ({key}, {others}) SELECT {key} + {20 * copy}, {others} FROM {table} "
                    f"WHERE {key} <= 20"
                )
    assert len(store.rows(5000)) == 2000
    many = seconds()
    assert many - few < 0.5, (few, many)


def test_a_deleted_run_leaves_the_overview_of_its_tab_and_comes_back_with_undo(
    open_app: Open, desk: Desk, store: RunStore
) -> None:
    at = open_app(keep="0.4")
    at.button(key="run_live").click().run()
    desk.jobs.finish("job0")
    at.run()
    assert "80.1 ±" in html(at) and "LIVE" in html(at)
    at.switch_page("views/runs.py").run()
    at.session_state["choices"]["runs_pick"] = "1"
    at.run()
    at.button(key="runs_delete").click().run()
    at.switch_page("views/overview.py").run()
    assert "80.1 ±" not in html(at) and "88.4 ±" in html(at), "the recording is what is left"
    at.switch_page("views/runs.py").run()
    at.button(key="runs_undo_button").click().run()
    at.switch_page("views/overview.py").run()
    assert "80.1 ±" in html(at)
    assert not at.exception
