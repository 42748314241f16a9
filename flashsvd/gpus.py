"""What NVIDIA's GPUs have: multiprocessors, what one of them holds, memory and peak rates. Nothing here asks a device.

Sources.
- What a multiprocessor holds (registers, warps, blocks, threads, shared memory per multiprocessor and per block, and
  what the system keeps of each block): CUDA C++ Programming Guide, "Compute Capabilities", table "Technical
  Specifications per Compute Capability" and the notes on shared memory of each architecture. Units of allocation
  (registers 256 at a time to a warp, warps 4 at a time, shared memory 128 bytes at a time, 256 before 8.0): the
  CUDA Occupancy Calculator's table of limits. Tensor memory of 10.0 (512 columns): PTX ISA, "Tensor Memory".
- T4: Tesla T4 data sheet, Turing whitepaper. V100: Tesla V100 data sheet (SXM2, 32 GB), Volta whitepaper.
- A100: A100 data sheet (SXM, 80 GB), A100 whitepaper. A10: A10 data sheet. RTX 3090: GA102 whitepaper.
- L4, L40S: their data sheets, halved where they count sparsity. RTX 4090: Ada whitepaper.
- RTX 5090: RTX Blackwell whitepaper. H100 (SXM5), H200: their data sheets, halved where they count sparsity; Hopper
  whitepaper. B200: HGX B200 data sheet (one of its eight), halved where it counts sparsity.
- Level-2 caches of L4, L40S, H200 and B200, and the multiprocessors of B200, are not in those data sheets: they are
  what the driver reports as device attributes.

Rates are dense, at boost clock, and with sums in float32, as the kernels here keep them: GeForce cards do float16
products with float16 sums twice as fast. A rate of None: no such tensor instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.errors import InputError

WARP_THREADS = 32

_KIB = 1 << 10
_MIB = 1 << 20
_GB = 10**9
_TERA = 10**12


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor of a compute capability holds, and in what units it gives it out."""

    sm: int
    """Compute capability, 90 for 9.0."""
    max_warps: int
    max_blocks: int
    shared_bytes: int
    """Of all its blocks together."""
    shared_block_bytes: int
    """The most that one block may ask for, opted in."""
    shared_reserved_bytes: int
    """What the system keeps of each block beside what it asks for."""
    shared_unit_bytes: int
    registers: int = 65_536
    """Of 32 bits."""
    register_unit: int = 256
    """Registers are given to a warp in multiples of it."""
    warp_unit: int = 4
    """Warps that fit the registers are counted in multiples of it: one to each of its four schedulers."""
    max_registers_thread: int = 255
    tensor_columns: int = 0
    """Of tensor memory, which some architectures keep the sums of products in."""

    @property
    def max_threads(self) -> int:
        return self.max_warps * WARP_THREADS

    @property
    def capability(self) -> str:
        """As NVIDIA writes it.

        >>> gpu("H200").processor.capability
        '9.0'
        """
        return f"{self.sm // 10}.{self.sm % 10}"


@dataclass(frozen=True)
class Gpu:
    """One product. Bytes, bytes per second and FLOP per second; a multiply-add counts as two."""

    name: str
    architecture: str
    processor: Multiprocessor
    sm_count: int
    l2_bytes: int
    memory_bytes: int
    memory_bytes_s: float
    fp32_flops: float
    """Without tensor cores."""
    fp16_flops: float
    """Dense, on tensor cores, as the next two."""
    bf16_flops: float | None
    tf32_flops: float | None

    @property
    def sm(self) -> int:
        """Compute capability, 90 for 9.0."""
        return self.processor.sm

    def flops(self, dtype: str) -> float | None:
        """The peak rate of fp32 (true float32), tf32, fp16 or bf16; None where it has no such instructions.

        Raises InputError for another name.

        >>> gpu("A100 80GB").flops("bf16") / 1e12, gpu("T4").flops("bf16")
        (312.0, None)
        """
        rates = {
            "fp32": self.fp32_flops,
            "tf32": self.tf32_flops,
            "fp16": self.fp16_flops,
            "bf16": self.bf16_flops,
        }
        if dtype not in rates:
            raise InputError(f"expected one of {', '.join(rates)}, got {dtype!r}")
        return rates[dtype]

    def ridge(self, dtype: str) -> float | None:
        """FLOP per byte of memory traffic at which the two limits meet; below it memory is the limit."""
        rate = self.flops(dtype)
        return None if rate is None else rate / self.memory_bytes_s


_VOLTA = Multiprocessor(70, 64, 32, 96 * _KIB, 96 * _KIB, 0, 256)
_TURING = Multiprocessor(75, 32, 16, 64 * _KIB, 64 * _KIB, 0, 256)
_AMPERE = Multiprocessor(80, 64, 32, 164 * _KIB, 163 * _KIB, _KIB, 128)
_AMPERE_86 = Multiprocessor(86, 48, 16, 100 * _KIB, 99 * _KIB, _KIB, 128)
_ADA = Multiprocessor(89, 48, 24, 100 * _KIB, 99 * _KIB, _KIB, 128)
_HOPPER = Multiprocessor(90, 64, 32, 228 * _KIB, 227 * _KIB, _KIB, 128)
_BLACKWELL = Multiprocessor(100, 64, 32, 228 * _KIB, 227 * _KIB, _KIB, 128, tensor_columns=512)
_BLACKWELL_120 = Multiprocessor(120, 48, 24, 100 * _KIB, 99 * _KIB, _KIB, 128)


def _gpu(
    name: str,
    architecture: str,
    processor: Multiprocessor,
    sm_count: int,
    l2_mib: float,
    memory_gb: float,
    memory_gb_s: float,
    tflops: tuple[float, float, float | None, float | None],
) -> Gpu:
    """Units of the data sheets; tflops: fp32, fp16, bf16, tf32."""
    fp32, fp16, bf16, tf32 = (None if rate is None else rate * _TERA for rate in tflops)
    if fp32 is None or fp16 is None:
        raise InputError(f"{name}: expected rates of fp32 and fp16, got none")
    return Gpu(
        name,
        architecture,
        processor,
        sm_count,
        round(l2_mib * _MIB),
        round(memory_gb * _GB),
        memory_gb_s * _GB,
        fp32,
        fp16,
        bf16,
        tf32,
    )


GPUS: tuple[Gpu, ...] = (
    _gpu("T4", "Turing", _TURING, 40, 4, 16, 320, (8.1, 65, None, None)),
    _gpu("V100", "Volta", _VOLTA, 80, 6, 32, 900, (15.7, 125, None, None)),
    _gpu("A10", "Ampere", _AMPERE_86, 72, 6, 24, 600, (31.2, 125, 125, 62.5)),
    _gpu("A100 80GB", "Ampere", _AMPERE, 108, 40, 80, 2039, (19.5, 312, 312, 156)),
    _gpu("L4", "Ada", _ADA, 58, 48, 24, 300, (30.3, 121, 121, 60)),
    _gpu("L40S", "Ada", _ADA, 142, 96, 48, 864, (91.6, 362, 362, 183)),
    _gpu("RTX 3090", "Ampere", _AMPERE_86, 82, 6, 24, 936, (35.6, 71, 71, 35.6)),
    _gpu("RTX 4090", "Ada", _ADA, 128, 72, 24, 1008, (82.6, 165.2, 165.2, 82.6)),
    _gpu("RTX 5090", "Blackwell", _BLACKWELL_120, 170, 96, 32, 1792, (104.8, 209.5, 209.5, 104.8)),
    _gpu("H100 SXM", "Hopper", _HOPPER, 132, 50, 80, 3350, (67, 989.5, 989.5, 494.5)),
    _gpu("H200", "Hopper", _HOPPER, 132, 60, 141, 4800, (67, 989.5, 989.5, 494.5)),
    _gpu("B200", "Blackwell", _BLACKWELL, 148, 126, 180, 8000, (75, 2250, 2250, 1125)),
)
"""In the order of a menu: data centre and desktop of one age side by side, the largest last."""


def gpu(name: str) -> Gpu:
    """A GPU of the table by its name, however it is capitalised. Raises InputError for a name that is not there.

    >>> gpu("h200").sm_count
    132
    """
    for one in GPUS:
        if one.name.lower() == name.strip().lower():
            return one
    raise InputError(f"expected one of {', '.join(one.name for one in GPUS)}, got {name!r}")


def gpu_of_device(device_name: str) -> Gpu | None:
    """The GPU that a driver's name means, or None where the table has none.

    >>> gpu_of_device("NVIDIA H200").name, gpu_of_device("NVIDIA A100-SXM4-80GB").name, gpu_of_device("TITAN X")
    ('H200', 'A100 80GB', None)
    """
    words = device_name.upper().replace("-", " ").split()
    for one in sorted(GPUS, key=lambda one: -len(one.name)):
        wanted = one.name.upper().split()
        if wanted[:1] == ["RTX"]:
            # "RTX 4090 D" and "RTX 4090 Laptop GPU" are other chips.
            matched = words[-2:] == wanted
        elif one.name == "H100 SXM":
            matched = "H100" in words and not {"PCIE", "NVL"} & set(words)
        else:
            matched = set(wanted) <= set(words)
        if matched:
            return one
    return None
