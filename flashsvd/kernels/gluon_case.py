"""What Triton compiles of a Gluon kernel on a machine without the GPU; see `flashsvd.kernels.resources`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flashsvd.kernels.tma import described

SM = 90


def gluon_source(
    kernel: Any,
    dtype: torch.dtype,
    tiles: Mapping[str, tuple[int, ...] | None],
    others: Mapping[str, str],
    constants: Mapping[str, object],
) -> Any:
    """Descriptors by their tiles (None: one that is not there), other parameters by their types, constants by value.

    Pointers and whole numbers are taken to be multiples of 16, as the library's buffers and sizes are, but for numbers
    that the kernel is not specialised for.
    """
    from triton.experimental.gluon._runtime import GluonASTSource

    signature = {
        name: "constexpr" if tile is None else described(tile, dtype) for name, tile in tiles.items()
    } | dict(others)
    given = {name: None for name, kind in signature.items() if kind == "constexpr"} | dict(constants)
    signature |= dict.fromkeys(constants, "constexpr")
    fixed = {kernel.params[i].name for i in range(len(kernel.params)) if kernel.params[i].do_not_specialize}
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in others.items()
        if (kind in ("i32", "i64") and name not in fixed) or kind.startswith("*")
    }
    return GluonASTSource(kernel, signature, given, aligned)
