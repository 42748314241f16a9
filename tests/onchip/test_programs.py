"""What programs hold covers the work: every tile is made once, and the sizes are those of the launch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.gpus import GPUS, gpu
from flashsvd.onchip import programs as module
from flashsvd.onchip.calls import KERNELS, KernelCall, most_rank, tops
from flashsvd.onchip.compiled import Compiled
from flashsvd.onchip.compiling import prepare
from flashsvd.onchip.programs import moment, padded_ranks, padding_share, programs, steps
from flashsvd.onchip.stairs import stairs

SMALL = {
    "ffn": KernelCall("ffn", "bf16", 2, 200, 104, 104, width=160, hidden=64),
    "gated": KernelCall("ffn", "fp32", 2, 100, 40, 72, 40, width=96, hidden=64, activation="silu"),
    "ffn_v2": KernelCall("ffn_v2", "bf16", 2, 100, 64, 40, width=96, hidden=72),
    "ffn_hopper": KernelCall("ffn_hopper", "bf16", 2, 200, 72, 104, width=160, hidden=64),
    "attention": KernelCall("attention", "bf16", 2, 200, 32, 24, heads=4, kv_heads=4, head_dim=64),
    "causal": KernelCall(
        "attention", "fp32", 1, 200, 24, 24, heads=4, kv_heads=2, head_dim=64, causal=True, rotary=True
    ),
    "rank_space": KernelCall("rank_space", "fp32", 2, 130, 24, 16, heads=3, kv_heads=3, head_dim=64),
    "rank_space_hopper": KernelCall(
        "rank_space_hopper", "bf16", 70, 200, 40, 40, heads=4, kv_heads=4, head_dim=64
    ),
    "step": KernelCall("step", "bf16", 1, 1, 1024, 0, 1024, width=704, hidden=256, activation="silu"),
}


def made(call: KernelCall, name: str = "H200") -> Compiled:
    ready = prepare(call, gpu(name))
    return Compiled(call, name, ready.tiles, ready.grid, warps=4, registers=128, shared_bytes=1 << 14)


def produced(row: Compiled, call: KernelCall) -> Counter[tuple[str, int, int]]:
    """How many programs make each tile of the middle part, for the feed-forward per block of output ranks."""
    found: Counter[tuple[str, int, int]] = Counter()
    for program in range(programs(row, call)):
        for step in range(module.steps(row, call, program)):
            now = moment(row, call, program, step)
            middle = next(part for part in now.parts if part.place == "middle")
            held = next(one for one in now.held if one.part == middle.name)
            key = f"{middle.name} {now.where.rpartition(', queries')[0]}"
            if "output ranks" in now.where:
                key = f"{middle.name} {now.where.rpartition('output ranks')[2]}"
            elif "tokens" in now.where or "wide columns" in now.where:
                key = middle.name
            found[key, held.rows[0], held.columns[0]] += 1
    return found


@pytest.mark.parametrize("name", SMALL)
def test_every_tile_is_made_once(name: str) -> None:
    assert_made_once(SMALL[name])


def assert_made_once(call: KernelCall) -> None:
    row = made(call)
    counts = produced(row, call)
    assert set(counts.values()) == {1}
    parts = {part.name: part for part in moment(row, call, 0, 0).parts}
    for key in {key for key, _, _ in counts}:
        part = next((part for start, part in parts.items() if key.split()[0] == start.split()[0]), None)
        if part is None or call.causal:
            continue
        down, across = part.tiles
        tiles = {(i, j) for found, i, j in counts if found == key}
        assert tiles == {(i, j) for i in range(down) for j in range(across)}, key


def test_a_forgotten_last_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "steps", lambda row, call, program: steps(row, call, program) - 1)
    with pytest.raises(AssertionError):
        assert_made_once(SMALL["ffn"])


@pytest.mark.parametrize("name", SMALL)
def test_programs_are_the_grid_of_the_launch(name: str) -> None:
    for one in GPUS:
        call = SMALL[name]
        if (KERNELS[call.kernel].only_sm or one.sm) != one.sm or (call.dtype == "bf16" and one.sm < 80):
            continue
        try:
            row = made(call, one.name)
        except InputError:
            continue
        assert programs(row, call) == math.prod(row.grid), one.name


@pytest.mark.parametrize("name", SMALL)
def test_held_tiles_are_inside_their_parts(name: str) -> None:
    call = SMALL[name]
    row = made(call)
    for program in {0, programs(row, call) // 2, programs(row, call) - 1}:
        for step in {0, steps(row, call, program) - 1}:
            now = moment(row, call, program, step)
            parts = {part.name: part for part in now.parts}
            assert {one.part for one in now.held} == set(parts)
            for one in now.held:
                down, across = parts[one.part].tiles
                assert 0 <= one.rows[0] <= one.rows[1] < down
                assert 0 <= one.columns[0] <= one.columns[1] < across
    with pytest.raises(InputError, match="expected a program"):
        steps(row, call, programs(row, call))
    with pytest.raises(InputError, match="expected a step"):
        moment(row, call, 0, steps(row, call, 0))


def test_causal_programs_stop_at_their_own_keys() -> None:
    call = SMALL["causal"]
    row = made(call)
    counts = [steps(row, call, program) for program in range(programs(row, call))]
    # The longest rows first.
    assert counts[0] == max(counts) and min(counts) < max(counts)


SWEPT = [
    KernelCall("ffn", "bf16", 32, 512, 8, 8, width=3072, hidden=768),
    KernelCall("ffn", "fp32", 8, 256, 8, 8, width=1024, hidden=256),
    KernelCall("ffn", "bf16", 8, 256, 8, 8, 8, width=704, hidden=256, activation="silu"),
    KernelCall("ffn_v2", "bf16", 32, 512, 8, 8, width=3072, hidden=768),
    KernelCall("ffn_v2", "fp32", 32, 512, 8, 8, width=3072, hidden=768),
    KernelCall("ffn_hopper", "bf16", 32, 512, 8, 8, width=3072, hidden=768),
    KernelCall("attention", "bf16", 32, 512, 8, 8, heads=12, kv_heads=12, head_dim=64),
    KernelCall("attention", "fp32", 8, 256, 8, 8, heads=4, kv_heads=2, head_dim=64, causal=True, rotary=True),
    KernelCall(
        "attention", "bf16", 4, 512, 8, 8, heads=32, kv_heads=32, head_dim=128, causal=True, rotary=True
    ),
    KernelCall("rank_space", "bf16", 32, 512, 8, 8, heads=12, kv_heads=12, head_dim=64),
    KernelCall("rank_space", "fp32", 32, 512, 8, 8, heads=12, kv_heads=12, head_dim=64),
    KernelCall("rank_space_hopper", "bf16", 32, 512, 8, 8, heads=12, kv_heads=12, head_dim=64),
    KernelCall("step", "bf16", 1, 1, 8, 0, 8, width=11008, hidden=4096, activation="silu"),
]


@pytest.mark.parametrize("call", SWEPT, ids=lambda call: f"{call.kernel} {call.dtype} {call.rank_up}")
@pytest.mark.parametrize("name", ["A10", "A100 80GB", "H200"])
def test_tiles_change_only_at_the_tops(call: KernelCall, name: str) -> None:
    if KERNELS[call.kernel].only_sm and name != "H200":
        pytest.skip("Hopper's alone")
    for rank in range(8, most_rank(call) + 1, 8):
        top = next(top for top in tops(call) if rank <= top)
        try:
            wanted = prepare(call.with_rank(top), gpu(name)).tiles
        except InputError:
            with pytest.raises(InputError):
                prepare(call.with_rank(rank), gpu(name))
            continue
        tiles = prepare(call.with_rank(rank), gpu(name)).tiles
        if call.kernel == "ffn" and call.dtype == "fp32" and rank <= 64 < top:
            raise AssertionError("a top is missing")
        assert tiles == wanted, rank


@pytest.mark.parametrize("call", SWEPT, ids=lambda call: f"{call.kernel} {call.dtype} {call.rank_up}")
@given(st.data())
def test_padding_is_a_share_and_the_tiles_hold_the_rank(call: KernelCall, data: st.DataObject) -> None:
    one = call.with_rank(data.draw(st.integers(1, most_rank(call))))
    try:
        tiles = prepare(one, gpu("H200")).tiles
    except InputError:
        return
    padded_in, padded_out = padded_ranks(one, tiles)
    assert padded_in >= one.rank and padded_out >= one.rank_out
    assert 0 <= padding_share(one, tiles) < 1


def test_a_rank_of_112_pads_to_128() -> None:
    call = KernelCall("ffn", "bf16", 32, 512, 112, 112, width=3072, hidden=768)
    tiles = prepare(call, gpu("H200")).tiles
    assert padded_ranks(call, tiles) == (128, 128)
    assert padding_share(call, tiles) == pytest.approx(0.125)
    full = dataclasses.replace(call, rank=128, rank_out=128)
    assert padding_share(full, tiles) == 0


def test_stairs_go_down_only_where_tiles_end() -> None:
    call = KernelCall("ffn", "bf16", 32, 512, 8, 8, width=3072, hidden=768)
    found = stairs(call, 256, lambda one: made(one.with_rank(next(t for t in tops(one) if one.rank <= t))))
    assert [stair.rank for stair in found] == list(range(1, 257))
    padded = [stair.padded for stair in found]
    assert padded == sorted(padded)
    assert {stair.rank for stair in found if stair.padding == 0} == {32, 64, 96, 128, 160, 192, 256}
