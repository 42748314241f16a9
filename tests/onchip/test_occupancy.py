"""Occupancy by worked examples, and what must hold for any kernel."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.gpus import GPUS, Gpu, Multiprocessor, gpu
from flashsvd.onchip import occupancy as module
from flashsvd.onchip.occupancy import Footprint, occupancy, waves

any_gpu = st.sampled_from(GPUS)
footprints = st.builds(
    Footprint,
    warps=st.integers(1, 32),
    registers=st.integers(0, 255),
    shared_bytes=st.integers(0, 230 * 1024),
    tensor_columns=st.just(0),
)

A100, A10, T4, H200, B200 = (gpu(name).processor for name in ("A100 80GB", "A10", "T4", "H200", "B200"))


# By hand: registers of a warp in units of 256, warps that fit in fours, shared memory in 128 bytes and 1 KiB a block.
WORKED = [
    # 32 x 32 = 1024 a warp: 64 warps, 8 blocks of 8.
    (A100, Footprint(8, 32, 0), 8, 64, "registers"),
    # 64 x 32 = 2048: 32 warps, 4 blocks.
    (A100, Footprint(8, 64, 0), 4, 32, "registers"),
    # 33 x 32 = 1056, taken as 1280: 51 warps, of which 48, 6 blocks.
    (A100, Footprint(8, 33, 0), 6, 48, "registers"),
    # 255 x 32 = 8160, taken as 8192: 8 warps, 2 blocks of 4.
    (H200, Footprint(4, 255, 49152), 2, 8, "registers"),
    # 48 + 1 KiB: 3 of 164 KiB.
    (A100, Footprint(4, 32, 48 << 10), 3, 12, "shared memory"),
    # 99 + 1 KiB is all of a 8.6.
    (A10, Footprint(8, 64, 99 << 10), 1, 8, "shared memory"),
    # 1024 threads: 48 warps hold one block of 32.
    (A10, Footprint(32, 32, 0), 1, 32, "warps"),
    # Blocks of one warp: at most 16 of them.
    (T4, Footprint(1, 16, 0), 16, 16, "blocks"),
    # Nothing is kept of a block before 8.0: 2 of 32 KiB in 64.
    (T4, Footprint(4, 32, 32 << 10), 2, 8, "shared memory"),
    # All 512 columns of tensor memory: one block.
    (B200, Footprint(8, 96, 64 << 10, 512), 1, 8, "tensor memory"),
    # 128 KiB does not fit a block of 8.6 at all.
    (A10, Footprint(4, 64, 128 << 10), 0, 0, "shared memory"),
]


@pytest.mark.parametrize(("processor", "footprint", "blocks", "warps", "limiter"), WORKED)
def test_worked_examples(
    processor: Multiprocessor, footprint: Footprint, blocks: int, warps: int, limiter: str
) -> None:
    found = occupancy(footprint, processor)
    assert (found.blocks, found.warps, found.limiter) == (blocks, warps, limiter)


@given(any_gpu, footprints)
def test_never_above_any_limit(one: Gpu, footprint: Footprint) -> None:
    processor, found = one.processor, occupancy(footprint, one.processor)
    assert found.blocks <= processor.max_blocks and found.warps <= processor.max_warps
    assert found.warps == found.blocks * footprint.warps and 0 <= found.share <= 1
    a_warp = math.ceil(footprint.registers * 32 / processor.register_unit) * processor.register_unit
    assert found.warps * a_warp <= processor.registers
    block = footprint.shared_bytes + processor.shared_reserved_bytes
    assert found.blocks * block <= processor.shared_bytes


@given(any_gpu, footprints)
def test_one_more_program_would_not_fit(one: Gpu, footprint: Footprint) -> None:
    processor, more = one.processor, occupancy(footprint, one.processor).blocks + 1
    a_warp = math.ceil(footprint.registers * 32 / processor.register_unit) * processor.register_unit
    block = footprint.shared_bytes + processor.shared_reserved_bytes
    block = math.ceil(block / processor.shared_unit_bytes) * processor.shared_unit_bytes
    fours = processor.registers // a_warp // 4 * 4 if a_warp else processor.max_warps
    assert (
        more > processor.max_blocks
        or more * footprint.warps > min(processor.max_warps, fours)
        or more * block > processor.shared_bytes
        or footprint.shared_bytes > processor.shared_block_bytes
    )


@given(any_gpu, footprints, st.sampled_from(["registers", "shared_bytes"]), st.integers(1, 100))
def test_taking_more_never_raises_it(one: Gpu, footprint: Footprint, what: str, by: int) -> None:
    more = dataclasses.replace(footprint, **{what: getattr(footprint, what) + by})
    assert occupancy(more, one.processor).blocks <= occupancy(footprint, one.processor).blocks


def test_forgetting_units_of_registers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_rounded", lambda amount, unit: amount)
    failed = [case for case in WORKED if occupancy(case[1], case[0]).blocks != case[2]]
    assert failed


@given(any_gpu, st.integers(1, 10**6), st.integers(1, 32))
def test_waves_fill_the_gpu(one: Gpu, programs: int, blocks: int) -> None:
    found, places = waves(programs, blocks, one), blocks * one.sm_count
    assert 0 < found.last_share <= 1
    whole = math.ceil(found.waves - 1e-12)
    assert round((whole - 1 + found.last_share) * places) == programs


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 warp"):
        occupancy(Footprint(0, 32, 0), A100)
    with pytest.raises(InputError, match="negative"):
        occupancy(Footprint(4, -1, 0), A100)
    with pytest.raises(InputError, match="at least 1 program"):
        waves(0, 1, gpu("T4"))
    assert occupancy(Footprint(4, 256, 0), A100).blocks == 0
