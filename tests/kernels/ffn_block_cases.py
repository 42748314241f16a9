"""Calls of the feed-forward sublayer in one form, with inputs and an independent reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from flashsvd.kernels.ffn_block import BlockNorm, flash_svd_ffn_block
from flashsvd.kernels.ffn_block.hopper import block_takes, block_tiles, prepare_block
from flashsvd.kernels.ffn_block.operands import BlockOperands
from flashsvd.kernels.norm import Kind

PARTS = ("b1", "b2", "shift", "entry", "entry shift", "entry bias")
"""What a call may be without."""


@dataclass(frozen=True)
class BlockForm:
    """One call: its sizes, what it is without, and the kinds of its norms."""

    rows: int
    hidden: int
    width: int
    rank_in: int
    rank_out: int
    activation: str = "gelu"
    without: tuple[str, ...] = ()
    kind: Kind = "layer"
    entry_kind: Kind = "layer"

    @property
    def name(self) -> str:
        sizes = (
            f"M{self.rows} d{self.hidden} D{self.width} R{self.rank_in} R{self.rank_out} {self.activation}"
        )
        return sizes + (f" without {', '.join(self.without)}" if self.without else "")


def block_inputs(form: BlockForm, dtype: torch.dtype, seed: int = 0) -> BlockOperands:
    """Random inputs whose every product has entries of about unit size, and means far from 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def factor(rows: int, columns: int) -> torch.Tensor:
        return (normal(rows, columns) / columns**0.5).to(dtype)

    def vector(part: str, size: int) -> torch.Tensor | None:
        values = normal(size).to(dtype)
        return None if part in form.without else values

    def weight() -> torch.Tensor:
        return (1 + 0.5 * normal(form.hidden)).to(dtype)

    entry = BlockNorm(
        weight(),
        vector("entry shift", form.hidden),
        1e-3,
        vector("entry bias", form.hidden),
        form.entry_kind,
    )
    return BlockOperands(
        (normal(form.rows, form.hidden) * 2 + 3).to(dtype),
        factor(form.rank_in, form.hidden),
        factor(form.width, form.rank_in),
        vector("b1", form.width),
        factor(form.rank_out, form.width),
        factor(form.hidden, form.rank_out),
        vector("b2", form.hidden),
        form.activation,
        BlockNorm(weight(), vector("shift", form.hidden), 1e-5, kind=form.kind),
        None if "entry" in form.without else entry,
    )


def run_block(block: BlockOperands, backend: str | None) -> torch.Tensor:
    """The call by the op, which writes over block.x."""
    *tensors, activation, norm, entry = block
    return flash_svd_ffn_block(*tensors, norm, entry=entry, activation=activation, backend=backend)


def run_hopper(block: BlockOperands, tall: bool = False) -> torch.Tensor:
    """The call by the Hopper kernel, whatever the plan would choose; `tall`: by tiles for many rows."""
    rows = max(block.rows, 1 << 14) if tall else block.rows
    tiles = block_tiles(rows, block.hidden, block.rank_in, block.rank_out)
    assert tiles is not None and block_takes(block)
    prepare_block(block, tiles)(block)
    return block.x


def block_reference(block: BlockOperands) -> torch.Tensor:
    """fp64, from torch's own norms and activations, with every product's letters written out."""

    def wide(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else x.double()

    def normed(x: torch.Tensor, norm: BlockNorm, bias: torch.Tensor | None) -> torch.Tensor:
        x = x if bias is None else x + bias.double()
        shape, weight, shift = (x.shape[-1],), norm.weight.double(), wide(norm.shift)
        if norm.kind == "layer":
            return F.layer_norm(x, shape, weight, shift, norm.eps)
        x = F.rms_norm(x, shape, weight, norm.eps)
        return x if shift is None else x + shift

    z = block.x.double()
    if block.entry is not None:
        z = normed(z, block.entry, block.entry.bias)
    t = torch.einsum("...n,rn,dr->...d", z, block.v1.double(), block.u1.double())
    t = t if block.b1 is None else t + block.b1.double()
    h = {
        "gelu": F.gelu,
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
    }[block.activation](t)
    y = z + torch.einsum("...d,rd,nr->...n", h, block.v2.double(), block.u2.double())
    return normed(y, block.norm, block.b2)
