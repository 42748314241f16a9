"""Which tiles of which matrices one program of a launch holds, step by step, counted from the launch's own tiles.

Letters: M tokens, D the wide dimension, R ranks, S queries and T keys of one sequence, h head dim, N outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from flashsvd.errors import InputError
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.compiled import Compiled

Place = Literal["left", "top", "middle", "bottom", "right"]
Role = Literal["kept", "read", "made", "written"]


@dataclass(frozen=True)
class Part:
    """A matrix [rows, columns] in tiles; `on_chip`: as a whole it is never anywhere."""

    name: str
    letters: tuple[str, str]
    shape: tuple[int, int]
    tile: tuple[int, int]
    place: Place
    on_chip: bool = False

    @property
    def tiles(self) -> tuple[int, int]:
        """How many there are, down and across."""
        return math.ceil(self.shape[0] / self.tile[0]), math.ceil(self.shape[1] / self.tile[1])


@dataclass(frozen=True)
class Held:
    """Tiles of a part, first to last, that are on chip. kept: over all steps; read: for this step; made: of what was
    read; written: to memory in this step."""

    part: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    role: Role


@dataclass(frozen=True)
class Moment:
    """One program at one step. `where` names its place in the work, `words` what happens."""

    parts: tuple[Part, ...]
    held: tuple[Held, ...]
    where: str
    words: str


def programs(row: Compiled, call: KernelCall) -> int:
    """How many programs a launch of `call` has, by the tiles of a compiled row, which may be for other sizes."""
    tiles = row.tiles
    if call.kernel in ("ffn", "ffn_v2"):
        return math.ceil(call.rows / tiles["block_m"]) * _out_blocks(call, tiles)
    if call.kernel == "ffn_hopper":
        return math.ceil(call.rows / tiles["block_m"])
    if call.kernel == "step":
        return math.ceil(call.width / tiles["block_n"]) * int(tiles["splits"])
    if call.kernel == "attention":
        members = int(tiles["members"])
        return math.ceil(call.seq / tiles["tokens"]) * (call.heads // members) * call.batch
    count = math.ceil(call.seq / tiles["block_m"]) * call.heads * call.batch
    if call.kernel == "rank_space_hopper" and tiles["block_m"] != 64:
        # Programs that stay, and take block after block.
        return min(count, row.grid[0])
    return count


def steps(row: Compiled, call: KernelCall, program: int) -> int:
    """How many steps a program takes. Raises InputError for a program that is not there."""
    _check(program, programs(row, call), "program")
    tiles = row.tiles
    if call.kernel in ("ffn", "ffn_hopper"):
        return math.ceil(call.width / tiles["block_d"])
    if call.kernel == "ffn_v2":
        return math.ceil(call.width / tiles["block_d"]) + math.ceil(call.hidden / tiles["block_n"])
    if call.kernel == "step":
        return math.ceil(math.ceil(call.rank / tiles["block_k"]) / tiles["splits"])
    return sum(_keys(call, tiles, item) for item in _items(row, call, program))


def moment(row: Compiled, call: KernelCall, program: int, step: int) -> Moment:
    """What a program holds at a step, both counted from 0. Raises InputError for one that is not there."""
    _check(step, steps(row, call, program), "step")
    if call.kernel in ("ffn", "ffn_v2", "ffn_hopper"):
        return _feed_forward(call, row.tiles, program, step)
    if call.kernel == "step":
        return _product(call, row.tiles, program, step)
    return _attention(row, call, program, step)


def padded_ranks(call: KernelCall, tiles: dict[str, Any]) -> tuple[int, int]:
    """What the kernel multiplies where the call says `rank` and `rank_out`; the gate's second branch is apart."""
    return _padded_in(call, tiles), _padded_out(call, tiles)


def padding_share(call: KernelCall, tiles: dict[str, Any]) -> float:
    """The share of a program's multiply-adds that fall on columns which hold no rank, from 0 to 1.

    Rows that a last tile lacks are not counted: they go by the input, not by the rank.
    """
    padded_in, padded_out = padded_ranks(call, tiles)
    if call.kernel in ("ffn", "ffn_hopper", "ffn_v2"):
        up = _branch(call.rank_up, "up", tiles) if call.rank_up else 0
        outer = call.hidden if call.kernel == "ffn_v2" else 0
        real = call.width * (call.rank + call.rank_up + call.rank_out) + outer * call.rank_out
        done = call.width * (padded_in + up + padded_out) + outer * padded_out
    elif call.kernel == "attention":
        rows, h, block_h = tiles["block_m"], call.head_dim, tiles["block_h"]
        real = rows * 2 * h + h * (call.rank + call.rank_out)
        done = rows * 2 * block_h + block_h * (padded_in + padded_out)
    else:
        real, done = call.rank + call.rank_out, padded_in + padded_out
    return 1 - real / done


def _padded_in(call: KernelCall, tiles: dict[str, Any]) -> int:
    if call.kernel == "ffn_hopper":
        return int(sum(tiles["rank_in"]))
    if call.kernel in ("ffn", "ffn_v2"):
        return _branch(call.rank, "r1", tiles)
    if call.kernel == "attention":
        return _looped(call.rank, tiles["block_r"][1])
    if call.kernel == "rank_space":
        return _looped(call.rank, tiles["block_score"])
    if call.kernel == "rank_space_hopper":
        return int(sum(tiles["parts"]))
    return _looped(call.rank, tiles["block_k"] * tiles["splits"])


def _padded_out(call: KernelCall, tiles: dict[str, Any]) -> int:
    if call.kernel == "ffn_hopper":
        return int(sum(tiles["rank_out"]))
    if call.kernel in ("ffn", "ffn_v2"):
        return _looped(call.rank_out, _outs(tiles))
    if call.kernel == "attention":
        return _looped(call.rank_out, tiles["block_r"][2])
    if call.kernel == "rank_space":
        return int(tiles["block_value"])
    return int(tiles["value"]) if call.kernel == "rank_space_hopper" else 0


def _branch(rank: int, name: str, tiles: dict[str, Any]) -> int:
    block = int(tiles[f"block_{name}"] + tiles[f"tail_{name}"])
    return block if tiles["one_pass"] else _looped(rank, block)


def _looped(rank: int, block: int) -> int:
    return math.ceil(rank / block) * block


def _outs(tiles: dict[str, Any]) -> int:
    return int(tiles["block_r2"] + tiles["tail_r2"])


def _out_blocks(call: KernelCall, tiles: Any) -> int:
    return math.ceil(call.rank_out / _outs(tiles))


def _check(number: int, count: int, what: str) -> None:
    if not 0 <= number < count:
        raise InputError(f"expected a {what} from 0 to {count - 1}, got {number}")


def _feed_forward(call: KernelCall, tiles: Any, program: int, step: int) -> Moment:
    hopper = call.kernel == "ffn_hopper"
    block_m, block_d = int(tiles["block_m"]), int(tiles["block_d"])
    outs = int(sum(tiles["rank_out"])) if hopper else _outs(tiles)
    blocks = 1 if hopper else _out_blocks(call, tiles)
    m, o = program // blocks, program % blocks
    wide_steps = math.ceil(call.width / block_d)
    where = f"tokens {_span(m, block_m, call.rows)}" + (
        f", output ranks {_span(o, outs, call.rank_out)}" if blocks > 1 else ""
    )
    if step >= wide_steps:
        return _outer(call, tiles, m, step - wide_steps, where)
    ranks = call.rank + call.rank_up
    first = "P" if not call.rank_up else "P gate, up"
    factor = "U1ᵀ" if not call.rank_up else "U1ᵀ gate, up"
    one_pass = hopper or bool(tiles["one_pass"])
    last = step == wide_steps - 1 and call.kernel != "ffn_v2"
    in_tile = ranks if one_pass else int(tiles["block_r1"])
    across = 0 if one_pass else math.ceil(ranks / in_tile) - 1
    parts = (
        Part(first, ("M", "R1"), (call.rows, ranks), (block_m, in_tile), "left"),
        Part(factor, ("R1", "D"), (ranks, call.width), (in_tile, block_d), "top"),
        Part("t", ("M", "D"), (call.rows, call.width), (block_m, block_d), "middle", on_chip=True),
        Part("V2", ("R2", "D"), (call.rank_out, call.width), (outs, block_d), "bottom"),
        Part(
            "S",
            ("M", "R2"),
            (call.rows, call.rank_out),
            (block_m, outs),
            "right",
            on_chip=call.kernel == "ffn_v2",
        ),
    )
    held = (
        Held(first, (m, m), (0, across), "kept" if one_pass else "read"),
        Held(factor, (0, across), (step, step), "read"),
        Held("t", (m, m), (step, step), "made"),
        Held("V2", (o, o), (step, step), "read"),
        Held("S", (m, m), (o, o), "written" if last else "kept"),
    )
    words = f"Columns {_span(step, block_d, call.width)} of the wide activation are made and folded into S."
    if not one_pass:
        words += f" R1 comes in tiles of {in_tile}, P's anew in every step."
    if last:
        words += " Then S is written."
    return Moment(parts, held, where, words)


def _outer(call: KernelCall, tiles: Any, m: int, step: int, where: str) -> Moment:
    block_m, block_n = int(tiles["block_m"]), int(tiles["block_n"])
    parts = (
        Part("S", ("M", "R2"), (call.rows, call.rank_out), (block_m, call.rank_out), "left", on_chip=True),
        Part("U2ᵀ", ("R2", "N"), (call.rank_out, call.hidden), (call.rank_out, block_n), "top"),
        Part("y", ("M", "N"), (call.rows, call.hidden), (block_m, block_n), "middle"),
    )
    held = (
        Held("S", (m, m), (0, 0), "kept"),
        Held("U2ᵀ", (0, 0), (step, step), "read"),
        Held("y", (m, m), (step, step), "written"),
    )
    return Moment(
        parts, held, where, f"Outputs {_span(step, block_n, call.hidden)} are made of S and written."
    )


def _product(call: KernelCall, tiles: Any, program: int, step: int) -> Moment:
    block_n, block_k, splits = int(tiles["block_n"]), int(tiles["block_k"]), int(tiles["splits"])
    n, split = program // splits, program % splits
    k = min(split * steps_each(call, tiles) + step, math.ceil(call.rank / block_k) - 1)
    parts = (
        Part("p gate, up", ("B", "R"), (call.batch, call.rank), (call.batch, block_k), "top"),
        Part("U1 gate, up", ("D", "R"), (call.width, call.rank), (block_n, block_k), "middle"),
        Part("h", ("D", "B"), (call.width, call.batch), (block_n, call.batch), "right"),
    )
    held = (
        Held("p gate, up", (0, 0), (k, k), "read"),
        Held("U1 gate, up", (n, n), (k, k), "read"),
        Held("h", (n, n), (0, 0), "written" if step == steps_each(call, tiles) - 1 else "kept"),
    )
    words = f"Ranks {_span(k, block_k, call.rank)} of both factors are read, multiplied and summed."
    return Moment(parts, held, f"wide columns {_span(n, block_n, call.width)}", words)


def steps_each(call: KernelCall, tiles: Any) -> int:
    """Steps of one share of a decode product."""
    return math.ceil(math.ceil(call.rank / tiles["block_k"]) / tiles["splits"])


def _attention(row: Compiled, call: KernelCall, program: int, step: int) -> Moment:
    tiles = row.tiles
    for item in _items(row, call, program):
        count = _keys(call, tiles, item)
        if step < count:
            break
        step -= count
    block, head, sequence = _item_place(call, tiles, item)
    tokens, block_n = _tokens(tiles), int(tiles["block_n"])
    rebuilt = call.kernel == "attention"
    names = ("Pq", "Pkᵀ", "Pvᵀ") if rebuilt else ("q", "kᵀ", "vᵀ")
    score = call.rank or call.head_dim
    value = call.rank_out or call.head_dim
    if rebuilt and not call.rank:
        names = ("q", "kᵀ", names[2])
    if rebuilt and not call.rank_out:
        names = (names[0], names[1], "vᵀ")
    outs = call.head_dim if rebuilt else value
    letters = "R" if call.rank or not rebuilt else "h"
    parts = (
        Part(names[0], ("S", letters), (call.seq, score), (tokens, score), "left"),
        Part(names[1], (letters, "T"), (score, call.seq), (score, block_n), "top"),
        Part("scores", ("S", "T"), (call.seq, call.seq), (tokens, block_n), "middle", on_chip=True),
        Part(names[2], ("R", "T"), (value, call.seq), (value, block_n), "bottom"),
        Part("out", ("S", "h" if rebuilt else "R"), (call.seq, outs), (tokens, outs), "right"),
    )
    last = step == count - 1
    held = (
        Held(names[0], (block, block), (0, 0), "kept"),
        Held(names[1], (0, 0), (step, step), "read"),
        Held("scores", (block, block), (step, step), "made"),
        Held(names[2], (0, 0), (step, step), "read"),
        Held("out", (block, block), (0, 0), "written" if last else "kept"),
    )
    members = int(tiles.get("members", 1)) if rebuilt else 1
    heads = f"head {head + 1}" if members == 1 else f"heads {head + 1} to {head + members}"
    what = "are read, k and v rebuilt by factors that stay on chip" if rebuilt else "are read"
    words = f"Keys {_span(step, block_n, call.seq)} {what}; their scores never leave the chip."
    where = f"sequence {sequence + 1}, {heads}, queries {_span(block, tokens, call.seq)}"
    return Moment(parts, held, where, words)


def _tokens(tiles: Any) -> int:
    return int(tiles.get("tokens", tiles["block_m"]))


def _items(row: Compiled, call: KernelCall, program: int) -> range:
    """Blocks of queries that a program works on, one after another."""
    tiles = row.tiles
    members = int(tiles.get("members", 1))
    count = math.ceil(call.seq / _tokens(tiles)) * (call.heads // members) * call.batch
    return range(program, count, programs(row, call))


def _item_place(call: KernelCall, tiles: Any, item: int) -> tuple[int, int, int]:
    """Block of queries, first head, sequence."""
    members = int(tiles.get("members", 1))
    blocks = math.ceil(call.seq / _tokens(tiles))
    block = item % blocks
    if call.causal:
        # The longest rows first, as the kernel does.
        block = blocks - 1 - block
    groups = call.heads // members
    return block, item // blocks % groups * members, item // blocks // groups


def _keys(call: KernelCall, tiles: Any, item: int) -> int:
    """Tiles of keys that a block of queries sees."""
    seen = call.seq
    if call.causal:
        block, _, _ = _item_place(call, tiles, item)
        seen = min((block + 1) * _tokens(tiles), call.seq)
    return math.ceil(seen / tiles["block_n"])


def _span(index: int, size: int, most: int) -> str:
    """Counted from 1: "1 to 64 of 512"."""
    first, last = index * size + 1, min((index + 1) * size, most)
    return f"{first:,} to {last:,} of {most:,}" if first < last else f"{first:,} of {most:,}"
