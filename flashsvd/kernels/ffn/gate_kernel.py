"""act(gate)·up in one pass, for the chunks of a gated feed-forward that go through cuBLAS."""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl

from flashsvd.kernels.backend import on_device
from flashsvd.kernels.ffn.triton_parts import activate

_BLOCK = 2048


@triton.jit
def gate_kernel(gate, up, size, ACTIVATION: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """Writes act(gate)·up over gate, both [size], in fp32 until the end."""
    # [BLOCK]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(gate + at, (activate(g, ACTIVATION, EXACT, False) * u).to(gate.dtype.element_ty), mask=inside)


def apply_gate(gate: torch.Tensor, up: torch.Tensor, activation: str) -> None:
    """Writes act(gate)·up over gate, both contiguous, rounding once where two torch ops round twice: at 40 columns of
    bf16 that was an error of 6.1e-3 in the layer's output, past the gate, against 4.0e-3."""
    size = gate.numel()
    with on_device(gate):
        gate_kernel[(triton.cdiv(size, _BLOCK),)](
            gate, up, size, ACTIVATION=activation, EXACT=gate.dtype == torch.float32, BLOCK=_BLOCK
        )
