"""Which weights every instruction brings to the L2 cache for those after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashsvd.kernels.step.instructions import Heads, Instruction, Rows

AHEAD_BYTES = 8 << 20
"""How far ahead of what is being multiplied weights are fetched."""
LINE_BYTES = 128


def stretches(
    instructions: Sequence[Instruction], ahead_bytes: int = AHEAD_BYTES
) -> list[torch.Tensor | None]:
    """For every instruction the weights, as a flat piece of one tensor, that it fetches; None for nothing.

    All weights are one stream, in the order in which they are multiplied. An instruction fetches what comes after its
    own, up to `ahead_bytes` past them, less what was fetched already.
    """
    weights = [_weights_of(step) for step in instructions]
    stream = [piece for pieces in weights for piece in pieces]
    found: list[torch.Tensor | None] = []
    end = fetched = 0
    for pieces in weights:
        end += sum(piece.nbytes for piece in pieces)
        fetched = max(fetched, end)
        piece = _piece_at(stream, fetched, end + ahead_bytes - fetched)
        found.append(piece)
        fetched += 0 if piece is None else piece.nbytes
    return found


def _weights_of(step: Instruction) -> list[torch.Tensor]:
    """An instruction's weights as flat tensors, in the order in which they are read."""
    if isinstance(step, Rows):
        products = [step.product] if step.up is None else [step.product, step.up]
        return [product.weight.flatten() for product in products if product.weight.is_contiguous()]
    if isinstance(step, Heads):
        return [head.u.flatten() for head in step.factors]
    return []


def _piece_at(stream: Sequence[torch.Tensor], at: int, length: int) -> torch.Tensor | None:
    """What lies `at` bytes into the stream, at most `length` bytes of one tensor, in whole lines."""
    for piece in stream:
        if at < piece.nbytes:
            size = piece.element_size()
            first = at // LINE_BYTES * LINE_BYTES // size
            count = min(length, piece.nbytes - at) // LINE_BYTES * LINE_BYTES // size
            return piece[first : first + count] if count > 0 else None
        at -= piece.nbytes
    return None
