"""A call of every kernel that may be tuned: each makes its inputs, runs the op and judges what came out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from attention_cases import grouped, same
from ffn_cases import Form, operands
from ffn_cases import run as run_op
from kernel_calls import KernelCall, attention, linear_inputs, mapped, norm, rank_space
from rank_space_cases import Case

from flashsvd.kernels.gate import assert_close
from flashsvd.kernels.linear import linear


def _op(form: Form) -> KernelCall:
    """A feed-forward op as its plan has it."""
    return KernelCall("ffn", form.name, functools.partial(operands, form), run_op)


def _product(rows: int, width: int, depth: int) -> KernelCall:
    return KernelCall(
        "linear",
        f"M{rows} N{width} K{depth}",
        functools.partial(linear_inputs, (rows,), width, depth, True),
        lambda given, backend, out: linear(*given, backend=backend),
    )


def _judged(call: KernelCall, dtype: torch.dtype, backend: str | None, device: str) -> None:
    given = call.inputs(dtype)
    there = mapped(given, lambda tensor: tensor.to(device))
    before = mapped(there, torch.clone)
    assert_close(call.run(there, backend, None).cpu(), *call.expected(given), call.id)
    assert all(map(torch.equal, _tensors(there), _tensors(before))), "tuning wrote to an input"


def _tensors(value: object) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    mapped(value, keep)
    return found


def forget_calls() -> None:
    """Ops prepare again what they had prepared, as in a new process."""
    from flashsvd.kernels import ffn, rank_space
    from flashsvd.kernels import linear as products
    from flashsvd.kernels import norm as norms
    from flashsvd.kernels.attention import launch

    for kept in (ffn._inputs, rank_space._inputs, norms._starts, products._starts, launch._chosen):
        kept.clear()


def _named(
    calls: tuple[KernelCall, ...], dtype: torch.dtype
) -> Mapping[str, Callable[[str | None, str], None]]:
    return {call.id: functools.partial(_judged, call, dtype) for call in calls}


INTERPRETED = _named(
    (
        norm(17, 97, "layer"),
        rank_space(Case("masked", 65, (40,), (24,), mask="right", batch=1)),
        rank_space(Case("window, groups", 65, (8, 16), (16, 8), group=2, window=9, batch=1)),
        attention(same("rank 40", 65, 32, (40,), mask="right", batch=1, heads=1, kv_heads=1)),
        attention(grouped("turned, groups", 2, 1, 33, 32, 16, past=5, turned="one", batch=1)),
        rank_space(Case("causal", 65, (8,), (16,), causal=True, past=9, batch=1)),
        _op(Form(70, 97, 40, 40)),
        _op(Form(33, 97, 16, 16, "silu", rank_up=7)),
    ),
    torch.float32,
)
"""Small, for Triton's interpreter."""

COMPILED = _named(
    (
        norm(4099, 768, "layer"),
        rank_space(Case("one rank", 512, (40,) * 12, (40,) * 12, batch=4)),
        rank_space(Case("one rank, masked", 1025, (32,) * 3, (64,) * 3, mask="random")),
        rank_space(Case("window", 1025, (40,) * 4, (64,) * 4, mask="right", window=64)),
        rank_space(Case("groups", 512, (40,) * 2, (24,) * 2, group=3)),
        rank_space(Case("odd ranks", 97, (7, 59), (16, 1), mask="left")),
        attention(same("rank 32", 512, 64, (32,) * 4, heads=4, kv_heads=4, mask="right")),
        attention(same("rank 64, head dim 128", 257, 128, (64,) * 2)),
        attention(grouped("turned, groups", 4, 2, 257, 128, 64, past=100, turned="one")),
        attention(grouped("turned, a window", 7, 1, 300, 64, 32, window=90, mask="left", turned="own")),
        rank_space(Case("causal", 512, (40,) * 4, (64,) * 4, causal=True, past=64)),
        _product(8192, 1440, 264),
        _op(Form(8449, 1024, 240, 240)),
        _op(Form(4097, 520, 312, 312, "relu", bias=False)),
        _op(Form(4097, 1024, 96, 240, "gelu", rank_up=96)),
        _op(Form(4097, 1024, 128, 128, "gelu_tanh", out_width=768)),
    ),
    torch.bfloat16,
)
"""For a GPU; a Hopper one has kernels of its own for some."""
