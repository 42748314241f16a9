"""Rank-space attention: every backend against fp64, the odd shapes, in place, and bugs that must not pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CPU_BACKENDS, DTYPES, GPU_DTYPES, skip_without_interpreter
from rank_space_cases import (
    CASES,
    CAUSAL_CASES,
    GUARD,
    LONG,
    ON_GPU,
    Case,
    Inputs,
    expect,
    inputs_of,
    reference,
)

from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention, rank_space_attention
from flashsvd.kernels.gate import check, relative_error


@pytest.mark.parametrize("case", [*CASES, *CAUSAL_CASES, LONG], ids=lambda case: case.name)
def test_definition_is_torch_attention_of_every_head(case: Case) -> None:
    inputs = inputs_of(case, torch.float64)
    assert relative_error(inputs.run("naive"), reference(inputs)) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("case", [*CASES, *CAUSAL_CASES], ids=lambda case: case.name)
def test_passes_the_gate_on_guarded_slices(case: Case, backend: str, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    inputs = inputs_of(case, dtype)
    expect(inputs, inputs.packed().run(backend), case.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_passes_the_gate_on_a_long_sequence(dtype: torch.dtype) -> None:
    inputs = inputs_of(LONG, dtype)
    expect(inputs, inputs.run("torch"))


def test_stream_passes_the_gate_in_fp64() -> None:
    inputs = inputs_of(LONG, torch.float64)
    assert relative_error(inputs.run("torch"), reference(inputs)) < 1e-13


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
@pytest.mark.parametrize(
    "case",
    [
        Case("one tile", 63, (40, 7), (40, 7), mask="left"),
        Case("many tiles", 131, (16, 8), (16, 8), mask="random", batch=1),
        Case("groups", 63, (7, 40), (7, 40), group=2, mask="one empty"),
        Case("rank loop", 33, (200, 130), (200, 130)),
        Case("causal", 40, (16, 8), (16, 8), mask="random", causal=True, past=10),
    ],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_output_may_take_the_place_of_q(case: Case, backend: str, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    inputs = inputs_of(case, dtype)
    packed = inputs.packed()
    assert packed.run(backend, out=packed.q) is packed.q
    expect(inputs, packed.q, "in place")
    assert torch.equal(packed.k, inputs.k) and torch.equal(packed.v, inputs.v)
    assert packed.q._base is not None
    written = packed.q._base.isfinite().sum()
    assert written == inputs.q.numel() + inputs.k.numel() + inputs.v.numel()


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_writes_the_output_given_and_nothing_else(backend: str) -> None:
    skip_without_interpreter(backend)
    inputs = inputs_of(Case("", 33, (7, 40), (16, 1), group=2), torch.float32)
    buffer = torch.full((4, 35, 40), -7.0)
    out = buffer[1:3, 1:34, 3:37]
    assert inputs.run(backend, out=out) is out
    expect(inputs, out)
    assert (buffer == -7).sum() == buffer.numel() - out.numel()


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_a_sequence_with_no_key_is_exactly_zero(backend: str) -> None:
    skip_without_interpreter(backend)
    out = inputs_of(Case("", 33, (7, 16), (7, 16), mask="one empty"), torch.float32).run(backend)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert out[0].abs().min() > 0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_large_scores_neither_overflow_nor_vanish(backend: str) -> None:
    skip_without_interpreter(backend)
    inputs = inputs_of(Case("", 131, (7, 16), (7, 16), mask="left", batch=3), torch.float32)
    inputs = replace(inputs, scale=100.0)
    expect(inputs, inputs.run(backend))


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_an_empty_batch_gives_an_empty_output(backend: str) -> None:
    skip_without_interpreter(backend)
    case = Case("", 5, (7, 16), (8, 1), batch=0)
    assert inputs_of(case, torch.float32).run(backend).shape == (0, 5, 9)


# What a kernel gets wrong most easily. The gate must see each, in every dtype.
def drop_the_last_key(inputs: Inputs) -> Inputs:
    mask = torch.ones(inputs.q.shape[:2], dtype=torch.bool)
    mask[:, -1] = False
    return replace(inputs, mask=mask)


def read_keys_a_column_early(inputs: Inputs) -> Inputs:
    return replace(inputs, k=inputs.k.roll(1, -1))


def read_the_neighbours_values(inputs: Inputs) -> Inputs:
    return replace(inputs, v=inputs.v.roll(inputs.value.ranks[0], -1))


def skip_the_last_score_tile(inputs: Inputs) -> Inputs:
    k = inputs.k.clone()
    for start, _, rank in inputs.score.spans:
        k[..., start + rank - rank % 16 : start + rank] = 0
    return replace(inputs, k=k)


def skip_the_last_score_column(inputs: Inputs) -> Inputs:
    k = inputs.k.clone()
    k[..., inputs.score.ranks[0] - 1] = 0
    return replace(inputs, k=k)


def forget_the_scale(inputs: Inputs) -> Inputs:
    return replace(inputs, scale=1.0)


def take_kv_heads_in_turn(inputs: Inputs) -> Inputs:
    """Query head i reads kv head i % kv heads, where it should be i // group."""
    q = torch.stack(inputs.q.split(40, dim=-1))[[0, 2, 1, 3]]
    return replace(inputs, q=torch.cat(list(q), dim=-1))


def see_a_key_above_the_diagonal(inputs: Inputs) -> Inputs:
    """By one more key at the end, which nobody may attend to."""
    batch, keys = inputs.k.shape[:2]
    k, v = (torch.cat([part, part[:, -1:]], 1) for part in (inputs.k, inputs.v))
    return replace(inputs, k=k, v=v, mask=torch.arange(keys + 1).expand(batch, -1) < keys)


def see_every_key(inputs: Inputs) -> Inputs:
    return replace(inputs, causal=False)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("bug", [see_a_key_above_the_diagonal, see_every_key])
def test_the_gate_catches_keys_behind_a_query(bug, dtype: torch.dtype) -> None:
    inputs = inputs_of(Case("", 97, (40, 40), (40, 40), causal=True), dtype)
    expected, baseline = reference(inputs), inputs.run("naive")
    assert check(inputs.run("torch"), expected, baseline).passed
    assert not check(bug(inputs).run("torch"), expected, baseline).passed


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 64), window=st.none() | st.integers(0, 70), seed=st.integers(0, 99))
def test_pieces_of_a_prompt_give_what_the_whole_gives(cut: int, window: int | None, seed: int) -> None:
    case = Case("", 65, (7, 16), (3, 8), group=2, mask="left", causal=True, window=window)
    inputs = inputs_of(case, torch.float64, seed)
    last = replace(inputs, q=inputs.q[:, cut:])
    assert relative_error(last.run("torch"), inputs.run("torch")[:, cut:]) < 1e-12


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_tiles_above_the_diagonal_are_not_read(backend: str) -> None:
    """Masked values of NaN would spoil a row; where no tile reads them, they cannot."""
    skip_without_interpreter(backend)
    inputs = inputs_of(Case("", 300, (16,), (16,), batch=1, causal=True), torch.float32)
    v = inputs.v.clone()
    v[:, 256:] = torch.nan
    out = replace(inputs, v=v).run(backend)
    assert out[:, :256].isfinite().all() and out[:, 256:].isnan().all()


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize(
    "bug",
    [
        drop_the_last_key,
        read_keys_a_column_early,
        read_the_neighbours_values,
        skip_the_last_score_tile,
        skip_the_last_score_column,
        forget_the_scale,
        take_kv_heads_in_turn,
    ],
)
def test_the_gate_catches(bug, dtype: torch.dtype) -> None:
    inputs = inputs_of(Case("", 97, (40, 40), (40, 40), group=2), dtype)
    expected, baseline = reference(inputs), inputs.run("naive")
    assert check(inputs.run("torch"), expected, baseline).passed
    assert not check(bug(inputs).run("torch"), expected, baseline).passed


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), seq=st.integers(1, 80), masked=st.booleans())
def test_the_order_of_keys_does_not_matter(seed: int, seq: int, masked: bool) -> None:
    case = Case("", seq, (7, 16), (3, 8), mask="random" if masked else None)
    inputs = inputs_of(case, torch.float64, seed)
    order = torch.randperm(seq, generator=torch.Generator().manual_seed(seed))
    shuffled = replace(
        inputs,
        k=inputs.k[:, order],
        v=inputs.v[:, order],
        mask=None if inputs.mask is None else inputs.mask[:, order],
    )
    assert relative_error(shuffled.run("torch"), inputs.run("torch")) < 1e-12


def test_is_attention_on_factors_with_the_factors_absorbed() -> None:
    """What this op is for: q carries Aq·Akᵀ and bq·Akᵀ, and Av and bv come after it."""
    generator = torch.Generator().manual_seed(3)
    layout, dim = HeadLayout((7, 16)), 32

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (
        Projection(normal(2, 19, 23), normal(23, dim) / 4, normal(2 * dim), layout, None) for _ in range(3)
    )
    absorbed, after = [], []
    for head in range(2):
        (pq, uq, bq), (_, uk, _), (_, uv, bv) = (proj.head_parts(head, dim) for proj in (q, k, v))
        absorbed.append((pq @ uq + bq) @ uk.mT)
        after.append((uv, bv))
    in_rank_space = rank_space_attention(
        torch.cat(absorbed, -1), k.p, v.p, score=layout, value=layout, scale=dim**-0.5
    )
    rebuilt = torch.cat(
        [part @ u + b for part, (u, b) in zip(in_rank_space.split([7, 16], -1), after, strict=True)], -1
    )
    expected = flash_svd_attention(q, k, v, heads=2, head_dim=dim, backend="naive")
    assert relative_error(rebuilt, expected) < 1e-12


def test_no_graph_is_kept() -> None:
    inputs = inputs_of(Case("", 5, (7, 16), (7, 16)), torch.float32)
    assert not replace(inputs, q=inputs.q.requires_grad_()).run("torch").requires_grad


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_workspace_is_small(dtype: torch.dtype, group: int, peak_extra_bytes) -> None:
    inputs = inputs_of(Case("", 256, (7, 40, 64, 16), (64, 16, 7, 40), group, "right", 8), dtype)
    out = torch.zeros(8, 256, group * inputs.value.p_width, dtype=dtype)
    assert peak_extra_bytes(lambda: inputs.run("torch")) <= 1.5 * 2**20
    in_place = peak_extra_bytes(lambda: inputs.run("torch", out=out))
    assert in_place + out.untyped_storage().nbytes() <= 1.5 * 2**20
    assert peak_extra_bytes(lambda: inputs.run("naive")) > 4 * 2**20


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("guard", [0, GUARD])
@pytest.mark.parametrize("case", ON_GPU, ids=lambda case: case.name)
def test_compiled_kernel_passes_the_gate(case: Case, guard: int, dtype: torch.dtype) -> None:
    inputs = inputs_of(case, dtype)
    expect(inputs, inputs.to("cuda").packed(guard).run("triton"), case.name)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("guard", [0, GUARD])
@pytest.mark.parametrize(
    "ranks, group", [((40,) * 3, 1), ((32,) * 3, 1), ((64, 7), 4), ((200, 130), 1)], ids=str
)
def test_compiled_kernel_may_write_to_q(
    ranks: tuple[int, ...], group: int, guard: int, dtype: torch.dtype
) -> None:
    inputs = inputs_of(Case("", 1025, ranks, ranks, group, "right"), dtype)
    on_gpu = inputs.to("cuda").packed(guard)
    elsewhere = on_gpu.run("triton")
    on_gpu.run("triton", out=on_gpu.q)
    assert torch.equal(on_gpu.q, elsewhere)
    expect(inputs, elsewhere)


@pytest.mark.gpu
@pytest.mark.parametrize("seq", [97, 512, 1025])
def test_launches_repeat_bit_for_bit_and_keep_no_memory(seq: int) -> None:
    inputs = inputs_of(Case("", seq, (40,) * 4, (40,) * 4, mask="random"), torch.bfloat16).to("cuda").packed()
    first = inputs.run("triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        assert torch.equal(inputs.run("triton"), first)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_runs_in_a_cuda_graph() -> None:
    inputs = inputs_of(Case("", 97, (40, 16), (8, 40), mask="right"), torch.bfloat16).to("cuda")
    first = inputs.run("triton")
    out = torch.zeros_like(first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inputs.run("triton", out=out)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, first)
