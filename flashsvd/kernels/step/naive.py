"""The definition of every instruction, in plain torch, on any device."""

from __future__ import annotations

import functools

import torch
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from flashsvd.kernels.ffn.activation import activate
from flashsvd.kernels.step.instructions import (
    Attend,
    Embed,
    Heads,
    Instruction,
    Norm,
    Product,
    Program,
    Rows,
    Scaled,
)


@torch.no_grad()
def run_naive(program: Program) -> None:
    """One step: every instruction in turn."""
    for instruction in program.instructions:
        _run(instruction, program)


@functools.singledispatch
def _run(instruction: Instruction, program: Program) -> None:
    raise TypeError(f"no such instruction: {instruction!r}")


@_run.register
def _(step: Embed, program: Program) -> None:
    x = step.table[program.tokens]
    if step.positions is not None:
        x = x + step.positions[(program.place - program.first + step.offset).long()]
    step.out.copy_(x)
    _leave(step.out, step.next)


@_run.register
def _(step: Norm, program: Program) -> None:
    width = step.x.shape[-1:]
    step.out.copy_(layer_norm(step.x, width, step.weight, step.bias, program.eps))


@_run.register
def _(step: Rows, program: Program) -> None:
    y = _product(step.product, program.eps)
    if step.activated:
        y = activate(y, program.activation)
    if step.up is not None:
        y *= _product(step.up, program.eps)
    step.out.copy_(y if step.added is None else step.added + y)
    _leave(step.out, step.next)


@_run.register
def _(step: Heads, program: Program) -> None:
    for head in step.factors:
        rank, width = head.u.shape
        p = step.p[:, head.column : head.column + rank]
        step.out[0, :, head.at : head.at + width] = p @ head.u
        step.out[1:, :, head.at : head.at + width] = 0.0


@_run.register
def _(step: Attend, program: Program) -> None:
    _, kv_heads, _, d = step.k_cache.shape
    y = step.heads.sum(0)
    if step.bias is not None:
        y = y + step.bias
    y = y.to(step.out.dtype)
    q = y[:, : program.heads * d].unflatten(1, (program.heads, d))
    k = y[:, step.k_at : step.k_at + kv_heads * d].unflatten(1, (kv_heads, d))
    v = y[:, step.v_at :].unflatten(1, (kv_heads, -1))
    now = int(program.place)
    q = _turned(_head_norm(q, step.q_norm, program.eps), now, program)
    step.k_cache[:, :, now] = _turned(_head_norm(k, step.k_norm, program.eps), now, program)
    step.v_cache[:, :, now] = v
    first = program.first if step.window is None else program.first.clamp_min(now - step.window)
    start = int(first.min())
    places = torch.arange(start, now + 1, device=y.device)
    mask = None
    if int(first.max()) > start:
        mask = (places >= first[:, None])[:, None, None]
    seen = scaled_dot_product_attention(
        q[:, :, None],
        step.k_cache[:, :, start : now + 1],
        step.v_cache[:, :, start : now + 1],
        attn_mask=mask,
        scale=step.scale,
        enable_gqa=program.heads != kv_heads,
    )
    step.out.copy_(seen.flatten(1))


def _wide(x: torch.Tensor) -> torch.Tensor:
    """fp32, or more where x is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _product(product: Product, eps: float) -> torch.Tensor:
    y = _wide(linear(product.x, product.weight))
    if product.normed is not None:
        y *= torch.rsqrt(product.normed.parts[:, :1] / product.normed.width + eps)
    if product.bias is not None:
        y += product.bias
    return y


def _leave(x: torch.Tensor, to: Scaled | None) -> None:
    if to is None:
        return
    wide = _wide(x)
    to.scaled.copy_(wide * to.weight)
    to.squares.parts[:, :1] = wide.square().sum(1, keepdim=True)


def _head_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    if weight is None:
        return x
    wide = _wide(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _turned(x: torch.Tensor, now: int, program: Program) -> torch.Tensor:
    """x [B, heads, d] turned by the position of every sequence's new token."""
    if program.turns is None:
        return x
    position = (now - program.first).long()
    cos, sin = (table[position][:, None] for table in program.turns)
    wide = _wide(x)
    left, right = wide.chunk(2, -1)
    return (wide * cos + torch.cat([-right, left], -1) * sin).to(x.dtype)
