"""A decoder and its cache -> the program of one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.decoding.cache import FixedCache
from flashsvd.decoding.layers import Layer, Model
from flashsvd.engines.feed_forward import Branch
from flashsvd.engines.parts import Heads as PackedHeads
from flashsvd.engines.sublayer import Norm, bias_of
from flashsvd.kernels.step import (
    Attend,
    Embed,
    HeadFactor,
    Heads,
    Instruction,
    Product,
    Program,
    Rows,
    Scaled,
    Squares,
)
from flashsvd.kernels.step import Norm as NormStep
from flashsvd.kernels.step.tiles import shares_of

SHARES = 4
"""Parts that a head's rank is cut into."""


@dataclass(frozen=True)
class Step:
    """One step's program and what its caller writes and reads: tokens [B], logits [B, V] in fp32, and the place of the
    new token. workspace_bytes: of its buffers."""

    program: Program
    tokens: torch.Tensor
    logits: torch.Tensor
    place: torch.Tensor
    first: torch.Tensor
    workspace_bytes: int


def decode_step(
    model: Model, cache: FixedCache, batch: int, turns: tuple[torch.Tensor, torch.Tensor] | None
) -> Step:
    """The program that reads one token of every sequence and leaves the logits of the next.

    turns: cosines and sines fp32 [positions, head dim] of rotary positions, None for learned ones.
    """
    return _Writer(model, cache, batch, turns).step()


class _Writer:
    """Writes instructions one after another; buffers that no instruction reads any more are used again."""

    def __init__(
        self, model: Model, cache: FixedCache, batch: int, turns: tuple[torch.Tensor, torch.Tensor] | None
    ) -> None:
        self._model, self._cache, self._batch, self._turns = model, cache, batch, turns
        self._like = model.embedding
        self._steps: list[Instruction] = []
        self._buffers: dict[Any, torch.Tensor] = {}
        self._is_factored = any(
            side.u is not None
            for layer in model.layers
            for side in (layer.attention.q, layer.attention.k, layer.attention.v)
        )
        hidden = model.shape.hidden
        self._x = self._buffer("x", hidden)
        self._source = self._buffer("source", hidden)
        self._squares = Squares(self._fp32("squares", batch, max(64, hidden)), hidden)

    def step(self) -> Step:
        """The whole program."""
        model, device = self._model, self._like.device
        layers = model.layers
        tokens = torch.zeros(self._batch, dtype=torch.int64, device=device)
        place = torch.zeros((), dtype=torch.int32, device=device)
        first = torch.zeros(self._batch, dtype=torch.int32, device=device)
        table, offset = model.positions or (None, 0)
        self._steps.append(
            Embed(model.embedding, table, offset, self._x, self._next(layers[0].attention_norm))
        )
        for index, layer in enumerate(layers):
            after = layers[index + 1].attention_norm if index + 1 < len(layers) else model.final_norm
            self._attention(index, layer)
            self._feed_forward(layer, after)
        logits = self._fp32("logits", self._batch, len(model.head))
        source, normed = self._normed(model.final_norm)
        self._steps.append(Rows(Product(source, model.head, None, normed), logits))
        program = Program(
            tuple(self._steps),
            tokens,
            place,
            first,
            self._turns,
            model.shape.heads,
            model.eps,
            layers[0].feed_forward.activation,
        )
        held = sum(buffer.nbytes for buffer in self._buffers.values())
        return Step(program, tokens, logits, place, first, held)

    def _buffer(self, name: Any, columns: int) -> torch.Tensor:
        """[B, columns] of the model's dtype, one for each name and width."""
        key = (name, columns)
        if key not in self._buffers:
            self._buffers[key] = self._like.new_zeros(self._batch, columns)
        return self._buffers[key]

    def _fp32(self, name: Any, *shape: int) -> torch.Tensor:
        key = (name, shape)
        if key not in self._buffers:
            self._buffers[key] = torch.zeros(shape, dtype=torch.float32, device=self._like.device)
        return self._buffers[key]

    def _next(self, norm: Norm) -> Scaled | None:
        """What a hidden state leaves for the norm that reads it next."""
        if norm.kind == "layer":
            return None
        return Scaled(norm.module.get_parameter("weight").detach(), self._source, self._squares)

    def _normed(self, norm: Norm) -> tuple[torch.Tensor, Squares | None]:
        """The hidden state as a product reads it, and what that still has to be divided by."""
        if norm.kind == "rms":
            return self._source, self._squares
        weight, bias = norm.module.get_parameter("weight").detach(), bias_of(norm.module)
        shift = torch.zeros_like(weight) if bias is None else bias.detach()
        self._steps.append(NormStep(self._x, weight, shift, self._source))
        return self._source, None

    def _attention(self, index: int, layer: Layer) -> None:
        parts = layer.attention
        sides = (parts.q, parts.k, parts.v)
        columns = [side.heads * side.width for side in sides]
        starts = [0, columns[0], columns[0] + columns[1]]
        heads = self._heads(sides, sum(columns))
        source, normed = self._normed(layer.attention_norm)
        # Dense, or kept in rank space: columns of the first product are the heads. Neighbours are one product.
        kept = [(side, start) for side, start in zip(sides, starts, strict=True) if side.u is None]
        while kept:
            side, start = kept.pop(0)
            count = side.columns
            while kept and (side.at + count, start + count) == (kept[0][0].at, kept[0][1]):
                count += kept.pop(0)[0].columns
            rows = parts.first[side.at : side.at + count]
            self._steps.append(Rows(Product(source, rows, None, normed), heads[0, :, start : start + count]))
        rebuilt = [(side, start) for side, start in zip(sides, starts, strict=True) if side.u is not None]
        if rebuilt:
            low = min(side.at for side, _ in rebuilt)
            high = max(side.at + side.columns for side, _ in rebuilt)
            p = self._buffer("p", -(-(high - low) // 8) * 8)
            self._steps.append(Rows(Product(source, parts.first[low:high], None, normed), p[:, : high - low]))
            factors = [factor for side, start in rebuilt for factor in _factors(side, low, start)]
            self._steps.append(Heads(p, tuple(factors), heads))
        keys, values = self._cache.of_layer(index)
        q_norm, k_norm = layer.head_norms or (None, None)
        attended = self._buffer("attended", parts.q.heads * parts.v.width)
        self._steps.append(
            Attend(
                heads,
                _bias(layer, columns),
                _weight(q_norm),
                _weight(k_norm),
                keys,
                values,
                starts[1],
                starts[2],
                layer.window,
                parts.scale,
                attended,
            )
        )
        self._chain(attended, parts.out, parts.out_bias, layer.feed_forward_norm)

    def _heads(self, sides: Sequence[PackedHeads], columns: int) -> torch.Tensor:
        """Where q, k and v of a layer go, fp32 [shares, B, columns]. Layers that leave the same shares of every head
        untouched have one: those stay zero."""
        shares = SHARES if self._is_factored else 1
        used = tuple(
            (side.width, 1)
            if side.layout is None
            else (side.width, *(len(shares_of(r, shares)) for r in side.layout.ranks))
            for side in sides
        )
        return self._fp32(("heads", used), shares, self._batch, columns)

    def _feed_forward(self, layer: Layer, after: Norm) -> None:
        parts = layer.feed_forward
        source, normed = self._normed(layer.feed_forward_norm)
        packed = None
        if parts.first is not None:
            packed = self._buffer("packed", len(parts.first))
            self._steps.append(Rows(Product(source, parts.first, None, normed), packed))

        def product(branch: Branch) -> Product:
            if branch.columns is None:
                return Product(source, branch.u, branch.bias, normed)
            assert packed is not None
            return Product(packed[:, branch.columns], branch.u, branch.bias)

        wide = self._buffer("wide", len(parts.up.u))
        up = None if parts.gate is None else product(parts.up)
        self._steps.append(Rows(product(parts.gate or parts.up), wide, activated=True, up=up))
        self._chain(wide, parts.down, parts.down_bias, after)

    def _chain(
        self, source: torch.Tensor, weights: tuple[torch.Tensor, ...], bias: torch.Tensor | None, after: Norm
    ) -> None:
        """One weight or two factors, and the residual."""
        for weight in weights[:-1]:
            through = self._buffer("through", len(weight))
            self._steps.append(Rows(Product(source, weight, None), through))
            source = through
        last = Product(source, weights[-1], None if bias is None else bias.detach())
        self._steps.append(Rows(last, self._x, added=self._x, next=self._next(after)))


def _factors(side: PackedHeads, low: int, start: int) -> Iterator[HeadFactor]:
    """The heads of q, k or v: where each reads P, whose first column is `low` of the packed one, and where it goes."""
    assert side.u is not None and side.layout is not None
    for head, (column, row, rank) in enumerate(side.layout.spans):
        yield HeadFactor(side.at - low + column, side.u[row : row + rank], start + head * side.width)


def _bias(layer: Layer, columns: Sequence[int]) -> torch.Tensor | None:
    """The biases of q, k and v side by side, zeros where one has none; None where none has one."""
    parts = layer.attention
    found: list[torch.Tensor | None] = []
    for side in (parts.q, parts.k, parts.v):
        if side.u is None and parts.first_bias is not None:
            found.append(parts.first_bias[side.at : side.at + side.columns])
        else:
            found.append(side.bias)
    if all(bias is None for bias in found):
        return None
    zeros = (parts.first.new_zeros(count) for count in columns)
    return torch.cat(
        [zero if bias is None else bias.detach() for bias, zero in zip(found, zeros, strict=True)]
    )


def _weight(norm: Norm | None) -> torch.Tensor | None:
    """A norm's weight."""
    if norm is None:
        return None
    weight: torch.Tensor = norm.module.get_parameter("weight").detach()
    return weight
