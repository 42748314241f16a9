"""The verdict on an encoder's output: the same model in higher precision, on sequences from all over the batch."""

from __future__ import annotations

import copy
from typing import Any

import torch

from flashsvd.bench.encoder_contestants import Setting, states
from flashsvd.measure.fidelity import Outputs, judge
from flashsvd.results import GateReport

_SEQUENCES = 8


class EncoderJudge:
    """Judges the timed calls' own outputs: dense rows against the dense model, all others against the low-rank one.

    The reference is that model in float64 for float32 and in float32 for the halves; how far off is still right is
    what `flashsvd.measure.fidelity.judge` says, with that same engine in the run's dtype to compare with.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        batch = len(setting.ids)
        count = min(batch, _SEQUENCES)
        # First and last included: a kernel that leaves its last slice unwritten must not pass.
        self._found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows = sorted({round(index * (batch - 1) / max(1, count - 1)) for index in range(count)})

    def __call__(self, name: str, output: torch.Tensor) -> GateReport:
        """The report on last hidden states [B, S, d] of the contestant `name`."""
        kind = "dense" if name.startswith("dense") else "lowrank"
        baseline, reference = self._standards(kind)
        loaded = self._setting.loaded
        return judge(
            Outputs(self._take(output), None),
            Outputs(baseline, None),
            Outputs(reference, None),
            name=f"{kind}, {'fp64' if _wider(loaded.model.dtype) == torch.float64 else 'fp32'}",
            dtype=loaded.model.dtype,
            sublayers=2 * len(loaded.shape.layers),
        )

    def _standards(self, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The eager engine's states in the run's dtype, and in higher precision."""
        if kind not in self._found:
            model: Any = self._setting.loaded.model if kind == "dense" else self._setting.lowrank
            baseline = self._take(_run(model, self._setting.ids))
            wide = copy.deepcopy(model).to(_wider(model.dtype))
            # One sequence at a time: twice the precision must not need twice the memory of what is measured.
            parts = [_run(wide, self._setting.ids[row : row + 1]).double().cpu() for row in self._rows]
            self._found[kind] = baseline, torch.cat(parts)
        return self._found[kind]

    def _take(self, output: torch.Tensor) -> torch.Tensor:
        return output[self._rows].double().cpu()


@torch.inference_mode()
def _run(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return states(model(ids))


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else torch.float32
