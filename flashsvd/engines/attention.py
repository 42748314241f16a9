"""Attention sublayers of the flash engine: over absorbed factors, or with q, k and v rebuilt tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flashsvd.engines.absorb import Absorbed, AbsorbedValues
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear, projection
from flashsvd.engines.packed import factored_per_head, pack_heads
from flashsvd.engines.sublayer import (
    Norm,
    Slices,
    Sublayer,
    batch_slices,
    bias_of,
    first_of,
    plan_slices,
    second_of,
)
from flashsvd.errors import InputError
from flashsvd.kernels.attention import flash_svd_attention
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.linear import linear
from flashsvd.kernels.rank_space import rank_space_attention
from flashsvd.kernels.rebuild import Run, rebuild_rotated
from flashsvd.kernels.rotary import rotate_heads

Rotation = tuple[torch.Tensor, torch.Tensor]


class RankSpaceAttention(Sublayer):
    """Attention on absorbed factors (`flashsvd.engines.absorb`); q, k and v are never rebuilt."""

    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None

    def __init__(
        self,
        absorbed: Absorbed,
        o: nn.Module,
        scale: float,
        norm: Norm | None,
        pre_norm: bool,
        backend: str | None,
    ) -> None:
        super().__init__(norm, pre_norm, backend)
        # Not persistent: they are made of the parameters, which is what a checkpoint holds.
        self.register_buffer("qkv", absorbed.qkv, persistent=False)
        self.register_buffer("qkv_bias", absorbed.qkv_bias, persistent=False)
        self.register_buffer("out", absorbed.out, persistent=False)
        self.register_buffer("out_bias", absorbed.out_bias, persistent=False)
        self.score, self.value, self.scale = absorbed.score, absorbed.value, scale
        self._whole = absorbed.whole
        # Columns of what is alive beside a slice.
        self._width = absorbed.qkv.shape[0] + (0 if absorbed.whole else absorbed.out.shape[0])
        if self.score.ranks != self.value.ranks:
            self._width += self.value.p_width
        self._packed = (self.score.p_width, self.score.p_width, self.value.p_width)
        # In a tuple, as a module of its own would put o's parameters into the files twice.
        self._o = (o,)

    def slices(self, x: torch.Tensor) -> Slices:
        """How an x [B, S, d] is cut."""
        batch, seq, hidden = x.shape
        return plan_slices(batch, seq, self._width, hidden, self.score.heads, x.device.type)

    def cut(self, x: torch.Tensor) -> Sequence[slice]:
        return batch_slices(x.shape[0], self.slices(x).sequences)

    def inner(
        self, x: torch.Tensor, key_mask: torch.Tensor | None, rotation: Rotation | None
    ) -> torch.Tensor:
        step = self.slices(x).heads
        heads = self.score.heads
        if step >= heads:
            # self.qkv is a call in Python, 1 us on the H200's host.
            held: Any = self._buffers
            packed = linear(x, held["qkv"], held["qkv_bias"], backend=self.backend)
            # Tensor.split is Python, and asks more than once whether somebody overrides it.
            q, k, v = torch.split_with_sizes(packed, self._packed, -1)
            # The heads' outputs take the place of the queries that they were made from.
            place = q if self.score.ranks == self.value.ranks else None
            attended = self.attend(q, k, v, self.score, self.value, key_mask, place).flatten(0, 1)
            return attended if self._whole else torch.mm(attended, held["out"].T)
        mixed: torch.Tensor | None = None
        for first in range(0, heads, step):
            mixed = self.group(x, first, min(first + step, heads), key_mask, mixed)
        assert mixed is not None
        return mixed.flatten(0, 1)

    def group(
        self,
        x: torch.Tensor,
        first: int,
        last: int,
        key_mask: torch.Tensor | None,
        mixed: torch.Tensor | None,
    ) -> torch.Tensor:
        """`mixed` with what heads first to last contribute, started where it is None."""
        score, value = HeadLayout(self.score.ranks[first:last]), HeadLayout(self.value.ranks[first:last])
        at, v_at = self.score.spans[first][0], self.value.spans[first][0]
        starts = (at, self.score.p_width + at, 2 * self.score.p_width + v_at)
        rows = [slice(s, s + layout.p_width) for s, layout in zip(starts, (score, score, value), strict=True)]
        q, k, v = (
            linear(x, self.qkv[r], None if self.qkv_bias is None else self.qkv_bias[r], backend=self.backend)
            for r in rows
        )
        columns = slice(v_at, v_at + value.p_width)
        if self._whole:
            if mixed is None:
                mixed = x.new_empty(*x.shape[:2], self.value.p_width)
            self.attend(q, k, v, score, value, key_mask, mixed[..., columns])
            return mixed
        attended = self.attend(q, k, v, score, value, key_mask, q if score.ranks == value.ranks else None)
        del q, k, v
        share = self.out[:, columns]
        if mixed is None:
            return linear(attended, share, backend=self.backend)
        mixed.view(-1, mixed.shape[-1]).addmm_(attended.flatten(0, 1), share.T)
        return mixed

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        score: HeadLayout,
        value: HeadLayout,
        key_mask: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        return rank_space_attention(
            q,
            k,
            v,
            score=score,
            value=value,
            scale=self.scale,
            key_mask=key_mask,
            out=out,
            backend=self.backend,
        )

    def last(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return (self._buffers["out"] if self._whole else second_of(self._o[0])), self._buffers["out_bias"]


class RebuiltAttention(Sublayer):
    """Attention that rebuilds q, k and v tile by tile (FlashSVDAttn), for factors that cannot be absorbed."""

    def __init__(
        self,
        modules: tuple[nn.Module, nn.Module, nn.Module, nn.Module],
        heads: int,
        kv_heads: int,
        head_dim: int,
        norm: Norm | None,
        pre_norm: bool,
        backend: str | None,
    ) -> None:
        super().__init__(norm, pre_norm, backend)
        self._qkvo = modules
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim

    def cut(self, x: torch.Tensor) -> Sequence[slice]:
        width = self.heads * self.head_dim
        for module in self._qkvo[:3]:
            width += (module.V if isinstance(module, HeadLowRankLinear) else first_of(module)).shape[0]
        batch, seq, hidden = x.shape
        return batch_slices(batch, plan_slices(batch, seq, width, hidden, 1, x.device.type).sequences)

    def inner(
        self, x: torch.Tensor, key_mask: torch.Tensor | None, rotation: Rotation | None
    ) -> torch.Tensor:
        q, k, v, o = self._qkvo
        attended = flash_svd_attention(
            projection(q, x),
            projection(k, x),
            projection(v, x),
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            key_mask=key_mask,
            backend=self.backend,
        )
        rows = attended.flatten(0, 1)
        return torch.mm(rows, o.V.T) if isinstance(o, LowRankLinear) else rows

    def last(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        o = self._qkvo[3]
        return (o.U if isinstance(o, LowRankLinear) else first_of(o)), bias_of(o)


class RotaryAttention(Sublayer):
    """Attention with rotary positions, which turn q and k between their factors: those two are rebuilt, one slice of
    the batch at a time, and v stays in rank space. `window`: how far a query sees to either side, None for all.

    Where q and k are factored head by head, they and v come from one product (`flashsvd.engines.packed`).
    """

    v: torch.Tensor
    qkv: torch.Tensor
    qk_second: torch.Tensor
    qk_bias: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None

    def __init__(
        self,
        q: nn.Module,
        k: nn.Module,
        o: nn.Module,
        values: AbsorbedValues,
        heads: int,
        head_dim: int,
        window: int | None,
        norm: Norm | None,
        pre_norm: bool,
        backend: str | None,
    ) -> None:
        super().__init__(norm, pre_norm, backend)
        self._runs: tuple[Run, ...] = ()
        if factored_per_head(q) and factored_per_head(k):
            packed = pack_heads(q, k, values.v)
            self._runs = packed.runs
            self.register_buffer("qkv", packed.first, persistent=False)
            self.register_buffer("qk_second", packed.second, persistent=False)
            self.register_buffer("qk_bias", packed.bias, persistent=False)
        else:
            self.register_buffer("v", values.v, persistent=False)
        self.register_buffer("out", values.out, persistent=False)
        self.register_buffer("out_bias", values.out_bias, persistent=False)
        self.score, self.value = HeadLayout((head_dim,) * heads), values.layout
        self.scale, self.window = head_dim**-0.5, window
        self._whole = values.whole
        self._qko = (q, k, o)

    def cut(self, x: torch.Tensor) -> Sequence[slice]:
        # q and k, norm(x), and the packed activations, whose place the heads' outputs take; or v, the heads' outputs
        # and, while q or k is made of factors that are not packed, its activations.
        width = 2 * self.score.p_width + x.shape[2]
        width += self.qkv.shape[0] if self._runs else self.score.p_width + 2 * self.value.p_width
        batch, seq, hidden = x.shape
        return batch_slices(batch, plan_slices(batch, seq, width, hidden, 1, x.device.type).sequences)

    def inner(
        self, x: torch.Tensor, key_mask: torch.Tensor | None, rotation: Rotation | None
    ) -> torch.Tensor:
        if rotation is None:
            raise InputError("rotary attention needs the cosines and sines of its positions, got none")
        q, k, v, place = self.projected(x, rotation)
        attended = rank_space_attention(
            q,
            k,
            v,
            score=self.score,
            value=self.value,
            scale=self.scale,
            key_mask=key_mask,
            window=self.window,
            out=place,
            backend=self.backend,
        )
        rows = attended.flatten(0, 1)
        return rows if self._whole else torch.mm(rows, self._buffers["out"].T)  # type: ignore[union-attr]

    def projected(
        self, x: torch.Tensor, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """q and k [b, S, H·h], turned, v [b, S, Rv], and where the heads' outputs may go, if there is a place."""
        # self.qkv is a call in Python, 1 us on the H200's host.
        held: Any = self._buffers
        if not self._runs:
            q, k = rotate_heads(self._qko[0](x), self._qko[1](x), *rotation, backend=self.backend)
            return q, k, linear(x, held["v"], backend=self.backend), None
        p = linear(x, held["qkv"], backend=self.backend)
        turned, value = held["qk_second"].shape[0], self.value.p_width
        heads = rebuild_rotated(
            p, held["qk_second"], held["qk_bias"], *rotation, runs=self._runs, backend=self.backend
        )
        q, k = heads.split(self.score.p_width, -1)
        # Once q and k are rebuilt, nothing reads their activations any more.
        return q, k, p[..., turned:], p[..., :value] if value <= turned else None

    def last(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return (self.out if self._whole else second_of(self._qko[2])), self.out_bias
