"""The whole feed-forward sublayer of a post-norm block over its hidden state: factors, residual and norms.

On a Hopper GPU `block_plan` chooses between one kernel, in which a block of rows stays on one multiprocessor from the
norm of the sublayer before to its own, and the other ops one after another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.backend import Backend, gpu_of, resolve
from flashsvd.kernels.ffn_block.compose import compose_block
from flashsvd.kernels.ffn_block.hopper import block_takes, prepare_block
from flashsvd.kernels.ffn_block.naive import naive_ffn_block
from flashsvd.kernels.ffn_block.operands import BlockNorm, BlockOperands, check_block
from flashsvd.kernels.ffn_block.plan import BlockPlan, block_plan
from flashsvd.kernels.starter import Kept, looks

__all__ = ["BlockNorm", "BlockPlan", "block_plan", "flash_svd_ffn_block"]

Start = Callable[[BlockOperands], object]
"""Writes the result over x."""

_starts: Kept[Start] = Kept()


def flash_svd_ffn_block(
    x: torch.Tensor,
    v1: torch.Tensor,
    u1: torch.Tensor,
    b1: torch.Tensor | None,
    v2: torch.Tensor,
    u2: torch.Tensor,
    b2: torch.Tensor | None,
    norm: BlockNorm,
    *,
    entry: BlockNorm | None = None,
    activation: str,
    backend: str | None = None,
) -> torch.Tensor:
    """x = norm(z + act(z @ v1ᵀ @ u1ᵀ + b1) @ v2ᵀ @ u2ᵀ + b2), where z = entry(x); inference only, no gradients.

    x: [..., d], last stride 1, rows at equal distance; written over. v1: [R1, d], u1: [D, R1], b1: [D] or None,
    v2: [R2, D], u2: [d, R2], b2: [d] or None. norm: of this sublayer, its own bias None. entry: the norm of the
    sublayer before, with its bias [d] or None, where that has left its residual sum in x; None leaves x as it comes.
    activation: "gelu" (erf), "gelu_tanh", "relu" or "silu". backend: see `flashsvd.kernels.backend.resolve`; "triton"
    follows `block_plan`.

    Returns x. Raises InputError when shapes, dtypes, devices, norms or the activation do not fit, DeviceError when the
    backend cannot run on the tensors' device.

    Source: FlashSVD, arXiv 2508.01506, FFN v1, inside the residual and LayerNorm of a post-norm block: Attention Is
    All You Need, arXiv 1706.03762, section 3.1; BERT, arXiv 1810.04805.

    >>> from flashsvd.kernels import BlockNorm, flash_svd_ffn_block
    >>> x, v1, u1, v2, u2 = (torch.randn(*shape) for shape in ((2, 5, 16), (4, 16), (64, 4), (6, 64), (16, 6)))
    >>> norm = BlockNorm(torch.ones(16), torch.zeros(16), 1e-12)
    >>> flash_svd_ffn_block(x, v1, u1, None, v2, u2, None, norm, activation="gelu") is x
    True
    >>> bool(x.mean(-1).abs().max() < 1e-5)
    True
    """
    block = BlockOperands(x, v1, u1, b1, v2, u2, b2, activation, norm, entry)
    key = _looks_of(block, backend)
    start = _starts.find(key)
    if start is None:
        check_block(block)
        start = _starts.keep(key, _prepared(block, resolve(backend, x.device)))
    start(block)
    return x


def _looks_of(block: BlockOperands, backend: str | None) -> tuple[object, ...] | None:
    norm, entry = block.norm, block.entry
    if not isinstance(norm, BlockNorm) or not (entry is None or isinstance(entry, BlockNorm)):
        return None
    tensors = [*block[:7], norm.weight, norm.shift, norm.bias]
    if entry is None:
        return looks(tensors, block.activation, norm.eps, norm.kind, backend)
    tensors += [entry.weight, entry.shift, entry.bias]
    return looks(tensors, block.activation, norm.eps, norm.kind, backend, entry.eps, entry.kind)


def _prepared(block: BlockOperands, backend: Backend) -> Start:
    """What runs operands that look like these, which are checked; it keeps no tensor."""
    if block.rows == 0:
        return _nothing
    if backend == "naive":
        return _naive
    if backend != "torch":
        check_compiled(block.x)
    if backend == "triton":
        tiles = plan_of(block).tiles
        if tiles is not None:
            return prepare_block(block, tiles)
    return functools.partial(compose_block, backend=backend)


def _nothing(_: BlockOperands) -> None:
    """The result of no rows."""


@torch.no_grad()
def _naive(block: BlockOperands) -> None:
    block.matrix().copy_(naive_ffn_block(block))


def plan_of(block: BlockOperands) -> BlockPlan:
    """`block_plan` for these tensors and the GPU that they are on."""
    gpu = gpu_of(block.x.device)
    return block_plan(
        block.rows,
        block.hidden,
        block.width,
        block.rank_in,
        block.rank_out,
        block.x.dtype,
        f"sm_{gpu.major}{gpu.minor}",
        entry=block.entry is not None,
        multiprocessors=gpu.multiprocessors,
        takes=block_takes(block),
        activation=block.activation,
    )
