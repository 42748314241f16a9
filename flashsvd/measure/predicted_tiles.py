"""Streams of many tiles, told in a few rows: every tile takes and gives back the same memory as the one before."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from flashsvd.kernels.embedding.stream import stream_embed_norm
from flashsvd.kernels.ffn.stream import stream_ffn
from flashsvd.kernels.norm.stream import stream_norm
from flashsvd.kernels.online_softmax import attend_in_tiles
from flashsvd.kernels.rotary.stream import stream_rotary
from flashsvd.kernels.tiles import STREAM_BUDGET_BYTES, AttentionStreamTiles, accumulate_dtype
from flashsvd.measure.memory import Recorder

MOST_TILES = 256
MOST_BLOCKS = 3
"""Streams of more tiles of attention, or of more blocks of rows, are not run to the end: a long prompt would be
millions of rows that say the same."""
_RUN_BLOCKS = 2


@contextlib.contextmanager
def tiles_told(most_tiles: int = MOST_TILES, most_blocks: int = MOST_BLOCKS) -> Iterator[None]:
    """Inside, longer streams on tensors without memory are cut.

    Attention in tiles becomes one op that takes `AttentionStreamTiles.workspace_bytes`, which is what its tiles weigh
    together; of streams over rows the first two blocks run.
    """

    def cut(rows: int, step: int) -> int:
        return _RUN_BLOCKS * step if rows > most_blocks * step else rows

    def attend(
        read_q: Any,
        read_k: Any,
        read_v: Any,
        out: torch.Tensor,
        keys: int,
        score_widths: Sequence[int],
        value_widths: Sequence[int],
        group: int,
        key_mask: torch.Tensor | None,
        scale: float,
        tiles: AttentionStreamTiles,
        *places: Any,
    ) -> torch.Tensor:
        batch, seq = out.shape[:2]
        steps = ((batch, tiles.block_b), (seq, tiles.block_m), (keys, tiles.block_n))
        if len(score_widths) * math.prod(math.ceil(n / step) for n, step in steps) <= most_tiles:
            widths = (score_widths, value_widths, group)
            return attend_in_tiles(
                read_q, read_k, read_v, out, keys, *widths, key_mask, scale, tiles, *places
            )
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, Recorder):
                mode.whole("attend_in_tiles", tiles.workspace_bytes)
        return out

    def norm(x: torch.Tensor, *vectors: Any) -> None:
        rows = cut(x.shape[0], _step(x.shape[1], x.dtype))
        if rows < x.shape[0]:
            # Only then: a slice would be an event of its own.
            x, vectors = x[:rows], (*vectors[:-1], vectors[-1][:rows])
        stream_norm(x, *vectors)

    def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        batch, seq, width = x.shape
        rows = cut(batch * seq, _step(width, x.dtype))
        if rows < batch * seq:
            seq = min(seq, rows)
            batch = max(1, rows // seq)
            x, cos, sin = x[:batch, :seq], cos[:batch, :seq], sin[:batch, :seq]
        stream_rotary(x, cos, sin)

    def embedding(
        tables: Any,
        indices: Any,
        weight: torch.Tensor,
        shift: torch.Tensor | None,
        eps: float,
        bias: torch.Tensor | None,
        kind: str,
        out: torch.Tensor,
    ) -> None:
        batch, seq, width = out.shape
        rows = cut(batch * seq, _step(width, out.dtype))
        if rows < batch * seq:
            seq = min(seq, rows)
            batch = max(1, rows // seq)
            indices = [index[:batch, :seq] for index in indices]
            # Rows one after another, as the stream wants them.
            out = out.view(-1, width)[: batch * seq].view(batch, seq, width)
        stream_embed_norm(tables, indices, weight, shift, eps, bias, kind, out)

    def ffn(given: Any, out: torch.Tensor, block_m: int, *rest: Any) -> torch.Tensor:
        rows = cut(given.rows, block_m)
        if rows < given.rows:
            up = None if given.up_p is None else given.up_p[:rows]
            given, out = given._replace(p=given.p[:rows], up_p=up), out[:rows]
        return stream_ffn(given, out, block_m, *rest)

    replaced = {
        "attention.stream.attend_in_tiles": attend,
        "rank_space.stream.attend_in_tiles": attend,
        "norm.stream_norm": norm,
        "rotary.stream_rotary": rotary,
        "embedding.stream_embed_norm": embedding,
        "ffn.run.stream_ffn": ffn,
    }
    with contextlib.ExitStack() as patches:
        for name, told in replaced.items():
            patches.enter_context(mock.patch(f"flashsvd.kernels.{name}", told))
        yield


def _step(width: int, dtype: torch.dtype) -> int:
    """Rows of one block, as the streams cut them."""
    return max(1, STREAM_BUDGET_BYTES // (4 * width * accumulate_dtype(dtype).itemsize))
