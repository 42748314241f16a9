"""The Tiles page in the system's Chromium: a kernel compiled on request, and the sliders by keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.app.browsing import no_overflow, says, settled

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

PROGRAM = ".st-key-w_tiles_program input[type=range], .st-key-w_tiles_program [role=slider]"
HEAD = re.compile(r"Program ([\d,]+) of ([\d,]+), step")


def program(page: Page) -> int:
    """The number of the program on screen, from 1."""
    found = HEAD.search(page.locator(".st-key-panel_tiles_program").inner_text())
    assert found
    return int(found[1].replace(",", ""))


@pytest.mark.long
def test_arrow_keys_step_through_the_programs(tab: Callable[[str], Page]) -> None:
    page = tab("tiles")
    page.locator(".st-key-figure_tiles_program .main-svg").first.wait_for(timeout=60_000)
    handle = page.locator(PROGRAM).first
    settled(page.locator(".st-key-tiles_scrub"))
    start = program(page)
    handle.focus()
    page.keyboard.press("ArrowRight")
    says(page, ".st-key-panel_tiles_program", f"Program {start + 1:,} of")
    page.keyboard.press("ArrowRight")
    says(page, ".st-key-panel_tiles_program", f"Program {start + 2:,} of")
    page.keyboard.press("ArrowLeft")
    says(page, ".st-key-panel_tiles_program", f"Program {start + 1:,} of")
    page.keyboard.press("Home")
    says(page, ".st-key-panel_tiles_program", "Program 1 of")
    assert no_overflow(page)


@pytest.mark.long
def test_sizes_that_no_table_has_are_compiled_here(tab: Callable[[str], Page]) -> None:
    from playwright.sync_api import expect

    page = tab("tiles?model=stdlib-bert&plan=*.*: 20 *.up: 60 *.down: 90")
    button = page.get_by_role("button", name="Compile for just these sizes")
    button.wait_for(timeout=60_000)
    says(page, ".st-key-panel_tiles_program", "These sizes were not compiled yet")
    settled(page.locator(".st-key-panel_tiles_occupancy"))
    button.click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible(timeout=30_000)
    again = page.get_by_role("button", name="Compile again here")
    expect(again).to_be_visible(timeout=280_000)
    words = page.locator(".st-key-panel_tiles_occupancy")
    expect(words.locator(".fs-badge").first).to_have_attribute(
        "title", re.compile("COMPILED · here, by Triton")
    )
    expect(words).to_contain_text("compiled for rank 64 and 96")
