"""A reader's way through a lesson: JupyterLab in the system's Chromium, a guess, a slider, an exercise."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.app.browsing import browser  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.long]
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SOLUTION = "def largest_rank(m, n):\n    return (m * n - 1) // (m + n)\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab over a copy of the notebooks, with nothing of this user's settings."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=shutil.ignore_patterns(".*", "make.py"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--notebook-dir={folder / 'notebooks'}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(NOTEBOOKS.parent)}
    for name in (
        "JUPYTER_CONFIG_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "JUPYTER_DATA_DIR",
    ):
        environment[name] = str(folder / name)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait(timeout=30)


def cell(page: Page, words: str) -> Locator:
    """The cell that holds words, scrolled to: JupyterLab draws only what is near the screen."""
    panel = page.locator(".jp-WindowedPanel-outer")
    panel.evaluate("panel => panel.scrollTop = 0")
    found = page.locator(".jp-Notebook-cell").filter(has_text=words).first
    for _ in range(60):
        if found.count():
            found.scroll_into_view_if_needed()
            return found
        panel.evaluate("panel => panel.scrollTop += panel.clientHeight / 2")
        page.wait_for_timeout(200)
    pytest.fail(f"no cell with {words!r}")


def test_a_reader_guesses_turns_and_solves(browser: Browser, lab: str) -> None:  # noqa: F811
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{lab}/lab/tree/01_low_rank.ipynb?reset")
    page.locator(".jp-Notebook-cell h1").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=120_000)

    asked = cell(page, "Up to which rank")
    assert "it is" not in asked.inner_text()
    asked.get_by_placeholder("a number").fill("600")
    asked.get_by_role("button", name="Guess").click()
    asked.get_by_text("it is 614.4").wait_for()
    assert "You said 600" in asked.inner_text()

    turned = cell(page, "draw_spectrum, rank=")
    turned.get_by_text("rank 64: 81,920").wait_for()
    turned.locator("[role=slider]").focus()
    page.keyboard.press("ArrowRight")
    turned.get_by_text("rank 68: 87,040").wait_for()
    # The picture turns, too, not only what is written below it.
    turned.locator(".annotation-text", has_text="rank 68").wait_for()

    stub = cell(page, "def largest_rank")
    stub.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(SOLUTION)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    cell(page, "largest rank that saves").get_by_text(
        re.compile("✓ largest rank that saves: equal")
    ).wait_for()
    assert complaints == []
