"""Present: steps are saved from any page, turned, changed, taken back, and come back by their address."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import talk
from app.state import Settings
from app.talk import MOST_STEPS, Step, from_plain, to_plain
from flashsvd.errors import InputError
from tests.app.conftest import Desk, charts, html, link


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))


def test_without_steps_the_settings_make_a_talk(open_app: Callable[..., AppTest]) -> None:
    at = open_app("present")
    assert "1 / " in html(at) and "FlashSVD runs this model in" in html(at)
    assert any(chart.key == "slide_timeline" for chart in charts(at))
    at.button(key="step_next").click().run()
    assert "2 / " in html(at) and not at.exception


def test_a_step_is_what_was_on_screen(open_app: Callable[..., AppTest]) -> None:
    at = open_app("ranks", plan="*.up: 8", batch="4")
    at.button(key="add_step").click().run()
    at.switch_page("views/present.py").run()
    (step,) = at.session_state["talk"]
    assert step.view == "ranks" and dict(step.query)["batch"] == "4" and "up: 8" in dict(step.query)["plan"]
    assert [chart.key for chart in charts(at)] == ["slide_grid"]
    assert "1 / 1" in html(at)


def test_the_address_brings_the_talk_back(open_app: Callable[..., AppTest]) -> None:
    at = open_app("present")
    at.button(key="add_step_here").click().run()
    at.text_input(key="w_step_words_0").input("Half the <b>weights</b>").run()
    query = link(at)
    again = open_app("present", **query)
    assert again.session_state["talk"] == at.session_state["talk"]
    assert "Half the &lt;b&gt;weights&lt;/b&gt;" in html(again)


def test_steps_move_and_go_and_come_back(open_app: Callable[..., AppTest]) -> None:
    at = open_app("present")
    at.button(key="add_step_here").click().run()
    at.button(key="add_step_here").click().run()
    at.text_input(key="w_step_words_0").input("first").run()
    at.button(key="step_down_0").click().run()
    assert [step.words for step in at.session_state["talk"]] == ["", "first"]
    at.button(key="step_off_1").click().run()
    assert [step.words for step in at.session_state["talk"]] == [""]
    at.button(key="talk_undo").click().run()
    assert [step.words for step in at.session_state["talk"]] == ["", "first"]


def test_full_screen_puts_the_page_away_and_shows_the_slide(open_app: Callable[..., AppTest]) -> None:
    at = open_app("present")
    at.button(key="stage_on").click().run()
    assert "fs-on-stage" in html(at) and "FlashSVD runs this model in" in html(at)
    assert not [button for button in at.button if button.key == "step_next"]


def test_a_step_runs_live_with_its_own_settings_and_keeps_the_recording_where_that_fails(
    open_app: Callable[..., AppTest], desk: Desk
) -> None:
    at = open_app("present", batch="4")
    at.button(key="add_step_here").click().run()
    at.session_state["settings"] = Settings(batch=2)
    at.button(key="run_step").click().run()
    (job,) = desk.jobs.requests
    assert desk.jobs.requests[job].batch == 4
    desk.jobs.fail(job, "out of memory")
    at.run()
    assert "REPLAY" in html(at) and "Live run failed: out of memory" in html(at)
    assert "FlashSVD runs this model in" in html(at)


def test_a_run_is_watched_on_the_slide_and_beside_it(open_app: Callable[..., AppTest], desk: Desk) -> None:
    at = open_app("present")
    at.button(key="run_step").click().run()
    assert not at.exception
    at.button(key="cancel_compare_slide").click().run()
    assert desk.jobs.states["job0"].state == "cancelled" and not at.exception


def test_a_step_whose_model_has_no_run_says_so(open_app: Callable[..., AppTest], desk: Desk) -> None:
    desk.recordings.clear()
    at = open_app("present")
    assert "No run of stdlib-bert yet" in html(at)


def test_a_talk_of_another_machine_is_one_line(open_app: Callable[..., AppTest]) -> None:
    at = open_app("present", **{"p.present_talk": "0" * 20})
    assert "The talk of this link is not shown" in html(at) and "1 / " in html(at)


def test_steps_go_through_plain_data() -> None:
    steps = (Step("overview", (("keep", "0.5"), ("model", "a"))), Step("ranks", (), "words"))
    assert from_plain(json.loads(json.dumps(to_plain(steps)))) == steps


@pytest.mark.parametrize(
    "data",
    [
        {"view": "overview"},
        ["overview"],
        [{"view": "../main", "query": {}}],
        [{"view": "overview", "query": []}],
        [{"view": "overview", "query": {}, "words": 3}],
        [{"view": "overview", "query": {}}] * (MOST_STEPS + 1),
    ],
)
def test_what_is_no_talk_is_one_line(data: object) -> None:
    with pytest.raises(InputError) as caught:
        from_plain(data)
    assert len(str(caught.value).splitlines()) == 1


def test_words_are_cut() -> None:
    (step,) = from_plain([{"view": "overview", "query": {}, "words": "x" * 10_000}])
    assert len(step.words) < 1000 and talk.MOST_STEPS == MOST_STEPS
