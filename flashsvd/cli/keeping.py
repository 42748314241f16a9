"""What a command measured goes into the run store; a store that fails costs a warning, never the numbers."""

from __future__ import annotations

import sqlite3
import sys

from flashsvd.curve_set import CostTable
from flashsvd.errors import FlashSVDError
from flashsvd.results import Comparison, Curve


def keep_run(result: Comparison | Curve | CostTable) -> None:
    """Stores a result that is already printed."""
    from flashsvd.store import RunStore

    try:
        store = RunStore()
        if isinstance(result, CostTable):
            store.add_costs(result)
        else:
            store.add(result)
    except (FlashSVDError, sqlite3.Error, OSError) as error:
        print(f"warning: the run was not stored: {error}", file=sys.stderr)
