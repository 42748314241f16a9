"""The rank grid under fingers, and the largest grid there is: real touches in the system's Chromium."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote_plus, urlparse

import pytest

from tests.app.browsing import no_overflow, settled

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

# A loose bound: half of a frame, on a machine that does other things, too.
SCRIPT_MS = 8.0


class Fingers:
    """Touches on a page, as its window counts pixels."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.session = page.context.new_cdp_session(page)

    def send(self, kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def tap(self, x: float, y: float) -> None:
        self.send("touchStart", (x, y))
        self.send("touchEnd")

    def drag(self, *paths: tuple[tuple[float, float], tuple[float, float]], steps: int = 8) -> None:
        """One path a finger, all at once."""
        self.send("touchStart", *(start for start, _ in paths))
        for step in range(1, steps + 1):
            share = step / steps
            self.send(
                "touchMove",
                *((a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share) for a, b in paths),
            )
            self.page.wait_for_timeout(20)
        self.send("touchEnd")


@pytest.fixture
def phone(browser: Browser, server: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 390, "height": 640}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"{server}/ranks")
    yield page
    context.close()


def plan(page: Page) -> str:
    return parse_qs(urlparse(page.url).query).get("plan", [""])[0]


def scrolled(page: Page) -> float:
    found: float = page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop")
    return found


def test_a_finger_scrolls_then_paints_and_two_fingers_scroll(phone: Page) -> None:
    from playwright.sync_api import expect

    expect(phone.locator(".rg .live")).to_contain_text("kept", timeout=60_000)
    box = settled(phone.locator("canvas.top"))
    fingers = Fingers(phone)
    middle = (box["x"] + 34, box["y"] + 129)
    fingers.drag((middle, (middle[0], middle[1] - 120)))
    phone.wait_for_function("document.querySelector('[data-testid=stMain]').scrollTop > 40")
    assert not plan(phone), "a swipe over the grid is no edit"
    # The page rolls on for a while.
    settled(phone.locator("canvas.top"))
    phone.evaluate("document.querySelector('[data-testid=stMain]').scrollTop = 0")
    box = settled(phone.locator("canvas.top"))
    # The first head of q is under 34; rows are 22 high from 28 on.
    first = (box["x"] + 34, box["y"] + 39)
    low = (first[0], first[1] + 90)

    fingers.tap(*first)
    phone.wait_for_url(lambda url: "L1.q.h1: 32" in unquote_plus(url), timeout=30_000)
    fingers.drag((first, low))
    phone.wait_for_url(lambda url: "L1-5.q.h1: 32" in unquote_plus(url), timeout=30_000)
    assert scrolled(phone) == 0, "a finger that paints does not scroll"

    known = plan(phone)
    fingers.drag((low, (low[0], low[1] - 60)), ((low[0] + 80, low[1]), (low[0] + 80, low[1] - 60)))
    phone.wait_for_function("document.querySelector('[data-testid=stMain]').scrollTop > 40")
    phone.wait_for_timeout(500)
    assert plan(phone) == known, "two fingers paint nothing"
    assert no_overflow(phone)


@pytest.mark.long
def test_eighty_layers_of_sixty_four_heads_keep_up(tab: Callable[..., Page]) -> None:
    """The largest grid: 80 rows of 64 heads, drawn whole, and one stroke over a fifth of them."""
    from playwright.sync_api import expect

    page = tab("ranks?model=llama-2-70b")
    expect(page.locator(".rg .live")).to_contain_text("kept", timeout=60_000)
    box = settled(page.locator("canvas.top"))
    assert box["height"] >= 80 * 6
    drawn = page.evaluate(
        """() => {
          const canvas = document.querySelector('.rg') ?? [...document.querySelectorAll('*')]
            .map(e => e.shadowRoot?.querySelector('.rg')).find(Boolean);
          const cells = canvas.querySelector('.cells');
          const pen = cells.getContext('2d'), scale = window.devicePixelRatio;
          const at = (x, y) => pen.getImageData(x * scale, y * scale, 1, 1).data[3];
          let full = 0;
          for (let row = 0; row < 80; row += 1) full += at(30, 28 + 6 * row + 2) > 0;
          return full;
        }"""
    )
    assert drawn == 80, "a row of the first head is not drawn"
    x, y = box["x"], box["y"]
    page.mouse.move(x + 40, y + 40)
    page.mouse.down()
    for column in range(16):
        page.mouse.move(x + 40 + 6 * column, y + (300 if column % 2 == 0 else 40), steps=4)
    draws = page.evaluate("performance.getEntriesByName('rank-grid-draw').map(one => one.duration)")
    page.mouse.up()
    page.wait_for_url(lambda url: "plan=" in url or "s=" in url, timeout=60_000)
    words = f"{len(draws)} frames: script median {statistics.median(draws):.2f} ms, most {max(draws):.2f} ms"
    print(words)
    assert len(draws) > 10 and statistics.median(draws) < SCRIPT_MS, words
