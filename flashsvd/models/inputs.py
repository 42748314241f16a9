"""What a model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Batch = Mapping[str, "torch.Tensor"]
"""input_ids [B, S], attention_mask [B, S], whatever else the model takes, and perhaps labels, which it is not shown."""
