# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · The feed-forward, streamed once
#
# Between its two matrices a feed-forward holds the widest tensor of the layer. Streamed in tiles, it is never
# there as a whole. But a careless grid makes every tile of it several times, and throws away what streaming won.
#
# **You will be able to** stream a feed-forward between its outer factors · read a kernel's recompute factor off
# its grid · write the kernel that makes every tile once, and say what it pays in registers.
#
# **Before this** lesson 03 (tiles and on-chip memory). **Time** 25 minutes. **Needs** no GPU, no network.

# %%
import textwrap
from dataclasses import replace

import torch
from torch.nn.functional import gelu, silu

from flashsvd.teaching import (
    begin,
    check,
    choose,
    exercise,
    peak_bytes,
    predict,
    shipped,
    show,
    slider,
    turn,
)

device = begin()

# %%
import triton
import triton.language as tl

from flashsvd.allocate import by_role
from flashsvd.bench.counts import ffn_work
from flashsvd.figures.amounts import amounts, lines
from flashsvd.figures.tiles_film import program_film
from flashsvd.kernels import flash_svd_ffn, flash_svd_glu
from flashsvd.kernels.ffn import ffn_plan
from flashsvd.kernels.ffn.tiles import ffn_tiles
from flashsvd.kernels.ffn.triton_kernel import ffn_kernel
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.calls import calls_of
from flashsvd.onchip.compiled import shipped as compiled
from flashsvd.onchip.programs import moment, programs, steps

MIB = 2**20
kernel = "triton" if device.type == "cuda" else "interpret"

# %% [markdown]
# ## The widest tensor
#
# A feed-forward takes $x$ of $d$ columns to $D$ columns, applies an activation to every number, and comes back.
# With both matrices factored it is four thin products:
#
# $$P = x V_1^\top, \qquad t = \mathrm{act}(P\,U_1^\top + b_1), \qquad S = t\,V_2^\top,
# \qquad y = S\,U_2^\top + b_2 .$$
#
# $P$ has $R_1$ columns and $S$ has $R_2$; $t$ between them has $D$. This lesson is about the two products in
# the middle. The shape is BERT-base: $M = 16\,384$ tokens, $D = 3072$, $R_1 = R_2 = 240$, and 2 bytes a number.

# %%
rows, width, rank = 16384, 3072, 240

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "How many MiB is the wide activation t? (16,384 × 3,072 numbers of 2 bytes; P and S are 7.5 MiB each.)",
    rows * width * 2 / MIB,
    unit="MiB",
    why="13 times P. It is written by one product and read by the next, so it crosses the memory bus twice.",
)


# %%
def draw_bytes(rank: int):
    stored, streamed = (
        ffn_work(rows, width, rank, rank, itemsize=2, streamed=way) for way in (False, True)
    )
    wide = stored.activation_bytes - streamed.activation_bytes
    ends = {"P, S": streamed.activation_bytes / MIB, "weights": streamed.weight_bytes / MIB}
    ways = {"t in memory": {**ends, "t, twice": wide / MIB}, "t on chip": ends}
    words = (
        f"rank {rank}: {stored.bytes / MIB:,.0f} MiB against {streamed.bytes / MIB:,.1f}, "
        f"the same {stored.flops / 1e9:,.0f} GFLOP"
    )
    return amounts(ways, unit="MiB moved"), words


turn(draw_bytes, rank=slider(range(48, 577, 48), 240))

# %% [markdown]
# ## All in memory, then in tiles
#
# Few tokens, so that the interpreter can follow.

# %%
M, D, R1, R2 = 48, 128, 24, 40
p = torch.randn(M, R1, device=device)
u1 = torch.randn(D, R1, device=device) / R1**0.5
b1 = torch.randn(D, device=device)
v2 = torch.randn(R2, D, device=device) / D**0.5

naive = gelu(p @ u1.T + b1) @ v2.T
reference = flash_svd_ffn(p, u1, b1, v2, activation="gelu", backend="naive")
check("all in memory", naive, reference)

# %% [markdown]
# The activation works on one number at a time, and $S$ is a sum over the columns of $t$. So take some columns
# of $t$, make them, add what they contribute to $S$, and forget them. No running maximum is needed, unlike in
# softmax.


# %%
def tiled(block_m: int, block_d: int) -> torch.Tensor:
    s = torch.zeros(M, R2, device=device)
    for m in range(0, M, block_m):
        for d in range(0, D, block_d):
            t = gelu(p[m : m + block_m] @ u1[d : d + block_d].T + b1[d : d + block_d])
            s[m : m + block_m] += t @ v2[:, d : d + block_d].T
    return s


check("in tiles", tiled(block_m=16, block_d=32), reference)

# %%
big = [
    torch.randn(size, device=device)
    for size in ((2048, 64), (1024, 64), (1024,), (64, 1024))
]
for backend in ("naive", "torch"):
    peak = peak_bytes(
        lambda b=backend: flash_svd_ffn(*big, activation="gelu", backend=b), device
    )
    print(
        f"{backend:6} keeps {peak / MIB:5.2f} MiB alive at its peak, S is {2048 * 64 * 4 / MIB} MiB"
    )

# %% [markdown]
# ## The published grid
#
# Now programs. One program needs a tile of $S$ to sum into. FlashSVD's first kernel gives each program a block
# of rows and **32 columns of $S$**: small tiles, many programs, little on chip. Here is that grid for one
# sequence of 512 tokens at rank 96, with the other tiles of the kernel in this project. All programs are shown
# at the same step. Watch the dark tile of $t$, which is what they make.

# %%
bert = shape_of(resolve("bert-base"))


def call_of(rank: int, sequences: int):
    plan = by_role(bert, head=40, feed_forward=rank, output=240)
    return calls_of(plan, 0, sequences, 512, "bf16")["ffn"]


few = call_of(rank=96, sequences=1)
few_row = compiled().find(few, "H100 SXM")
narrow = replace(few_row, tiles={**few_row.tiles, "block_r2": 32, "tail_r2": 0})
show(
    program_film(
        [moment(narrow, few, program, 40) for program in range(9)], milliseconds=900
    ),
    "Programs 0 to 2 make the same tile of t, each for another 32 columns of S",
)
print(f"{programs(narrow, few)} programs, {programs(few_row, few)} blocks of rows")

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "S has 240 columns and a program 32 of them. How many times is each number of t made?",
    replace(
        ffn_tiles(rows, width, rank, rank, torch.bfloat16), block_r2=32, tail_r2=0
    ).out_blocks(rank),
    within=0.07,
    why="240 / 32 = 7.5, so 8 programs share a block of rows, and each makes all of t for "
    "itself: first product, bias and activation.",
)

# %% [markdown]
# That number is the kernel's **recompute factor**. Its price in FLOPs: with $c$ programs to a block of rows,
# the first product runs $c$ times and the second once,
#
# $$2 M D\,(c\,R_1 + R_2) \quad\text{instead of}\quad 2 M D\,(R_1 + R_2).$$

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "With R1 = R2 = 240 and a recompute factor of 8: how many times the FLOPs of the least?",
    (8 * rank + rank) / (rank + rank),
    why="(8 + 1) / 2. The activation, which is dear on a GPU, runs 8 times as often.",
)

# %% [markdown]
# ## Turn it
#
# Wider tiles of $S$ make the steps longer and the curve lower. The other line is the kernel of this project, up
# to the rank that it takes.

# %%
RANKS = range(16, 513, 4)


def draw_factor(columns_of_S: int):
    def factor(rank: int, columns: int | None) -> float:
        tiles = ffn_tiles(rows, width, rank, rank, torch.bfloat16)
        if columns is not None:
            tiles = replace(tiles, block_r2=columns, tail_r2=0)
        return (tiles.out_blocks(rank) + 1) / 2

    named = f"{columns_of_S} columns of S in a program"
    series = {
        named: (RANKS, [factor(r, columns_of_S) for r in RANKS]),
        "the tiles that ship": (RANKS, [factor(r, None) for r in RANKS]),
    }
    words = (
        f"rank 240: {factor(240, columns_of_S):.2g} times the FLOPs with {columns_of_S} columns, "
        f"{factor(240, None):.2g} as it ships"
    )
    figure = lines(
        series,
        x="R1 = R2",
        y="times the least FLOPs",
        here=240,
        steps=(named, "the tiles that ship"),
    )
    return figure, words


turn(draw_factor, columns_of_S=slider([16, 32, 64, 128, 256], 32))

# %% [markdown]
# ## How to lose it
#
# Give one program **all** columns of $S$. Then nobody else needs this block's $t$, and the recompute factor is
# one. The film shows every fourth step of one such program, at rank 240.

# %%
call, one = call_of(rank, sequences=32), call_of(rank, sequences=1)
row = compiled().find(call, "H100 SXM")
count = steps(row, one, 0)
show(
    program_film(
        [moment(row, one, 2, s) for s in range(3, count, 4)],
        counted="frame",
        milliseconds=250,
    ),
    "One program: its rows of P stay, columns of t pass by, all of S is summed on chip",
)
block_m, columns, warps = row.tiles["block_m"], row.tiles["block_r2"], row.warps
print(
    f"{programs(row, call)} programs for 32 sequences, each with {block_m} × {columns} sums"
)

# %% [markdown]
# The price is room: the sums are fp32, and they live in registers, of which a multiprocessor has 256 KiB and a
# thread at most 255 of 4 bytes each.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    f"A program has {block_m} × {columns} fp32 sums and {warps} warps of 32 threads. How many registers of each "
    "thread do the sums take?",
    block_m * columns / (32 * warps),
    unit="registers",
    why="32,768 sums for 256 threads: half of what a thread may have, before anything is loaded.",
)

# %%
for top in (64, 128, 256, 320, 512):
    found = compiled().find(call.with_rank(top), "H100 SXM")
    tiles, sums = found.tiles, found.tiles["block_r2"] + found.tiles["tail_r2"]
    print(
        f"rank {top:3}: {tiles['block_m']:3} rows, {found.warps} warps, "
        f"{tiles['block_m'] * sums // (32 * found.warps):3} registers of sums, "
        f"{found.registers} in all, {found.shared_bytes / 1024:3.0f} KiB shared, "
        f"{found.spill_bytes} bytes spilled"
    )

# %% [markdown]
# At 512 some registers spill to memory, and above it the sums do not fit at all. Then the library does not go
# back to recomputing: it lets a few thousand rows of $t$ exist at a time, and says what it chose and why.

# %%
for r1, wide in ((240, 3072), (416, 4096), (1496, 11008)):
    plan = ffn_plan(16384, wide, r1, r1, torch.bfloat16, "sm_90")
    print(textwrap.fill(f"rank {r1}, D {wide}: {plan.why}", 96, subsequent_indent="  "))

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "S may be written into the memory of P (where both have as many columns). With which grid is that safe?",
    ["the published one", "one program for all columns of S", "both", "neither"],
    "one program for all columns of S",
    why="That program has read its rows of P before it writes them, and nobody else reads them. In the published "
    "grid seven others may still need them.",
)

# %%
same, square = p.clone(), v2[:R1].contiguous()
flash_svd_ffn(same, u1, b1, square, activation="gelu", out=same, backend=kernel)
check("S in the place of P", same, gelu(p @ u1.T + b1) @ square.T)

# %% [markdown]
# ## The kernel that ships
#
# Its loop over the columns of $t$ makes the **next** tile's product before it works on this one, so that the
# tensor cores multiply while other units compute the activation. On an H200 at this lesson's shape that took
# the kernel from 189 to 121 µs (`flashsvd/kernels/ffn/triton_kernel.py`).

# %%
shipped(ffn_kernel, after="for d0 in range(BLOCK_D", before="next_up = up")

# %%
fused = flash_svd_ffn(p, u1, b1, v2, activation="gelu", backend=kernel)
check("the kernel that ships", fused, reference)

# %% [markdown]
# ## The published grid, small
#
# This kernel has the published grid and counts in `made` how many tiles of $t$ all programs make. $R_1 = 24$ is
# padded to a tile of 32, with zeros. Without a GPU the interpreter runs it; with one, the same cell compiles
# it.


# %%
@triton.jit
def narrow_ffn(
    p, u1, b1, v2, s, made, rows, width, rank_in, rank_out,
    BM: tl.constexpr, BD: tl.constexpr, R1: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    o = tl.program_id(1) * BR + tl.arange(0, BR)
    r = tl.arange(0, R1)
    some_rows, some_ranks = m[:, None] < rows, r[None, :] < rank_in
    p_tile = tl.load(
        p + m[:, None] * rank_in + r[None, :], mask=some_rows & some_ranks, other=0.0
    )
    acc = tl.zeros([BM, BR], tl.float32)
    for d0 in range(0, width, BD):
        d = d0 + tl.arange(0, BD)
        # [BD, R1]
        u_tile = tl.load(
            u1 + d[:, None] * rank_in + r[None, :],
            mask=(d[:, None] < width) & some_ranks,
            other=0.0,
        )
        t = tl.dot(p_tile, tl.trans(u_tile), input_precision="ieee")
        t += tl.load(b1 + d, mask=d < width, other=0.0)[None, :]
        t = 0.5 * t * (1.0 + tl.erf(t * 0.7071067811865476))
        tl.atomic_add(made, 1)
        # [BR, BD]
        v_tile = tl.load(
            v2 + o[:, None] * width + d[None, :],
            mask=(o[:, None] < rank_out) & (d[None, :] < width),
            other=0.0,
        )
        acc += tl.dot(t, tl.trans(v_tile), input_precision="ieee")
    tl.store(
        s + m[:, None] * rank_out + o[None, :],
        acc,
        mask=some_rows & (o[None, :] < rank_out),
    )


def run_narrow() -> tuple[torch.Tensor, int]:
    s = torch.full((M, R2), float("nan"), device=device)
    made = torch.zeros(1, dtype=torch.int32, device=device)
    grid = (triton.cdiv(M, 16), triton.cdiv(R2, 16))
    narrow_ffn[grid](p, u1, b1, v2, s, made, M, D, R1, R2, BM=16, BD=32, R1=32, BR=16)
    return s, int(made)


narrow_s, narrow_made = run_narrow()
least = triton.cdiv(M, 16) * triton.cdiv(D, 32)
check("published grid", narrow_s, reference)
print(
    f"{narrow_made} tiles of t made, {least} there are: recompute factor {narrow_made / least:g}"
)

# %% [markdown]
# ## Can you spot it?
#
# Large $R_1$ does not fit a tile, so the first product is summed over tiles of it. A colleague wrote that in
# torch.


# %% tags=["bug"]
def in_rank_tiles(block_r: int) -> torch.Tensor:
    s = torch.zeros(M, R2, device=device)
    for d in range(0, D, 32):
        t = torch.zeros(M, 32, device=device)
        for r in range(0, R1, block_r):
            t += gelu(
                p[:, r : r + block_r] @ u1[d : d + 32, r : r + block_r].T + b1[d : d + 32]
            )
        s += t @ v2[:, d : d + 32].T
    return s


check("R1 in tiles", in_rank_tiles(8), reference)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# The sum over ranks must be complete before the activation: $\mathrm{act}(a + b)$ is not
# $\mathrm{act}(a) + \mathrm{act}(b)$. The bias comes three times, too. With one tile of ranks (`block_r` of 24)
# the code is right, so a test at small ranks passes. For the same reason $U_1$ and $V_2$ cannot be multiplied
# together beforehand: the activation stands between them.
#
# </details>


# %%
def in_rank_tiles(block_r: int) -> torch.Tensor:
    s = torch.zeros(M, R2, device=device)
    for d in range(0, D, 32):
        t = b1[d : d + 32].expand(M, 32).clone()
        for r in range(0, R1, block_r):
            t += p[:, r : r + block_r] @ u1[d : d + 32, r : r + block_r].T
        s += gelu(t) @ v2[:, d : d + 32].T
    return s


check("R1 in tiles", in_rank_tiles(8), reference)

# %% [markdown]
# ## Exercise 1 · FLOPs of a grid
#
# Write the FLOPs of both products when a program has `columns` columns of $S$. Padding within tiles is not
# counted.


# %% tags=["exercise"]
def grid_flops(rows: int, width: int, rank_in: int, rank_out: int, columns: int) -> int:
    """A product [m, k]·[k, n] is 2·m·k·n FLOPs."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def flops_of(rank_in: int, rank_out: int) -> int:
    return ffn_work(rows, width, rank_in, rank_out, 2, streamed=True).flops


grids = ((240, 240, 32), (192, 256, 64))
exercise(
    "FLOPs of a grid",
    lambda: [grid_flops(rows, width, *grid) for grid in grids],
    [flops_of(r1, 0) * -(-r2 // c) + flops_of(0, r2) for r1, r2, c in grids],
    mistakes={
        "the second product is not repeated: programs share its columns among them": [
            flops_of(r1, r2) * -(-r2 // c) for r1, r2, c in grids
        ],
        "programs are whole: 240 / 32 = 7.5 takes 8 of them": [
            flops_of(r1, 0) * (r2 // c) + flops_of(0, r2) for r1, r2, c in grids
        ],
        "the factor falls on the first product, not on the second": [
            flops_of(r1, 0) + flops_of(0, r2) * -(-r2 // c) for r1, r2, c in grids
        ],
        "a multiplication and an addition are two FLOPs": [
            (flops_of(r1, 0) * -(-r2 // c) + flops_of(0, r2)) // 2 for r1, r2, c in grids
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# How many programs share a block of rows? Each makes all of $t$, but only its own columns of $S$. The likely
# mistake is to repeat both products.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def grid_flops(rows: int, width: int, rank_in: int, rank_out: int, columns: int) -> int:
#     times = -(-rank_out // columns)
#     return 2 * rows * width * (times * rank_in + rank_out)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · make every tile once
#
# Here is the kernel again with its tiles of $S$ and $V_2$ left out. Let a program have **all** columns of $S$:
# `R2` is $R_2 = 40$ padded to 64. Write `o`, `acc` and `v_tile`, choose the grid in `run_wide`, and delete the
# line that says `raise`.


# %% tags=["exercise"]
@triton.jit
def wide_ffn(
    p, u1, b1, v2, s, made, rows, width, rank_in, rank_out,
    BM: tl.constexpr, BD: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    r = tl.arange(0, R1)
    some_rows, some_ranks = m[:, None] < rows, r[None, :] < rank_in
    p_tile = tl.load(
        p + m[:, None] * rank_in + r[None, :], mask=some_rows & some_ranks, other=0.0
    )
    o = ...  # the columns of S that this program sums
    acc = ...  # [BM, R2]
    for d0 in range(0, width, BD):
        d = d0 + tl.arange(0, BD)
        u_tile = tl.load(
            u1 + d[:, None] * rank_in + r[None, :],
            mask=(d[:, None] < width) & some_ranks,
            other=0.0,
        )
        t = tl.dot(p_tile, tl.trans(u_tile), input_precision="ieee")
        t += tl.load(b1 + d, mask=d < width, other=0.0)[None, :]
        t = 0.5 * t * (1.0 + tl.erf(t * 0.7071067811865476))
        tl.atomic_add(made, 1)
        v_tile = ...  # [R2, BD]
        acc += tl.dot(t, tl.trans(v_tile), input_precision="ieee")
    tl.store(
        s + m[:, None] * rank_out + o[None, :],
        acc,
        mask=some_rows & (o[None, :] < rank_out),
    )


def run_wide() -> tuple[torch.Tensor, int]:
    raise NotImplementedError  # delete this line
    s = torch.full((M, R2), float("nan"), device=device)
    made = torch.zeros(1, dtype=torch.int32, device=device)
    grid = ...
    wide_ffn[grid](p, u1, b1, v2, s, made, M, D, R1, R2, BM=16, BD=32, R1=32, R2=64)
    return s, int(made)


# %% jupyter={"source_hidden": true} tags=["check"]
t_all = gelu(p @ u1.T + b1)
exercise(
    "every tile once",
    run_wide,
    (reference, least),
    mistakes={
        "S is right, but every tile of t was still made three times: the grid has one number now": (
            reference,
            narrow_made,
        ),
        "every tile of t met the first columns of V2: its columns are d, not those of the first tile": (
            sum(t_all[:, d : d + 32] for d in range(0, D, 32)) @ v2[:, :32].T,
            least,
        ),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `o = tl.arange(0, R2)` are the columns of $S$ now, in every program, and the mask `o < rank_out` is needed
# twice: when V2 is loaded and when S is stored. The grid has one number: `(triton.cdiv(M, 16),)`. The likely
# mistake is to keep the second one, and with it the recomputing.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# @triton.jit
# def wide_ffn(
#     p, u1, b1, v2, s, made, rows, width, rank_in, rank_out,
#     BM: tl.constexpr, BD: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr,
# ):
#     m = tl.program_id(0) * BM + tl.arange(0, BM)
#     o = tl.arange(0, R2)
#     r = tl.arange(0, R1)
#     some_rows, some_ranks = m[:, None] < rows, r[None, :] < rank_in
#     p_tile = tl.load(
#         p + m[:, None] * rank_in + r[None, :], mask=some_rows & some_ranks, other=0.0
#     )
#     acc = tl.zeros([BM, R2], tl.float32)
#     for d0 in range(0, width, BD):
#         d = d0 + tl.arange(0, BD)
#         u_tile = tl.load(
#             u1 + d[:, None] * rank_in + r[None, :],
#             mask=(d[:, None] < width) & some_ranks,
#             other=0.0,
#         )
#         t = tl.dot(p_tile, tl.trans(u_tile), input_precision="ieee")
#         t += tl.load(b1 + d, mask=d < width, other=0.0)[None, :]
#         t = 0.5 * t * (1.0 + tl.erf(t * 0.7071067811865476))
#         tl.atomic_add(made, 1)
#         v_tile = tl.load(
#             v2 + o[:, None] * width + d[None, :],
#             mask=(o[:, None] < rank_out) & (d[None, :] < width),
#             other=0.0,
#         )
#         acc += tl.dot(t, tl.trans(v_tile), input_precision="ieee")
#     tl.store(
#         s + m[:, None] * rank_out + o[None, :],
#         acc,
#         mask=some_rows & (o[None, :] < rank_out),
#     )
#
#
# def run_wide() -> tuple[torch.Tensor, int]:
#     s = torch.full((M, R2), float("nan"), device=device)
#     made = torch.zeros(1, dtype=torch.int32, device=device)
#     grid = (triton.cdiv(M, 16),)
#     wide_ffn[grid](p, u1, b1, v2, s, made, M, D, R1, R2, BM=16, BD=32, R1=32, R2=64)
#     return s, int(made)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · with a gate
#
# A decoder's feed-forward has two branches: $t = \mathrm{silu}(P_g U_g^\top) \odot (P_u U_u^\top)$, a product
# number by number. Write it in tiles of `block_d` columns, in torch.

# %%
gate_p, up_p = torch.randn(M, 24, device=device), torch.randn(M, 16, device=device)
gate_u, up_u = torch.randn(D, 24, device=device) / 5, torch.randn(D, 16, device=device) / 4


# %% tags=["exercise"]
def gated_tiles(gate_p, gate_u, up_p, up_u, v2, block_d: int) -> torch.Tensor:
    """S [M, R2], with no more than block_d columns of either branch at a time."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
gated = (gate_p, gate_u, None, up_p, up_u, None, v2)
g, u = gate_p @ gate_u.T, up_p @ up_u.T
exercise(
    "gated, in tiles",
    lambda: gated_tiles(gate_p, gate_u, up_p, up_u, v2, 48),
    flash_svd_glu(*gated, activation="silu", backend="naive"),
    mistakes={
        "the activation goes on the gate, not on the other branch": (g * silu(u)) @ v2.T,
        "the activation is missing": (g * u) @ v2.T,
        "the branches are multiplied, not added": (silu(g) + u) @ v2.T,
        "the activation goes on the gate alone, before the product": silu(g * u) @ v2.T,
        "gelu makes it GEGLU; this one takes silu": (gelu(g) * u) @ v2.T,
        "the last tile is missing: 128 is no multiple of 48": (silu(g) * u)[:, :96]
        @ v2[:, :96].T,
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Start from `tiled` above: the same columns of both branches are made, then multiplied. `range(0, D, block_d)`
# with slices handles a last tile that is not full. The likely mistake is to put the activation on the wrong
# branch.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def gated_tiles(gate_p, gate_u, up_p, up_u, v2, block_d: int) -> torch.Tensor:
#     s = torch.zeros(len(gate_p), len(v2), device=v2.device)
#     for d in range(0, v2.shape[1], block_d):
#         wide = slice(d, d + block_d)
#         t = silu(gate_p @ gate_u[wide].T) * (up_p @ up_u[wide].T)
#         s += t @ v2[:, wide].T
#     return s
# ```
#
# </details>

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). The one difference: `torch` keeps 8.50 MiB there and 1.75 MiB on a CPU. Both go by blocks of
# rows; on a GPU they are of 4096, so that each product is large enough to be fast, and hold all 2048 rows
# here. The Triton kernel keeps none of t.
#
# ## What this does not do
#
# - $P$ and $S$ still go **through memory**, and so does $y$: lesson 08 asks when it is worth to keep $S$ on
#   chip, too.
# - It does not make the **activation** cheap. On an H200 exact erf costs more than the products hide; the
#   library's half types use a fit with one hardware tanh (`flashsvd/kernels/ffn/triton_parts.py`).
# - It is of no use where ranks are **large**: a program cannot hold the sums, and chunks of rows through a
#   plain product win.
#
# ## References
#
# - FlashSVD, arXiv 2508.01506: FFN v1. GLU Variants Improve Transformer, arXiv 2002.05202, for gates.
# - In this project: `flashsvd/kernels/ffn/` (`naive.py`, `stream.py`, `triton_kernel.py`, `plan.py`),
#   `flashsvd/bench/counts.py`; pages **Tiles** and **Roofline** of the workbench.
