"""`python assets/pictures/make.py`: the README's pictures and its tour, from the real app in the system's Chromium.

What it shows is what ships: recordings, and what needs no run. The app's folder of runs is a new one.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIZE = {"width": 1280, "height": 720}
TOUR_SIZE = (960, 540)
TOUR_QUALITY = 85
LARGEST_TOUR_BYTES = 5_000_000

STILLS = ("Ranks", "Memory", "Tiles", "Accuracy", "Roofline")
"""Pages with a picture of their own in the README, beside Overview."""

Frames = list[tuple[Image.Image, int]]
"""Pictures and how long each stays, in milliseconds."""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The app on a free port, with an empty folder of runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port)]
        environment = {**os.environ, "FLASHSVD_HOME": home, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=20)


def settled(page: Any) -> None:
    """Waits until the page has stopped drawing for a second: parts of it come late, and say nothing before."""
    seen, still_for = -1, 0
    for _ in range(300):
        size = page.evaluate(
            "document.querySelector('[data-testid=stStatusWidget], [data-testid=stSkeleton]') ? -1 "
            ": document.body.innerHTML.length"
        )
        still_for = still_for + 1 if size == seen != -1 else 0
        if still_for == 5:
            return
        seen = size
        page.wait_for_timeout(200)
    raise TimeoutError("the page did not stop drawing within a minute")


def visit(page: Any, title: str) -> None:
    """Goes to a page by its link in the header."""
    page.get_by_role("link", name=title, exact=True).click()
    page.mouse.move(640, 700)
    settled(page)


def still(page: Any, name: str) -> None:
    """Writes what is on screen as a picture of the README."""
    page.screenshot(path=HERE / f"{name}.png")


def tour(page: Any, url: str) -> Frames:
    """A walk through the app in about half a minute."""
    frames: Frames = []

    def show(milliseconds: int) -> None:
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        frames.append((shot.resize(TOUR_SIZE, Image.Resampling.LANCZOS), milliseconds))

    page.goto(url)
    page.locator(".fs-sentence").wait_for(timeout=60_000)
    settled(page)
    show(3000)
    for title, act in STOPS.items():
        visit(page, title)
        show(1200)
        act(page, show)
    return frames


def _paint(page: Any, show: Callable[[int], None]) -> None:
    box = page.locator(".st-key-panel_grid canvas").first.bounding_box()
    if box is None:
        return
    page.mouse.move(box["x"] + 60, box["y"] + 40)
    page.mouse.down()
    for step in range(1, 7):
        page.mouse.move(box["x"] + 60 + 30 * step, box["y"] + 40 + 12 * step)
        show(180)
    page.mouse.up()
    settled(page)
    show(1800)


def _look(page: Any, show: Callable[[int], None]) -> None:
    show(1200)


def _to_the_end(page: Any, show: Callable[[int], None]) -> None:
    show(1200)
    page.get_by_test_id("stMain").evaluate("page => page.scrollTo(0, page.scrollHeight)")
    settled(page)
    show(2000)


def _present(page: Any, show: Callable[[int], None]) -> None:
    page.get_by_role("button", name="Full screen").click()
    settled(page)
    show(2000)
    for _ in range(2):
        page.keyboard.press("ArrowRight")
        settled(page)
        show(2000)
    page.keyboard.press("Escape")
    settled(page)


STOPS: dict[str, Callable[[Any, Callable[[int], None]], None]] = {
    "Ranks": _paint,
    "Memory": _look,
    "Tiles": _to_the_end,
    "Accuracy": _look,
    "Generate": _look,
    "Roofline": _look,
    "Runs": _look,
    "Present": _present,
}


def write_tour(frames: Frames, path: Path) -> None:
    """An animated WebP: a GIF's one palette turns greys pink or methods' colours brown. Raises SystemExit where it came
    out too large."""
    pictures = [frame for frame, _ in frames]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=[milliseconds for _, milliseconds in frames],
        loop=0,
        quality=TOUR_QUALITY,
        method=6,
    )
    if path.stat().st_size > LARGEST_TOUR_BYTES:
        sys.exit(
            f"{path} has {path.stat().st_size} bytes, more than {LARGEST_TOUR_BYTES}: use a lower quality"
        )


def main() -> None:
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium on this machine: install the system's chromium package")
    with serving() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.locator(".fs-sentence").wait_for(timeout=60_000)
        settled(page)
        still(page, "overview")
        for title in STILLS:
            visit(page, title)
            still(page, title.lower())
        frames = tour(browser.new_page(viewport=SIZE), url)
        write_tour(frames, HERE / "tour.webp")
        browser.close()


if __name__ == "__main__":
    main()
