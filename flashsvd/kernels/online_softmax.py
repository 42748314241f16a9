"""The tile loop that the streaming attention ops share: softmax(q kᵀ·scale) v with keys and values tile by
tile, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from flashsvd.kernels.tiles import AttentionStreamTiles, accumulate_dtype

ReadTile = Callable[[int, slice, slice, torch.Tensor], torch.Tensor]
"""(head, sequences, rows, buffer [BB, rows, width]) -> that tile of one head in the buffer's dtype: the
buffer, filled, or a view where the input already holds the tile."""


def attend_in_tiles(
    read_q: ReadTile,
    read_k: ReadTile,
    read_v: ReadTile,
    out: torch.Tensor,
    keys: int,
    score_widths: Sequence[int],
    value_widths: Sequence[int],
    group: int,
    key_mask: torch.Tensor | None,
    scale: float,
    tiles: AttentionStreamTiles,
    window: int | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Fill `out` [B, S, W] with softmax(q kᵀ·scale) v over `keys` keys, the query heads side by side, and return it.

    score_widths and value_widths: columns of q and k, and of v, per kv head; `group` query heads read one kv
    head. Those are stacked as rows, so one key tile serves them all. A tile of `out` is written after the
    last use of the tile of q in its place. The last query stands at the place of the last key. window: keys further
    than this from a query, to either side, do not count; causal: nor do keys behind it. Tiles with no other keys are
    never read. Source: FlashAttention-2, arXiv 2307.08691.
    """
    # B batch, S sequence, G query heads per kv head, hs and hv columns of q, k and of v; a tile has BB
    # sequences, BM query rows and BN keys.
    batch, seq = out.shape[:2]
    query_rows, key_rows = tiles.block_b * group * tiles.block_m, tiles.block_b * tiles.block_n
    widest_score, widest_value = max(score_widths), max(value_widths)
    # Of full size at once: one grown for a later, wider head would live beside the one it replaces.
    buffers = _Buffers(
        accumulate_dtype(out.dtype),
        out.device,
        q=query_rows * widest_score,
        acc=query_rows * widest_value,
        k=key_rows * widest_score,
        v=key_rows * widest_value,
        scores=query_rows * tiles.block_n,
        total=query_rows,
        pivot=query_rows,
        tile_pivot=query_rows,
    )
    for b0 in range(0, batch, tiles.block_b):
        b = slice(b0, min(b0 + tiles.block_b, batch))
        count = b.stop - b.start
        key_tiles = [slice(n0, min(n0 + tiles.block_n, keys)) for n0 in range(0, keys, tiles.block_n)]
        padding = [_padding(key_mask, b, n) for n in key_tiles]
        first_column = 0
        for kv_head, (score_width, value_width) in enumerate(zip(score_widths, value_widths, strict=True)):
            query_heads = range(kv_head * group, (kv_head + 1) * group)
            for m0 in range(0, seq, tiles.block_m):
                m = slice(m0, min(m0 + tiles.block_m, seq))
                rows = m.stop - m.start
                # [BB, G*BM, hs]
                q_tile = buffers.view("q", count, group * rows, score_width)
                for g, head in enumerate(query_heads):
                    part = q_tile[:, g * rows : (g + 1) * rows]
                    tile = read_q(head, b, m, part)
                    if group == 1:
                        q_tile = tile
                    elif tile is not part:
                        part.copy_(tile)
                softmax = _OnlineSoftmax(buffers, q_tile, value_width, scale)
                # Of the tile's first query and last.
                places = keys - seq + m.start, keys - seq + m.stop - 1
                for n, padded in zip(key_tiles, padding, strict=True):
                    if _hidden(places, n, causal, window):
                        continue
                    # [BB, BN, hs]
                    k_tile = read_k(kv_head, b, n, buffers.view("k", count, n.stop - n.start, score_width))
                    # [BB, BN, hv]
                    v_tile = read_v(kv_head, b, n, buffers.view("v", count, n.stop - n.start, value_width))
                    softmax.add(k_tile, v_tile, padded, _offset_by_place(places, n, causal, window, k_tile))
                # [BB, G*BM, hv]
                result = softmax.finish()
                for g in range(group):
                    start = first_column + g * value_width
                    out[b, m, start : start + value_width] = result[:, g * rows : (g + 1) * rows]
            first_column += group * value_width
    return out


class _Hidden(NamedTuple):
    """Keys that padding takes from a tile: of the columns from `first` on, those that `where` [BB, 1, columns] says."""

    first: int
    where: torch.Tensor


def _padding(key_mask: torch.Tensor | None, b: slice, n: slice) -> _Hidden | None:
    """What is hidden of a tile's keys, None for nothing; on a CPU, which can tell at once, of no more columns than it
    takes: nearly all keys of a padded batch are nobody's padding, and to fill a tile takes two thirds of what its
    product takes (86 and 126 us on one core).
    """
    if key_mask is None:
        return None
    where = ~key_mask[b, None, n]
    if where.device.type != "cpu":
        return _Hidden(0, where)
    columns = where.flatten(0, 1).any(0).nonzero()
    if not len(columns):
        return None
    first = int(columns[0])
    return _Hidden(first, where[..., first : int(columns[-1]) + 1])


def _hidden(places: tuple[int, int], n: slice, causal: bool, window: int | None) -> bool:
    """Whether no query from the first of `places` to the last sees any key of a tile."""
    first, last = places
    ahead = 0 if causal else window
    return (ahead is not None and n.start > last + ahead) or (
        window is not None and n.stop - 1 < first - window
    )


def _offset_by_place(
    places: tuple[int, int], n: slice, causal: bool, window: int | None, like: torch.Tensor
) -> torch.Tensor | None:
    """[BM, BN]: 0 where a query sees a key of a tile by their places, -inf elsewhere; None where it sees all."""
    first, last = places
    ahead = 0 if causal else window
    shape = (last + 1 - first, n.stop - n.start)
    offset = None
    if ahead is not None and n.stop - 1 > first + ahead:
        offset = like.new_full(shape, float("-inf")).triu_(first + ahead - n.start + 1)
    if window is not None and n.start < last - window:
        before = like.new_full(shape, float("-inf")).tril_(first - window - n.start - 1)
        offset = before if offset is None else offset.add_(before)
    return offset


class _Buffers:
    """One flat allocation per name, viewed in the shape of the tile at hand. Shapes come again with every head."""

    def __init__(self, dtype: torch.dtype, device: torch.device, **elements: int) -> None:
        self._flat = {name: torch.empty(size, dtype=dtype, device=device) for name, size in elements.items()}
        self._views: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}

    def view(self, name: str, *shape: int) -> torch.Tensor:
        key = name, shape
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = self._flat[name][: math.prod(shape)].view(shape)
        return found


class _OnlineSoftmax:
    """softmax(q kᵀ·scale) v over key tiles that come one by one; q [BB, R, hs]."""

    def __init__(self, buffers: _Buffers, q: torch.Tensor, value_width: int, scale: float) -> None:
        self.buffers = buffers
        self.q = q
        self.scale = scale
        batch, rows = q.shape[:2]
        # [BB, R, hv]
        self.acc = buffers.view("acc", batch, rows, value_width)
        # [BB, R, 1]
        self.total = buffers.view("total", batch, rows, 1)
        # [BB, R, 1]
        self.pivot = buffers.view("pivot", batch, rows, 1)
        self.empty = True
        self.masked = False

    def add(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        padded: _Hidden | None,
        offset: torch.Tensor | None,
    ) -> None:
        """Fold in keys [BB, BN, hs] and values [BB, BN, hv]. padded: keys that may not be attended to. offset
        [BM, BN]: added to the scores of every head's rows."""
        batch, rows, _ = self.q.shape
        # [BB, R, BN]
        scores = self.buffers.view("scores", batch, rows, k.shape[1])
        torch.baddbmm(scores, self.q, k.mT, beta=0, alpha=self.scale, out=scores)
        if padded is not None:
            first, where = padded
            scores[..., first : first + where.shape[-1]].masked_fill_(where, float("-inf"))
        if offset is not None:
            scores.unflatten(1, (-1, len(offset))).add_(offset)
        masked = padded is not None or offset is not None
        self.masked |= masked
        # [BB, R, 1]
        pivot = torch.amax(scores, -1, keepdim=True, out=self.buffers.view("tile_pivot", batch, rows, 1))
        if self.empty:
            # Finite even when no key of the tile is allowed: -inf would give exp(-inf + inf) = NaN.
            torch.clamp(pivot, min=torch.finfo(pivot.dtype).min / 2, out=self.pivot)
            weights = _exp(scores.sub_(self.pivot), masked)
            torch.sum(weights, -1, keepdim=True, out=self.total)
            torch.bmm(weights, v, out=self.acc)
            self.empty = False
            return
        torch.maximum(pivot, self.pivot, out=pivot)
        weights = _exp(scores.sub_(pivot), masked)
        shrink = self.pivot.sub_(pivot).exp_()
        self.total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        self.acc.mul_(shrink).baddbmm_(weights, v)
        self.pivot.copy_(pivot)

    def finish(self) -> torch.Tensor:
        """The weighted mean [BB, R, hv]; 0 for a row that saw no allowed key."""
        if self.masked:
            # Its largest weight is 1 for any other row.
            self.acc.masked_fill_(self.total < 0.5, 0.0)
        return self.acc.div_(self.total.clamp_min_(0.5))


def _exp(scores: torch.Tensor, masked: bool) -> torch.Tensor:
    """exp in place, of what is at most 0; what is `masked` as -inf comes out below 1e-34.

    Results that are no normal number cost a CPU 25 to 270 times as much: 1.0 to 10.9 ms for 512 by 256, not 0.04.
    """
    return (scores.clamp_(min=-80.0) if masked else scores).exp_()
