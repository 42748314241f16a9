"""`streamlit run app/main.py`: the FlashSVD workbench. The script that every tab runs is `workbench.py`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware

# Streamlit puts this file's own folder on the path, not the repository.
_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

_FIRST_PAGE = (
    "plotly.graph_objects",
    "app.components.page",
    "app.components.charts",
    "flashsvd.figures.timeline",
    "flashsvd.figures.curve",
    "flashsvd.recording",
)


@asynccontextmanager
async def ready(_: st.App) -> AsyncIterator[None]:
    """Loads what the first page needs before the server answers, and ends its workers with it."""
    for name in _FIRST_PAGE:
        importlib.import_module(name)
    yield
    from app import services

    services.jobs.clear()


class ChartsAhead:
    """Tells the browser with the page itself that it will need Streamlit's plotly, 4.7 MB of it.

    Else it hears of it from the first chart, when the page stands.
    """

    def __init__(self, app: Any) -> None:
        static = Path(st.__file__).parent / "static" / "static" / "js"
        files = (f"</static/js/{path.name}>; rel=modulepreload" for path in static.glob("PlotlyChart.*.js"))
        self._app, self._link = app, ", ".join(files).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                if any(name.lower() == b"content-type" and b"text/html" in value for name, value in headers):
                    message = {**message, "headers": [*headers, (b"link", self._link)]}
            await send(message)

        await self._app(scope, receive, told if scope["type"] == "http" and self._link else send)


from app.routes import ROUTES  # noqa: E402

app = st.App("workbench.py", lifespan=ready, routes=ROUTES, middleware=[Middleware(ChartsAhead)])
