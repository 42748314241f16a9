"""The files of Streamlit's own page that the first view needs: from memory, and asked for all at once.

Streamlit's page hears of the scripts of a widget when the first one is to be drawn, and the server is busy then with
the page that needs them.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import streamlit as st

_DRAWN_FIRST = ("PlotlyChart", "Html", "Slider", "Selectbox", "NumberInput", "ButtonGroup", "Button")
"""Elements of the first view, by the names that Streamlit gives their scripts."""

_IMPORT = re.compile(r'\b(?:from|import)"\./([\w.-]+\.js)"')
_LINKED = re.compile(r'"\./(static/[\w./-]+)"')


class FirstFiles:
    """Answers for those files, and tells browsers of them with the page itself. Hashed names: they never change."""

    def __init__(self, app: Any) -> None:
        root = Path(st.__file__).parent / "static"
        linked = _LINKED.findall((root / "index.html").read_text("utf-8"))
        scripts = root / "static" / "js"
        roots = (found.name for name in _DRAWN_FIRST for found in scripts.glob(f"{name}.*.js"))
        first = [f"static/js/{name}" for name in _with_imports(scripts, roots)]
        self._app = app
        files = {name: root / name for name in (*linked, *first)}
        self._held = {f"/{name}": file.read_bytes() for name, file in files.items() if file.is_file()}
        ahead = (f"<./{name}>; rel=modulepreload" for name in first if name not in linked)
        self._link = ", ".join(ahead).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        held = self._held.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        if held is not None:
            kind = mimetypes.guess_type(scope["path"])[0] or "application/octet-stream"
            headers = [
                (b"content-type", kind.encode()),
                (b"content-length", str(len(held)).encode()),
                (b"cache-control", b"public, immutable, max-age=31536000"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": held})
            return

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                if any(name.lower() == b"content-type" and b"text/html" in value for name, value in headers):
                    message = {**message, "headers": [*headers, (b"link", self._link)]}
            await send(message)

        await self._app(scope, receive, told if scope["type"] == "http" and self._link else send)


def _with_imports(folder: Path, names: Iterable[str]) -> list[str]:
    """These scripts, and all that they import before they run."""
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name not in found and (folder / name).is_file():
            found.append(name)
            waiting += _IMPORT.findall((folder / name).read_text("utf-8"))
    return found
