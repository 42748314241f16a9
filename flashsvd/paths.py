"""Where the bundled files are, and where this machine's caches and runs go."""

from __future__ import annotations

import os
from pathlib import Path


def assets() -> Path:
    """The folder of bundled models and recordings."""
    return Path(__file__).resolve().parent.parent / "assets"


def bundled_models() -> list[str]:
    """Names of the models that ship with the workbench."""
    folder = assets() / "models"
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def home() -> Path:
    """Cache and run folder: $FLASHSVD_HOME, or flashsvd in the user's cache folder."""
    chosen = os.environ.get("FLASHSVD_HOME")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashsvd"
