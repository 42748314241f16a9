"""Ten tabs of one server, clicking at random in turn: `pytest tests/app/test_ten_tabs.py::test_ten_tabs -s`.

Ten minutes, or FLASHSVD_TABS_SECONDS. FLASHSVD_TABS_SEED draws other clicks; a failure names the seed and the last
ones.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlparse

import psutil
import pytest

from flashsvd.store import RunStore
from tests.app.browsing import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(2400)]

TABS = 10
SECONDS = float(os.environ.get("FLASHSVD_TABS_SECONDS", "600"))
SEED = int(os.environ.get("FLASHSVD_TABS_SEED", "0"))
WARM_SHARE = 0.2
"""Of the time, before the memory is read for the first time: until then every page was imported and cached once."""
MOST_GROWTH_BYTES = 100e6
LAST_RUN_MILLISECONDS = 600_000

# What a person could press or turn now. The menu of the browser's own file dialogs is left alone.
PLACES = """() => {
  const found = [];
  const wanted = 'a[href], button, input[type=range], [role=radio], [role=tab], [role=switch], [role=option], '
    + 'label[data-baseweb=checkbox], [data-testid=stSelectbox] input, canvas.top, .js-plotly-plot .nsewdrag, summary';
  document.querySelectorAll(wanted).forEach((node, index) => {
    const box = node.getBoundingClientRect();
    const held = node.disabled || node.getAttribute('aria-disabled') === 'true';
    if (held || node.closest('[data-testid=stFileUploader]') || node.closest('[aria-hidden=true]')) return;
    if ((box.width < 2 || box.height < 2) && node.type !== 'range') return;
    if (node.href && new URL(node.href).origin !== location.origin) return;
    if (node.target === '_blank') return;
    node.setAttribute('data-place', index);
    found.push([index, node.type === 'range' ? 'range' : node.nodeName.toLowerCase(),
      (node.innerText || node.getAttribute('aria-label') || node.className.toString()).slice(0, 40)]);
  });
  return found;
}"""


@dataclass
class Tab:
    """A page, and what went wrong in it."""

    number: int
    page: Page
    errors: list[str] = field(default_factory=list)
    clicks: int = 0

    def watch(self) -> None:
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda error: self.errors.append(f"script: {error}"))
        self.page.on("dialog", lambda dialog: dialog.dismiss())


def test_ten_tabs(browser: Browser, tmp_path: Path) -> None:
    chance, last = random.Random(SEED), deque[str](maxlen=30)
    with serving(tmp_path) as url:
        tabs = [*_opened(browser, url)]
        try:
            server = _server_of(url)
            start, warm_bytes, warm_runs = time.monotonic(), 0, 0
            while (passed := time.monotonic() - start) < SECONDS:
                if not warm_bytes and passed > WARM_SHARE * SECONDS:
                    warm_bytes, warm_runs = server.memory_info().rss, len(_rows(tmp_path))
                tab = chance.choice(tabs)
                last.append(f"{tab.number}: {_click(tab, chance)}")
                assert not (wrong := _wrong(tab)), (SEED, wrong, [*last])
            grown = server.memory_info().rss - warm_bytes
            kept = len(_rows(tmp_path))
            print(
                f"\n{TABS} tabs, {SECONDS:.0f} s, seed {SEED}: {sum(tab.clicks for tab in tabs)} clicks, {kept} runs "
                f"kept ({warm_runs} of them while warming up), server {warm_bytes / 1e6:.0f} MB after "
                f"{WARM_SHARE:.0%} of the time and {grown / 1e6:+.0f} MB at the end, script errors: "
                f"{[error for tab in tabs for error in tab.errors] or 'none'}"
            )
            _each_finds_its_own(tabs, url, tmp_path)
            assert not [wrong for tab in tabs if (wrong := _wrong(tab))]
        except BaseException:
            for tab in tabs:
                tab.page.screenshot(path=tmp_path / f"tab_{tab.number}.png")
            raise
        finally:
            for tab in tabs:
                tab.page.context.close()
    log = (tmp_path / "server.log").read_text("utf-8", "replace")
    assert "Traceback" not in log and "Uncaught" not in log, log[-4000:]
    assert grown < MOST_GROWTH_BYTES


def _opened(browser: Browser, url: str) -> Iterator[Tab]:
    for number in range(TABS):
        context = browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True)
        tab = Tab(number, context.new_page())
        tab.watch()
        tab.page.goto(f"{url}/?batch=1&seq={_tokens(number)}", wait_until="commit", timeout=120_000)
        yield tab


def _tokens(number: int) -> int:
    return 16 + number


def _server_of(url: str) -> psutil.Process:
    port = urlparse(url).port
    for process in psutil.Process().children(recursive=True):
        if "streamlit" in " ".join(process.cmdline()) and str(port) in process.cmdline():
            return process
    pytest.fail(f"no server of port {port} was found")


def _rows(folder: Path) -> list[Any]:
    return RunStore(folder / "home" / "runs.sqlite").rows(limit=5000)


def _click(tab: Tab, chance: random.Random) -> str:
    """One thing that a person might do; what has gone from under the pointer meanwhile is no error."""
    from playwright.sync_api import Error

    tab.clicks += 1
    page, draw = tab.page, chance.random()
    try:
        if draw < 0.02:
            page.reload(wait_until="commit")
            return "reload"
        if draw < 0.04:
            page.go_back(wait_until="commit", timeout=2000)
            return "back"
        places = page.evaluate(PLACES)
        if not places:
            page.wait_for_timeout(100)
            return "nothing to click"
        index, kind, words = chance.choice(places)
        spot = page.locator(f"[data-place='{index}']").first
        if kind == "range":
            spot.focus(timeout=1000)
            page.keyboard.press(chance.choice(("ArrowLeft", "ArrowRight", "PageUp", "PageDown")))
        elif kind == "input":
            spot.click(timeout=1000)
            page.keyboard.press(chance.choice(("ArrowDown", "ArrowUp")))
            page.keyboard.press("Enter")
        elif kind == "canvas":
            _stroke(page, chance)
        else:
            spot.click(timeout=1000, no_wait_after=True)
        return f"{kind} {words!r}"
    except Error as error:
        return f"missed: {str(error).splitlines()[0]}"


def _stroke(page: Page, chance: random.Random) -> None:
    box = page.locator("canvas.top").bounding_box(timeout=1000)
    if box is None:
        return
    ends = [
        (box["x"] + chance.random() * box["width"], box["y"] + chance.random() * box["height"])
        for _ in range(2)
    ]
    page.mouse.move(*ends[0])
    page.mouse.down()
    page.mouse.move(*ends[1], steps=4)
    page.mouse.up()


def _wrong(tab: Tab) -> str:
    """What a person would call broken. Streamlit's own script fails at times on what a fragment sends while its page is
    left ("Bad delta path index"), and goes on: such lines are counted, not failed."""
    from playwright.sync_api import Error

    try:
        shown = tab.page.locator("[data-testid=stException]").all_inner_texts()
    except Error:
        # It is being loaded anew.
        return ""
    return f"tab {tab.number}: {shown[0]}" if shown else ""


def _empty_the_queue(page: Page, url: str) -> None:
    """Whatever the clicks set going, hours of it maybe, is cancelled where a person would do it."""
    page.goto(f"{url}/_stcore/health", timeout=120_000)
    page.evaluate("localStorage.clear()")
    page.goto(f"{url}/runs", wait_until="commit", timeout=120_000)
    page.get_by_text("What did I try?").wait_for(timeout=120_000)
    page.wait_for_timeout(3000)
    panel, end = page.locator(".st-key-panel_queue"), time.monotonic() + 120
    while panel.count() and time.monotonic() < end:
        panel.get_by_role("button", name="Cancel").first.click(timeout=15_000)
        page.wait_for_timeout(1500)
    assert not panel.count(), "the queue is not empty after two minutes of Cancel"


def _each_finds_its_own(tabs: list[Tab], url: str, folder: Path) -> None:
    """All run at once, each on an input of its own: each shows its own run, and all are kept."""
    from playwright.sync_api import expect

    _empty_the_queue(tabs[0].page, url)
    for tab in tabs:
        # A sidebar that was put away stays away otherwise. A page that failed to load has no storage to clear.
        tab.page.goto(f"{url}/_stcore/health", timeout=120_000)
        tab.page.evaluate("localStorage.clear()")
        tab.page.goto(f"{url}/?batch=2&seq={_tokens(tab.number)}", wait_until="commit", timeout=120_000)
        tab.page.get_by_role("button", name="Run live").click(timeout=120_000)
    for tab in tabs:
        # Memory and latency are there before the score, and only a whole run is kept.
        live = tab.page.locator(".fs-sentence:has(.fs-LIVE)").filter(has_not_text="coming")
        expect(live).to_be_visible(timeout=LAST_RUN_MILLISECONDS)
        query = parse_qs(urlparse(tab.page.url).query)
        assert query["batch"] == ["2"] and query["seq"] == [str(_tokens(tab.number))], tab.page.url
        # A run of another input would be on screen with a line that says so.
        assert "Shown:" not in tab.page.locator("[data-testid=stMain]").inner_text()
    kept = {(row.batch, row.seq) for row in _rows(folder)}
    assert {(2, _tokens(tab.number)) for tab in tabs} <= kept
