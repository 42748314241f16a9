"""The rank as a staircase: what a kernel pads it to, and how many warps share a multiprocessor, rank by rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flashsvd.onchip.calls import KernelCall, step_of
from flashsvd.onchip.compiled import Compiled
from flashsvd.onchip.programs import padded_ranks, padding_share


@dataclass(frozen=True)
class Stair:
    """One rank. `padded`: what the first product multiplies; `padding`: share of the arithmetic for nothing, 0 to 1.
    `warps` of `max_warps` share a multiprocessor; None where the kernel does not take the rank, and `refusal` says
    why."""

    rank: int
    padded: int
    padding: float
    warps: int | None
    max_warps: int
    limiter: str
    refusal: str = ""


def stairs(call: KernelCall, most: int, find: Callable[[KernelCall], Compiled | None]) -> tuple[Stair, ...]:
    """Every rank from 1 to `most`, all ranks of the call alike; ranks that `find` does not know are left out."""
    made: list[Stair] = []
    rows: dict[int, Compiled | None] = {}
    for rank in range(1, most + 1):
        tiled = step_of(rank)
        if tiled not in rows:
            rows[tiled] = find(call.with_rank(tiled))
        row = rows[tiled]
        if row is not None:
            made.append(_stair(row, call.with_rank(rank)))
    return tuple(made)


def stair_at(row: Compiled, call: KernelCall, rank: int) -> Stair:
    """The stair that a rank of a compiled call stands on."""
    return _stair(row, call.with_rank(rank))


def _stair(row: Compiled, call: KernelCall) -> Stair:
    rank = call.rank
    found = row.occupancy
    if found is None:
        return Stair(rank, 0, 0.0, None, 0, "", row.refusal)
    tiles = dict(row.tiles)
    padded = padded_ranks(call, tiles)[0]
    return Stair(rank, padded, padding_share(call, tiles), found.warps, found.max_warps, found.limiter)


def sentence(steps: tuple[Stair, ...], rank: int) -> tuple[str, str]:
    """What padding costs at a rank, and what the next step down would change.

    >>> a, b = Stair(96, 96, 0.0, 16, 64, "registers"), Stair(112, 128, 0.125, 16, 64, "registers")
    >>> sentence((a, b), 112)[0]
    'Rank 112 pads to 128: 12 % of the arithmetic is padding.'
    >>> sentence((a, b), 112)[1]
    'The next step down, rank 96, keeps 16 warps and pads nothing.'
    """
    here = next((stair for stair in steps if stair.rank == rank), None)
    if here is None:
        return f"Rank {rank} was not compiled here yet.", ""
    if here.warps is None:
        return f"Rank {rank}: {here.refusal}.", ""
    share = f"{100 * here.padding:.0f} %"
    if here.padded == rank:
        first = f"Rank {rank} fills its tiles: " + (
            "nothing is padding."
            if here.padding < 0.005
            else f"{share} of the arithmetic is padding elsewhere."
        )
    else:
        first = f"Rank {rank} pads to {here.padded}: {share} of the arithmetic is padding."
    below = [s for s in steps if s.rank < rank and s.warps is not None and s.padded < here.padded]
    if not below:
        return first, "There is no step below: a smaller rank saves memory, not arithmetic."
    down = below[-1]
    kept = (
        f"keeps {down.warps} warps"
        if down.warps == here.warps
        else f"has {down.warps} warps for {here.warps}"
    )
    pads = "pads nothing" if down.padding < 0.005 else f"pads {100 * down.padding:.0f} %"
    return first, f"The next step down, rank {down.rank}, {kept} and {pads}."
