"""The definition of the feed-forward ops: a few lines, and the wide activation [M, D] in memory."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from flashsvd.kernels.ffn.activation import activate
from flashsvd.kernels.ffn.operands import FfnOperands


def naive_ffn(ffn: FfnOperands) -> torch.Tensor:
    """S [M, R2], or with an output factor S @ u2ᵀ + b2 [M, N]."""
    h = activate(linear(ffn.p, ffn.u1, ffn.b1), ffn.activation)
    if ffn.up_p is not None and ffn.up_u is not None:
        h = h * linear(ffn.up_p, ffn.up_u, ffn.up_b)
    s = h @ ffn.v2.T
    return s if ffn.u2 is None else linear(s, ffn.u2, ffn.b2)
