"""Small results that took long, kept on this machine as JSON by the content they were made of. No torch."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from flashsvd.paths import home


def kept(kind: str, key: str) -> dict[str, Any] | None:
    """What was kept under a key; None for nothing, and for what cannot be read."""
    try:
        found = json.loads((home() / kind / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def keep(kind: str, key: str, data: Mapping[str, Any]) -> None:
    """Keeps it: a reader sees the whole file or none. A folder that cannot be written costs the cache, not the run."""
    folder = home() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, suffix=".part", delete=False, encoding="utf-8"
        ) as file:
            json.dump(dict(data), file)
        os.replace(file.name, folder / f"{key}.json")  # noqa: PTH105
    except OSError:
        return
