"""Which way a prefill takes from factors to attention: heads rebuilt on chip for every tile of queries, or rebuilt once
in memory for a flash attention of dense heads. A count of FLOPs and bytes against measured ceilings decides.

Letters: B batch, S queries, T keys, H heads, Hk kv heads, h head dim, r rank of a head, BM rows and BN keys of a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from flashsvd.kernels.attention.tiles import Layouts, doubtful, kernel_tiles
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.tiles import attention_stream_tiles

How = Literal["rebuild on chip", "rebuild once"]

TIE = 0.05
"""Share of the time within which the heads' memory decides: what timings of one run can tell apart."""


@dataclass(frozen=True)
class Speeds:
    """What a kind of device does: FLOPs and bytes per second, and the share of FLOPs that each way reaches: on chip, on
    chip with turned heads, torch's flash attention, plain products. launch_us: of one kernel more."""

    flops: float
    bytes: float
    on_chip: float
    on_chip_turned: float
    attention: float
    products: float
    launch_us: float


GPU = Speeds(
    # Measured on the H200: bf16 products and a copy.
    flops=790e12,
    bytes=4.3e12,
    # 258 GFLOP in 637 us and 206 in 693 at [4, 4096], 12 heads of 64, rank 32, bf16 (`flashsvd.kernels.tiles`).
    on_chip=0.51,
    attention=0.38,
    # Assumed: the turn is no product, and tiles of 32 keys take the slower instructions.
    on_chip_turned=0.3,
    products=0.8,
    launch_us=3.0,
)
CPU = Speeds(1e11, 2e10, on_chip=0.5, on_chip_turned=0.5, attention=0.5, products=0.8, launch_us=5.0)
"""Of a laptop's two cores in fp32, roughly: the ways differ by what they do there, not by how well."""


@dataclass(frozen=True)
class Choice:
    """A way, and what both are predicted to take.

    heads_bytes: q, k and v of all tokens, which only "rebuild once" keeps in memory.
    """

    how: How
    on_chip_us: float
    once_us: float
    heads_bytes: int

    @property
    def words(self) -> str:
        """One line for a report.

        >>> Choice("rebuild once", 2310.4, 812.0, 100 << 20).words
        'rebuild once: 812 us predicted with 100 MiB of heads, 2310 us on chip'
        """
        once = f"{self.once_us:.0f} us"
        on_chip = f"{self.on_chip_us:.0f} us"
        heads = f"{self.heads_bytes / 2**20:.0f} MiB of heads"
        if self.how == "rebuild once":
            return f"{self.how}: {once} predicted with {heads}, {on_chip} on chip"
        return f"{self.how}: {on_chip} predicted, {once} rebuilt once with {heads}"


def prefill_choice(
    batch: int,
    seq: int,
    past: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    layouts: Layouts,
    dtype: torch.dtype,
    device: torch.device,
    *,
    window: int | None = None,
    rotary: bool = True,
) -> Choice:
    """How causal attention of `seq` queries over past + seq keys is faster from the factors of q, k, v (None: dense).

    The same arguments choose the same way. Of two ways within 5 % the one without heads in memory is taken.

    On chip, every tile of queries makes its keys anew: 4·BM·BN·h FLOPs to score and to weigh a tile of keys, and
    2·BN·h·(rk + rv) to rebuild it. Once, q, k and v are products of 2·h·r FLOPs per token and head, written and read
    again, and attention is 4·h FLOPs per pair of a query and a key that it sees.

    >>> shared, per_head = HeadLayout((1024,) * 32, shared=True), HeadLayout((32,) * 32)
    >>> llama = (8, 2048, 0, 32, 32, 128)
    >>> prefill_choice(*llama, (shared,) * 3, torch.bfloat16, torch.device("cuda")).how
    'rebuild once'
    >>> prefill_choice(*llama[:5], 64, (per_head,) * 3, torch.bfloat16, torch.device("cuda"), rotary=False).how
    'rebuild on chip'
    """
    speeds = GPU if device.type == "cuda" else CPU
    keys = past + seq
    sizes = (batch, seq, keys, heads, kv_heads, head_dim, layouts, dtype)
    elements = batch * head_dim * (seq * heads + 2 * keys * kv_heads)
    heads_bytes = elements * dtype.itemsize
    read_bytes = (
        dtype.itemsize
        * batch
        * (
            _columns(layouts[0], heads * head_dim) * seq
            + sum(_columns(layout, kv_heads * head_dim) for layout in layouts[1:]) * keys
        )
    )
    out_bytes = dtype.itemsize * batch * seq * heads * head_dim

    def us(flops: float, share: float, moved: int, launches: int) -> float:
        busy = max(flops / (share * speeds.flops), moved / speeds.bytes)
        return 1e6 * busy + launches * speeds.launch_us

    on_chip = us(
        _on_chip_flops(*sizes, device, window, rotary),
        speeds.on_chip_turned if rotary else speeds.on_chip,
        read_bytes + out_bytes,
        launches=1,
    )
    pairs = visible_pairs(seq, keys, window)
    once = us(
        _rebuild_flops(batch, seq, keys, heads, kv_heads, head_dim, layouts),
        speeds.products,
        read_bytes + heads_bytes,
        launches=2,
    ) + us(4.0 * batch * heads * head_dim * pairs, speeds.attention, heads_bytes + out_bytes, launches=1)
    left_to_torch = device.type == "cuda" and rotary and doubtful(head_dim, heads // kv_heads, dtype)
    how: How = "rebuild on chip" if on_chip <= (1 + TIE) * once and not left_to_torch else "rebuild once"
    return Choice(how, on_chip, once, heads_bytes)


def visible_pairs(seq: int, keys: int, window: int | None = None) -> int:
    """Pairs of a query and a key that causal attention scores, of which the queries are the last.

    >>> visible_pairs(3, 3), visible_pairs(2, 5), visible_pairs(4, 4, window=1)
    (6, 9, 7)
    """
    longest = keys if window is None else min(keys, window + 1)
    # The first queries see all keys up to their own place, the later ones the longest stretch.
    growing = max(0, min(seq, longest - (keys - seq)))
    return growing * (keys - seq) + growing * (growing + 1) // 2 + (seq - growing) * longest


def _columns(layout: HeadLayout | None, dense: int) -> int:
    return dense if layout is None else layout.p_width


def _rebuild_flops(
    batch: int, seq: int, keys: int, heads: int, kv_heads: int, head_dim: int, layouts: Layouts
) -> float:
    q, *kv = (0 if layout is None else layout.u_rows for layout in layouts)
    return 2.0 * batch * head_dim * (seq * q + keys * sum(kv))


def _on_chip_flops(
    batch: int,
    seq: int,
    keys: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    layouts: Layouts,
    dtype: torch.dtype,
    device: torch.device,
    window: int | None,
    rotary: bool,
) -> float:
    """Of the tiles that run, with what they rebuild again and the keys that they read in vain."""
    group = heads // kv_heads
    if device.type == "cuda":
        tiles = kernel_tiles(seq, head_dim, layouts, dtype, keys=keys, group=group, rotary=rotary)
        tokens, block_n, rows = tiles.tokens, tiles.block_n, tiles.block_m
        readers = kv_heads * (group // tiles.members)
    else:
        widest = max((layout.max_rank for layout in layouts if layout is not None), default=0)
        loops = attention_stream_tiles(
            batch, seq, group, head_dim, widest, dtype, keys=keys, rotary=rotary, by_place=True
        )
        tokens, block_n, rows, readers = loops.block_m, loops.block_n, group * loops.block_m, kv_heads
    read = 0
    for first in range(0, seq, tokens):
        place = keys - seq + first
        past_key = min(place + tokens, keys)
        first_key = 0 if window is None else max(0, place - window) // block_n * block_n
        read += math.ceil((past_key - first_key) / block_n) * block_n
    ranks = [0.0 if layout is None else layout.u_rows / layout.heads for layout in layouts]
    each = 4.0 * rows * head_dim + 2.0 * head_dim * (ranks[1] + ranks[2])
    return batch * (readers * read * each + 2.0 * seq * heads * ranks[0] * head_dim)
