"""Guards, masks, and inputs and an independent reference of the feed-forward op, for the tests of the ops."""

from __future__ import annotations

from dataclasses import dataclass

import torch

CPU_BACKENDS = ("torch", "interpret")
DTYPES = (torch.float32, torch.float16)
GPU_DTYPES = (*DTYPES, torch.bfloat16)


def skip_without_interpreter(backend: str) -> None:
    """On a machine with a GPU the kernels compile there, and the interpreter is off."""
    if backend == "interpret" and torch.cuda.is_available():
        # Here, as sanitize.py takes its inputs from this module and runs without pytest.
        import pytest

        pytest.skip("the interpreter is only on where there is no GPU")


def guarded(tensor: torch.Tensor, before: int = 1, after: int = 2) -> torch.Tensor:
    """The same values inside a wider, longer buffer of NaN: reading past any row or end shows.

    `before` and `after` are the columns of NaN. As given, no row starts on 16 bytes; with 8 and 8 all rows do whose
    width is a multiple of 8.
    """
    padded = torch.full(
        (*(size + 2 for size in tensor.shape[:-1]), tensor.shape[-1] + before + after),
        float("nan"),
        dtype=tensor.dtype,
        device=tensor.device,
    )
    inner = [slice(1, 1 + size) for size in tensor.shape[:-1]]
    view = padded[(*inner, slice(before, before + tensor.shape[-1]))]
    return view.copy_(tensor)


def key_mask(kind: str | None, batch: int, seq: int, generator: torch.Generator) -> torch.Tensor | None:
    """Bool [B, S]; left and right padding grow with the sequence's number."""
    if kind is None:
        return None
    mask = torch.ones(batch, seq, dtype=torch.bool)
    for b in range(batch):
        padding = min(seq - 1, (b + 1) * seq // 3)
        if kind == "left":
            mask[b, :padding] = False
        elif kind == "right":
            mask[b, seq - padding :] = False
        elif kind == "random":
            mask[b] = torch.rand(seq, generator=generator) < 0.6
            mask[b, int(torch.randint(seq, (), generator=generator))] = True
        elif kind == "empty" or (kind == "one empty" and b == batch - 1):
            mask[b] = False
    return mask


@dataclass(frozen=True)
class FfnCase:
    """One call of the feed-forward op."""

    rows: int
    width: int
    rank_in: int
    rank_out: int
    activation: str = "gelu"
    bias: bool = True

    @property
    def name(self) -> str:
        bias = "" if self.bias else " no bias"
        return f"M{self.rows} D{self.width} R{self.rank_in} R{self.rank_out} {self.activation}{bias}"


FFN_CASES = (
    FfnCase(1, 64, 40, 40),
    FfnCase(17, 100, 1, 1, "relu"),
    FfnCase(63, 128, 7, 59, "gelu_tanh"),
    FfnCase(97, 97, 16, 64, "gelu", bias=False),
    FfnCase(70, 200, 59, 16, "relu", bias=False),
    FfnCase(33, 65, 240, 300, "gelu"),
    FfnCase(17, 70, 300, 7, "gelu_tanh"),
    FfnCase(5, 31, 64, 257, "gelu"),
)


def ffn_inputs(case: FfnCase, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor | None, ...]:
    """(p, u1, b1, v2), scaled so that every product has entries of about unit size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        normal(case.rows, case.rank_in).to(dtype),
        (normal(case.width, case.rank_in) / case.rank_in**0.5).to(dtype),
        (0.5 * normal(case.width)).to(dtype) if case.bias else None,
        (normal(case.rank_out, case.width) / case.width**0.5).to(dtype),
    )


def ffn_reference(
    p: torch.Tensor, u1: torch.Tensor, b1: torch.Tensor | None, v2: torch.Tensor, activation: str
) -> torch.Tensor:
    """fp64, with the activations written out."""
    t = p.double() @ u1.double().T
    if b1 is not None:
        t = t + b1.double()
    if activation == "relu":
        t = t * (t > 0)
    elif activation == "gelu":
        t = t * 0.5 * torch.erfc(-t / 2**0.5)
    else:
        t = t * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (t + 0.044715 * t**3)))
    return t @ v2.double().T
