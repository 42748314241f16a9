"""The tile loop that the streaming attention ops share: softmax(q kᵀ·scale) v with keys and values tile by
tile, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
                for n0 in range(0, keys, tiles.block_n):
                    n = slice(n0, min(n0 + tiles.block_n, keys))
                    if _hidden(places, n, causal, window):
                        continue
                    # [BB, BN, hs]
                    k_tile = read_k(kv_head, b, n, buffers.view("k", count, n.stop - n.start, score_width))
                    # [BB, BN, hv]
                    v_tile = read_v(kv_head, b, n, buffers.view("v", count, n.stop - n.start, value_width))
                    allowed = None if key_mask is None else key_mask[b, None, n]
                    seen = _seen(places, n, causal, window, group, out.device)
                    if seen is not None:
                        allowed = seen if allowed is None else allowed & seen
                    softmax.add(k_tile, v_tile, allowed)
                # [BB, G*BM, hv]
                result = softmax.finish()
                for g in range(group):
                    start = first_column + g * value_width
                    out[b, m, start : start + value_width] = result[:, g * rows : (g + 1) * rows]
            first_column += group * value_width
    return out


def _hidden(places: tuple[int, int], n: slice, causal: bool, window: int | None) -> bool:
    """Whether no query from the first of `places` to the last sees any key of a tile."""
    first, last = places
    ahead = 0 if causal else window
    return (ahead is not None and n.start > last + ahead) or (
        window is not None and n.stop - 1 < first - window
    )


def _seen(
    places: tuple[int, int], n: slice, causal: bool, window: int | None, group: int, device: torch.device
) -> torch.Tensor | None:
    """bool [1, G*BM, BN]: which keys of a tile each query row sees by their places; None where it sees all."""
    first, last = places
    ahead = 0 if causal else window
    if (ahead is None or n.stop - 1 <= first + ahead) and (window is None or n.start >= last - window):
        return None
    # [BM, BN]
    back = torch.arange(first, last + 1, device=device)[:, None] - torch.arange(n.start, n.stop, device=device)
    seen = torch.ones_like(back, dtype=torch.bool) if ahead is None else back >= -ahead
    if window is not None:
        seen &= back <= window
    return seen.repeat(group, 1)[None]


class _Buffers:
    """One flat allocation per name, viewed in the shape of the tile at hand."""

    def __init__(self, dtype: torch.dtype, device: torch.device, **elements: int) -> None:
        self._flat = {name: torch.empty(size, dtype=dtype, device=device) for name, size in elements.items()}

    def view(self, name: str, *shape: int) -> torch.Tensor:
        return self._flat[name][: shape[0] * shape[1] * shape[2]].view(shape)


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

    def add(self, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None) -> None:
        """Fold in keys [BB, BN, hs] and values [BB, BN, hv]; `allowed` [BB or 1, R or 1, BN] may be attended to."""
        batch, rows, _ = self.q.shape
        # [BB, R, BN]
        scores = self.buffers.view("scores", batch, rows, k.shape[1])
        torch.baddbmm(scores, self.q, k.mT, beta=0, alpha=self.scale, out=scores)
        if allowed is not None:
            scores.masked_fill_(~allowed, float("-inf"))
        # [BB, R, 1]
        pivot = torch.amax(scores, -1, keepdim=True, out=self.buffers.view("tile_pivot", batch, rows, 1))
        if self.empty:
            # Finite even when no key of the tile is allowed: -inf would give exp(-inf + inf) = NaN.
            torch.clamp(pivot, min=torch.finfo(pivot.dtype).min / 2, out=self.pivot)
            weights = scores.sub_(self.pivot).exp_()
            torch.sum(weights, -1, keepdim=True, out=self.total)
            torch.bmm(weights, v, out=self.acc)
            self.empty = False
            return
        torch.maximum(pivot, self.pivot, out=pivot)
        weights = scores.sub_(pivot).exp_()
        shrink = self.pivot.sub_(pivot).exp_()
        self.total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        self.acc.mul_(shrink).baddbmm_(weights, v)
        self.pivot.copy_(pivot)

    def finish(self) -> torch.Tensor:
        """The weighted mean [BB, R, hv]; 0 for a row that saw no allowed key."""
        return self.acc.div_(self.total.clamp_min_(torch.finfo(self.total.dtype).tiny))
