"""Small decoders as programs of the step kernel, with random tensors, and the same in higher precision."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from flashsvd.kernels.step import (
    Attend,
    Embed,
    HeadFactor,
    Heads,
    Norm,
    Product,
    Program,
    Rows,
    Scaled,
    Squares,
)


@dataclass(frozen=True)
class StepCase:
    """One decoder, with a layer for each of `ranks`. `whole`: q, k and v have one rank space for all heads."""

    name: str
    batch: int = 1
    hidden: int = 32
    width: int = 56
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 16
    ranks: tuple[int, ...] = (24,)
    whole: bool = True
    dense_attention: bool = False
    value_rank: int | None = None
    gated: bool = True
    bias: bool = False
    head_norm: bool = False
    rotary: bool = True
    layer_norm: bool = False
    window: int | None = None
    shares: int = 2
    place: int = 21
    capacity: int = 40
    padded: bool = False
    activation: str = "silu"
    vocabulary: int = 20


CASES = (
    StepCase("one sequence, all alike"),
    StepCase("one sequence, ranks per head, biases", whole=False, bias=True, ranks=(8, 24)),
    StepCase("dense attention projections", dense_attention=True, shares=1),
    StepCase("groups of queries", heads=6, head_dim=8),
    StepCase("groups, norms of heads", heads=4, kv_heads=1, head_norm=True, batch=2),
    StepCase("norms of heads, no turns", head_norm=True, rotary=False, layer_norm=True, whole=False),
    StepCase("values in rank space", value_rank=8, batch=3, padded=True),
    StepCase("window, left padding", window=9, padded=True, batch=3),
    StepCase("a window of the token alone", window=0, heads=6, batch=2),
    StepCase("first token", place=0, batch=2),
    StepCase("no gate, LayerNorm, learned positions", gated=False, layer_norm=True, rotary=False, bias=True,
             activation="gelu_tanh"),
    StepCase("the same for several", gated=False, layer_norm=True, rotary=False, bias=True, batch=5, padded=True,
             activation="relu"),
    StepCase("wide, for many", hidden=72, width=520, ranks=(40,), batch=17, shares=4, heads=1, kv_heads=1),
    StepCase("one sequence, wide and long", place=300, capacity=320, hidden=40, width=520, ranks=(40,), shares=4),
)  # fmt: skip


class _Maker:
    def __init__(self, case: StepCase, dtype: torch.dtype, seed: int) -> None:
        self.case, self.dtype = case, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale
        return drawn.to(self.dtype)

    def weight(self, out: int, width: int) -> torch.Tensor:
        return self.normal(out, width, scale=width**-0.5)

    def gain(self, width: int) -> torch.Tensor:
        """A norm's weight."""
        return 1 + self.normal(width, scale=0.2)

    def buffer(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=dtype or self.dtype)

    def bias(self, size: int) -> torch.Tensor | None:
        return self.normal(size, scale=0.3) if self.case.bias else None


def step_program(case: StepCase, dtype: torch.dtype, seed: int = 0) -> Program:
    """A program on the CPU; what a step writes holds NaN, the caches noise up to the new token and NaN from there."""
    make = _Maker(case, dtype, seed)
    batch, hidden = case.batch, case.hidden
    x, scaled = make.buffer(batch, hidden), make.buffer(batch, hidden)
    squares = Squares(torch.full((batch, max(64, hidden)), float("nan")), hidden)

    def following() -> Scaled | None:
        return None if case.layer_norm else Scaled(make.gain(hidden), scaled, squares)

    positions = None if case.rotary else make.normal(case.capacity + 2, hidden)
    steps: list[Any] = [
        Embed(make.normal(case.vocabulary, hidden), positions, 0 if case.rotary else 2, x, following())
    ]

    def source() -> tuple[torch.Tensor, Squares | None]:
        if not case.layer_norm:
            return scaled, squares
        normed = make.buffer(batch, hidden)
        steps.append(Norm(x, make.gain(hidden), make.normal(hidden, scale=0.2), normed))
        return normed, None

    def chain(source: torch.Tensor, normed: Squares | None, out: int, rank: int, **last: Any) -> None:
        """Two factors, the second with what `last` says."""
        p = make.buffer(batch, rank)
        steps.append(Rows(Product(source, make.weight(rank, source.shape[1]), None, normed), p))
        product = Product(p, make.weight(out, rank), make.bias(out))
        target = x if "added" in last else make.buffer(batch, out)
        steps.append(Rows(product, target, **last))

    for rank in case.ranks:
        _attention(case, make, steps, source, rank)
        chain(steps[-1].out, None, hidden, rank, added=x, next=following())
        start, normed = source()
        if case.gated:
            both = make.buffer(batch, rank + rank + 8)
            steps.append(Rows(Product(start, make.weight(both.shape[1], hidden), None, normed), both))
            wide = make.buffer(batch, case.width)
            left, right = both[:, :rank], both[:, rank:]
            gate = Product(left, make.weight(case.width, rank), make.bias(case.width))
            up = Product(right, make.weight(case.width, rank + 8), make.bias(case.width))
            steps.append(Rows(gate, wide, activated=True, up=up))
        else:
            chain(start, normed, case.width, rank, activated=True)
            wide = steps[-1].out
        chain(wide, None, hidden, rank + 8, added=x, next=following())
    start, normed = source()
    head = make.weight(case.vocabulary, hidden)
    logits = make.buffer(batch, case.vocabulary, dtype=torch.float32)
    steps.append(Rows(Product(start, head, None, normed), logits))
    turns = None
    if case.rotary:
        angles = make.normal(case.capacity, case.head_dim // 2).float().repeat(1, 2)
        turns = angles.cos(), angles.sin()
    first = torch.zeros(batch, dtype=torch.int32)
    if case.padded:
        first = (torch.arange(batch) * 5 % (case.place + 1)).to(torch.int32)
    return Program(
        tuple(steps),
        torch.randint(case.vocabulary, (batch,), generator=make.generator),
        torch.tensor(case.place, dtype=torch.int32),
        first,
        turns,
        case.heads,
        1e-5,
        case.activation,
    )


def _attention(case: StepCase, make: _Maker, steps: list[Any], source: Any, rank: int) -> None:
    """q, k and v, dense, by factors of their heads, or v in rank space beside the other two; and attention."""
    batch, h, value = case.batch, case.head_dim, case.value_rank or case.head_dim
    counts = (case.heads, case.kv_heads, case.kv_heads)
    k_at, v_at = case.heads * h, (case.heads + case.kv_heads) * h
    columns = v_at + case.kv_heads * value
    out = torch.zeros(case.shares, batch, columns)
    start, normed = source()
    rebuilt = () if case.dense_attention else counts[:2] if case.value_rank else counts
    dense = sum(rebuilt) * h
    if dense < columns:
        product = Product(start, make.weight(columns - dense, case.hidden), None, normed)
        steps.append(Rows(product, out[0][:, dense:]))
    if rebuilt:
        spans = [rank if case.whole else rank * count for count in rebuilt]
        p = make.buffer(batch, sum(spans))
        steps.append(Rows(Product(start, make.weight(sum(spans), case.hidden), None, normed), p))
        factors: list[HeadFactor] = []
        for kind, count in enumerate(rebuilt):
            for head in range(count):
                column = sum(spans[:kind]) + (0 if case.whole else head * rank)
                factors.append(HeadFactor(column, make.weight(h, rank).T.contiguous(), len(factors) * h))
        steps.append(Heads(p, tuple(factors), out))
    k_cache, v_cache = (make.normal(batch, case.kv_heads, case.capacity, width) for width in (h, value))
    k_cache[:, :, case.place :], v_cache[:, :, case.place :] = float("nan"), float("nan")
    q_norm, k_norm = (make.gain(h) if case.head_norm else None for _ in "qk")
    bias, attended = make.bias(columns), make.buffer(batch, case.heads * value)
    steps.append(
        Attend(out, bias, q_norm, k_norm, k_cache, v_cache, k_at, v_at, case.window, h**-0.5, attended)
    )


def mapped(program: Program, dtype: torch.dtype | None = None, device: str = "cpu") -> Program:
    """A copy whose tensors are elsewhere, or of another dtype where they are of the weights'; what was one memory
    stays one."""
    weights = next(step.product.weight for step in program.instructions if isinstance(step, Rows)).dtype
    stores: dict[int, torch.Tensor] = {}

    def tensor(old: torch.Tensor) -> torch.Tensor:
        key = old.untyped_storage().data_ptr()
        if key not in stores:
            flat = torch.empty(0, dtype=old.dtype, device=old.device).set_(old.untyped_storage())
            wide = dtype if dtype is not None and (old.dtype in (weights, torch.float32)) else old.dtype
            stores[key] = flat.to(device, wide, copy=True)
        return stores[key].as_strided(old.shape, old.stride(), old.storage_offset())

    def walk(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tensor(value)
        if is_dataclass(value) and not isinstance(value, type):
            changed = copy.copy(value)
            for field in fields(value):
                object.__setattr__(changed, field.name, walk(getattr(value, field.name)))
            return changed
        return tuple(walk(item) for item in value) if isinstance(value, tuple) else value

    found: Program = walk(program)
    return found


def results(program: Program) -> dict[str, torch.Tensor]:
    """What a step leaves: the logits, the hidden state, and every layer's new keys and values."""
    found = {"logits": program.instructions[-1].out, "hidden": program.instructions[0].out}
    for index, step in enumerate(s for s in program.instructions if isinstance(s, Attend)):
        now = int(program.place)
        found |= {f"keys {index}": step.k_cache[:, :, now], f"values {index}": step.v_cache[:, :, now]}
    return found
