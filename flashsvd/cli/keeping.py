"""What a command measured goes into the run store; a store that fails costs a warning, never the numbers."""

from __future__ import annotations

import sqlite3
import sys

from flashsvd.errors import FlashSVDError
from flashsvd.results import Comparison, Curve


def keep_run(result: Comparison | Curve) -> None:
    """Stores a result that is already printed."""
    from flashsvd.store import RunStore

    try:
        RunStore().add(result)
    except (FlashSVDError, sqlite3.Error, OSError) as error:
        print(f"warning: the run was not stored: {error}", file=sys.stderr)
