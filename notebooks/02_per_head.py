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
# # 02 · Per head or the whole matrix
#
# The query matrix of a transformer is one linear layer, and it is also a stack of small matrices, one per
# attention head. Both can be factored. They differ in what a rank costs, in how near they come, and in what a
# kernel has to read in order to rebuild a single head.
#
# **You will be able to** work out both break-even ranks, and say why full rank per head is larger than the
# matrix · compare both at equal size · lay out factors of heads whose ranks differ, and rebuild one head from
# them.
#
# **Before this** lesson 01. **Time** 15 minutes. **Needs** no GPU, no network.

# %%
import torch

import flashsvd
from flashsvd.allocate import LADDER, ladder
from flashsvd.factors import factor_slot, reconstruct
from flashsvd.figures.spectrum import spectrum
from flashsvd.figures.tiles_film import program_film
from flashsvd.figures.tiles_program import program_tiles
from flashsvd.kernels import HeadLayout
from flashsvd.kernels.rebuild.tiles import rebuild_tiles
from flashsvd.methods import method_named
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.programs import Held, Moment, Part
from flashsvd.ranks import RankPlan
from flashsvd.spectra import decompose_slot, weight_of
from flashsvd.teaching import (
    begin,
    check,
    choose,
    exercise,
    image,
    menu,
    predict,
    shipped,
    show,
    slider,
    turn,
)

device = begin()

# %% [markdown]
# ## Two ways to cut one matrix
#
# $W_q$ has $d$ rows and $d$ columns, $d = H\,h$: $H$ heads of $h$ dimensions. Its rows $h\,i$ to $h\,(i+1) - 1$
# make head $i$ of the query. So it can be factored
#
# - **whole**: $W \approx U V$ with $U$ of $d \times k$ and $V$ of $k \times d$,
# - **per head**: $W_i \approx U_i V_i$ for every head, with $U_i$ of $h \times r$ and $V_i$ of $r \times d$.
#
# In BERT-base $d = 768$, $H = 12$, $h = 64$.

# %%
bert = shape_of(resolve("bert-base"))
per_head = bert.slot(0, "q")
whole = bert.with_per_head(False).slot(0, "q")
print(
    f"per head: {per_head.units} matrices of {per_head.unit_out} × {per_head.in_features}"
)
print(f"whole:    {whole.units} matrix of {whole.unit_out} × {whole.in_features}")

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "One head's matrix is 64 × 768. Up to which rank have its factors fewer entries than it has?",
    per_head.break_even,
    within=0.01,
    why="m·n / (m + n) with m = 64 and n = 768. A wide matrix breaks even just below its full rank.",
)

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "Factor every head at full rank, 64: nothing is lost. How many entries have all factors together, as a share of "
    "those of W?",
    per_head.units * per_head.factor_parameters(64) / whole.unit_parameters,
    within=0.01,
    why="12 · 64 · (64 + 768) of 768 · 768, which is 1 + 64 / 768. The right factors alone are as large as W, and the "
    "left ones come on top.",
)

# %%
for slot, words in ((per_head, "per head"), (whole, "whole")):
    full = slot.units * slot.factor_parameters(slot.full_rank)
    print(
        f"{words:8} full rank {slot.full_rank:3}, break-even {slot.break_even:5.1f}, "
        f"at full rank {full / whole.unit_parameters:.3f} of dense"
    )

# %% [markdown]
# The published ranks for BERT-base begin right at that edge.

# %%
print([(rung.cut, rung.head) for rung in LADDER])

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "The FlashSVD paper's mildest setting has rank 60 per head. How large are the factors of q, as a share of W?",
    per_head.units * per_head.factor_parameters(60) / whole.unit_parameters,
    within=0.005,
    why="60 is above the break-even rank of 59.08, so factors at rank 60 are larger than the matrix and also less "
    "exact.",
)

# %% [markdown]
# Rank 60 may save activation memory, which is what that paper is after; it saves no parameters. This project's
# plans keep such a matrix dense.

# %%
print("as plan:", ladder(bert, LADDER[0]).get(0, "q")[:3], "... (None is dense)")
print(
    "full rank everywhere:", f"{RankPlan.full_rank(bert).keep:.3f} of the dense parameters"
)

# %% [markdown]
# ## At equal size
#
# A fair comparison gives both the same number of entries. Per head at rank $r$ there are $H\,r\,(h + d)$; whole
# at rank $k$ there are $k\,(d + d)$.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "BERT-base per head at rank 32. Which rank of the whole matrix has as many entries?",
    per_head.units * per_head.factor_parameters(32) / whole.factor_parameters(1),
    within=0.01,
    why="12 · 32 · 832 / 1536. Per head there are 12 · 32 = 384 right directions, whole only 208: but those serve all "
    "heads.",
)

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "At equal size, which of both can have the smaller error?",
    ["always per head", "always whole", "either, it depends on the matrix"],
    "either, it depends on the matrix",
    why="Whole wins where heads look in the same directions, as one direction then serves several heads. Per head wins "
    "where they do not: it stores no zeros for what a direction means to other heads.",
)

# %% [markdown]
# `stdlib-bert` has 4 heads of 64 at $d = 256$. There rank 16 per head and rank 40 whole have 20,480 entries
# each.

# %%
loaded = flashsvd.load("stdlib-bert")
svd = method_named("svd")
rank, rank_whole = 16, 40


def factored(layer: int, name: str, by_head: bool):
    """The slot, its weight, and its factors at the ranks above."""
    slot = loaded.shape.with_per_head(by_head).slot(layer, name)
    weight = weight_of(loaded, layer, slot).detach()
    ranks = (rank if by_head else rank_whole,) * slot.units
    return slot, weight, factor_slot(slot, decompose_slot(weight, slot, svd), ranks, weight)


print("error      " + "".join(f"  layer {layer + 1}" for layer in range(6)))
for name in "qkv":
    for by_head in (True, False):
        line = f"{name} {'per head' if by_head else 'whole   '} "
        for layer in range(6):
            slot, weight, factors = factored(layer, name, by_head)
            error = (weight - reconstruct(slot, factors)).norm() / weight.norm()
            line += f"{float(error):9.1%}"
        print(line)

# %% [markdown]
# The whole matrix is nearer nearly everywhere, but by little: most of the loss at this size is there either
# way. So the choice is hardly one of accuracy. It is one of running.
#
# ## The picture first
#
# Per head *is* a factorisation of the whole matrix with $H\,r$ directions, whose left factor is block diagonal:
#
# $$W \approx \begin{pmatrix} U_1 & & \\ & \ddots & \\ & & U_H \end{pmatrix}
# \begin{pmatrix} V_1 \\ \vdots \\ V_H \end{pmatrix}.$$
#
# The zeros are not stored. Here are both left factors of the third layer's query, transposed, on one scale of
# colours:

# %%
layer = 2
slot, weight, heads = factored(layer, "q", by_head=True)
slot_whole, _, one = factored(layer, "q", by_head=False)
blocks = torch.block_diag(*(part.T for part in heads.u.split(rank)))
left_whole = one.u.unflatten(0, (4, rank_whole)).transpose(1, 2).flatten(0, 1)
scale = float(blocks.abs().max())
left = blocks.T[:, ::4], "per head: 64 directions × every 4th of 256 outputs"
right = left_whole.T[:, ::4], "whole: 40 directions × every 4th of 256 outputs"
show(image(*left, limit=scale), "four blocks on the diagonal, zeros elsewhere")
show(image(*right, limit=scale), "no zeros: every direction serves all heads")

# %% [markdown]
# Now what a kernel reads. A layer first makes $P = x V^\top$, then rebuilds $q$ head by head from $P$. The
# kernel of this project takes a block of tokens and goes from head to head: it reads that head's columns of $P$
# and that head's factor (orange) and writes the head (blue). Play it.

# %%
tokens = 96
tiles = rebuild_tiles(4, rank, 64, torch.float32)
block = tiles.block_m


def held_by(program: int, head: int, by_head: bool) -> Moment:
    """What a program of `block` tokens holds while it rebuilds one head."""
    width, each = (4 * rank, rank) if by_head else (rank_whole, rank_whole)
    column = head if by_head else 0
    parts = (
        Part("U", ("r", "H·h"), (each, 256), (each, 64), "top"),
        Part("P", ("S", "R"), (tokens, width), (block, each), "middle"),
        Part("q", ("S", "H·h"), (tokens, 256), (block, 64), "bottom"),
    )
    rows = (program, program)
    held = (
        Held("U", (0, 0), (head, head), "read"),
        Held("P", rows, (column, column), "read"),
        Held("q", rows, (head, head), "written"),
    )
    words = f"{each} of {width} columns of P are read for head {head + 1}."
    return Moment(
        parts, held, f"tokens {program * block + 1} to {(program + 1) * block}", words
    )


print(f"{tokens // block} programs, one after the other below; tiles of {block} tokens")
film = [held_by(program, head, True) for program in range(3) for head in range(4)]
show(program_film(film, counted="step", height=240), "each head from its own columns of P")

# %% [markdown]
# Switch between both. With the whole matrix every head needs all columns.


# %%
def draw_reads(factored_as: str, head: int):
    now = held_by(1, head - 1, factored_as == "per head")
    return program_tiles(now, height=240), now.words


turn(draw_reads, factored_as=menu(["whole", "per head"]), head=slider([1, 2, 3, 4], 2))

# %% [markdown]
# ## Naive, tiled, fused
#
# The factors come packed as the project packs them: `v` has the heads' right factors one under the other, `u`
# their left factors, transposed, likewise. `HeadLayout` says where each head is.

# %%
layout = HeadLayout(heads.ranks)
print(f"v {list(heads.v.shape)}, u {list(heads.u.shape)}")
print("first column of P, first row of u, rank:", layout.spans)

x = torch.randn(tokens, 256, device=device)
u, v = heads.u.to(device), heads.v.to(device)
naive = x @ reconstruct(slot, heads).to(device).T  # forms the full matrix again

P = x @ v.T  # one product for all heads
tiled = torch.cat([P[:, p : p + r] @ u[row : row + r] for p, row, r in layout.spans], dim=1)
check("head by head", tiled, naive)

# %% [markdown]
# On a GPU the loop over heads would be a launch each. The project's kernel does all heads in one; these are its
# lines for one head. (It rotates heads as well, for models with rotary positions. With cosines of 1 and sines
# of 0 it turns nothing.)

# %%
from flashsvd.kernels.rebuild import Run, rebuild_rotated
from flashsvd.kernels.rebuild.triton_kernel import rebuild_kernel

shipped(rebuild_kernel, after="for member in range", before="first = (head")

# %%
still = torch.ones(1, tokens, 64, device=device), torch.zeros(1, tokens, 64, device=device)
fused = rebuild_rotated(
    P[None],
    u,
    None,
    *still,
    runs=(Run(head=0, count=4, rank=rank, at=0),),
    backend="triton" if device.type == "cuda" else "interpret",
)
check("all heads in one launch", fused[0], naive)

# %% [markdown]
# ## What a head costs
#
# Of equal size, both take the same number of multiplications for all of $q$. But they are not in the same
# place.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "BERT-base, rank 32 per head against 208 whole: how many times as many multiplications does the whole matrix take "
    "to rebuild one head of one token from P?",
    208 / 32,
    within=0.01,
    why="A head is r·h multiplications from its own r columns of P, and k·h from all k.",
)

# %%
d, H, h, r, k = 768, 12, 64, 32, 208
print(
    f"{'multiplications per token':26}{'x·Vᵀ':>9}{'rebuild':>9}{'sum':>9}{'columns of P':>14}"
)
for words, first, second, columns in (
    ("per head", H * r * d, H * r * h, H * r),
    ("whole", k * d, k * H * h, k),
):
    print(f"{words:26}{first:9,}{second:9,}{first + second:9,}{columns:14}")

# %% [markdown]
# Per head, nearly all the work is in $x V^\top$, one large product that runs once. Rebuilding is cheap and
# needs few bytes. **A kernel that rebuilds heads on chip, again for every block of queries, wants it so**
# (lesson 05). The price is a wider $P$. And queries can be compared with keys without rebuilding either, at $r$
# dimensions (lesson 06); with the whole's factors that would take 208 dimensions, more than a head has.
#
# ## Pick a head
#
# Heads are not alike. Choose a projection, a layer and a head, and see what a rank holds.


# %%
kept = {}


def draw_head(projection: str, layer: int, head: int, rank: int):
    slot = loaded.shape.slot(layer - 1, projection)
    if (projection, layer) not in kept:
        kept[projection, layer] = decompose_slot(
            weight_of(loaded, layer - 1, slot).detach(), slot, svd
        ).sigma
    sigma = kept[projection, layer][head - 1].double()
    error = float((sigma[rank:].square().sum() / sigma.square().sum()).sqrt())
    words = (
        f"{projection} of layer {layer}, head {head}, rank {rank}: error {error:.1%}, "
        f"{slot.factor_parameters(rank) / slot.unit_parameters:.0%} of the head's entries"
    )
    return spectrum(sigma.numpy(), rank, slot), words


turn(
    draw_head,
    projection=menu(["q", "k", "v"]),
    layer=slider([1, 2, 3, 4, 5, 6], 3),
    head=slider([1, 2, 3, 4], 1),
    rank=slider(range(4, 65, 4), 16),
)

# %% [markdown]
# Compare v with q: values fall slowly, so a low rank costs them most. And compare heads of one layer: the same
# rank does not mean the same error, so ranks may differ by head (exercise 2).
#
# ## Can you spot it?
#
# A colleague cuts $W_q$ into heads and factors each at full rank, where nothing should be lost.

# %% tags=["bug"]
rebuilt = []
for head in range(4):
    part = weight[:, head * 64 : (head + 1) * 64]
    left, sigma, right = torch.linalg.svd(part, full_matrices=False)
    rebuilt.append(x.cpu() @ (left * sigma) @ right)
check("heads at full rank", torch.cat(rebuilt, dim=1), x.cpu() @ weight.T)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# A linear layer computes $x W^\top$, so its outputs, and with them its heads, are **rows** of the weight. This
# cut takes columns. Since $W_q$ is square, every shape fits, and nothing complains. Where there are fewer kv
# heads than heads, $W_k$ is not square, and the same line fails at once.
#
# </details>

# %%
rebuilt = []
for head in range(4):
    part = weight[head * 64 : (head + 1) * 64]
    left, sigma, right = torch.linalg.svd(part, full_matrices=False)
    rebuilt.append((x.cpu() @ right.T) @ (left * sigma).T)
check("heads at full rank", torch.cat(rebuilt, dim=1), x.cpu() @ weight.T)

# %% [markdown]
# ## Exercise 1 · the rank of equal size
#
# Write the largest rank of the whole matrix with **at most** as many entries as all heads' factors have at rank
# `rank`. The matrix has `heads * head_dim` rows and `hidden` columns; they need not be equal.


# %% tags=["exercise"]
def rank_of_equal_size(heads: int, head_dim: int, hidden: int, rank: int) -> int:
    """The largest k whose two factors have at most the entries of all heads' factors."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
sizes = [(12, 64, 768, 32), (4, 64, 256, 15), (8, 128, 4096, 48)]


def of(formula) -> list[int]:
    return [int(formula(*size)) for size in sizes]


exercise(
    "rank of equal size",
    lambda: [rank_of_equal_size(*size) for size in sizes],
    of(lambda H, h, d, r: H * r * (h + d) // (H * h + d)),
    mistakes={
        "that many directions have all heads together, but each of the whole's has H·h + d entries": of(
            lambda H, h, d, r: H * r
        ),
        "rounded up: one more than fits": of(
            lambda H, h, d, r: -(-H * r * (h + d) // (H * h + d))
        ),
        "the left factor of the whole has H·h rows, which is d only where heads fill the hidden size": of(
            lambda H, h, d, r: H * r * (h + d) // (2 * d)
        ),
        "only one head was counted": of(lambda H, h, d, r: r * (h + d) // (H * h + d)),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Entries of the heads: $H\,r\,(h + d)$. Entries of one rank of the whole: $H h + d$. Divide with `//`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def rank_of_equal_size(heads: int, head_dim: int, hidden: int, rank: int) -> int:
#     return heads * rank * (head_dim + hidden) // (heads * head_dim + hidden)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · ranks that differ
#
# All heads of a projection have matrices of one size, so a rank costs the same in each. With `total` ranks to
# give out, which rank of each head makes the error of the whole projection smallest? (It is tried on the query
# of the second layer.) `sigma` has the singular values, one row per head, largest first.


# %% tags=["exercise"]
def share_out(sigma: torch.Tensor, total: int) -> list[int]:
    """sigma [heads, p] -> the rank of each head, `total` in all, with the least sum of squares cut."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
second = weight_of(loaded, 1, loaded.shape.slot(1, "q")).detach()
spectra = decompose_slot(second, loaded.shape.slot(1, "q"), svd).sigma


def best(values: torch.Tensor, total: int) -> list[int]:
    cut = values.flatten().sort(descending=True).values[total - 1]
    return (values >= cut).sum(1).tolist()


def cut_off(values: torch.Tensor, ranks: list[int]) -> float:
    return float(sum(row[r:].square().sum() for row, r in zip(values, ranks, strict=True)))


shares = spectra.square().sum(1) / spectra.square().sum()
relative = spectra / spectra[:, :1]
exercise(
    "shared out",
    lambda: share_out(spectra, 64),
    best(spectra, 64),
    mistakes={
        "the same rank for every head": [16] * 4,
        "in proportion to what a head weighs: but what counts is what the next rank takes away": [
            round(64 * float(share)) for share in shares
        ],
        "each head was scaled by its own largest value: then a weak head counts as much as a strong one": best(
            relative, 64
        ),
    },
)
ranks_found = best(spectra, 64)
print(
    f"the best ranks cut {cut_off(spectra, ranks_found) / cut_off(spectra, [16] * 4):.1%} "
    "of what equal ranks cut"
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Each rank keeps one $\sigma^2$. Keep the `total` largest of **all** heads together, and count how many of them
# each head has. As rows are sorted, those of a head are its first ones.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def share_out(sigma: torch.Tensor, total: int) -> list[int]:
#     smallest = sigma.flatten().topk(total).values[-1]
#     return (sigma >= smallest).sum(dim=1).tolist()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · a kernel for unequal heads
#
# Write the kernel of the film for heads whose ranks differ. The grid has one program per block of tokens and
# head. `table` is `HeadLayout.table()`: for head $i$ its first column of $P$, its first row of $U$ and its
# rank, as integers in memory. A tile has `BLOCK_R` columns for every head; mask those beyond the head's own
# rank.


# %% tags=["exercise"]
import triton
import triton.language as tl


@triton.jit
def unequal_kernel(
    p, u, q, table, tokens, p_width, heads,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    # Your lines: program 0 is the block of tokens, program 1 the head.
    # p_start, u_start, rank = tl.load(table + 3 * head), tl.load(... + 1), tl.load(... + 2)
    ...


def rebuild_unequal(p: torch.Tensor, u: torch.Tensor, layout: HeadLayout) -> torch.Tensor:
    """p [S, sum of ranks], u [sum of ranks, 64] -> all heads side by side, [S, heads * 64]."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
uneven = HeadLayout((8, 40, 17, 24))
p_uneven = torch.randn(50, uneven.p_width, device=device)
u_uneven = torch.randn(uneven.u_rows, 64, device=device)


def rebuilt_with(spans) -> torch.Tensor:
    return torch.cat([p_uneven[:, a : a + r] @ u_uneven[b : b + r] for a, b, r in spans], 1)


fewer = rebuilt_with(uneven.spans)
fewer[50 // 32 * 32 :] = 0
exercise(
    "unequal heads",
    lambda: rebuild_unequal(p_uneven, u_uneven, uneven),
    rebuilt_with(uneven.spans),
    mistakes={
        "columns beyond the head's rank are not masked: they are the next head's": rebuilt_with(
            [(a, b, 64) for a, b, _ in uneven.spans]
        ),
        "every head was taken to start at head * (rank of the first)": rebuilt_with(
            [(8 * i, 8 * i, r) for i, (_, _, r) in enumerate(uneven.spans)]
        ),
        "every head was given the rank of the first": rebuilt_with(
            [(a, b, 8) for a, b, _ in uneven.spans]
        ),
        "the last tokens are not written: the grid is ceil(tokens / BLOCK_M)": fewer,
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `BLOCK_R = triton.next_power_of_2(layout.max_rank)`, `BLOCK_M = 32`, grid `(triton.cdiv(tokens, 32), heads)`.
# Two loads, of $P$ [BM, BR] and of $U$ [BR, 64], both with `r < rank`, one
# `tl.dot(..., input_precision="ieee")`, one store with `m < tokens`. A row of $q$ is `heads * HEAD_DIM` long.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# import triton
# import triton.language as tl
#
#
# @triton.jit
# def unequal_kernel(
#     p, u, q, table, tokens, p_width, heads,
#     HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
# ):
#     m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
#     head = tl.program_id(1)
#     p_start = tl.load(table + 3 * head)
#     u_start = tl.load(table + 3 * head + 1)
#     rank = tl.load(table + 3 * head + 2)
#     r = tl.arange(0, BLOCK_R)
#     c = tl.arange(0, HEAD_DIM)
#     p_tile = tl.load(
#         p + m[:, None] * p_width + p_start + r[None, :],
#         mask=(m[:, None] < tokens) & (r[None, :] < rank),
#         other=0.0,
#     )
#     u_tile = tl.load(
#         u + (u_start + r[:, None]) * HEAD_DIM + c[None, :], mask=r[:, None] < rank, other=0.0
#     )
#     q_tile = tl.dot(p_tile, u_tile, input_precision="ieee")
#     at = q + m[:, None] * (heads * HEAD_DIM) + head * HEAD_DIM + c[None, :]
#     tl.store(at, q_tile, mask=m[:, None] < tokens)
#
#
# def rebuild_unequal(p: torch.Tensor, u: torch.Tensor, layout: HeadLayout) -> torch.Tensor:
#     tokens = len(p)
#     q = torch.full((tokens, layout.heads * 64), float("nan"), device=p.device)
#     unequal_kernel[(triton.cdiv(tokens, 32), layout.heads)](
#         p, u, q, layout.table().to(p.device), tokens, layout.p_width, layout.heads,
#         HEAD_DIM=64, BLOCK_M=32, BLOCK_R=triton.next_power_of_2(layout.max_rank),
#     )
#     return q
# ```
#
# </details>

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). What the cells print is the same there but for the last digits of errors, and where a wrong
# result is most off.
#
# ## What this does not do
#
# - Errors here are of weights. What a head's error does to the model is another question: a head with a large
#   error may hardly matter (lessons 11 and 12).
# - The output projection has no heads of its own to be cut into; this project factors it whole.
# - Ranks that differ by head fit a kernel only up to its tiles: rank 17 is computed as 32 above, so on a GPU
#   half of that tile's work is padding.
#
# ## References
#
# - FlashSVD, arXiv 2508.01506: factors per head, and the ranks of `LADDER`.
# - C. Eckart and G. Young, *The approximation of one matrix by another of lower rank*, Psychometrika 1 (1936):
#   the tail of exercise 2.
# - In this project: `flashsvd/models/shape.py`, `flashsvd/factors.py`, `flashsvd/kernels/layout.py`,
#   `flashsvd/kernels/rebuild/`; page **Ranks** of the workbench.
