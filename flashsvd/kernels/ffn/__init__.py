"""The feed-forward block between its outer factors, streamed over the wide dimension.

FFN v1 of FlashSVD (arXiv 2508.01506): t = act(P·U1ᵀ + b1) is made tile by tile and folded into S = t·V2ᵀ, so
the wide activation [M, D] never exists as a whole. The gated forms (GEGLU, SwiGLU) multiply t by a second branch
on the way; FFN v2 goes on with S·U2ᵀ + b2 where S is.

On a GPU `ffn_plan` chooses between one kernel, which keeps t on chip, and chunks of rows through cuBLAS for ranks
too large for that. cuBLAS in a half type is about 6 times slower where a rank is no multiple of 8 (1027 us for 170
at rank 307, H200), and the kernel's loads narrow: pad P, the factors' ranks and so S with zeros to multiples of 8.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from flashsvd.kernels.backend import Backend, resolve
from flashsvd.kernels.ffn.activation import ACTIVATIONS
from flashsvd.kernels.ffn.operands import FfnOperands, checked, checked_out
from flashsvd.kernels.ffn.plan import FfnPlan, ffn_plan
from flashsvd.kernels.ffn.run import Start, prepare_ffn
from flashsvd.kernels.starter import Kept, looks

__all__ = ["ACTIVATIONS", "FfnPlan", "ffn_plan", "flash_svd_ffn", "flash_svd_ffn_v2", "flash_svd_glu"]


@dataclass(frozen=True)
class _Inputs:
    """What is known of all inputs that look alike: they fit, and this is what comes of them."""

    shape: tuple[int, ...]
    backend: Backend
    starts: Kept[Start] = field(default_factory=lambda: Kept(16))
    """By what `out` looks like and how far it is from p and up_p."""


_inputs: Kept[_Inputs] = Kept()


def flash_svd_ffn(
    p: torch.Tensor,
    u1: torch.Tensor,
    b1: torch.Tensor | None,
    v2: torch.Tensor,
    *,
    activation: str,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """act(p @ u1ᵀ + b1) @ v2ᵀ without the [M, D] activation; inference only, no gradients.

    p: [..., R1], rank-space input x·V1ᵀ (x itself when the up projection is dense and u1 its weight).
    u1: [D, R1]. b1: [D] or None. v2: [R2, D] (the whole down weight when that is dense).
    activation: "gelu" (erf), "gelu_tanh", "relu" or "silu". out: [..., R2] to write to, with last stride 1; it
    may be (columns of) p itself. backend: see `flashsvd.kernels.backend.resolve`; "triton" follows `ffn_plan`.

    Returns `out`, or a new contiguous [..., R2] in p's dtype. Raises InputError when shapes, dtypes, devices or
    the activation do not fit, DeviceError when the backend cannot run on the tensors' device.

    Source: FlashSVD, arXiv 2508.01506, FFN v1.

    >>> from flashsvd.kernels import flash_svd_ffn
    >>> p, u1, v2 = torch.randn(2, 5, 8), torch.randn(64, 8), torch.randn(6, 64)
    >>> flash_svd_ffn(p, u1, None, v2, activation="gelu").shape
    torch.Size([2, 5, 6])
    """
    return _call(FfnOperands(p, u1, b1, v2, activation), ("p", "u1", "b1"), out, backend)


def flash_svd_glu(
    gate_p: torch.Tensor,
    gate_u: torch.Tensor,
    gate_b: torch.Tensor | None,
    up_p: torch.Tensor,
    up_u: torch.Tensor,
    up_b: torch.Tensor | None,
    v2: torch.Tensor,
    *,
    activation: str,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """(act(gate_p @ gate_uᵀ + gate_b) * (up_p @ up_uᵀ + up_b)) @ v2ᵀ without an [M, D] activation; inference only.

    gate_p: [..., Rg], gate_u: [D, Rg], gate_b: [D] or None; up_p: [..., Ru], up_u: [D, Ru], up_b: [D] or None;
    v2: [R2, D]. Each has its own rank. activation: "silu" makes it SwiGLU, "gelu" or "gelu_tanh" GEGLU.
    out, backend, the result and what is raised: as of `flash_svd_ffn`.

    Source: FlashSVD, arXiv 2508.01506, FFN v1; gates: GLU Variants Improve Transformer, arXiv 2002.05202.

    >>> from flashsvd.kernels import flash_svd_glu
    >>> gate_p, up_p, v2 = torch.randn(5, 8), torch.randn(5, 4), torch.randn(6, 64)
    >>> gate_u, up_u = torch.randn(64, 8), torch.randn(64, 4)
    >>> flash_svd_glu(gate_p, gate_u, None, up_p, up_u, None, v2, activation="silu").shape
    torch.Size([5, 6])
    """
    ffn = FfnOperands(gate_p, gate_u, gate_b, v2, activation, up_p, up_u, up_b)
    return _call(ffn, ("gate_p", "gate_u", "gate_b"), out, backend)


def flash_svd_ffn_v2(
    p: torch.Tensor,
    u1: torch.Tensor,
    b1: torch.Tensor | None,
    v2: torch.Tensor,
    u2: torch.Tensor,
    b2: torch.Tensor | None,
    *,
    activation: str,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """act(p @ u1ᵀ + b1) @ v2ᵀ @ u2ᵀ + b2 with neither [M, D] nor [M, R2] in memory; inference only.

    p, u1, b1, v2, activation: as of `flash_svd_ffn`. u2: [N, R2], b2: [N] or None. out: [..., N]. Worth it for
    its memory where R1 < R2: else `flash_svd_ffn` may write S over p. From R2 of about 256 on, the plan goes by
    chunks, whose S is one chunk long.
    backend, the result and what is raised: as of `flash_svd_ffn`.

    Source: FlashSVD, arXiv 2508.01506, FFN v2, on a grid over rows alone: over output columns too, t would be
    made again for each of their blocks.

    >>> from flashsvd.kernels import flash_svd_ffn_v2
    >>> p, u1, v2, u2 = torch.randn(5, 8), torch.randn(64, 8), torch.randn(6, 64), torch.randn(32, 6)
    >>> flash_svd_ffn_v2(p, u1, None, v2, u2, None, activation="relu").shape
    torch.Size([5, 32])
    """
    return _call(FfnOperands(p, u1, b1, v2, activation, u2=u2, b2=b2), ("p", "u1", "b1"), out, backend)


def _call(
    ffn: FfnOperands, names: tuple[str, str, str], out: torch.Tensor | None, backend: str | None
) -> torch.Tensor:
    key = looks(ffn[:4] + ffn[5:], ffn.activation, names, backend)
    inputs = _inputs.find(key)
    if inputs is None:
        matrices = checked(ffn, names)
        shape = (*ffn.p.shape[:-1], matrices.result_width)
        inputs = _inputs.keep(key, _Inputs(shape, resolve(backend, ffn.p.device)))
    p, up_p = ffn.p, ffn.up_p
    given = out is not None
    place: tuple[object, ...] | None
    if out is None:
        out = torch.empty(*inputs.shape, dtype=p.dtype, device=p.device)
        place = looks((out,))
    elif place := looks((out,)):
        at = out.data_ptr()
        place = (place, at - p.data_ptr(), 0 if up_p is None else at - up_p.data_ptr())
    start = inputs.starts.find(place)
    if start is None:
        rows = checked_out(out, inputs.shape, p) if given else out.view(-1, inputs.shape[-1])
        start = inputs.starts.keep(place, prepare_ffn(ffn.as_matrices(), rows, inputs.backend))
    start(ffn, out)
    return out
