"""What the first page of a fresh server would wait for: done once, before it answers."""

from __future__ import annotations

import contextlib
import sqlite3

# Loaded for what it loads.
import app.components.page  # noqa: F401
from app import services, session
from app.state import Settings
from flashsvd.errors import FlashSVDError
from flashsvd.figures.curve import curve
from flashsvd.figures.timeline import timeline


def prepare() -> None:
    """Reads what the default page shows and draws its two figures, half a second of imports and files the first time.

    What goes wrong here goes wrong again on the page, which says so.
    """
    with contextlib.suppress(FlashSVDError, sqlite3.Error, OSError):
        services.store()
        settings = session.default_settings(Settings().model)
        shape, recorded = services.described(settings.model), services.recording(settings.model)
        if shape is None or recorded is None:
            return
        settings.rank_plan(shape)
        result = recorded.comparison
        run = result.run("flash")
        if run is not None:
            timeline(run, len(shape.layers), ghost=result.run("dense")).to_json()
        curve(recorded.curve).to_json()
