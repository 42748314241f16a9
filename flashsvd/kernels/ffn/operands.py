"""What the feed-forward ops take, checked and in one shape: a plain block, a gated one, with or without an
output factor."""

from __future__ import annotations

from typing import NamedTuple

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor
from flashsvd.kernels.ffn.activation import ACTIVATIONS
from flashsvd.kernels.tma import describable


class FfnOperands(NamedTuple):
    """h = act(p @ u1ᵀ + b1), times (up_p @ up_uᵀ + up_b) if gated; S = h @ v2ᵀ; S @ u2ᵀ + b2 if there is a u2."""

    p: torch.Tensor
    """[M, R1], last stride 1, as up_p."""
    u1: torch.Tensor
    """[D, R1]."""
    b1: torch.Tensor | None
    """[D]."""
    v2: torch.Tensor
    """[R2, D]."""
    activation: str
    up_p: torch.Tensor | None = None
    """[M, Ru], or None when not gated."""
    up_u: torch.Tensor | None = None
    """[D, Ru], None exactly when up_p is."""
    up_b: torch.Tensor | None = None
    """[D]."""
    u2: torch.Tensor | None = None
    """[N, R2], or None when S is the result."""
    b2: torch.Tensor | None = None
    """[N]."""

    @property
    def rows(self) -> int:
        """M."""
        return self.p.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.u1.shape[0]

    @property
    def rank_in(self) -> int:
        """R1."""
        return self.u1.shape[1]

    @property
    def rank_up(self) -> int:
        """Ru, 0 when not gated."""
        return 0 if self.up_u is None else self.up_u.shape[1]

    @property
    def rank_out(self) -> int:
        """R2."""
        return self.v2.shape[0]

    @property
    def out_width(self) -> int:
        """N, 0 when S is the result."""
        return 0 if self.u2 is None else self.u2.shape[0]

    @property
    def result_width(self) -> int:
        """Columns of the result: N or R2."""
        return self.out_width or self.rank_out

    @property
    def wide_loads(self) -> bool:
        """Whether all rows of all matrices start and end on 16 bytes."""
        matrices = [x for x in (self.p, self.u1, self.v2, self.up_p, self.up_u, self.u2) if x is not None]
        return all(describable(x) and x.shape[-1] * x.element_size() % 16 == 0 for x in matrices)

    def as_matrices(self) -> FfnOperands:
        """The same where p and up_p are [..., R], those as matrices; copied where no view is one."""
        return self._replace(p=as_matrix(self.p), up_p=None if self.up_p is None else as_matrix(self.up_p))


def as_matrix(x: torch.Tensor) -> torch.Tensor:
    """An x [..., R] as [M, R], copied where no view is one."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def checked(ffn: FfnOperands, names: tuple[str, str, str] = ("p", "u1", "b1")) -> FfnOperands:
    """`ffn` with p and up_p, [..., R] so far, as matrices; `names` are the activated branch's for the messages.

    Raises InputError when shapes, dtypes, devices or the activation do not fit.
    """
    p_name, u_name, b_name = names
    p, v2 = ffn.p, ffn.v2
    check_activation(p_name, p)
    branches = [(p_name, p, u_name, ffn.u1, b_name, ffn.b1)]
    if ffn.up_p is not None and ffn.up_u is not None:
        check_activation("up_p", ffn.up_p)
        branches.append(("up_p", ffn.up_p, "up_u", ffn.up_u, "up_b", ffn.up_b))
    for name, rows, factor_name, factor, *_ in branches:
        if rows.dim() < 1 or factor.dim() != 2 or v2.dim() != 2:
            raise InputError(
                f"{name}, {factor_name}, v2 must be [..., R1], [D, R1], [R2, D], got {list(rows.shape)}, "
                f"{list(factor.shape)}, {list(v2.shape)}"
            )
    sizes = {"D": ffn.width, "R1": ffn.rank_in, "R2": ffn.rank_out}
    if len(branches) == 2:
        sizes["the rank of up"] = ffn.rank_up
    if ffn.u2 is not None:
        if ffn.u2.dim() != 2:
            raise InputError(f"u2 must be [N, R2], got {list(ffn.u2.shape)}")
        sizes["N"] = ffn.out_width
    if min(sizes.values()) < 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"every size must be at least 1, got {listed}")
    for name, rows, factor_name, factor, bias_name, bias in branches:
        check_tensor(name, rows, (*p.shape[:-1], factor.shape[1]), p, like_name=p_name)
        check_tensor(factor_name, factor, (ffn.width, factor.shape[1]), p, like_name=p_name)
        if bias is not None:
            check_tensor(bias_name, bias, (ffn.width,), p, like_name=p_name)
    check_tensor("v2", v2, (ffn.rank_out, ffn.width), p, like_name=p_name)
    if ffn.u2 is not None:
        check_tensor("u2", ffn.u2, (ffn.out_width, ffn.rank_out), p, like_name=p_name)
        if ffn.b2 is not None:
            check_tensor("b2", ffn.b2, (ffn.out_width,), p, like_name=p_name)
    if ffn.activation not in ACTIVATIONS:
        raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {ffn.activation!r}")
    return ffn.as_matrices()


def checked_out(out: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """`out` as a matrix of rows; raises InputError unless it can be written as one of that shape."""
    check_tensor("out", out, shape, like, like_name="p")
    check_activation("out", out)
    try:
        return out.view(-1, shape[-1])
    except RuntimeError:
        raise InputError(
            f"out must be a matrix of rows in memory, got strides {list(out.stride())} for {list(shape)}; "
            "pass a contiguous one"
        ) from None
