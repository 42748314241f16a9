"""Attention on factors: every backend against fp64, the odd shapes, and bugs that must not pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import (
    CASES,
    LONG,
    AttentionCase,
    AttentionInputs,
    attention_inputs,
    attention_reference,
    same,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CPU_BACKENDS, DTYPES, GPU_DTYPES, guarded, skip_without_interpreter

from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention
from flashsvd.kernels.attention.stream import stream_attention
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.tiles import attention_stream_tiles


@pytest.mark.parametrize("case", [*CASES, LONG], ids=lambda case: case.name)
def test_definition_is_torch_attention_of_the_rebuilt_heads(case: AttentionCase) -> None:
    inputs = attention_inputs(case, torch.float64)
    assert relative_error(inputs.run("naive"), attention_reference(inputs)) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_passes_the_gate(case: AttentionCase, backend: str, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    inputs = attention_inputs(case, dtype)
    assert_close(
        inputs.map(guarded).run(backend), attention_reference(inputs), inputs.run("naive"), case.name
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_passes_the_gate_on_a_long_sequence(dtype: torch.dtype) -> None:
    inputs = attention_inputs(LONG, dtype)
    assert_close(inputs.run("torch"), attention_reference(inputs), inputs.run("naive"))


def test_stream_passes_the_gate_in_fp64() -> None:
    inputs = attention_inputs(LONG, torch.float64)
    assert relative_error(inputs.run("torch"), attention_reference(inputs)) < 1e-13


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_a_sequence_with_no_key_is_exactly_zero(backend: str) -> None:
    skip_without_interpreter(backend)
    out = attention_inputs(same("", 33, 32, (7, 16), mask="one empty"), torch.float32).run(backend)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert out[0].abs().min() > 0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_reads_slices_of_one_packed_product(backend: str) -> None:
    skip_without_interpreter(backend)
    inputs = attention_inputs(same("", 17, 32, (7, 16)), torch.float32)
    packed = torch.cat([inputs.q.p, inputs.k.p, inputs.v.p], dim=-1)
    q, k, v = (
        proj._replace(p=p, table=None)
        for proj, p in zip((inputs.q, inputs.k, inputs.v), packed.split(23, dim=-1), strict=True)
    )
    assert_close(
        replace(inputs, q=q, k=k, v=v).run(backend), attention_reference(inputs), inputs.run("naive")
    )


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_large_scores_neither_overflow_nor_vanish(backend: str) -> None:
    skip_without_interpreter(backend)
    inputs = attention_inputs(same("", 65, 32, (7, 16), mask="left", batch=8), torch.float32)
    inputs = replace(inputs, q=inputs.q._replace(p=inputs.q.p * 100))
    assert_close(inputs.run(backend), attention_reference(inputs), inputs.run("naive"))


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_an_empty_batch_gives_an_empty_output(backend: str) -> None:
    skip_without_interpreter(backend)
    assert attention_inputs(same("", 5, 32, (7, 16), batch=0), torch.float32).run(backend).shape == (0, 5, 64)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_writes_nothing_outside_its_output(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_interpreter(backend)
    inputs = attention_inputs(same("", 17, 80, (7, 16)), torch.float32)
    allocations: list[torch.Tensor] = []

    def fenced(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        size = torch.Size(shape).numel()
        allocations.append(torch.full((size + 8192,), -7.0, dtype=dtype, device=device))
        return allocations[-1][4096 : 4096 + size].view(shape)

    monkeypatch.setattr(torch, "empty", fenced)
    inputs.run(backend)
    monkeypatch.undo()
    assert allocations
    for buffer in allocations:
        assert (buffer[:4096] == -7).all() and (buffer[-4096:] == -7).all()


# What a kernel gets wrong most easily. The gate must see each, in the dtype with the widest limit tested here.
def drop_the_last_key(inputs: AttentionInputs) -> AttentionInputs:
    mask = torch.ones(inputs.q.p.shape[:2], dtype=torch.bool)
    mask[:, -1] = False
    return replace(inputs, key_mask=mask)


def skip_the_last_rank_tile(inputs: AttentionInputs) -> AttentionInputs:
    def cut(proj: Projection) -> Projection:
        u = proj.u.clone()
        for _, start, rank in proj.layout.spans:
            u[start + rank - rank % 16 : start + rank] = 0
        return proj._replace(u=u)

    return replace(inputs, q=cut(inputs.q), k=cut(inputs.k), v=cut(inputs.v))


def skip_the_last_value_rank(inputs: AttentionInputs) -> AttentionInputs:
    u = inputs.v.u.clone()
    u[inputs.v.layout.spans[0][2] - 1] = 0
    return replace(inputs, v=inputs.v._replace(u=u))


def forget_the_value_bias(inputs: AttentionInputs) -> AttentionInputs:
    return replace(inputs, v=inputs.v._replace(bias=None))


def forget_the_query_bias(inputs: AttentionInputs) -> AttentionInputs:
    return replace(inputs, q=inputs.q._replace(bias=None))


def read_the_neighbours_factor(inputs: AttentionInputs) -> AttentionInputs:
    return replace(inputs, k=inputs.k._replace(u=inputs.k.u.roll(1, 0)))


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize(
    "bug",
    [
        drop_the_last_key,
        skip_the_last_rank_tile,
        skip_the_last_value_rank,
        forget_the_value_bias,
        forget_the_query_bias,
        read_the_neighbours_factor,
    ],
)
def test_the_gate_catches(bug, dtype: torch.dtype) -> None:
    inputs = attention_inputs(same("", 97, 64, (40, 40)), dtype)
    reference, baseline = attention_reference(inputs), inputs.run("naive")
    assert check(inputs.run("torch"), reference, baseline).passed
    assert not check(bug(inputs).run("torch"), reference, baseline).passed


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), seq=st.integers(1, 80), masked=st.booleans())
def test_the_order_of_keys_does_not_matter(seed: int, seq: int, masked: bool) -> None:
    case = same("", seq, 32, (7, 16), mask="random" if masked else None)
    inputs = attention_inputs(case, torch.float64, seed)
    order = torch.randperm(seq, generator=torch.Generator().manual_seed(seed))
    shuffled = replace(
        inputs,
        k=inputs.k._replace(p=inputs.k.p[:, order]),
        v=inputs.v._replace(p=inputs.v.p[:, order]),
        key_mask=None if inputs.key_mask is None else inputs.key_mask[:, order],
    )
    assert relative_error(shuffled.run("torch"), inputs.run("torch")) < 1e-12


@settings(max_examples=15, deadline=None)
@given(rank=st.integers(2, 40), cut=st.integers(1, 39), seed=st.integers(0, 999))
def test_zero_ranks_appended_change_nothing(rank: int, cut: int, seed: int) -> None:
    small, large = HeadLayout((rank,)), HeadLayout((rank + cut,))
    inputs = attention_inputs(same("", 19, 32, (rank,), heads=1, kv_heads=1), torch.float64, seed)

    def widened(proj: Projection) -> Projection:
        assert proj.layout == small
        pad = torch.nn.functional.pad
        return proj._replace(
            p=pad(proj.p, (0, cut), value=3.0), u=pad(proj.u, (0, 0, 0, cut)), layout=large, table=None
        )

    wide = replace(inputs, q=widened(inputs.q), k=widened(inputs.k), v=widened(inputs.v))
    assert relative_error(wide.run("torch"), inputs.run("torch")) < 1e-12


def test_a_factored_and_a_dense_projection_agree() -> None:
    inputs = attention_inputs(same("", 33, 32, (16, 16), bias=False), torch.float64)

    def dense(proj: Projection) -> Projection:
        heads = [proj.head_parts(i, 32) for i in range(2)]
        return Projection(torch.cat([p @ u for p, u, _ in heads], -1), None, None, None, None)

    whole = replace(inputs, q=dense(inputs.q), k=dense(inputs.k), v=dense(inputs.v))
    assert relative_error(inputs.run("torch"), whole.run("torch")) < 1e-12


def test_scale_is_taken_as_given() -> None:
    inputs = attention_inputs(same("", 17, 32, (7, 16)), torch.float64)
    arguments = {"heads": 2, "head_dim": 32, "backend": "torch"}
    doubled = inputs.q._replace(p=inputs.q.p * 2, bias=inputs.q.bias * 2)
    assert torch.allclose(
        flash_svd_attention(inputs.q, inputs.k, inputs.v, scale=2 / 32**0.5, **arguments),
        flash_svd_attention(doubled, inputs.k, inputs.v, **arguments),
    )


def test_no_graph_is_kept() -> None:
    inputs = attention_inputs(same("", 5, 32, (7, 16)), torch.float32).map(lambda x: x.requires_grad_())
    assert not inputs.run("torch").requires_grad


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("batch, seq", [(1, 1), (8, 256), (64, 128), (1, 4096)])
def test_stream_tiles_fit_their_budget(batch: int, seq: int, dtype: torch.dtype, group: int) -> None:
    tiles = attention_stream_tiles(batch, seq, group, 64, 40, dtype)
    assert tiles.workspace_bytes <= 1.5 * 2**20
    assert tiles.block_b <= batch and tiles.block_m <= seq and tiles.block_n <= seq


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES, LONG], ids=lambda case: case.name)
def test_compiled_kernel_passes_the_gate(case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = attention_inputs(case, dtype)
    on_gpu = inputs.to("cuda").map(guarded)
    assert_close(on_gpu.run("triton"), attention_reference(inputs), inputs.run("naive"), case.name)


@pytest.mark.gpu
def test_launches_repeat_bit_for_bit_and_keep_no_memory() -> None:
    inputs = attention_inputs(same("", 97, 64, (40, 40), mask="random"), torch.bfloat16).to("cuda")
    first = inputs.run("triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        assert torch.equal(inputs.run("triton"), first)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_workspace_is_small(dtype: torch.dtype, peak_extra_bytes) -> None:
    case = AttentionCase("", 256, 64, (40,) * 4, (40,) * 4, (40,) * 4, 4, 4, mask="right", batch=8)
    inputs = attention_inputs(case, dtype)
    arguments = (inputs.q, inputs.k, inputs.v, 4, 4, 64, inputs.key_mask, 0.125)
    assert peak_extra_bytes(lambda: stream_attention(*arguments)) <= 1.5 * 2**20
    assert peak_extra_bytes(lambda: inputs.run("naive")) > 8 * 2**20
