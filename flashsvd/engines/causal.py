"""The attention sublayer of a decoder: keys and values of the new tokens go to a cache, and queries see what came
before them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.engines.attend import aligned_mask, attend
from flashsvd.engines.heads import Rotation, made_heads, some_heads, turn, turned_heads
from flashsvd.engines.parts import CausalParts, Heads
from flashsvd.engines.sublayer import Norm, PackedSublayer, batch_slices, least_tokens, plan_slices
from flashsvd.kernels.attention import flash_svd_attention
from flashsvd.kernels.attention.choice import Choice, prefill_choice
from flashsvd.kernels.layout import Projection
from flashsvd.kernels.linear import linear
from flashsvd.kernels.norm import fused_norm
from flashsvd.kernels.rotary import rotate_heads

_LEAST_HIDDEN = 768
"""The width of hidden states that LEAST_TOKENS is meant for."""

kept_choice = functools.lru_cache(maxsize=1024)(prefill_choice)
"""Every layer of every call asks, and most ask the same."""


@dataclass(frozen=True)
class Past:
    """Where keys and values of the new tokens go, and where they then stand among all of them.

    `append` takes k [B, Hk, S, k.width] and v [B, Hk, S, v.width], and gives those of all tokens, [B, Hk, T, ..]. Of
    these, `columns` come before the first new one, and none that comes after the new ones is a key; None for T - S.
    """

    append: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    columns: int | torch.Tensor | None = None


Attended = Callable[[torch.Tensor, slice, slice, torch.Tensor | None, Rotation | None], torch.Tensor]
"""Outputs of the query heads of a group of kv heads, side by side: of P of a slice of the batch, that slice, the kv
heads, and the mask and the turns of that slice."""


def past_of(cache: Any, layer: int, seq: int) -> Past | None:
    """What a cache of transformers is to `seq` new tokens; anything with its `update` will do, and None is no cache."""
    if cache is None:
        return None
    columns = None
    if hasattr(cache, "get_mask_sizes"):
        columns = cache.get_seq_length(layer) - cache.get_mask_sizes(seq, layer)[1]
        if isinstance(columns, torch.Tensor) and seq > 1 and not _capturing(columns):
            # A prompt that knows where it begins needs no mask.
            columns = int(columns)
    return Past(lambda k, v: cache.update(k, v, layer), columns)


def _capturing(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class CausalAttention(PackedSublayer[CausalParts]):
    """Causal attention over a cache. `window`: how far back a query sees, None for all; `head_norms`: what q and k go
    through before they are turned.

    Few tokens take one product for q, k and v. Of many, k and v are made first, some rows at a time, and then q and
    what follows it, one slice of the batch or group of heads at a time: beside the hidden states and the new keys and
    values only these are alive.

    Without a cache nobody else reads keys and values: where the cost model says so (`prefill`), heads are then rebuilt
    on chip, tile by tile, and only P and the heads' outputs of a slice are alive.
    """

    def __init__(
        self,
        make: Callable[[], CausalParts],
        window: int | None,
        head_norms: tuple[Norm, Norm] | None,
        norm: Norm | None,
        backend: str | None,
        *,
        rotary: bool,
    ) -> None:
        super().__init__(make, norm, True, backend)
        self.window, self.head_norms, self.rotary = window, head_norms, rotary

    def forward(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        rotation: Rotation | None = None,
        past: Past | None = None,
    ) -> torch.Tensor:
        """x [B, S, d], contiguous, is written over and returned. key_mask: bool [B, tokens so far], True = attend, or
        None; rotation: cosines and sines [B or 1, S, h], None for a family without; past: None for no cache."""
        if past is None and self._on_chip(x):
            key_mask = aligned_mask(key_mask, 0, x.shape[1], x.shape[1])
            self._sliced(x, None, self._rebuilt, key_mask, rotation)
        else:
            self._rebuilt_once(x, key_mask, rotation, past)
        return x if self.parts.out_bias is None else x.add_(self.parts.out_bias)

    def last(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.parts.out[-1], self.parts.out_bias

    def prefill(self, batch: int, seq: int) -> Choice | str:
        """How `seq` tokens of `batch` sequences go from factors to attention where no cache keeps heads: what the cost
        model chooses, or in words why there is nothing to choose."""
        sides = {"q": self.parts.q, "k": self.parts.k, "v": self.parts.v}
        rebuilt = [name for name, heads in sides.items() if heads.u is not None]
        if not rebuilt:
            return "nothing to rebuild: q, k and v are dense or in rank space"
        if len(rebuilt) < len(sides):
            return f"rebuild once, and only {' and '.join(rebuilt)}: the rest is dense or in rank space"
        if self.head_norms is not None:
            return "rebuild once: q and k go through norms"
        q, k, v = sides.values()
        sizes = (batch, seq, 0, q.heads, k.heads, q.width)
        layouts, first = (q.layout, k.layout, v.layout), self.parts.first
        return kept_choice(*sizes, layouts, first.dtype, first.device, window=self.window, rotary=self.rotary)

    def _on_chip(self, x: torch.Tensor) -> bool:
        found = self.prefill(*x.shape[:2])
        return isinstance(found, Choice) and found.how == "rebuild on chip"

    def _rebuilt_once(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None,
        rotation: Rotation | None,
        past: Past | None,
    ) -> None:
        """Adds to x its attention to all tokens so far; k and v of the new ones exist as a whole."""
        parts, seq = self.parts, x.shape[1]
        p = self._projected(x, 0, None) if x.shape[0] * seq <= self._least(x) else None
        if p is None:
            q = None
            k, v = self._keys_and_values(x, rotation)
        else:
            q, k, v = self._heads_of(p, rotation)
        k_all, v_all = _by_head(k, parts.k), _by_head(v, parts.v)
        if past is not None:
            k_all, v_all = past.append(k_all, v_all)
        del k, v
        columns = k_all.shape[2] - seq if past is None or past.columns is None else past.columns
        if isinstance(columns, int):
            k_all, v_all = k_all[:, :, : columns + seq], v_all[:, :, : columns + seq]
        key_mask = aligned_mask(key_mask, columns, seq, k_all.shape[2])
        look = functools.partial(
            attend, columns=columns, window=self.window, scale=parts.scale, backend=self.backend
        )
        if q is not None:
            self._add(x, look(q, k_all, v_all, key_mask=key_mask), 0, None)
            return

        def attended(
            p: torch.Tensor, b: slice, kv: slice, mask: torch.Tensor | None, turns: Rotation | None
        ) -> torch.Tensor:
            group = parts.q.heads // parts.k.heads
            q = self._queries(p, some_heads(parts.q, kv.start * group, kv.stop * group), turns)
            return look(q, k_all[b, kv], v_all[b, kv], key_mask=mask)

        self._sliced(x, parts.k.at, attended, key_mask, rotation)

    def _least(self, x: torch.Tensor) -> int:
        """Tokens that are not cut."""
        return least_tokens(x.device.type, x.shape[-1], _LEAST_HIDDEN)

    def _projected(self, x: torch.Tensor, first: int, last: int | None) -> torch.Tensor:
        """Columns first to last of P, [b, s, columns], of x [b, s, d]."""
        parts = self.parts
        if self.norm is not None:
            x = self.norm(x, bias=None, out=None, backend=self.backend)
        bias = None if parts.first_bias is None else parts.first_bias[first:last]
        return linear(x, parts.first[first:last], bias, backend=self.backend)

    def _heads_of(
        self, p: torch.Tensor, rotation: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v, heads side by side, of the whole of P."""
        parts = self.parts
        q, k, v = (made_heads(p, heads) for heads in (parts.q, parts.k, parts.v))
        q, k = self._normed(q, 0), self._normed(k, 1)
        if rotation is not None:
            rotate_heads(q, k, *rotation, backend=self.backend)
        return q, k, v

    def _keys_and_values(
        self, x: torch.Tensor, rotation: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v of all tokens, made a few rows at a time."""
        parts, (batch, seq, _) = self.parts, x.shape
        at = parts.k.at
        k, v = (x.new_empty(batch, seq, heads.heads * heads.width) for heads in (parts.k, parts.v))
        # norm(x) and P of half the rows are less than what comes after.
        rows = max(self._least(x), math.ceil(batch * seq / 2))
        for b in batch_slices(batch, max(1, rows // seq)):
            for s in batch_slices(seq, rows if rows < seq else seq):
                p = self._projected(x[b, s], at, None)
                made_heads(p, parts.k, shift=at, out=k[b, s])
                made_heads(p, parts.v, shift=at, out=v[b, s])
                del p
        k = self._normed(k, 1)
        if rotation is not None:
            turn(k, parts.k.heads, rotation, self.backend)
        return k, v

    def _sliced(
        self,
        x: torch.Tensor,
        columns: int | None,
        attended: Attended,
        key_mask: torch.Tensor | None,
        rotation: Rotation | None,
    ) -> None:
        """Heads and output, a slice of the batch and a group of kv heads at a time. columns: of P that `attended`
        reads, the first ones; None for all, and no heads of q in memory."""
        parts, (batch, seq, hidden) = self.parts, x.shape
        # P, q and the heads' outputs, and the output projection's rank space.
        width = parts.q.heads * parts.v.width
        width += len(parts.first) if columns is None else columns + parts.q.heads * parts.q.width
        width += len(parts.out[0]) if len(parts.out) > 1 else 0
        plan = plan_slices(
            batch, seq, width, hidden, parts.k.heads, x.device.type, min(self._least(x), batch * seq)
        )
        for b in batch_slices(batch, plan.sequences):
            part, mask = x[b], None if key_mask is None else key_mask[b]
            turns = rotation
            if rotation is not None and len(rotation[0]) > 1:
                turns = (rotation[0][b], rotation[1][b])
            p = self._projected(part, 0, columns)
            mixed = None
            for first in range(0, parts.k.heads, plan.heads):
                kv = slice(first, min(first + plan.heads, parts.k.heads))
                heads = attended(p, b, kv, mask, turns)
                mixed = self._add(part, heads, first, mixed, kv.stop == parts.k.heads)
                del heads

    def _rebuilt(
        self, p: torch.Tensor, b: slice, kv: slice, mask: torch.Tensor | None, turns: Rotation | None
    ) -> torch.Tensor:
        """Attention of the tokens of P to each other, with heads that are rebuilt on chip."""
        parts = self.parts
        group = parts.q.heads // parts.k.heads
        return flash_svd_attention(
            _projection(p, some_heads(parts.q, kv.start * group, kv.stop * group)),
            _projection(p, some_heads(parts.k, kv.start, kv.stop)),
            _projection(p, some_heads(parts.v, kv.start, kv.stop)),
            heads=(kv.stop - kv.start) * group,
            kv_heads=kv.stop - kv.start,
            head_dim=parts.q.width,
            key_mask=mask,
            scale=parts.scale,
            causal=True,
            window=self.window,
            rotation=turns,
            backend=self.backend,
        )

    def _queries(self, p: torch.Tensor, heads: Heads, rotation: Rotation | None) -> torch.Tensor:
        if rotation is None:
            return self._normed(made_heads(p, heads), 0)
        if self.head_norms is None:
            return turned_heads(p, heads, rotation, backend=self.backend)
        q = self._normed(made_heads(p, heads), 0)
        turn(q, heads.heads, rotation, self.backend)
        return q

    def _normed(self, heads: torch.Tensor, which: int) -> torch.Tensor:
        """Heads of q (0) or k (1) side by side through their norm, if there is one."""
        if self.head_norms is None:
            return heads
        norm = self.head_norms[which]
        weight: Any = norm.module.weight
        heads = heads.contiguous()
        rows = heads.view(-1, weight.shape[0])
        fused_norm(rows, weight, None, norm.eps, kind=norm.kind, out=rows, backend=self.backend)
        return heads

    def _add(
        self,
        x: torch.Tensor,
        heads: torch.Tensor,
        kv_head: int,
        mixed: torch.Tensor | None,
        last: bool = True,
    ) -> torch.Tensor | None:
        """Adds to x what the outputs of the query heads of the kv heads from `kv_head` on contribute, once the `last`
        are there; in between, `mixed` is what has been gathered in the output projection's rank space."""
        parts = self.parts
        rows, into = heads.flatten(0, 1), x.view(-1, x.shape[-1])
        at = kv_head * (parts.q.heads // parts.k.heads) * parts.v.width
        share = parts.out[0][:, at : at + rows.shape[1]]
        if len(parts.out) == 1:
            into.addmm_(rows, share.T)
            return None
        mixed = torch.mm(rows, share.T) if mixed is None else mixed.addmm_(rows, share.T)
        if last:
            into.addmm_(mixed, parts.out[1].T)
        return mixed


def _projection(p: torch.Tensor, heads: Heads) -> Projection:
    """What the attention on factors reads of P for these heads."""
    return Projection(p[..., heads.at : heads.at + heads.columns], heads.u, heads.bias, heads.layout, None)


def _by_head(heads: torch.Tensor, like: Heads) -> torch.Tensor:
    """[B, S, H·w] as [B, H, S, w], a view."""
    return heads.unflatten(-1, (like.heads, like.width)).transpose(1, 2)
