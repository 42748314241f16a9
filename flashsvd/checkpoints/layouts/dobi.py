"""Dobi-SVD (ICLR 2025): `X.ALinear` = V, then `X.BLinear` = U with the bias: ASVD's names the other way round.

Its remapped form keeps, in `remapping_weight.pt`, for every linear but the head: `us_quan` and `vt_quan`
uint8 [k, min(m, n)], the columns of U·Σ and rows of Vᵀ (Σ on the longer side) as places in a code book, `us_absmax`
and `vt_absmax` [k] their scales, and `tuple_info`: ("us", [m - n, k]) or ("vt", [k, n - m]), what is left over of the
longer side in fp16, or None. The code book is the signed dynamic data type of Dettmers (arXiv 1511.04561).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flashsvd.checkpoints.base import Importer, Keys, Pair, Source, Target
from flashsvd.checkpoints.two_linears import a_linear, b_linear, order, read_two
from flashsvd.errors import CheckpointError


def _claims(source: Source) -> bool:
    return source.remapped is not None or order(source) == "dobi"


def _read(keys: Keys, target: Target) -> dict[tuple[int, str], Pair]:
    if keys.source.remapped is None:
        return read_two(keys, target, b_linear, a_linear)
    pairs = {}
    code = dynamic_code()
    for layer, slot in target.shape:
        path = target.module(layer, slot.name)
        entry = keys.source.remapped.get(path)
        if not isinstance(entry, Mapping):
            raise CheckpointError(f"{keys.source.path}: remapping_weight.pt lacks {path}: fetch it again")
        u, v = decode(entry, slot.out_features, slot.in_features, code, path)
        keys.left.pop(f"{path}.weight", None)
        if u.numel() + v.numel() >= slot.unit_parameters * slot.units:
            # As its own loader does: factors that save nothing are multiplied out.
            keys.left[f"{path}.weight"] = (u.float() @ v.float()).to(u.dtype)
            continue
        has_bias = target.has_bias(layer, slot.name)
        bias = keys.take(f"{path}.bias", (slot.out_features,), optional=not has_bias)
        pairs[layer, slot.name] = Pair((u,), (v,), bias)
    return pairs


def dynamic_code() -> torch.Tensor:
    """The 256 values of the signed dynamic 8-bit data type, in order, float32.

    For each of 7 exponents the means of 2^i + 1 even steps from 0.1 to 1, times 10^(i-6), of either sign; and 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        values += [*means.tolist(), *(-means).tolist()]
    return torch.tensor(sorted(values))


def decode(
    entry: Mapping[str, Any], rows: int, columns: int, code: torch.Tensor, path: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """U·Σ [rows, k] and Vᵀ [k, columns] of one entry, fp16 as its own loader makes them.

    Raises:
        CheckpointError: a part is missing, or of another kind or shape.
    """
    short = min(rows, columns)
    rank = len(entry["us_quan"]) if isinstance(entry.get("us_quan"), torch.Tensor) else 0
    sizes = {
        "us_quan": (rank, short),
        "vt_quan": (rank, short),
        "us_absmax": (rank,),
        "vt_absmax": (rank,),
    }
    parts = {}
    for name, size in sizes.items():
        part = entry.get(name)
        if not isinstance(part, torch.Tensor) or not rank:
            raise CheckpointError(f"remapping_weight.pt: {path} lacks {name}: fetch it again")
        quantised = name.endswith("quan")
        if tuple(part.shape) != size or (part.dtype == torch.uint8) is not quantised:
            raise CheckpointError(
                f"remapping_weight.pt: {name} of {path}: expected {'uint8 ' if quantised else ''}{list(size)}, "
                f"received {str(part.dtype).removeprefix('torch.')} {list(part.shape)}"
            )
        parts[name] = part
    u = (code[parts["us_quan"].long()] * parts["us_absmax"].float()[:, None]).T
    v = code[parts["vt_quan"].long()] * parts["vt_absmax"].float()[:, None]
    side, rest = _rest(entry.get("tuple_info"), rows, columns, rank, path)
    if side == "us":
        u = torch.cat((u, rest.float()))
    elif side == "vt":
        v = torch.cat((v, rest.float()), 1)
    return u.half().contiguous(), v.half().contiguous()


def _rest(info: Any, rows: int, columns: int, rank: int, path: str) -> tuple[str, torch.Tensor]:
    if rows == columns:
        return "", torch.empty(0)
    side, size = ("us", (rows - columns, rank)) if rows > columns else ("vt", (rank, columns - rows))
    valid = (
        isinstance(info, tuple | list)
        and len(info) == 2
        and info[0] == side
        and isinstance(info[1], torch.Tensor)
        and tuple(info[1].shape) == size
    )
    if not valid:
        raise CheckpointError(f"remapping_weight.pt: tuple_info of {path}: expected ({side!r}, {list(size)})")
    return side, info[1]


IMPORTER = Importer("dobi", "Dobi-SVD", "ICLR 2025", _claims, _read)
