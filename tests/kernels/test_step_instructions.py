"""Every instruction of a step by itself, against formulas written out in fp64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import skip_without_interpreter

from flashsvd.kernels.gate import relative_error
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
    launch,
    prepare_step,
)

EPS = 1e-2
BACKENDS = [
    "naive",
    "interpret",
    pytest.param("triton", marks=pytest.mark.gpu),
]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
LIMIT = {torch.float32: 2e-6, torch.float16: 2e-3}
every_dtype = pytest.mark.parametrize("dtype", LIMIT, ids=["fp32", "fp16"])


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", launch.INTERPRETED._replace(multiprocessors=3))


@pytest.fixture
def device(backend: str) -> str:
    skip_without_interpreter(backend)
    return "cuda" if backend == "triton" else "cpu"


class Draw:
    """Random tensors of a dtype on a device, and where to write."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=self.generator) * scale).to(self.device, self.dtype)

    def out(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.full(shape, math.nan, dtype=dtype or self.dtype, device=self.device)

    def program(self, *steps: Any, batch: int, **others: Any) -> Program:
        whole: dict[str, Any] = {
            "tokens": torch.arange(batch, device=self.device) % 5,
            "place": torch.tensor(0, dtype=torch.int32, device=self.device),
            "first": torch.zeros(batch, dtype=torch.int32, device=self.device),
            "turns": None,
            "heads": 1,
            "eps": EPS,
            "activation": "silu",
        }
        return Program(steps, **{**whole, **others})


def wide(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.double().cpu() for tensor in tensors)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": lambda t: t / (1 + torch.exp(-t)),
    "relu": lambda t: torch.where(t > 0, t, 0),
    "gelu": lambda t: t * torch.special.ndtr(t),
    "gelu_tanh": lambda t: t / (1 + torch.exp(-math.sqrt(8 / math.pi) * (t + 0.044715 * t**3))),
}
# activated, gated, biases of the two, normed, added, next
OPTIONS = {
    "plain": (False, False, (False, False), (False, False), False, False),
    "all": (True, True, (True, True), (True, True), True, True),
    "a bias": (False, False, (True, False), (False, False), False, False),
    "normed, a bias": (False, False, (True, False), (True, False), False, False),
    "activated": (True, False, (True, False), (False, False), False, False),
    "the gate alone has a bias": (True, True, (True, False), (False, False), False, False),
    "up alone has a bias": (True, True, (False, True), (False, False), False, False),
    "the gate alone is normed": (True, True, (False, False), (True, False), False, False),
    "up alone is normed": (True, True, (False, False), (False, True), False, False),
    "two products, no activation": (False, True, (True, True), (False, False), False, False),
    "added": (False, False, (False, False), (False, False), True, False),
    "added, for a norm": (False, False, (True, False), (False, False), True, True),
    "for a norm": (False, False, (False, False), (True, False), False, True),
}


@every_backend
@every_dtype
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_rows(dtype: torch.dtype, batch: int, options: str, backend: str, device: str) -> None:
    activated, gated, biased, normed, added, following = OPTIONS[options]
    draw = Draw(dtype, device)
    hidden, rows = 24, 40
    table, gain = draw(5, hidden), 1 + draw(hidden, scale=0.3)
    x, scaled, squares = (
        draw.out(batch, hidden),
        draw.out(batch, hidden),
        draw.out(batch, 64, dtype=torch.float32),
    )
    before = Embed(table, None, 0, x, Scaled(gain, scaled, Squares(squares, hidden)))
    # The two products read columns of one buffer, and one of them the hidden state where it is normed.
    other = draw(batch, 48)
    products = []
    for is_normed, is_biased, columns in zip(normed, biased, (slice(0, 16), slice(16, 48)), strict=True):
        source = scaled if is_normed else other[:, columns]
        weight = draw(rows, source.shape[1], scale=source.shape[1] ** -0.5)
        bias = draw(rows) if is_biased else None
        products.append(Product(source, weight, bias, Squares(squares, hidden) if is_normed else None))
    residual = draw(batch, rows)
    out, left, sums = draw.out(batch, rows), draw.out(batch, rows), draw.out(batch, 64, dtype=torch.float32)
    after = Scaled(1 + draw(rows, scale=0.3), left, Squares(sums, rows))
    # What is left for a norm is read by one.
    reader = Rows(
        Product(left[:, :16], draw(8, 16), None, Squares(sums, rows)), draw.out(batch, 8, dtype=torch.float32)
    )
    step = Rows(
        products[0],
        out,
        activated,
        products[1] if gated else None,
        residual if added else None,
        after if following else None,
    )
    activation = "gelu_tanh" if options == "all" else "silu"
    steps = [before, step, *([reader] if following else [])]
    prepare_step(draw.program(*steps, batch=batch, activation=activation), backend)()

    rstd = (table.double().cpu()[:batch].square().mean(1, keepdim=True) + EPS).rsqrt()

    def product(which: int) -> torch.Tensor:
        given = products[which]
        source = (
            table[:batch].double().cpu() * gain.double().cpu() * rstd if normed[which] else wide(given.x)[0]
        )
        y = source @ given.weight.double().cpu().T
        return y if given.bias is None else y + given.bias.double().cpu()

    expected = product(0)
    if activated:
        expected = ACTIVATIONS[activation](expected)
    if gated:
        expected = expected * product(1)
    if added:
        expected = expected + residual.double().cpu()
    assert relative_error(out, expected) < LIMIT[dtype]
    if following:
        assert relative_error(left, expected * after.weight.double().cpu()) < 2 * LIMIT[dtype]
        norm = (expected.square().mean(1, keepdim=True) + EPS).rsqrt()
        read = (expected * after.weight.double().cpu() * norm)[
            :, :16
        ] @ reader.product.weight.double().cpu().T
        assert relative_error(reader.out, read) < 2 * LIMIT[dtype]


@every_backend
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_activation(activation: str, batch: int, backend: str, device: str) -> None:
    draw = Draw(torch.float32, device)
    x, weight, out = draw(batch, 16, scale=4), draw(24, 16, scale=0.5), draw.out(batch, 24)
    step = Rows(Product(x, weight, None), out, activated=True)
    prepare_step(draw.program(step, batch=batch, activation=activation), backend)()
    expected = ACTIVATIONS[activation](x.double().cpu() @ weight.double().cpu().T)
    assert relative_error(out, expected) < 2e-6


@every_backend
@pytest.mark.parametrize(
    ("batch", "rows", "width"), [(1, 7, 1032), (1, 33, 8), (2, 70, 264), (17, 5, 520), (2, 5, 1032)]
)
def test_products_of_any_size_write_their_columns_alone(
    batch: int, rows: int, width: int, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths over several tiles and shares, one of them empty, and rows that fill none, into columns of something
    wider."""
    monkeypatch.setattr(launch, "INTERPRETED", launch.INTERPRETED._replace(multiprocessors=132))
    draw = Draw(torch.float32, device)
    x, weight = draw(batch, width), draw(rows, width, scale=width**-0.5)
    out = draw.out(batch, rows + 9)
    prepare_step(draw.program(Rows(Product(x, weight, None), out[:, 4:-5]), batch=batch), backend)()
    assert relative_error(out[:, 4:-5], x.double().cpu() @ weight.double().cpu().T) < 2e-6
    assert out[:, :4].isnan().all() and out[:, -5:].isnan().all()


@every_backend
@every_dtype
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shares", [1, 2, 4])
def test_heads(dtype: torch.dtype, batch: int, shares: int, backend: str, device: str) -> None:
    """Heads of unlike ranks, from any columns of P, into any columns; the others keep what they hold."""
    draw = Draw(dtype, device)
    h, ranks, places, columns = 24, (8, 40, 16), (48, 0, 96), (0, 8, 40)
    k_at, v_at = 3 * h, 4 * h
    p = draw(batch, 64)[:, :56]
    factors = tuple(
        HeadFactor(column, draw(rank, h, scale=rank**-0.5), at)
        for rank, column, at in zip(ranks, columns, places, strict=True)
    )
    out = torch.zeros(shares, batch, v_at + h, device=device)
    out[:, :, k_at:v_at] = 7.0
    # Attention says in how many shares the heads are.
    cache = draw(batch, 1, 2, h)
    attend = Attend(
        out, None, None, None, cache, cache.clone(), k_at, v_at, None, 1.0, draw.out(batch, 3 * h)
    )
    prepare_step(draw.program(Heads(p, factors, out), attend, batch=batch, heads=3), backend)()
    found = out.sum(0).double().cpu()
    for factor, rank in zip(factors, ranks, strict=True):
        expected = p[:, factor.column : factor.column + rank].double().cpu() @ factor.u.double().cpu()
        assert relative_error(found[:, factor.at : factor.at + h], expected) < LIMIT[dtype]
    assert (out[:, :, k_at:v_at] == 7.0).all() and not out[:, :, h : 2 * h].any()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs (i, i + d/2) of x [d] turned."""
    half = len(x) // 2
    left, right = x[:half], x[half:]
    return torch.cat([left * cos[:half] - right * sin[:half], right * cos[half:] + left * sin[half:]])


WAYS: dict[str, dict[str, Any]] = {
    "one query to a head": {},
    "groups": {"heads": 6},
    "a single kv head": {"heads": 3, "kv_heads": 1},
    "window": {"window": 3},
    "a window of the token alone": {"window": 0, "heads": 4},
    "padded": {"first": (0, 5, 9)},
    "padded, a window": {"first": (0, 5, 9), "window": 4},
    "biases and norms": {"bias": True, "normed": True},
    "norms, nothing turned": {"normed": True, "turns": False},
    "nothing turned": {"turns": False, "heads": 4},
    "narrow values": {"value": 8, "heads": 4},
    "wide values": {"value": 24},
    "the first token": {"place": 0},
    "long": {"place": 130, "first": (0, 7, 129)},
}


@every_backend
@every_dtype
@pytest.mark.parametrize("way", WAYS)
def test_attention(dtype: torch.dtype, way: str, backend: str, device: str) -> None:
    """One query, one key and one value at a time, by loops."""
    draw = Draw(dtype, device)
    given: dict[str, Any] = {
        "heads": 2,
        "kv_heads": 2,
        "d": 16,
        "value": 16,
        "place": 9,
        "first": (0, 0, 0),
    } | WAYS[way]
    heads, kv_heads, d, value, place = (given[name] for name in ("heads", "kv_heads", "d", "value", "place"))
    first, window, batch, shares, scale = given["first"], given.get("window"), 3, 2, 0.3
    k_at, v_at = heads * d, (heads + kv_heads) * d
    columns = v_at + kv_heads * value
    source = torch.randn(shares, batch, columns, generator=draw.generator).to(device)
    bias = draw(columns) if given.get("bias") else None
    q_norm, k_norm = norms = [1 + draw(d, scale=0.3) if given.get("normed") else None for _ in "qk"]
    k_cache, v_cache = draw(batch, kv_heads, place + 3, d), draw(batch, kv_heads, place + 3, value)
    # What must not be read; plain torch reads padding, and gives it no weight.
    padding = 50.0 if backend == "naive" else math.nan
    for b in range(batch):
        k_cache[b, :, : first[b]], v_cache[b, :, : first[b]] = padding, padding
    k_cache[:, :, place:], v_cache[:, :, place:] = math.nan, math.nan
    kept = k_cache.clone(), v_cache.clone()
    angles = torch.randn(place + 3, d // 2, generator=draw.generator).repeat(1, 2).to(device)
    turns = (angles.cos(), angles.sin()) if given.get("turns", True) else None
    out = draw.out(batch, heads * value)
    step = Attend(source, bias, q_norm, k_norm, k_cache, v_cache, k_at, v_at, window, scale, out)
    program = draw.program(
        step,
        batch=batch,
        turns=turns,
        heads=heads,
        place=torch.tensor(place, dtype=torch.int32, device=device),
        first=torch.tensor(first, dtype=torch.int32, device=device),
    )
    prepare_step(program, backend)()

    y = source.double().cpu().sum(0) + (0 if bias is None else bias.double().cpu())
    # As a linear's output is rounded.
    y = y.to(dtype).double()

    def made(b: int, at: int, which: int) -> torch.Tensor:
        head, norm = y[b, at : at + d], norms[which]
        if norm is not None:
            head = (head * (head.square().mean() + EPS).rsqrt() * norm.double().cpu()).to(dtype).double()
        if turns is None:
            return head
        return turned(head, *(table[place - first[b]].double().cpu() for table in turns))

    expected = torch.zeros(batch, heads * value, dtype=torch.float64)
    for b, head in itertools.product(range(batch), range(heads)):
        kv = head // (heads // kv_heads)
        start = max(first[b], 0 if window is None else place - window)
        key, own = made(b, k_at + kv * d, 1), y[b, v_at + kv * value : v_at + (kv + 1) * value]
        assert relative_error(k_cache[b, kv, place], key) < LIMIT[dtype]
        assert relative_error(v_cache[b, kv, place], own) < LIMIT[dtype]
        keys = [*kept[0][b, kv, start:place].double().cpu(), key.to(dtype).double()]
        values = [*kept[1][b, kv, start:place].double().cpu(), own]
        query = made(b, head * d, 0).to(dtype).double()
        weights = torch.stack([query @ one * scale for one in keys]).softmax(0)
        expected[b, head * value : (head + 1) * value] = sum(
            weight * one for weight, one in zip(weights, values, strict=True)
        )
    assert relative_error(out, expected) < LIMIT[dtype]
    # Nothing else is written.
    for cache, before in zip((k_cache, v_cache), kept, strict=True):
        others = [i for i in range(place + 3) if i != place]
        assert torch.equal(cache[:, :, others].nan_to_num(9.0), before[:, :, others].nan_to_num(9.0))


@every_backend
@every_dtype
@pytest.mark.parametrize("width", [8, 1032])
def test_embeddings_and_layer_norm(dtype: torch.dtype, width: int, backend: str, device: str) -> None:
    draw = Draw(dtype, device)
    table, positions = draw(5, width), draw(12, width)
    weight, bias = 1 + draw(width, scale=0.3), draw(width)
    x, out = draw.out(3, width), draw.out(3, width)
    program = draw.program(
        Embed(table, positions, 2, x, None),
        Norm(x, weight, bias, out),
        batch=3,
        place=torch.tensor(9, dtype=torch.int32, device=device),
        first=torch.tensor([0, 4, 9], dtype=torch.int32, device=device),
    )
    prepare_step(program, backend)()
    rows = table[:3].double().cpu() + positions[[11, 7, 2]].double().cpu()
    assert relative_error(x, rows) < LIMIT[dtype]
    rows = x.double().cpu()
    about = rows - rows.mean(1, keepdim=True)
    normed = about * (about.square().mean(1, keepdim=True) + EPS).rsqrt()
    expected = normed * weight.double().cpu() + bias.double().cpu()
    assert relative_error(out, expected) < LIMIT[dtype]


@every_backend
@pytest.mark.parametrize("width", [8, 1032])
def test_an_embedding_leaves_its_squares(width: int, backend: str, device: str) -> None:
    """Also where several programs make one row."""
    draw = Draw(torch.float32, device)
    table, gain = draw(5, width), 1 + draw(width, scale=0.3)
    x, scaled, squares = draw.out(2, width), draw.out(2, width), Squares(draw.out(2, 64), width)
    weight, out = draw(8, width, scale=width**-0.5), draw.out(2, 8)
    steps = (
        Embed(table, None, 0, x, Scaled(gain, scaled, squares)),
        Rows(Product(scaled, weight, None, squares), out),
    )
    prepare_step(draw.program(*steps, batch=2), backend)()
    rows = table[:2].double().cpu()
    assert relative_error(x, rows) == 0
    normed = rows * (rows.square().mean(1, keepdim=True) + EPS).rsqrt() * gain.double().cpu()
    assert relative_error(out, normed @ weight.double().cpu().T) < 2e-6


def test_an_unknown_instruction_is_named() -> None:
    draw = Draw(torch.float32, "cpu")
    with pytest.raises(TypeError, match="no such instruction: 'halt'"):
        prepare_step(draw.program("halt", batch=1), "naive")()
