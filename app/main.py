"""`streamlit run app/main.py`: the FlashSVD workbench. The script that every tab runs is `workbench.py`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

# Streamlit puts this file's own folder on the path, not the repository.
_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

from app import services  # noqa: E402
from app.first_files import FirstFiles  # noqa: E402
from app.first_view import prepare  # noqa: E402
from app.routes import ROUTES  # noqa: E402
from app.sockets import send_at_once  # noqa: E402


@asynccontextmanager
async def ready(_: st.App) -> AsyncIterator[None]:
    """Gets the first page ready before the server answers, and ends its workers with it."""
    send_at_once()
    prepare()
    yield
    services.jobs.clear()


app = st.App("workbench.py", lifespan=ready, routes=ROUTES, middleware=[Middleware(FirstFiles)])
