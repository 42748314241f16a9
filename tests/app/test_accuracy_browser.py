"""Accuracy and Roofline in the system's Chromium."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.app.browsing import says, settled

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

POINTS = ".st-key-panel_pareto .scatterlayer .trace .points path.point"


def test_a_click_on_a_point_loads_its_plan(tab: Callable[[str], Page]) -> None:
    page = tab("accuracy?method=svd&keep=0.5&p.accuracy_methods=svd")
    point = page.locator(POINTS).nth(1)
    box = settled(point)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.up()
    says(page, ".stApp", "Loaded: SVD, keep 20 %")
    assert "keep=0.2" in page.url
    page.get_by_role("button", name="Undo").click()
    page.wait_for_url("**keep=0.5**", timeout=15_000)
