"""How the threads of one process share the machine. No torch: this has to be said before it is loaded."""

from __future__ import annotations

import os

SPIN_VARIABLE, SPIN_COUNT = "GOMP_SPINCOUNT", "10000"
"""Threads that wait for each other spin only briefly, then sleep.

libgomp's own default spins long, and on cores that something else uses too every small op then waits for a thread
that is not running: the flash engine took 4.3 s in place of 0.25 s beside two busy processes on 2 cores.
"""

ARITHMETIC_VARIABLE, WORKER_VARIABLE = "OMP_NUM_THREADS", "FLASHSVD_WORKER_THREADS"
"""How many threads torch takes, and the same said to a worker, whose own OMP_NUM_THREADS Dask sets to 1."""


def spin_briefly() -> None:
    """Applies it to this process, unless its environment says otherwise."""
    os.environ.setdefault(SPIN_VARIABLE, SPIN_COUNT)
