"""The table of GPUs: known spots, and what must hold for any chip."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.gpus import GPUS, WARP_THREADS, Gpu, gpu, gpu_of_device
from flashsvd.kernels.tiles import shared_limit_bytes

any_gpu = st.sampled_from(GPUS)


@given(any_gpu)
def test_every_number_is_positive_and_fits_the_others(one: Gpu) -> None:
    processor = one.processor
    for field in dataclasses.fields(processor):
        value = getattr(processor, field.name)
        assert value >= 0 if field.name in ("shared_reserved_bytes", "tensor_columns") else value > 0
    assert processor.shared_block_bytes + processor.shared_reserved_bytes <= processor.shared_bytes
    assert processor.max_threads == WARP_THREADS * processor.max_warps
    assert processor.registers % processor.register_unit == 0
    assert processor.max_warps % processor.warp_unit == 0
    assert processor.max_blocks <= processor.max_warps
    assert one.l2_bytes < one.memory_bytes and one.sm_count > 0
    assert (one.bf16_flops is None) == (one.tf32_flops is None) == (one.sm < 80)


@given(any_gpu)
def test_narrower_numbers_are_never_slower(one: Gpu) -> None:
    rates = [rate for rate in (one.fp32_flops, one.tf32_flops, one.fp16_flops) if rate is not None]
    assert rates == sorted(rates)
    assert one.bf16_flops in (None, one.fp16_flops)
    ridge = one.ridge("fp16")
    # An hour of arithmetic a byte, or none: a unit was mixed up.
    assert ridge is not None and 20 < ridge < 1000


def test_newer_data_centre_gpus_have_more() -> None:
    line = [gpu(name) for name in ("V100", "A100 80GB", "H100 SXM", "H200", "B200")]
    for field in ("sm", "sm_count", "l2_bytes", "memory_bytes", "memory_bytes_s", "fp16_flops", "fp32_flops"):
        values = [getattr(one, field) for one in line]
        assert values == sorted(values), field


@pytest.mark.parametrize(
    ("name", "sm", "count", "warps", "blocks", "shared_kib"),
    [
        ("T4", 75, 40, 32, 16, 64),
        ("V100", 70, 80, 64, 32, 96),
        ("A10", 86, 72, 48, 16, 99),
        ("A100 80GB", 80, 108, 64, 32, 163),
        ("L4", 89, 58, 48, 24, 99),
        ("RTX 4090", 89, 128, 48, 24, 99),
        ("RTX 5090", 120, 170, 48, 24, 99),
        ("H200", 90, 132, 64, 32, 227),
        ("B200", 100, 148, 64, 32, 227),
    ],
)
def test_known_spots(name: str, sm: int, count: int, warps: int, blocks: int, shared_kib: int) -> None:
    one = gpu(name)
    assert (one.sm, one.sm_count) == (sm, count)
    processor = one.processor
    assert (processor.max_warps, processor.max_blocks, processor.shared_block_bytes >> 10) == (
        warps,
        blocks,
        shared_kib,
    )


@given(any_gpu.filter(lambda one: one.sm != 70))
def test_the_kernels_know_the_same_shared_memory(one: Gpu) -> None:
    # Of Volta the kernels take the 64 KiB of Turing, which fit its 96.
    assert shared_limit_bytes(one.sm) == one.processor.shared_block_bytes


def test_names_are_distinct_and_found() -> None:
    assert len({one.name for one in GPUS}) == len(GPUS) >= 12
    assert all(gpu(f" {one.name.upper()} ") is one for one in GPUS)
    with pytest.raises(InputError, match="expected one of T4"):
        gpu("GTX 480")
    with pytest.raises(InputError, match="expected one of fp32"):
        gpu("T4").flops("fp8")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("", None),
    ],
)
def test_driver_names(device: str, name: str | None) -> None:
    found = gpu_of_device(device)
    assert (found.name if found else None) == name


def test_the_table_needs_no_torch() -> None:
    code = "import sys, flashsvd.gpus, flashsvd.onchip.stairs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
