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
# # 08 · The feed-forward, nothing in memory
#
# Lesson 07 kept the wide activation on chip. One thin tensor is left between two kernels: S. A second kernel of
# FlashSVD keeps that on chip, too, so that nothing but input and output is in memory. This lesson asks what
# that is worth.
#
# **You will be able to** stream a feed-forward with no intermediate in memory · count what that saves, in bytes
# moved and bytes kept · decide when it is worth it, and say why it seldom is.
#
# **Before this** lesson 07. **Time** 20 minutes. **Needs** no GPU, no network.

# %%
import torch
from torch.nn.functional import gelu

from flashsvd.teaching import (
    begin,
    check,
    choose,
    exercise,
    menu,
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
from flashsvd.kernels import flash_svd_ffn_v2
from flashsvd.kernels.attention.choice import GPU
from flashsvd.kernels.ffn import ffn_plan
from flashsvd.kernels.ffn.triton_kernel import ffn_kernel
from flashsvd.kernels.ffn_block import block_plan
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.calls import calls_of
from flashsvd.onchip.compiled import shipped as compiled
from flashsvd.onchip.programs import moment, programs, steps
from flashsvd.roofline import Ceiling, Setting, forward_ops

MIB = 2**20
kernel = "triton" if device.type == "cuda" else "interpret"

# %% [markdown]
# ## What is left in memory
#
# The names are those of lesson 07: $P$ comes in, $t$ of $D$ columns is never stored,
#
# $$S = \mathrm{act}(P\,U_1^\top + b_1)\,V_2^\top, \qquad y = S\,U_2^\top + b_2 .$$
#
# *FFN v1* writes $S$, and a plain product reads it. *FFN v2* makes $y$ while $S$ is still in registers. The
# shape is BERT-base again: $M = 16\,384$, $d = 768$, $D = 3072$, now with $R_1 = R_2 = 128$, and 2 bytes a
# number.

# %%
rows, hidden, width, rank = 16384, 768, 3072, 128
bert = shape_of(resolve("bert-base"))

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "From P to y, v1 reads P, writes and reads S, and writes y of 768 columns. What share of these bytes does v2 save? "
    "(16,384 tokens, ranks 128; weights left out.)",
    2 * rank / (rank + 2 * rank + hidden),
    within=0.03,
    why="Per token 128 + 2·128 + 768 columns, of which 256 are S. The lesson before saved more than nine tenths.",
)


# %%
def draw_bytes(rank: int):
    work = ffn_work(rows, width, rank, rank, itemsize=2, streamed=True)
    factor = 2 * hidden * rank / MIB  # U2
    p = s = work.activation_bytes / 2 / MIB
    ends = {
        "weights": work.weight_bytes / MIB + factor,
        "P": p,
        "y": rows * hidden * 2 / MIB,
    }
    wide = {"t, twice": 2 * rows * width * 2 / MIB}
    ways = {
        "all in memory": {**ends, "S, twice": 2 * s, **wide},
        "v1": {**ends, "S, twice": 2 * s},
        "v2": ends,
    }
    v1, v2 = (sum(ways[name].values()) for name in ("v1", "v2"))
    return amounts(
        ways, unit="MiB moved"
    ), f"rank {rank}: v2 moves {1 - v2 / v1:.0%} less than v1"


turn(draw_bytes, rank=slider(range(32, 481, 32), rank))

# %% [markdown]
# ## All in memory, then in tiles

# %%
M, D, R1, R2, N = 48, 128, 24, 40, 96  # N columns of y
p = torch.randn(M, R1, device=device)
u1, b1 = torch.randn(D, R1, device=device) / R1**0.5, torch.randn(D, device=device)
v2 = torch.randn(R2, D, device=device) / D**0.5
u2, b2 = torch.randn(N, R2, device=device) / R2**0.5, torch.randn(N, device=device)

naive = gelu(p @ u1.T + b1) @ v2.T @ u2.T + b2
weights = (p, u1, b1, v2, u2, b2)
reference = flash_svd_ffn_v2(*weights, activation="gelu", backend="naive")
check("all in memory", naive, reference)

# %% [markdown]
# $y$ of a block of rows needs all of $S$ of these rows, and that needs all columns of $t$. So a program has two
# loops, one after the other: over $D$, until $S$ is complete, then over the columns of $y$.


# %%
def tiled(block_m: int, block_d: int, block_n: int) -> torch.Tensor:
    y = torch.full((M, N), float("nan"), device=device)
    for m in range(0, M, block_m):
        s = torch.zeros(block_m, R2, device=device)  # one block of it, never more
        for d in range(0, D, block_d):
            t = gelu(p[m : m + block_m] @ u1[d : d + block_d].T + b1[d : d + block_d])
            s += t @ v2[:, d : d + block_d].T
        for n in range(0, N, block_n):
            y[m : m + block_m, n : n + block_n] = (
                s @ u2[n : n + block_n].T + b2[n : n + block_n]
            )
    return y


check("in tiles", tiled(block_m=16, block_d=32, block_n=32), reference)

# %% [markdown]
# The two loops of one program, with the tiles that the compiler was given for an H100. First every eighth step
# of the first; $S$ is on chip only.

# %%
call = calls_of(by_role(bert, 40, rank, 240), 0, 1, 512, "bf16")["ffn_v2"]
row = compiled().find(call, "H100 SXM")
first = -(-width // row.tiles["block_d"])
show(
    program_film([moment(row, call, 2, s) for s in range(7, first, 8)], counted="frame"),
    "First loop: columns of t pass by, S of these rows is summed on chip",
)

# %% [markdown]
# Then the second loop: $S$ stays, $U_2$ passes by, $y$ is written.

# %%
last = steps(row, call, 2)
show(
    program_film(
        [moment(row, call, 2, s) for s in range(first, last)], counted="column tile"
    ),
    "Second loop: tiles of y are made of S and written",
)

# %% [markdown]
# ## Another grid, another trap
#
# The two loops belong to one program, so the grid goes over rows alone. The published kernel of v2 has a
# program per block of rows **and per 64 columns of $y$**. Then each of them needs all of $S$, which needs all
# of $t$.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "y has 768 columns. How many times does that grid make every number of t, and of S?",
    -(-hidden // 64),
    why="768 / 64 programs share a block of rows. In lesson 07 it was 240 / 32, and S at least was made once.",
)


# %%
def flops(columns: int, rank: int) -> float:
    """FLOPs of a grid with `columns` of y in a program, of those of the least."""
    inner = ffn_work(rows, width, rank, rank, 2, streamed=True).flops
    outer = 2 * rows * rank * hidden
    return (-(-hidden // columns) * inner + outer) / (inner + outer)


def draw_grid(columns: int):
    xs = [32, 64, 96, 128, 192, 256, 384, 768]
    figure = lines(
        {"FLOPs": (xs, [flops(x, rank) for x in xs])},
        x="columns of y in a program",
        y="times the least FLOPs",
        here=columns,
        level=(1.0, "one program for all columns"),
    )
    words = (
        f"{columns} columns in a program, {-(-hidden // columns)} to a block of rows, each with its own t and S: "
        f"{flops(columns, rank):.1f} times the FLOPs, whatever the rank"
    )
    return figure, words


turn(draw_grid, columns=slider([32, 64, 96, 128, 192, 256, 384, 768], 64))

# %% [markdown]
# ## What it needs on chip
#
# A program has to hold all of $S$ of its rows, in fp32, until the first loop is done, beside all that the first
# loop needs anyway.

# %%
for top in (32, 64, 96, 128, 312):
    large = calls_of(by_role(bert, 40, top, 240), 0, 32, 512, "bf16")["ffn_v2"]
    found = compiled().find(large, "H100 SXM")
    if found.refusal:
        print(f"rank {top}: {found.refusal}")
        continue
    print(
        f"rank {top:3}: {programs(found, large)} programs of {found.tiles['block_m']} rows, "
        f"{found.registers} registers, {found.shared_bytes / 1024:.0f} KiB shared"
    )

# %% [markdown]
# The second half of the kernel, as it ships. `s` is rounded to the half type where v1 would have written it.

# %%
shipped(ffn_kernel, after="s = acc.to(dtype)", before="else:")

# %%
fused = flash_svd_ffn_v2(*weights, activation="gelu", backend=kernel)
check("the kernel that ships", fused, reference)

# %% [markdown]
# ## What it keeps
#
# Nothing is left between $P$ and $y$. One would expect the peak to fall; count what is alive at once.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "With R1 = R2: from the moment P is made until y is there, which keeps less memory at its peak?",
    ["v1", "v2", "both the same"],
    "both the same",
    why="v1 can free P once S is made, and its peak is S and y. v2 reads P while it writes y: its peak is P and y.",
)


# %%
def run(version: int, r1: int, r2: int) -> None:
    """The tensors of one forward, at 2 bytes a number: made and freed as v1 and v2 do."""
    p = torch.empty(rows, r1, dtype=torch.float16)
    if version == 1:
        s = torch.empty(rows, r2, dtype=torch.float16)
        del p
        y = torch.empty(rows, hidden, dtype=torch.float16)
        del s
    else:
        y = torch.empty(rows, hidden, dtype=torch.float16)
        del p
    del y


def peak_of(version: int, r1: int, r2: int) -> int:
    """In bytes. The count is the same on any device."""
    return peak_bytes(lambda: run(version, r1, r2), torch.device("cpu"))


for r1, r2 in ((128, 128), (64, 240), (240, 64)):
    v1_mib, v2_mib = (peak_of(version, r1, r2) / MIB for version in (1, 2))
    print(f"R1 {r1:3}, R2 {r2:3}: v1 keeps {v1_mib:.1f} MiB, v2 {v2_mib:.1f} MiB")

# %% [markdown]
# So "no intermediates" lowers the peak only where $R_2$ is the larger rank. What v2 saves for certain is
# traffic, $2 M R_2$ numbers, and one launch.
#
# ## When is it worth it?
#
# On one side stand these bytes and a launch. On the other stands what the two-loop kernel cannot do as well as
# two kernels: a plain product runs near the limit of the GPU, and v1 alone has more room on chip. The library's
# plan weighs both, with rates that were measured on an H200. To v1 the least time of the product $S\,U_2^\top$
# is added, by the measured ceilings of the same GPU.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "16,384 tokens on an H200: at which ranks does v2 win?",
    ["all", "the smallest", "the largest", "none"],
    "the smallest",
    why="At rank 32 the products are small, so what is saved counts, and v1's kernel for Hopper pads its ranks to 64. "
    "From 64 on that kernel wins, and above 128 the library has none for v2 in half types.",
)

# %%
h200 = Ceiling("H200", GPU.flops, GPU.bytes, "MEASURED")


def predicted(rows: int, rank: int) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of v1 and the product after it, and of v2, on an H200 in bf16."""
    v1 = ffn_plan(rows, width, rank, rank, torch.bfloat16, "sm_90")
    v2 = ffn_plan(rows, width, rank, rank, torch.bfloat16, "sm_90", out_width=hidden)
    ops = forward_ops(by_role(bert, 40, rank, 240), "flash", Setting(1, rows, itemsize=2))
    outer = [op for op in ops if op.layer == 0][-1]
    after = 1e6 * h200.seconds(outer.flops, outer.bytes)
    names = {
        "hopper": "one kernel",
        "kernel": "one kernel",
        "chunked": "chunks of t in memory",
    }
    return {names[v1.path]: v1.predicted_us, "product": after}, {
        names[v2.path]: v2.predicted_us
    }


def draw_worth(rank: int, tokens: int):
    two, one = predicted(tokens, rank)
    ratio = sum(one.values()) / sum(two.values())
    words = f"rank {rank}, {tokens:,} tokens: v2 takes {ratio:.2f} × the time of v1 and a product, by the plan"
    ways = {"v1, then a product": two, "v2": one}
    return amounts(ways, unit="µs predicted, H200"), words


turn(
    draw_worth,
    rank=slider([32, 64, 96, 128, 192, 240], 32),
    tokens=menu([512, 4096, 16384, 65536], 16384),
)

# %%
for r in (32, 64, 128, 240):
    two, one = (sum(way.values()) for way in predicted(rows, r))
    print(f"rank {r:3}: v2 takes {one / two:.2f} × the time of v1 and a product")

# %% [markdown]
# To keep one more thin tensor on chip pays little. To keep **everything** of a sublayer there, factors,
# residual and norms, pays more, since each of these reads and writes the whole hidden state. That kernel exists
# here for Hopper (`flashsvd/kernels/ffn_block`): measured on an H200 in a CUDA graph at ranks 240, 131 µs with
# both norms, against 147 µs of the five kernels it replaces (`ffn_block/plan.py`).

# %%
plan = block_plan(rows, hidden, width, 240, 240, torch.bfloat16, "sm_90", entry=True)
print(plan.why)

# %% [markdown]
# ## Can you spot it?
#
# With few tokens there are few programs. A colleague splits $D$ among more of them: each sums its own part of
# $S$, makes its own share of $y$, and the shares are added up. "The second product is linear, so that is
# allowed."


# %% tags=["bug"]
def split_over_d(parts: int) -> torch.Tensor:
    y = torch.zeros(M, N, device=device)
    for d in range(0, D, D // parts):
        wide = slice(d, d + D // parts)
        s = gelu(p @ u1[wide].T + b1[wide]) @ v2[:, wide].T
        y += s @ u2.T + b2
    return y


check("split over D", split_over_d(4), reference)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# The claim is right: $S$ is a sum over columns of $t$, and $S\,U_2^\top$ is linear in it. But
# $S\,U_2^\top + b_2$ is not: every part adds the bias, so it is there four times. One part has to add it, or
# the one that sums up. With a bias of zeros, or with `parts` of 1, the code is right.
#
# </details>


# %%
def split_over_d(parts: int) -> torch.Tensor:
    y = b2.expand(M, N).clone()
    for d in range(0, D, D // parts):
        wide = slice(d, d + D // parts)
        s = gelu(p @ u1[wide].T + b1[wide]) @ v2[:, wide].T
        y += s @ u2.T
    return y


check("split over D", split_over_d(4), reference)

# %% [markdown]
# ## Exercise 1 · FLOPs of the other grid
#
# Write the FLOPs of all three products when a program has `columns` columns of $y$.


# %% tags=["exercise"]
def grid_flops(rows, hidden, width, rank_in, rank_out, columns) -> int:
    """P·U1ᵀ [rows, width], t·V2ᵀ [rows, rank_out] and S·U2ᵀ [rows, hidden]; [m, k]·[k, n] is 2·m·k·n FLOPs."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def counted(r1: int, r2: int, blocks: int, of_s: int) -> int:
    """With the first product `blocks` times and the second `of_s` times."""
    up = ffn_work(rows, width, r1, 0, 2, streamed=True).flops
    down = ffn_work(rows, width, 0, r2, 2, streamed=True).flops
    return blocks * up + of_s * down + 2 * rows * r2 * hidden


grids = ((128, 128, 64), (240, 96, 100))
blocks = [-(-hidden // columns) for *_, columns in grids]
exercise(
    "FLOPs of the other grid",
    lambda: [grid_flops(rows, hidden, width, *grid) for grid in grids],
    [counted(r1, r2, n, n) for (r1, r2, _), n in zip(grids, blocks, strict=True)],
    mistakes={
        "S is made anew by every program, too: it is never in memory": [
            counted(r1, r2, n, 1) for (r1, r2, _), n in zip(grids, blocks, strict=True)
        ],
        "programs are whole: 768 columns in blocks of 100 take 8 of them": [
            counted(r1, r2, hidden // c, hidden // c) for r1, r2, c in grids
        ],
        "the last product is not repeated: programs share its columns": [
            counted(r1, r2, n, n) + (n - 1) * 2 * rows * r2 * hidden
            for (r1, r2, _), n in zip(grids, blocks, strict=True)
        ],
        "the last product is missing": [
            counted(r1, r2, n, n) - 2 * rows * r2 * hidden
            for (r1, r2, _), n in zip(grids, blocks, strict=True)
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# How many programs share a block of rows? Each makes all of $t$ and all of $S$, but only its own columns of
# $y$. The likely mistake is to count $S$ once, as in lesson 07.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def grid_flops(rows, hidden, width, rank_in, rank_out, columns) -> int:
#     times = -(-hidden // columns)
#     return 2 * rows * (times * width * (rank_in + rank_out) + rank_out * hidden)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · the second loop
#
# Here is the kernel of lesson 07 that makes every tile once. It has all of $S$ of its rows in `acc`. Write the
# tile of $y$ in the second loop, and delete the line that says `raise`. U2 has `out_width` rows of `rank_out`
# numbers; `R2` is the rank padded to 64. With a GPU the same cell is compiled.


# %% tags=["exercise"]
@triton.jit
def whole_ffn(
    p, u1, b1, v2, u2, b2, y, rows, width, rank_in, rank_out, out_width,
    BM: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    o, r = tl.arange(0, R2), tl.arange(0, R1)
    some_rows, some_ranks = m[:, None] < rows, r[None, :] < rank_in
    p_tile = tl.load(
        p + m[:, None] * rank_in + r[None, :], mask=some_rows & some_ranks, other=0.0
    )
    acc = tl.zeros([BM, R2], tl.float32)
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
        v_tile = tl.load(
            v2 + o[:, None] * width + d[None, :],
            mask=(o[:, None] < rank_out) & (d[None, :] < width),
            other=0.0,
        )
        acc += tl.dot(t, tl.trans(v_tile), input_precision="ieee")
    for n0 in range(0, out_width, BN):
        n = n0 + tl.arange(0, BN)
        y_tile = ...  # [BM, BN]
        tl.store(
            y + m[:, None] * out_width + n[None, :],
            y_tile,
            mask=some_rows & (n[None, :] < out_width),
        )


def run_whole() -> torch.Tensor:
    raise NotImplementedError  # delete this line
    y = torch.full((M, N), float("nan"), device=device)
    whole_ffn[(triton.cdiv(M, 16),)](
        p, u1, b1, v2, u2, b2, y, M, D, R1, R2, N, BM=16, BD=32, BN=32, R1=32, R2=64
    )
    return y


# %% jupyter={"source_hidden": true} tags=["check"]
s_all = gelu(p @ u1.T + b1) @ v2.T
exercise(
    "the second loop",
    run_whole,
    reference,
    mistakes={
        "b2 is missing": s_all @ u2.T,
        "every tile of y has the first columns of U2: its rows are n0 and on": (
            (s_all @ u2[:32].T).repeat(1, 3) + b2
        ),
        "every tile of y has the first columns of U2 and of b2: they are n0 and on": (
            s_all @ u2[:32].T + b2[:32]
        ).repeat(1, 3),
        "every tile has the first numbers of b2: they are n0 and on": s_all @ u2.T
        + b2[:32].repeat(3),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `n` are the columns of $y$ in this step. Load a tile of U2 of $B_N \times R_2$ with a mask in both directions,
# multiply `acc` by it turned around, and add `b2` of these columns. The likely mistake is to forget the bias.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# @triton.jit
# def whole_ffn(
#     p, u1, b1, v2, u2, b2, y, rows, width, rank_in, rank_out, out_width,
#     BM: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr,
# ):
#     m = tl.program_id(0) * BM + tl.arange(0, BM)
#     o, r = tl.arange(0, R2), tl.arange(0, R1)
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
#         v_tile = tl.load(
#             v2 + o[:, None] * width + d[None, :],
#             mask=(o[:, None] < rank_out) & (d[None, :] < width),
#             other=0.0,
#         )
#         acc += tl.dot(t, tl.trans(v_tile), input_precision="ieee")
#     for n0 in range(0, out_width, BN):
#         n = n0 + tl.arange(0, BN)
#         u2_tile = tl.load(
#             u2 + n[:, None] * rank_out + o[None, :],
#             mask=(n[:, None] < out_width) & (o[None, :] < rank_out),
#             other=0.0,
#         )
#         y_tile = tl.dot(acc, tl.trans(u2_tile), input_precision="ieee")
#         y_tile += tl.load(b2 + n, mask=n < out_width, other=0.0)[None, :]
#         tl.store(
#             y + m[:, None] * out_width + n[None, :],
#             y_tile,
#             mask=some_rows & (n[None, :] < out_width),
#         )
#
#
# def run_whole() -> torch.Tensor:
#     y = torch.full((M, N), float("nan"), device=device)
#     whole_ffn[(triton.cdiv(M, 16),)](
#         p, u1, b1, v2, u2, b2, y, M, D, R1, R2, N, BM=16, BD=32, BN=32, R1=32, R2=64
#     )
#     return y
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · the peak
#
# Write the peak in **bytes** of v1 and of v2, as in "What it keeps".


# %% tags=["exercise"]
def peaks(
    rows: int, hidden: int, rank_in: int, rank_out: int, itemsize: int
) -> tuple[int, int]:
    """From P [rows, rank_in], which is made here, to y [rows, hidden]: the peak of v1, the peak of v2."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def flat(pairs) -> list | None:
    return (
        None
        if any(pair is None for pair in pairs)
        else [one for pair in pairs for one in pair]
    )


def by_columns(v1, v2) -> list[int]:
    return [2 * rows * columns(*ranks) for ranks in shapes for columns in (v1, v2)]


shapes = ((64, 240), (240, 64))
exercise(
    "peaks of v1 and v2",
    lambda: flat([peaks(rows, hidden, *ranks, 2) for ranks in shapes]),
    [peak_of(version, *ranks) for ranks in shapes for version in (1, 2)],
    mistakes={
        "v1 frees P before y is made: it never keeps all three": by_columns(
            lambda r1, r2: r1 + r2 + hidden, lambda r1, r2: r1 + hidden
        ),
        "v2 reads P until the end, so P is alive while y is written": by_columns(
            lambda r1, r2: r2 + hidden, lambda r1, r2: hidden
        ),
        "numbers, not bytes: the size of one is missing": [
            count // 2
            for count in by_columns(lambda r1, r2: r2 + hidden, lambda r1, r2: r1 + hidden)
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Write down what is alive at each moment: P; P and S; S; S and y; y. The peak is the largest of these. Which of
# them does v2 have?
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def peaks(rows: int, hidden: int, rank_in: int, rank_out: int, itemsize: int) -> tuple[int, int]:
#     v1 = rank_out + hidden  # P is gone, and was never wider than y
#     v2 = rank_in + hidden
#     return itemsize * rows * v1, itemsize * rows * v2
# ```
#
# </details>

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). What the cells print is the same there but for the last digits of errors.
#
# ## What this does not do
#
# - It has no **gate**: the two-loop kernel here is for feed-forwards with one branch.
# - Its times are a **model's**, fitted on one GPU: measure before you choose (`python -m flashsvd bench`).
# - It does not look at the rest of the layer: what is alive beside a feed-forward, the residual and attention's
#   tensors, is the subject of lesson 10.
#
# ## References
#
# - FlashSVD, arXiv 2508.01506: FFN v1 and FFN v2.
# - In this project: `flashsvd/kernels/ffn/` (`triton_kernel.py`, `plan.py`), `flashsvd/kernels/ffn_block/`,
#   `flashsvd/roofline/`; pages **Tiles**, **Memory** and **Roofline** of the workbench.
