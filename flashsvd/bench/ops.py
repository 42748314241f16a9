"""What the benchmarks of single ops share: inputs, cold caches, and contestants made of plain calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from flashsvd.bench.contest import Contestant, Prepared
from flashsvd.bench.counts import Work
from flashsvd.bench.peaks import NoModel, peak_bytes
from flashsvd.devices import available_bytes
from flashsvd.errors import InputError, OutOfMemoryError

_FLUSH_BYTES = {"cuda": 2**30, "cpu": 64 * 2**20}

BUDGET_SECONDS = {"cpu": 15.0, "cuda": 20.0}


def check_sizes(**sizes: int) -> None:
    """Raises InputError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name.replace('_', '-')} must be at least 1, got {size}")


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that not every generator takes."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be from 0 to {2**32 - 1}, got {seed}")


def check_fits(what: str, needed_bytes: int, device: torch.device) -> None:
    """Raises OutOfMemoryError where inputs and the largest contestant's tensors would not fit."""
    free = available_bytes(device)
    if needed_bytes > free:
        raise OutOfMemoryError(what, needed_bytes, free)


def cache_flush(device: torch.device) -> Callable[[], object]:
    """A call that pushes the inputs out of every cache: it writes 1 GiB on a GPU, 64 MiB elsewhere.

    On a GPU that takes some 250 microseconds, in which the CPU launches what is timed after it.
    """
    buffer = torch.empty(_FLUSH_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    return buffer.zero_


def random_tensor(
    shape: Sequence[int],
    like: tuple[torch.dtype, torch.device],
    generator: torch.Generator,
    scale: float = 1.0,
) -> torch.Tensor:
    """Normal numbers of standard deviation `scale`, drawn in float32 on the generator's device."""
    dtype, device = like
    drawn = torch.randn(*shape, generator=generator, device=generator.device) * scale
    return drawn.to(device, dtype)


def op_contestant(
    what: str,
    work: Work,
    call: Callable[[], torch.Tensor],
    device: torch.device,
    *,
    checked: Callable[[torch.Tensor], torch.Tensor] = lambda out: out,
    left_out: str | None = None,
) -> Contestant:
    """A contestant that is one call giving one tensor, of which `checked` is judged."""
    run = torch.inference_mode()(call)

    def judged(out: object) -> torch.Tensor:
        assert isinstance(out, torch.Tensor)
        return checked(out)

    def prepare() -> Prepared:
        return Prepared(run, judged, lambda: peak_bytes(NoModel(device), run, device), work.weight_bytes)

    return Contestant(what, work, prepare, left_out)
