"""Where the bundled files are, and where this machine's caches and runs go."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def assets() -> Path:
    """The folder of bundled models and recordings."""
    return Path(__file__).resolve().parent.parent / "assets"


def bundled_models() -> list[str]:
    """Names of the models that ship with the workbench."""
    folder = assets() / "models"
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def home() -> Path:
    """Cache and run folder: $FLASHSVD_HOME, or the user's cache folder."""
    return Path(os.environ.get("FLASHSVD_HOME") or platformdirs.user_cache_path("flashsvd"))
