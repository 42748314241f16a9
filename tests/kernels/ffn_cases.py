"""Calls of all three feed-forward ops in one form, with inputs and an independent reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kernel_cases import guarded

from flashsvd.kernels import flash_svd_ffn, flash_svd_ffn_v2, flash_svd_glu
from flashsvd.kernels.ffn.operands import FfnOperands

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


@dataclass(frozen=True)
class Form:
    """One call: `rank_up` above 0 makes it gated, `out_width` above 0 the second version."""

    rows: int
    width: int
    rank_in: int
    rank_out: int
    activation: str = "gelu"
    rank_up: int = 0
    out_width: int = 0
    bias: bool = True

    @property
    def name(self) -> str:
        parts = [f"M{self.rows} D{self.width} R{self.rank_in}"]
        parts += [f"up{self.rank_up}"] if self.rank_up else []
        parts += [f"R{self.rank_out}"] + ([f"N{self.out_width}"] if self.out_width else [])
        return " ".join([*parts, self.activation] + ([] if self.bias else ["no bias"]))


PLAIN = (
    Form(1, 64, 40, 40, "silu"),
    Form(17, 100, 1, 1, "gelu"),
    Form(70, 97, 59, 16, "silu", bias=False),
    Form(33, 65, 192, 129, "gelu_tanh"),
    Form(9, 40, 600, 7, "silu"),
    Form(5, 33, 16, 600, "relu"),
)
GATED = (
    Form(1, 64, 40, 40, "silu", rank_up=40),
    Form(17, 70, 1, 7, "gelu", rank_up=16),
    Form(33, 97, 59, 16, "gelu_tanh", rank_up=7),
    Form(65, 100, 7, 59, "relu", rank_up=240, bias=False),
    Form(19, 65, 240, 300, "silu", rank_up=192),
    Form(5, 40, 40, 7, "silu", rank_up=600),
)
SECOND = (
    Form(1, 64, 40, 40, "gelu", out_width=64),
    Form(17, 70, 7, 1, "relu", out_width=7),
    Form(33, 97, 59, 59, "silu", out_width=100),
    Form(65, 100, 16, 128, "gelu_tanh", out_width=97, bias=False),
    Form(9, 65, 300, 200, "gelu", out_width=40),
    Form(9, 65, 16, 600, "gelu", out_width=40),
)
FORMS = (*PLAIN, *GATED, *SECOND)


def operands(form: Form, dtype: torch.dtype, seed: int = 0) -> FfnOperands:
    """Random inputs whose every product has entries of about unit size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def factor(rows: int, columns: int) -> torch.Tensor:
        return (normal(rows, columns) / columns**0.5).to(dtype)

    def bias(size: int) -> torch.Tensor | None:
        return (0.5 * normal(size)).to(dtype) if form.bias else None

    gated, fused = form.rank_up > 0, form.out_width > 0
    return FfnOperands(
        normal(form.rows, form.rank_in).to(dtype),
        factor(form.width, form.rank_in),
        bias(form.width),
        factor(form.rank_out, form.width),
        form.activation,
        normal(form.rows, form.rank_up).to(dtype) if gated else None,
        factor(form.width, form.rank_up) if gated else None,
        bias(form.width) if gated else None,
        factor(form.out_width, form.rank_out) if fused else None,
        bias(form.out_width) if fused else None,
    )


def mapped(ffn: FfnOperands, change: Callable[[torch.Tensor], torch.Tensor]) -> FfnOperands:
    """The same call with `change` applied to every tensor."""
    return FfnOperands(*(change(x) if isinstance(x, torch.Tensor) else x for x in ffn))


def fenced(ffn: FfnOperands) -> FfnOperands:
    """Every input inside a wider, longer buffer of NaN."""
    return mapped(ffn, guarded)


def run(ffn: FfnOperands, backend: str | None, out: torch.Tensor | None = None) -> torch.Tensor:
    """The call by the op that has this form."""
    common = {"activation": ffn.activation, "backend": backend, "out": out}
    if ffn.up_p is not None:
        return flash_svd_glu(ffn.p, ffn.u1, ffn.b1, ffn.up_p, ffn.up_u, ffn.up_b, ffn.v2, **common)
    if ffn.u2 is not None:
        return flash_svd_ffn_v2(ffn.p, ffn.u1, ffn.b1, ffn.v2, ffn.u2, ffn.b2, **common)
    return flash_svd_ffn(ffn.p, ffn.u1, ffn.b1, ffn.v2, **common)


def reference(ffn: FfnOperands) -> torch.Tensor:
    """fp64, with the activations written out."""
    x = mapped(ffn, torch.Tensor.double)

    def branch(p: torch.Tensor, u: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        t = torch.einsum("mr,dr->md", p, u)
        return t if b is None else t + b

    t = branch(x.p, x.u1, x.b1)
    if ffn.activation == "relu":
        t = t * (t > 0)
    elif ffn.activation == "silu":
        t = t / (1 + torch.exp(-t))
    elif ffn.activation == "gelu":
        t = t * 0.5 * torch.erfc(-t / 2**0.5)
    else:
        t = t * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (t + 0.044715 * t**3)))
    if x.up_p is not None:
        t = t * branch(x.up_p, x.up_u, x.up_b)
    s = torch.einsum("md,rd->mr", t, x.v2)
    return s if x.u2 is None else branch(s, x.u2, x.b2)
