"""Attention of decoders: places, windows, groups, rotary positions, by every backend, and bugs that must not pass."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from attention_cases import (
    CAUSAL_CASES,
    LONG_CAUSAL,
    AttentionCase,
    AttentionInputs,
    attention_inputs,
    attention_reference,
    grouped,
    same,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CPU_BACKENDS, DTYPES, GPU_DTYPES, guarded, skip_without_interpreter

from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention
from flashsvd.kernels.attention.naive import rebuild_heads
from flashsvd.kernels.attention.tiles import kernel_tiles, member_rows, starts_whole, turns, whole_pieces
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.rotary.naive import naive_rotary
from flashsvd.kernels.tiles import attention_stream_tiles, attention_tiles

aligned = functools.partial(guarded, before=8, after=8)

WHOLE = (
    grouped("whole tiles", 1, 2, 128, 64, 32, turned="one", batch=1),
    grouped("whole tiles of keys", 1, 1, 64, 64, 32, past=64, mask="left", turned="one", batch=1),
    grouped("whole tiles in groups of 4", 4, 1, 64, 64, 32, turned="one", batch=1),
    grouped("whole tiles and a window", 1, 2, 192, 32, 16, window=64, batch=1),
)
"""The kernel drops the masks of what is whole."""


@pytest.mark.parametrize("case", [*CAUSAL_CASES, LONG_CAUSAL], ids=lambda case: case.name)
def test_definition_is_torch_attention_of_the_turned_heads(case: AttentionCase) -> None:
    inputs = attention_inputs(case, torch.float64)
    assert relative_error(inputs.run("naive"), attention_reference(inputs)) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("case", CAUSAL_CASES, ids=lambda case: case.name)
def test_passes_the_gate(case: AttentionCase, backend: str, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    inputs = attention_inputs(case, dtype)
    assert_close(
        inputs.map(guarded).run(backend), attention_reference(inputs), inputs.run("naive"), case.name
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_whole_tiles_pass_the_gate(case: AttentionCase, dtype: torch.dtype) -> None:
    skip_without_interpreter("interpret")
    inputs = attention_inputs(case, dtype)
    out = inputs.map(aligned).run("interpret")
    assert_close(out, attention_reference(inputs), inputs.run("naive"), case.name)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_stream_passes_the_gate_on_a_long_sequence(dtype: torch.dtype) -> None:
    inputs = attention_inputs(LONG_CAUSAL, dtype)
    out, reference = inputs.run("torch"), attention_reference(inputs)
    if dtype == torch.float64:
        assert relative_error(out, reference) < 1e-13
    else:
        assert_close(out, reference, inputs.run("naive"))


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_a_query_that_sees_no_key_is_exactly_zero(backend: str) -> None:
    skip_without_interpreter(backend)
    case = grouped("", 2, 1, 33, 32, 7, 16, turned="one", bias=True)
    inputs = attention_inputs(case, torch.float32)
    mask = torch.ones(2, 33, dtype=torch.bool)
    mask[1, :9] = False
    out = replace(inputs, key_mask=mask).run(backend)
    assert torch.equal(out[1, :9], torch.zeros_like(out[1, :9]))
    assert out[0].abs().min() > 0 and out[1, 9:].abs().min() > 0


def poisoned(proj: Projection, rows: slice) -> Projection:
    p = proj.p.clone()
    p[:, rows] = torch.nan
    return proj._replace(p=p)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("group", [1, 4])
def test_tiles_above_the_diagonal_are_not_read(backend: str, group: int) -> None:
    """Masked values of NaN would spoil a row; where no tile reads them, they cannot."""
    skip_without_interpreter(backend)
    if backend == "torch":
        tiles = attention_stream_tiles(1, 600, group, 32, 16, torch.float32, rotary=True, by_place=True)
        tokens, keys = tiles.block_m, tiles.block_n
    else:
        triton = attention_tiles(600, 32, (None,) * 3, torch.float32, group=group, rotary=True)
        tokens, keys = triton.tokens, triton.block_n
    # The end of a tile of both kinds.
    first = tokens * (keys // tokens if keys > tokens else 1)
    assert first % keys == 0
    seq = first + 9
    inputs = attention_inputs(grouped("", group, 1, seq, 32, 16, turned="one", batch=1), torch.float32)
    out = replace(inputs, v=poisoned(inputs.v, slice(first, None))).run(backend)
    assert out[:, :first].isfinite().all() and out[:, first:].isnan().all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_tiles_before_the_window_are_not_read(backend: str) -> None:
    skip_without_interpreter(backend)
    case = grouped("", 2, 1, 40, 32, 16, past=600, window=30, turned="own", batch=2)
    inputs = attention_inputs(case, torch.float32)
    # Of 600 - 30 keys that no query sees, those of tiles of up to 256.
    unread = slice(0, 512)
    poison = replace(inputs, k=poisoned(inputs.k, unread), v=poisoned(inputs.v, unread))
    assert torch.equal(poison.run(backend), inputs.run(backend))


# What a kernel gets wrong most easily. The gate must see each, in every dtype.
def drop_the_last_key(inputs: AttentionInputs) -> AttentionInputs:
    mask = torch.ones(inputs.k.p.shape[:2], dtype=torch.bool)
    mask[:, -1] = False
    return replace(inputs, key_mask=mask)


def see_a_key_above_the_diagonal(inputs: AttentionInputs) -> AttentionInputs:
    """By one more key at the end, which nobody may attend to. Queries stay where they were in angle."""

    def longer(part: torch.Tensor) -> torch.Tensor:
        return torch.cat([part, part[:, -1:]], 1)

    mask = torch.ones(inputs.k.p.shape[0], inputs.k.p.shape[1] + 1, dtype=torch.bool)
    mask[:, -1] = False
    k, v = (proj._replace(p=longer(proj.p)) for proj in (inputs.k, inputs.v))
    return replace(inputs, k=k, v=v, key_mask=mask)


def see_a_key_before_the_window(inputs: AttentionInputs) -> AttentionInputs:
    assert inputs.window is not None
    return replace(inputs, window=inputs.window + 1)


def unturned(proj: Projection, inputs: AttentionInputs, heads: int) -> Projection:
    """Dense heads that are turned back, so that the op's turn leaves them as they were."""
    assert inputs.rotation is not None
    whole = rebuild_heads(proj, heads, inputs.head_dim).transpose(1, 2).flatten(2)
    cos, sin = (part[:, -whole.shape[1] :] for part in inputs.rotation)
    return Projection(naive_rotary(whole, cos, -sin), None, None, None, None)


def forget_to_turn_k(inputs: AttentionInputs) -> AttentionInputs:
    return replace(inputs, k=unturned(inputs.k, inputs, inputs.kv_heads))


def forget_to_turn_q(inputs: AttentionInputs) -> AttentionInputs:
    return replace(inputs, q=unturned(inputs.q, inputs, inputs.heads))


def turn_the_wrong_way(inputs: AttentionInputs) -> AttentionInputs:
    assert inputs.rotation is not None
    return replace(inputs, rotation=(inputs.rotation[0], -inputs.rotation[1]))


def turn_by_the_next_place(inputs: AttentionInputs) -> AttentionInputs:
    assert inputs.rotation is not None
    return replace(inputs, rotation=(inputs.rotation[0].roll(1, 1), inputs.rotation[1].roll(1, 1)))


def forget_the_key_bias(inputs: AttentionInputs) -> AttentionInputs:
    """Softmax does not see it, unless it is turned."""
    return replace(inputs, k=inputs.k._replace(bias=None))


def exchange_heads_of_a_group(inputs: AttentionInputs) -> AttentionInputs:
    assert inputs.q.u is not None and inputs.q.layout is not None
    rank = inputs.q.layout.ranks[0]
    return replace(inputs, q=inputs.q._replace(u=inputs.q.u.roll(rank, 0)))


TURNED = grouped("", 2, 1, 65, 64, 40, past=16, turned="one", batch=1)
PLAIN = grouped("", 2, 1, 65, 64, 40, past=16, window=20, batch=1)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize(
    "bug, case",
    [
        (drop_the_last_key, replace(TURNED, seq=9)),
        (see_a_key_above_the_diagonal, replace(PLAIN, window=None)),
        (see_a_key_before_the_window, PLAIN),
        (forget_to_turn_k, TURNED),
        (forget_to_turn_q, TURNED),
        (turn_the_wrong_way, TURNED),
        (turn_by_the_next_place, TURNED),
        (forget_the_key_bias, TURNED),
        (exchange_heads_of_a_group, TURNED),
    ],
)
def test_the_gate_catches(bug, case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = attention_inputs(case, dtype)
    reference, baseline = attention_reference(inputs), inputs.run("naive")
    assert check(inputs.run("torch"), reference, baseline).passed
    assert not check(bug(inputs).run("torch"), reference, baseline).passed


def shapes(longest: int, largest_group: int) -> st.SearchStrategy[AttentionCase]:
    return st.builds(
        grouped,
        st.just("any"),
        st.integers(1, largest_group),
        st.integers(1, 2),
        st.integers(1, longest),
        st.sampled_from((2, 16, 34)),
        st.integers(1, 40),
        st.integers(1, 40),
        past=st.integers(0, longest),
        window=st.none() | st.integers(0, longest + 20),
        mask=st.sampled_from((None, "left", "random", "one empty")),
        turned=st.sampled_from(("no", "one", "own")),
        bias=st.booleans(),
    )


@settings(max_examples=25)
@given(case=shapes(70, 9), seed=st.integers(0, 999))
def test_the_loops_are_right_for_any_shape(case: AttentionCase, seed: int) -> None:
    inputs = attention_inputs(case, torch.float64, seed)
    assert relative_error(inputs.run("torch"), attention_reference(inputs)) < 1e-12


@settings(max_examples=6)
@given(case=shapes(25, 3), seed=st.integers(0, 999))
def test_the_kernel_is_right_for_any_shape(case: AttentionCase, seed: int) -> None:
    skip_without_interpreter("interpret")
    inputs = attention_inputs(case, torch.float32, seed)
    # Not the gate: an output of a few numbers may rest on the baseline's lucky rounding.
    assert relative_error(inputs.map(guarded).run("interpret"), attention_reference(inputs)) < 3e-6


@settings(max_examples=15)
@given(cut=st.integers(0, 64), window=st.none() | st.integers(0, 70), seed=st.integers(0, 99))
def test_pieces_of_a_prompt_give_what_the_whole_gives(cut: int, window: int | None, seed: int) -> None:
    """The last queries of a prompt, with the keys of all of it, as prefill with a cache has them."""
    case = grouped("", 2, 2, 65, 16, 7, 16, window=window, mask="left", turned="own")
    inputs = attention_inputs(case, torch.float64, seed)
    last = replace(inputs, q=inputs.q._replace(p=inputs.q.p[:, cut:]))
    assert relative_error(last.run("torch"), inputs.run("torch")[:, cut:]) < 1e-12


@settings(max_examples=15)
@given(shift=st.floats(-9.0, 9.0), seed=st.integers(0, 99), window=st.none() | st.integers(0, 70))
def test_only_how_far_apart_places_are_matters(shift: float, seed: int, window: int | None) -> None:
    inputs = attention_inputs(grouped("", 1, 2, 33, 16, 7, turned="own", window=window), torch.float64, seed)
    assert inputs.rotation is not None
    cos, sin = inputs.rotation
    turn = torch.tensor(shift, dtype=torch.float64)
    moved = (cos * turn.cos() - sin * turn.sin(), sin * turn.cos() + cos * turn.sin())
    assert relative_error(replace(inputs, rotation=moved).run("torch"), inputs.run("torch")) < 1e-11


@settings(max_examples=15)
@given(group=st.sampled_from((2, 3, 7, 8)), seed=st.integers(0, 99), seq=st.integers(1, 40))
def test_a_group_is_as_many_heads_with_keys_of_their_own(group: int, seed: int, seq: int) -> None:
    inputs = attention_inputs(grouped("", group, 2, seq, 16, 7, 16, turned="one"), torch.float64, seed)

    def repeated(proj: Projection) -> Projection:
        heads = rebuild_heads(proj, 2, 16).repeat_interleave(group, 1)
        return Projection(heads.transpose(1, 2).flatten(2), None, None, None, None)

    alone = replace(inputs, k=repeated(inputs.k), v=repeated(inputs.v), kv_heads=2 * group)
    assert relative_error(alone.run("torch"), inputs.run("torch")) < 1e-12


@settings(max_examples=15)
@given(padding=st.integers(1, 40), seed=st.integers(0, 99))
def test_padding_at_the_left_changes_nothing(padding: int, seed: int) -> None:
    inputs = attention_inputs(grouped("", 2, 1, 41, 16, 7, 16, turned="one", batch=1), torch.float64, seed)
    mask = torch.ones(1, 41, dtype=torch.bool)
    mask[:, :padding] = False
    padded = replace(inputs, key_mask=mask).run("torch")
    assert inputs.rotation is not None

    def short(proj: Projection) -> Projection:
        return proj._replace(p=proj.p[:, padding:])

    cos, sin = (part[:, padding:] for part in inputs.rotation)
    alone = replace(inputs, q=short(inputs.q), k=short(inputs.k), v=short(inputs.v), rotation=(cos, sin))
    assert not padded[:, :padding].any()
    assert relative_error(padded[:, padding:], alone.run("torch")) < 1e-12


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_angles_are_read_where_they_lie(backend: str) -> None:
    """Rows of a longer table, in another dtype, whose second halves nobody reads."""
    skip_without_interpreter(backend)
    inputs = attention_inputs(grouped("", 2, 1, 17, 32, 16, past=5, turned="one"), torch.float32)
    assert inputs.rotation is not None
    whole = attention_reference(inputs), inputs.run("naive")
    tables = []
    for part in inputs.rotation:
        table = torch.full((1, 50, 40), torch.nan, dtype=torch.float64)
        table[:, 9:31, 4:20] = part[..., :16].double()
        tables.append(table[:, 9:31, 4:36])
    assert_close(replace(inputs, rotation=(tables[0], tables[1])).run(backend), *whole)


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_an_empty_batch_gives_an_empty_output(backend: str) -> None:
    skip_without_interpreter(backend)
    case = grouped("", 2, 1, 5, 32, 7, past=3, turned="one", batch=0)
    assert attention_inputs(case, torch.float32).run(backend).shape == (0, 5, 64)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_scale_below_zero_turns_queries_around(backend: str) -> None:
    skip_without_interpreter(backend)
    inputs = attention_inputs(grouped("", 4, 1, 33, 32, 16, turned="one"), torch.float32)
    bias = inputs.q.bias
    assert bias is not None
    around = replace(inputs, q=inputs.q._replace(p=-inputs.q.p, bias=-bias))
    out = flash_svd_attention(
        around.q,
        around.k,
        around.v,
        heads=4,
        kv_heads=1,
        head_dim=32,
        scale=-(32**-0.5),
        causal=True,
        rotation=around.rotation,
        backend=backend,
    )
    assert_close(out, attention_reference(inputs), inputs.run("naive"))


@pytest.mark.parametrize("group", [1, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_workspace_is_small(dtype: torch.dtype, group: int, peak_extra_bytes) -> None:
    case = grouped("", group, 2, 256, 64, 40, 24, past=256, mask="right", turned="own")
    case = replace(case, batch=4 if group == 1 else 1)
    inputs = attention_inputs(case, dtype)
    assert peak_extra_bytes(lambda: inputs.run("torch")) <= 1.5 * 2**20
    assert peak_extra_bytes(lambda: inputs.run("naive")) > 8 * 2**20


@pytest.mark.parametrize("group", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("seq, keys", [(1, 1), (1, 4096), (256, 4096), (4096, 4096)])
def test_stream_tiles_fit_their_budget(seq: int, keys: int, dtype: torch.dtype, group: int) -> None:
    tiles = attention_stream_tiles(2, seq, group, 128, 64, dtype, keys=keys, rotary=True, by_place=True)
    assert tiles.workspace_bytes <= 1.5 * 2**20
    assert tiles.block_m <= seq and tiles.block_n <= keys


@pytest.mark.parametrize("seq, keys", [(1, 1), (1, 700), (17, 17), (2048, 2048)])
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@settings(max_examples=40)
@given(
    ranks=st.lists(st.integers(1, 400), min_size=3, max_size=3),
    head_dim=st.sampled_from((64, 80, 96, 128, 256)),
    group=st.integers(1, 20),
)
def test_tiles_of_turned_heads_hold_them(
    dtype: torch.dtype, seq: int, keys: int, ranks: list[int], head_dim: int, group: int
) -> None:
    q, k, v = (HeadLayout((rank,)) for rank in ranks)
    tiles = kernel_tiles(seq, head_dim, (q, k, v), dtype, keys=keys, group=group, rotary=True)
    for size in (tiles.block_m, tiles.block_n, tiles.block_h, tiles.block_c, *tiles.block_r):
        assert size >= 16 and size & (size - 1) == 0
    assert head_dim <= tiles.block_h and head_dim // 2 <= tiles.block_c and group % tiles.members == 0
    assert tiles.tokens >= 1 and member_rows(tiles, dtype) >= tiles.tokens
    assert tiles.one_pass == tuple(rank <= block for rank, block in zip(ranks, tiles.block_r, strict=True))
    # Two faults of Triton 3.6 on sm_90 that the tiles keep clear of.
    assert max(tiles.block_r[:2]) <= tiles.block_c and tiles.block_r[2] <= tiles.block_h
    if dtype != torch.float32:
        assert whole_pieces(tiles)
        assert member_rows(tiles, dtype) * tiles.block_r[0] >= 8 * 32 * tiles.num_warps


@pytest.mark.parametrize(
    "ranks, head_dim, wide, taken",
    [
        ((64, 40), 128, True, True),
        ((32, 8), 64, True, True),
        (None, 96, True, True),
        ((64, 40), 128, False, False),
        ((59, 40), 128, True, False),
        ((32, 32), 72, True, False),
        ((16, 16), 32, True, False),
    ],
)
def test_half_types_are_turned_on_chip_where_loads_are_wide(
    ranks: tuple[int, ...] | None, head_dim: int, wide: bool, taken: bool
) -> None:
    layout = None if ranks is None else HeadLayout(ranks)
    assert turns(head_dim, (layout, layout, None), wide) == taken


def test_half_types_in_small_pieces_do_not_go_through_two_loops() -> None:
    """Triton 3.6 on sm_90 reads past a shared factor there (an illegal address at rank 40, misaligned)."""
    layout = HeadLayout((40, 40))
    assert starts_whole(64, (layout,) * 3, True) and starts_whole(32, (None, layout, layout), True)
    assert not starts_whole(64, (layout,) * 3, False)
    assert not starts_whole(64, (HeadLayout((40, 59)), layout, None), True)
    assert not starts_whole(36, (None, None, None), True)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_heads_turned_in_memory_give_the_same(dtype: torch.dtype) -> None:
    """What other calls of half types on a GPU go by."""
    from flashsvd.kernels.attention.launch import turned_in_memory

    inputs = attention_inputs(grouped("", 2, 2, 33, 34, 7, 16, past=8, turned="own"), dtype)
    assert inputs.rotation is not None
    q, k = (
        turned_in_memory(proj, count, 34, inputs.rotation) for proj, count in ((inputs.q, 4), (inputs.k, 2))
    )
    out = replace(inputs, q=q, k=k, rotation=None).run("torch")
    # Turned in fp32 at least, as the kernel does.
    if dtype == torch.float64:
        assert relative_error(out, attention_reference(inputs)) < 1e-6
    else:
        assert_close(out, attention_reference(inputs), inputs.run("naive"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CAUSAL_CASES, LONG_CAUSAL], ids=lambda case: case.name)
def test_compiled_kernel_passes_the_gate(case: AttentionCase, dtype: torch.dtype) -> None:
    inputs = attention_inputs(case, dtype)
    on_gpu = inputs.to("cuda").map(guarded)
    assert_close(on_gpu.run("triton"), attention_reference(inputs), inputs.run("naive"), case.name)


MODELS = (
    grouped("llama 2", 1, 2, 520, 128, 64, turned="one"),
    grouped("llama 3", 4, 2, 300, 128, 64, 48, past=212, turned="one"),
    grouped("llama 3, whole matrix", 4, 2, 300, 128, 256, shared=True, turned="one"),
    grouped("qwen 2.5", 7, 2, 300, 64, 32, mask="left", turned="own"),
    grouped("mistral", 4, 2, 520, 128, 64, window=200, turned="one", bias=False),
    grouped("opt", 1, 4, 520, 64, 40, mask="left"),
    grouped("groups of 2", 2, 2, 520, 64, 16, turned="one"),
    grouped("groups of 8", 8, 1, 520, 128, 64, turned="one", bias=False),
    grouped("dense keys", 8, 1, 520, 128, turned="one", bias=False),
    same("every key seen", 257, 64, (32, 32), turned="one", mask="random"),
)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CAUSAL_CASES, *WHOLE, *MODELS], ids=lambda case: case.name)
def test_compiled_kernel_passes_the_gate_where_loads_are_wide(
    case: AttentionCase, dtype: torch.dtype
) -> None:
    inputs = attention_inputs(case, dtype)
    on_gpu = inputs.to("cuda").map(aligned)
    assert_close(on_gpu.run("triton"), attention_reference(inputs), inputs.run("naive"), case.name)


@pytest.mark.gpu
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_launches_repeat_bit_for_bit_and_keep_no_memory(case: AttentionCase) -> None:
    inputs = attention_inputs(case, torch.bfloat16).to("cuda")
    first = inputs.run("triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        assert torch.equal(inputs.run("triton"), first)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
