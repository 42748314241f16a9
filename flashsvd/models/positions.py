"""Random-weight presets at sequences longer than the published table of positions: for speed and memory alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from flashsvd.models.load import LoadedModel, preset_class

MOST_POSITIONS = 2**16
"""How long a preset's table may grow: a slip of the keyboard must not ask for terabytes."""


def with_positions(loaded: LoadedModel, positions: int, seed: int = 0) -> LoadedModel:
    """A preset whose table has at least `positions` positions, at most MOST_POSITIONS; a trained model as it is.

    All other weights are shared with `loaded`, so what was decomposed of one holds for the other.
    """
    missing = min(positions, MOST_POSITIONS) - loaded.shape.max_positions
    if loaded.trained or missing <= 0:
        return loaded
    config = copy.deepcopy(loaded.model.config)
    config.max_position_embeddings += missing
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(loaded.device):
        torch.manual_seed(seed)
        longer = preset_class(loaded.family).from_config(config, dtype=loaded.model.dtype)
    own = longer.state_dict()
    same = {
        name: value for name, value in loaded.model.state_dict().items() if value.shape == own[name].shape
    }
    longer.load_state_dict(same, strict=False, assign=True)
    longer.eval().requires_grad_(False)
    shape = replace(loaded.shape, max_positions=loaded.shape.max_positions + missing)
    return replace(loaded, model=longer, shape=shape)
