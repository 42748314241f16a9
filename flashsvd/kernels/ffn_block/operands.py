"""What the feed-forward sublayer takes, checked."""

from __future__ import annotations

from typing import NamedTuple

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor
from flashsvd.kernels.ffn.activation import ACTIVATIONS
from flashsvd.kernels.norm import KINDS, Kind


class BlockNorm(NamedTuple):
    """norm(x + bias)·weight + shift over the last dimension of x [..., d]."""

    weight: torch.Tensor
    """[d]."""
    shift: torch.Tensor | None
    """[d]."""
    eps: float
    bias: torch.Tensor | None = None
    """[d]; of the norm after the sublayer it is b2, and None here."""
    kind: Kind = "layer"
    """"layer" subtracts the mean, "rms" does not."""


class BlockOperands(NamedTuple):
    """z = entry(x); norm(z + act(z·v1ᵀ·u1ᵀ + b1)·v2ᵀ·u2ᵀ + b2)."""

    x: torch.Tensor
    """[..., d], last stride 1, rows at equal distance; the result is written over it."""
    v1: torch.Tensor
    """[R1, d]."""
    u1: torch.Tensor
    """[D, R1]."""
    b1: torch.Tensor | None
    """[D]."""
    v2: torch.Tensor
    """[R2, D]."""
    u2: torch.Tensor
    """[d, R2]."""
    b2: torch.Tensor | None
    """[d]."""
    activation: str
    norm: BlockNorm
    entry: BlockNorm | None = None

    @property
    def rows(self) -> int:
        """M."""
        return self.x.numel() // self.hidden

    @property
    def hidden(self) -> int:
        """d."""
        return self.x.shape[-1]

    @property
    def width(self) -> int:
        """D."""
        return self.u1.shape[0]

    @property
    def rank_in(self) -> int:
        """R1."""
        return self.u1.shape[1]

    @property
    def rank_out(self) -> int:
        """R2."""
        return self.v2.shape[0]

    def matrix(self) -> torch.Tensor:
        """x as [M, d], without a copy."""
        return self.x.view(-1, self.hidden)


def check_block(block: BlockOperands) -> None:
    """Raises InputError when shapes, dtypes, devices, the norms or the activation do not fit."""
    x = block.x
    check_activation("x", x)
    factors = (block.v1, block.u1, block.v2, block.u2)
    if x.dim() < 1 or any(not isinstance(factor, torch.Tensor) or factor.dim() != 2 for factor in factors):
        got = ", ".join(
            str(list(one.shape)) if isinstance(one, torch.Tensor) else type(one).__name__
            for one in (x, *factors)
        )
        raise InputError(f"x, v1, u1, v2, u2 must be [..., d], [R1, d], [D, R1], [R2, D], [d, R2], got {got}")
    sizes = {"d": block.hidden, "D": block.width, "R1": block.rank_in, "R2": block.rank_out}
    if min(sizes.values()) < 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"every size must be at least 1, got {listed}")
    for name, factor, shape in (
        ("v1", block.v1, (block.rank_in, block.hidden)),
        ("u1", block.u1, (block.width, block.rank_in)),
        ("v2", block.v2, (block.rank_out, block.width)),
        ("u2", block.u2, (block.hidden, block.rank_out)),
    ):
        check_tensor(name, factor, shape, x, like_name="x")
    for name, bias, size in (("b1", block.b1, block.width), ("b2", block.b2, block.hidden)):
        if bias is not None:
            check_tensor(name, bias, (size,), x, like_name="x")
            check_activation(name, bias)
    _check_norm("norm", block.norm, x)
    if block.norm.bias is not None:
        raise InputError("norm.bias must be None, got a tensor; pass it as b2, or add the two")
    if block.entry is not None:
        _check_norm("entry", block.entry, x)
    if block.activation not in ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {block.activation!r}")
    _check_rows(x)


def _check_norm(name: str, norm: BlockNorm, x: torch.Tensor) -> None:
    if not isinstance(norm, BlockNorm):
        raise InputError(
            f"{name} must be a BlockNorm, got {type(norm).__name__}; pass BlockNorm(weight, ...)"
        )
    if norm.kind not in KINDS:
        raise InputError(f"{name}.kind must be one of {', '.join(KINDS)}, got {norm.kind!r}")
    if not isinstance(norm.eps, (int, float)):
        raise InputError(f"{name}.eps must be a number, got {type(norm.eps).__name__}")
    vectors = (("weight", norm.weight), ("shift", norm.shift), ("bias", norm.bias))
    for part, vector in vectors:
        if vector is not None or part == "weight":
            check_tensor(f"{name}.{part}", vector, (x.shape[-1],), x, like_name="x")  # type: ignore[arg-type]
            check_activation(f"{name}.{part}", vector)  # type: ignore[arg-type]


def _check_rows(x: torch.Tensor) -> None:
    """x is written, so its rows have to be a matrix's, and no two of them the same memory."""
    try:
        rows = x.view(-1, x.shape[-1])
    except RuntimeError:
        raise InputError(
            f"the rows of x must be at equal distance, got strides {list(x.stride())}; call .contiguous() on it"
        ) from None
    if rows.shape[0] > 1 and rows.stride(0) < rows.shape[1]:
        raise InputError(
            f"the rows of x must not share memory, got strides {list(x.stride())}; call .contiguous() on it"
        )
