"""The rank grid in the system's Chromium: a real drag, keys, clipboard, and how long a frame takes."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote_plus, urlparse

import pytest

from app.components.rank_grid import canvas_height
from tests.app.browsing import no_overflow, settled

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser

DRAW_MS = 4.0


COUNT_MESSAGES = """() => {
  window.gestures = 0;
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (data) {
    if (new TextDecoder().decode(data).includes('"event":"gesture"')) window.gestures += 1;
    return send.call(this, data);
  };
}"""


class Grid:
    """The canvas of one page. Points are in CSS pixels of the canvas."""

    def __init__(self, page: Page) -> None:
        """Waits until the grid is drawn: its line of counts is there."""
        from playwright.sync_api import expect

        self.page = page
        expect(page.locator(".rg .live")).to_contain_text("kept", timeout=60_000)
        settled(self.canvas)
        page.evaluate(COUNT_MESSAGES)

    def sent(self) -> int:
        """Gestures that went to the server."""
        count: int = self.page.evaluate("window.gestures")
        return count

    @property
    def canvas(self) -> Locator:
        return self.page.locator("canvas.top")

    def point(self, x: float, y: float) -> tuple[float, float]:
        box = self.canvas.bounding_box()
        assert box is not None
        return box["x"] + x, box["y"] + y

    def drag(self, *points: tuple[float, float], steps: int = 8, up: bool = True) -> None:
        places = [self.point(*point) for point in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=steps)
        if up:
            self.page.mouse.up()

    def plan(self) -> str:
        return parse_qs(urlparse(self.page.url).query).get("plan", [""])[0]

    def until(self, words: str) -> None:
        """Waits for a plan, in the address and in the typed mirror, that has these rules and is acknowledged."""
        self.page.wait_for_url(lambda url: words in unquote_plus(url), timeout=30_000)
        self.page.wait_for_function(
            "words => document.querySelector('[data-testid=stTextArea] textarea').value.includes(words)",
            arg=words,
            timeout=30_000,
        )

    def live(self) -> str:
        return self.page.locator(".rg .live").inner_text()

    def shows(self, words: str) -> None:
        """Waits for the line of counts: the page answers in its own time."""
        from playwright.sync_api import expect

        expect(self.page.locator(".rg .live")).to_contain_text(words, timeout=30_000)

    def said(self) -> str:
        return self.page.locator(".rg .said").inner_text()


@pytest.fixture
def grid(tab: Callable[..., Page]) -> Grid:
    """The bundled model's grid: 6 layers of 4 heads, 22 pixels a row from 28 on, 46 a head from 26 on."""
    page = tab("ranks")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    return Grid(page)


def test_the_page_keeps_room_for_the_grid_before_it_is_there(grid: Grid) -> None:
    drawn = grid.canvas.bounding_box()
    held = grid.page.locator(".st-key-rank_grid").bounding_box()
    kept = grid.page.locator(".st-key-rank_grid").evaluate(
        "node => parseFloat(getComputedStyle(node).minHeight)"
    )
    assert drawn is not None and held is not None
    assert drawn["height"] == canvas_height(6)
    assert kept <= held["height"] <= kept + 8


def test_a_drag_is_one_message_and_undo_takes_it_back(grid: Grid) -> None:
    with grid.page.expect_download() as saved:
        grid.page.get_by_role("button", name="PNG").click()
    assert saved.value.suggested_filename == "ranks.png"
    grid.drag((40, 40), (180, 40), up=False)
    before = grid.live()
    assert "49.8 % kept" in grid.live(), "counts move while the button is down"
    assert not grid.sent() and not grid.plan()
    grid.page.mouse.up()
    grid.until("*.q: 25 L1.q: 32")
    assert grid.sent() == 1
    assert grid.live() == before
    # The page's own counts say the same.
    share = re.search(r"[\d.]+ %", before)
    assert share
    grid.page.wait_for_function(
        "share => document.querySelector('.st-key-panel_plan .fs-number .v').innerText === share",
        arg=share.group(),
    )
    grid.canvas.press("Control+z")
    grid.page.wait_for_url(lambda url: "plan=" not in url, timeout=30_000)
    grid.shows("49.6 % kept")
    grid.canvas.press("Control+Shift+Z")
    grid.until("L1.q: 32")
    assert no_overflow(grid.page)


def test_keys_move_step_type_and_cancel(grid: Grid) -> None:
    canvas = grid.canvas
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        canvas.press(key)
    assert grid.said() == "layer 3, q, head 2: rank 25"
    canvas.press("Alt+ArrowUp")
    assert grid.said() == "layer 3, q, head 2: rank 32"
    canvas.press("Alt+ArrowUp")
    canvas.press("Alt+ArrowDown")
    canvas.press("Alt+ArrowDown")
    grid.until("L3.q.h2: 16")
    canvas.press("Enter")
    grid.page.keyboard.type("40")
    grid.page.keyboard.press("Enter")
    assert grid.said() == "layer 3, q, head 2: rank 40"
    grid.until("L3.q.h2: 40")
    canvas.press("Shift+ArrowDown")
    canvas.press("Shift+ArrowRight")
    assert "2 by 2 selected" in grid.said()
    canvas.press("d")
    grid.until("L3-4.q.h2-3: dense")
    known = grid.plan()
    sent = grid.sent()
    grid.drag((40, 40), (400, 120), up=False)
    grid.page.keyboard.press("Escape")
    grid.page.mouse.up()
    assert grid.sent() == sent and grid.plan() == known
    assert grid.said() == "cancelled"


def test_rectangles_headers_wheel_and_clipboard(grid: Grid) -> None:
    page, canvas = grid.page, grid.canvas
    page.get_by_role("button", name="Dense", exact=True).click()
    page.mouse.click(*grid.point(12, 62))
    grid.until("L2.qkv: dense")
    assert all(f"L2.{name}: dense" in grid.plan() for name in ("o", "up", "down"))
    page.keyboard.down("Shift")
    grid.drag((40, 40), (130, 62))
    page.keyboard.up("Shift")
    canvas.press("Control+c")
    assert page.evaluate("navigator.clipboard.readText()") == "25\t25\t25\ndense\tdense\tdense"
    for _ in range(3):
        canvas.press("ArrowDown")
    canvas.press("Control+v")
    grid.until("L5.q: dense L5.q.h4: 25")
    page.get_by_role("button", name="−16", exact=True).click()
    page.mouse.click(*grid.point(120, 22))
    grid.until("L1.q.h3: 16")
    page.mouse.click(*grid.point(180, 40))
    grid.until("L1.q.h3-4: 16")
    sent = grid.sent()
    page.mouse.wheel(0, -120)
    page.mouse.wheel(0, -120)
    grid.until("L1.q.h4: 48")
    assert grid.sent() <= sent + 2, "wheel steps that follow at once are one gesture"


def test_gestures_faster_than_the_page_are_all_made(grid: Grid) -> None:
    """Ten strokes in a row, each sent before the page has answered the one before."""
    for layer in range(6):
        grid.drag((40, 40 + 22 * layer), (180, 40 + 22 * layer), steps=2)
    for column in range(4):
        grid.drag((240 + 46 * column, 40), (240 + 46 * column, 150), steps=2)
    grid.until("*.q: 32 *.k: 32 *.v: 25")


@pytest.mark.long
def test_a_stroke_over_32_by_32_keeps_up(
    tab: Callable[..., Page], record_property: Callable[..., None]
) -> None:
    """Frames while every head of 32 layers is painted: script per frame, and the time between frames."""
    page = tab("ranks?model=llama-2-7b")
    grid = Grid(page)
    page.evaluate(
        "() => { window.frames_ = []; const tick = at => { frames_.push(at); requestAnimationFrame(tick); };"
        " requestAnimationFrame(tick); }"
    )
    # 32 heads of the q strip, 32 rows of 11 pixels: one stroke up and down over all of them. Four strips without
    # heads take 30 pixels each.
    width = page.locator(".rg .scroll").evaluate("element => element.clientWidth")
    cell = (width - 26 - 6 * 16 - 1 - 4 * 30) / (3 * 32)
    points = [(26 + cell * (head + 0.5), 34 if head % 2 else 28 + 31.5 * 11) for head in range(32)]
    points = [
        (x, y) for x, end in points for y in ((28 + 31.5 * 11, 34) if end == 34 else (34, 28 + 31.5 * 11))
    ]
    page.evaluate("frames_.length = 0")
    grid.drag(*points, steps=4, up=False)
    frames = page.evaluate("frames_.slice()")
    draws = page.evaluate("performance.getEntriesByName('rank-grid-draw').map(one => one.duration)")
    page.mouse.up()
    grid.until("*.q: 32")
    assert grid.sent() == 1
    assert len(draws) > 10
    gaps = [after - before for before, after in itertools.pairwise(frames)]
    words = (
        f"{len(draws)} frames drawn: script median {statistics.median(draws):.2f} ms, "
        f"most {max(draws):.2f} ms; between frames median {statistics.median(gaps):.1f} ms"
    )
    record_property("frames", words)
    print(words)
    # The median, since a busy neighbour can hold up any one frame.
    assert statistics.median(draws) < DRAW_MS, words


@pytest.mark.parametrize("model", ["stdlib-llama", "llama-3-8b", "bert-large"])
def test_other_models_fit_a_phone(tab: Callable[..., Page], model: str) -> None:
    page = tab(f"ranks?model={model}")
    page.set_viewport_size({"width": 390, "height": 844})
    Grid(page)
    assert no_overflow(page)
