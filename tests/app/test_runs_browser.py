"""The Runs page in the system's Chromium: rows ticked by mouse and keyboard, files out and in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flashsvd.recording import bundled
from flashsvd.store import RunStore
from tests.app import fakes
from tests.app.browsing import drawn, no_overflow, serving, settled

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
EVIL = "<script>document.title='evil'</script>"


@pytest.fixture(scope="module")
def runs(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose home holds three runs."""
    folder = tmp_path_factory.mktemp("runs")
    store = RunStore(folder / "home" / "runs.sqlite")
    store.add(fakes.comparison(0.5, gate=fakes.GREEN))
    store.add(fakes.comparison(0.3, flash_ms=80.0, gate=fakes.GREEN), EVIL)
    store.add(fakes.comparison(0.7, gate=fakes.GREEN))
    with serving(folder) as url:
        yield url


@pytest.fixture
def page(browser: Browser, runs: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True)
    opened = context.new_page()
    opened.goto(f"{runs}/runs")
    opened.locator(".st-key-panel_runs canvas").first.wait_for(timeout=60_000)
    yield opened
    context.close()


def tick(page: Page, row: int) -> None:
    box = settled(page.locator(".st-key-panel_runs canvas").first)
    page.mouse.click(box["x"] + 18, box["y"] + 32 + 30 * row + 15)


def test_rows_are_ticked_and_two_are_compared_and_taken_away(
    page: Page, browser: Browser, tmp_path: Path
) -> None:
    tick(page, 0)
    page.wait_for_url(re.compile(r"p\.runs_pick=3(&|$)"))
    page.locator(".st-key-panel_picked .fs-REPLAY").wait_for()
    tick(page, 1)
    page.wait_for_url(re.compile(r"p\.runs_pick=3\.2(&|$)"))
    page.get_by_role("button", name="Compare the two").click()
    page.get_by_text("Two runs side by side").wait_for()
    page.get_by_role("radio", name="Ranks", exact=True).click()
    drawn(page, ".st-key-figure_runs_ranks").wait_for(timeout=30_000)
    settled(page.locator(".st-key-panel_runs_below"))
    tall = page.locator("[data-testid=stMain]").evaluate("main => main.scrollHeight - main.clientHeight")
    assert tall <= 0, "two runs fit a screen"
    assert no_overflow(page) and "evil" not in page.title()

    page.locator("[data-testid=stMain]").get_by_role("button", name="Export").click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="HTML").click()
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    assert file.name == "flashsvd-runs-3-2.html"
    offline = browser.new_context(offline=True)
    alone = offline.new_page()
    complaints: list[str] = []
    alone.on("pageerror", lambda error: complaints.append(str(error)))
    alone.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    alone.on(
        "request", lambda asked: complaints.append(asked.url) if not asked.url.startswith("file:") else None
    )
    alone.goto(file.as_uri())
    alone.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=30_000)
    assert alone.title() != "evil" and EVIL in alone.locator("h1").nth(1).inner_text()
    assert complaints == []
    offline.close()


def test_the_table_is_worked_from_the_keyboard(page: Page) -> None:
    page.locator(".st-key-w_runs_order input").focus()
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Space")
    page.wait_for_url(re.compile(r"p\.runs_pick=\d"), timeout=15_000)
    page.locator(".st-key-panel_picked .fs-REPLAY").wait_for()


def test_a_recording_is_uploaded_and_a_wrong_file_is_one_line(
    page: Page, tmp_path: Path, tab_choice: Callable[[Page, Path], None]
) -> None:
    recording = next(path for path in bundled() if path.stem == "stdlib-bert")
    tab_choice(page, recording)
    page.get_by_text("Imported #4, #5.").wait_for(timeout=30_000)
    wrong = tmp_path / "runs.json"
    wrong.write_bytes(b"\x80\x04pickle")
    tab_choice(page, wrong)
    page.get_by_text("Nothing was imported: the file is a pickle").wait_for(timeout=30_000)
    large = tmp_path / "large.parquet"
    with large.open("wb") as file:
        file.truncate(300_000_000)
    page.locator("[data-testid=stFileUploaderDropzoneInput]").first.set_input_files(large)
    page.get_by_text("File must be 8.0MB or smaller").wait_for(timeout=30_000)


@pytest.fixture
def tab_choice() -> Callable[[Page, Path], None]:
    """Gives a file to the Import menu, which is opened where it is not."""

    def give(page: Page, path: Path) -> None:
        field = page.locator("[data-testid=stFileUploaderDropzoneInput]")
        if not field.count():
            page.locator("[data-testid=stMain]").get_by_role("button", name="Import").click()
        field.first.set_input_files(path)

    return give
