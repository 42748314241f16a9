"""What a call keeps in memory at its peak, as the recorder of the Memory page sees it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that are alive at once of what `call` allocates; its inputs were there before and do not count.

    What one op takes within itself is seen on a GPU only.

    >>> x = torch.ones(1000)
    >>> peak_bytes(lambda: (x + 1).sum(), torch.device("cpu"))
    4004
    """
    from flashsvd.measure.memory import Recorder

    recorder = Recorder(device)
    with torch.no_grad(), recorder:
        kept = call()
    recorder.bury()
    del kept
    return max(itertools.accumulate(row[5] for row in recorder.rows), default=0)
