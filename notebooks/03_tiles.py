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
# # 03 · Tiles and on-chip memory
#
# A GPU computes on numbers that lie on chip, and there is little room on chip. So a kernel cuts its matrices
# into *tiles*, and the size of a tile decides what fits, how many programs run side by side, and how often
# memory is read. You will count those bytes on paper, then ask the compiler.
#
# **You will be able to** count what one program of a kernel holds · say which limit keeps a second program out
# of a multiprocessor · write a tiled kernel whose edges are right, and find the mask that is missing.
#
# **Before this** lesson 01. **Time** 25 minutes. **Needs** no GPU, no network.

# %%
import dataclasses
import math

import torch

from flashsvd.errors import format_bytes
from flashsvd.figures.tiles_film import program_film
from flashsvd.figures.tiles_occupancy import occupancy_bars
from flashsvd.gpus import GPUS, gpu
from flashsvd.kernels import flash_svd_ffn
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.compiled import shipped as compiled_table
from flashsvd.onchip.fullness import fullness
from flashsvd.onchip.occupancy import Footprint, occupancy
from flashsvd.onchip.programs import moment, programs, steps
from flashsvd.teaching import (
    begin,
    check,
    choose,
    exercise,
    menu,
    predict,
    shipped,
    show,
    slider,
    turn,
)

device = begin()

# %% [markdown]
# ## How much is on chip
#
# A GPU is a set of *multiprocessors*. Each has registers, which belong to single threads, and *shared memory*
# (SRAM), which all threads of one program read and write. Both are emptied when the program ends. Beyond them
# lie the level-2 cache and the large memory (HBM), which all multiprocessors share and which is slow.

# %%
h200 = gpu("H200")
print(f"one multiprocessor of an H200: {h200.processor.registers:,} registers of 4 bytes,")
print(
    f"  {format_bytes(h200.processor.shared_bytes)} of shared memory for all its programs,"
)
print(f"  at most {h200.processor.max_warps} warps of 32 threads")
print(
    f"the whole GPU: {h200.sm_count} multiprocessors, {h200.memory_bytes / 1e9:.0f} GB of memory"
)

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "How much shared memory have all multiprocessors of an H200 together, in MiB?",
    h200.sm_count * h200.processor.shared_bytes / 2**20,
    unit="MiB",
    within=0.05,
    why="132 times 228 KiB. One activation of BERT-base at 32 sequences of 512 tokens, 16,384 × 3,072 numbers in bf16, "
    "is 96 MiB: more than three times as much.",
)

# %%
for name in ("T4", "A100 80GB", "RTX 4090", "H200"):
    one = gpu(name)
    on_chip = one.sm_count * one.processor.shared_bytes
    print(
        f"{name:10} {format_bytes(one.processor.shared_bytes):>8} × {one.sm_count:3} = "
        f"{format_bytes(on_chip):>8} shared, {one.memory_bytes / on_chip:,.0f} times as much memory"
    )

# %% [markdown]
# ## The picture first
#
# Take the feed-forward of a compressed BERT. Its first matrix is $U_1 V_1$, its second $U_2 V_2$. With
# $P = x V_1^\top$ in hand, what lies between both is
#
# $$S = \mathrm{gelu}(P\,U_1^\top)\,V_2^\top .$$
#
# $P$ is $M \times R_1$ and $S$ is $M \times R_2$: thin. The activation $t = \mathrm{gelu}(P\,U_1^\top)$ between
# them is $M \times D$: wide, and needed by nobody else. Below, one program of this project's kernel computes 64
# rows of $S$. It **keeps** its tile of $P$ and its sums $S$ (blue), **reads** one tile each of $U_1^\top$ and
# $V_2$ (orange), **makes** one tile of $t$, folds it into $S$, and forgets it. Play it.

# %%
small = KernelCall(
    "ffn", "bf16", batch=4, seq=128, rank=64, rank_out=64, width=512, hidden=128
)
row = compiled_table().find(small, "H200")
print(f"{programs(row, small)} programs of {steps(row, small, 0)} steps")
film = [moment(row, small, 3, step) for step in range(steps(row, small, 3))]
show(
    program_film(film, counted="step"),
    "one program makes t tile by tile and folds each into S",
)

# %% [markdown]
# Nothing of $t$ is ever in memory. Programs differ only in their rows: $P$ and $S$ are cut along $M$, and every
# program walks over all of $D$.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "The same kernel, tiles of 64 rows and 32 columns of t. How many programs does it take for 16,384 tokens?",
    programs(row, dataclasses.replace(small, batch=32, seq=512)),
    why="One per block of rows, 16,384 / 64. How wide t is changes how many steps each takes, not how many there are.",
)

# %% [markdown]
# ## Naive, tiled, fused
#
# First the definition, with $t$ in memory. Sizes are chosen so that no tile fits evenly.

# %%
rows, width, rank_in, rank_out = 100, 200, 40, 24
P = torch.randn(rows, rank_in, device=device)
U1 = torch.randn(width, rank_in, device=device) / rank_in**0.5
V2 = torch.randn(rank_out, width, device=device) / width**0.5
gelu = torch.nn.functional.gelu

wide = gelu(P @ U1.T)
naive = wide @ V2.T
print(f"P {list(P.shape)}, t {list(wide.shape)}, S {list(naive.shape)}")

# %% [markdown]
# Now the loops of the picture, in PyTorch. The outer loop is what the GPU runs side by side, one program each;
# the inner one is what a program does step by step.

# %%
BLOCK_M, BLOCK_D = 64, 32
tiled = torch.zeros(rows, rank_out, device=device)
largest = 0
for m in range(0, rows, BLOCK_M):  # programs
    held = P[m : m + BLOCK_M]  # kept on chip
    sums = torch.zeros(len(held), rank_out, device=device)
    for d in range(0, width, BLOCK_D):  # steps
        t = gelu(held @ U1[d : d + BLOCK_D].T)
        sums += t @ V2[:, d : d + BLOCK_D].T
        largest = max(largest, t.numel())
    tiled[m : m + BLOCK_M] = sums
check("tiled", tiled, naive)
print(f"largest tile of t: {largest:,} numbers, the whole of it: {wide.numel():,}")

# %% [markdown]
# Third, one launch. `flash_svd_ffn` is the kernel of the film; these are the lines of its loop, as they ship.
# `_wide` makes the next tile of $t$, `_fold` applies the activation to the last one and multiplies it into the
# sums.

# %%
from flashsvd.kernels.ffn.triton_kernel import ffn_kernel

shipped(ffn_kernel, after="for d0 in range", before="b1 += BLOCK_D")

# %%
backend = "triton" if device.type == "cuda" else "interpret"
fused = flash_svd_ffn(P, U1, None, V2, activation="gelu", backend=backend)
check("fused", fused, naive)

# %% [markdown]
# ## Bytes on paper
#
# What must be in shared memory at once? The operands of matrix products go there: the program's tile of $P$,
# and the tiles of $U_1$ and $V_2$. While one step is computed, the tiles of the next ones are already on their
# way, so there are as many copies of them as the pipeline has *stages*. What a product **makes**, the tile of
# $t$ and the sums $S$, stays in registers.
#
# $$\text{shared} = \underbrace{B_M R_1\, b}_{P,\ \text{once}} +\ \text{stages} \cdot
# (\underbrace{B_D R_1\, b}_{U_1} + \underbrace{R_2 B_D\, b}_{V_2}), \qquad b = 2 \text{ bytes in bf16}.$$

# %%
tiles = row.tiles
print({name: tiles[name] for name in ("block_m", "block_d", "num_stages", "num_warps")})


def on_paper(block_m: int, block_d: int, rank: int, stages: int, itemsize: int = 2) -> int:
    """Shared bytes of one program with R1 = R2 = rank."""
    return (block_m * rank + stages * 2 * block_d * rank) * itemsize


# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "B_M = 64, B_D = 32, R1 = R2 = 64, bf16, 3 stages. How many KiB of shared memory on paper?",
    on_paper(64, 32, 64, 3) / 2**10,
    unit="KiB",
    why="P is 64 · 64 · 2 = 8 KiB; a tile of U1 and one of V2 are 4 KiB each, three times over.",
)

# %% [markdown]
# The compiler need not agree. Triton compiles for GPUs that are not there, so this project ships a table of
# what it said: shared memory, registers, spills.

# %%
paper = on_paper(64, 32, 64, 3)
for name in ("B200", "H200", "A100 80GB"):
    found = compiled_table().find(small, name)
    print(
        f"{name:10} {found.shared_bytes:>6,} bytes of shared memory (paper {paper:,}), "
        f"{found.registers:>3} registers a thread"
    )
print("Triton", compiled_table().manifest.triton)

# %% [markdown]
# On a B200 paper is right to 160 bytes. On an H200 it takes 4,224 bytes more: one more tile of $U_1$ (4,096),
# as the kernel reads the first one ahead of its loop, and 128. On an A100 it is about half:
# $2 \cdot 8{,}192 + 128$. Its tensor cores take operands from registers, so $P$ is not in shared memory at all,
# and two copies of the other tiles do. **The same source takes different memory on each GPU.** Paper says what
# to expect; the compiler is asked.
#
# ## Registers
#
# $S$ and $t$ are kept in fp32. The threads of the program share them out.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "S is 64 × 64 in fp32, one register holds 4 bytes, the program has 4 warps of 32 threads. How many registers of "
    "each thread hold S?",
    64 * 64 / (4 * 32),
    why="4,096 sums over 128 threads. Two tiles of t (this step's and the next one's) take another 32; the rest of the "
    "count above is addresses, operands on their way, and the activation.",
)

# %% [markdown]
# A thread has at most 255. A compiler that needs more *spills*: it puts values into slow memory and fetches
# them back.
#
# ## How many fit
#
# A multiprocessor runs as many programs at once as its registers, its shared memory and its warps allow. While
# one waits for memory, another computes. *Occupancy* is the share of the possible warps that are there.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    f"An H200 has {h200.processor.shared_bytes:,} bytes of shared memory and {h200.processor.registers:,} registers to "
    f"a multiprocessor. A program takes {row.shared_bytes:,} bytes (and 1,024 for the system), and 128 threads take "
    f"{row.registers} registers each, given out in eights. What keeps the next program out?",
    ["shared memory", "registers", "warps"],
    row.occupancy.limiter,
    why="By shared memory 6 programs fit. By registers 65,536 / (128 · 120) = 4.3, so 4: and those are 16 of 64 warps.",
)

# %%
print(row.occupancy)
big = dataclasses.replace(small, batch=32, seq=512, width=3072, hidden=768)
show(
    occupancy_bars(fullness(big, compiled_table().find), chosen="H200"),
    "warps on a multiprocessor of each GPU, with what limits them",
)

# %% [markdown]
# *Waves* is how often the grid fills all multiprocessors: 256 programs on an H200 with room for $4 \cdot 132$
# are half a wave, so half its places stay empty however high the occupancy.
#
# ## Turn it: on paper
#
# Choose tiles yourself. Shared memory is the formula above; registers are $S$ and two tiles of $t$, with
# nothing for addresses, so a real kernel needs more.


# %%
def draw_paper(rows: int, rank: int, stages: int, on: str):
    warps = 4 if rows <= 64 else 8
    shared = on_paper(rows, 32, rank, stages)
    registers = math.ceil((rows * rank + 2 * rows * 32) / (32 * warps))
    call = big.with_rank(rank)
    counted = dataclasses.replace(
        row,
        tiles={**row.tiles, "block_m": rows, "block_r2": rank},
        warps=warps,
        registers=min(registers, 255),
        shared_bytes=shared,
    )
    bars = fullness(call, lambda call, name: dataclasses.replace(counted, gpu=name))
    here = next(bar for bar in bars if bar.gpu == on)
    fits = (
        f"{here.blocks} at once, limited by {here.limiter}"
        if here.blocks
        else "does not fit"
    )
    spills = ": more than 255, so some must spill" if registers > 255 else ""
    words = (
        f"{rows} rows, rank {rank}, {stages} stage{'s' * (stages > 1)}: {format_bytes(shared)} of shared "
        f"memory, {registers} registers for sums{spills}. On {on}: {fits}. All of U1 "
        f"and V2 is read {math.ceil(call.rows / rows):,} times, once by each block of rows."
    )
    return occupancy_bars(bars, chosen=on), words


turn(
    draw_paper,
    rows=slider([16, 32, 64, 128, 256], 64),
    rank=slider([16, 32, 64, 128, 256], 64),
    stages=slider([1, 2, 3, 4], 3),
    on=menu([one.name for one in GPUS], "H200"),
)

# %% [markdown]
# There is no best tile, only a trade: more rows read the factors less often, but fill registers and shared
# memory, and leave fewer programs to hide each other's waiting. Few rows reach high occupancy and read far
# more. Now what the compiler said, at the tiles that this project launches, rank by rank. (These are numbers of
# bf16, which T4 and V100 cannot compute with.)


# %%
def draw_compiled(rank: int, on: str):
    bars = fullness(big.with_rank(rank), compiled_table().find)
    here = next(bar for bar in bars if bar.gpu == on)
    found = compiled_table().find(big.with_rank(rank), on)
    if here.refusal:
        return occupancy_bars(bars, chosen=on), f"rank {rank}: {on} {here.refusal}"
    guess = on_paper(found.tiles["block_m"], 32, rank, found.tiles["num_stages"])
    words = (
        f"rank {rank} on {on}: tiles of {found.tiles['block_m']} rows, "
        f"{found.shared_bytes:,} bytes of shared memory (paper {guess:,}), "
        f"{found.registers} registers, spills {found.spill_bytes} bytes a thread"
    )
    return occupancy_bars(bars, chosen=on), words


turn(
    draw_compiled,
    rank=slider([32, 64, 96, 128, 160, 192, 256, 320], 128),
    on=menu([one.name for one in GPUS], "A100 80GB"),
)

# %% [markdown]
# ## Edges
#
# Tiles are powers of two, matrices are not. The last tile hangs over the edge, and what lies beyond is somebody
# else's memory. So every load of an edge tile is *masked*: lanes beyond the edge do not read, and give `other`
# in place of a number. This kernel computes $P = x V^\top$, a tile $B_M \times B_R$ of it per program.

# %%
import triton
import triton.language as tl


@triton.jit
def first_product(
    x, v, p, rows, inner, rank,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BM]
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BR]
    sums = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for k0 in range(0, inner, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)  # [BK]
        x_mask = (m[:, None] < rows) & (k[None, :] < inner)
        v_mask = (r[:, None] < rank) & (k[None, :] < inner)
        # [BM, BK]
        x_tile = tl.load(x + m[:, None] * inner + k[None, :], mask=x_mask, other=0.0)
        # [BR, BK]
        v_tile = tl.load(v + r[:, None] * inner + k[None, :], mask=v_mask, other=0.0)
        sums = tl.dot(x_tile, tl.trans(v_tile), sums, input_precision="ieee")
    inside = (m[:, None] < rows) & (r[None, :] < rank)
    tl.store(p + m[:, None] * rank + r[None, :], sums, mask=inside)


rows, inner, rank = 50, 72, 40


def guarded(*shape: int) -> torch.Tensor:
    """Random numbers of a shape, with NaN right behind them in memory."""
    count = math.prod(shape)
    memory = torch.full((count + 4096,), float("nan"), device=device)
    memory[:count] = torch.randn(count, device=device)
    return memory[:count].view(*shape)


x, V = guarded(rows, inner), guarded(rank, inner) / inner**0.5
grid = (triton.cdiv(rows, 32), triton.cdiv(rank, 32))
P = torch.full((rows, rank), float("nan"), device=device)
first_product[grid](x, V, P, rows, inner, rank, BLOCK_M=32, BLOCK_R=32, BLOCK_K=32)
check("first product", P, x @ V.T)

# %% [markdown]
# Two habits to copy: the output is filled with NaN first, so that a row that nobody writes shows; and the
# inputs are followed by NaN, so that a read beyond the end shows. Zeros would hide both.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "Which of these masks could be left out without changing any number of P (though not without reading memory that "
    "is not ours)?",
    ["m < rows, when loading x", "k < inner, in both loads", "r < rank, in the store"],
    "m < rows, when loading x",
    why="Rows do not mix: what a row beyond the edge holds ends in a row that is never stored. Columns of the inner "
    "dimension are summed into every number, and the store would overwrite the next row.",
)

# %% [markdown]
# ## Can you spot it?
#
# A colleague argues: "`v` gives 0 beyond `inner`, and 0 times anything is 0. So `x` needs no mask on `k`, only
# on `m`, and loads get faster." Their kernel differs from the one above by that mask alone.


# %%
@triton.jit
def one_mask_less(
    x, v, p, rows, inner, rank,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    sums = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for k0 in range(0, inner, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x_mask = (m[:, None] < rows) & (k[None, :] >= 0)
        v_mask = (r[:, None] < rank) & (k[None, :] < inner)
        x_tile = tl.load(x + m[:, None] * inner + k[None, :], mask=x_mask, other=0.0)
        v_tile = tl.load(v + r[:, None] * inner + k[None, :], mask=v_mask, other=0.0)
        sums = tl.dot(x_tile, tl.trans(v_tile), sums, input_precision="ieee")
    inside = (m[:, None] < rows) & (r[None, :] < rank)
    tl.store(p + m[:, None] * rank + r[None, :], sums, mask=inside)


# %% tags=["bug"]
P = torch.full((rows, rank), float("nan"), device=device)
one_mask_less[grid](x, V, P, rows, inner, rank, BLOCK_M=32, BLOCK_R=32, BLOCK_K=32)
check("one mask less", P, x @ V.T)
wrong = P.isnan().any(dim=1).nonzero().flatten().tolist()
print(f"rows with NaN: {wrong} of {rows}")

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# 0 times anything is 0, but for NaN and infinity. In every row but the last, what lies behind the edge is the
# next row of `x`: finite, and cancelled. Behind the **last** row lies whatever was there before. Had it been
# zeros, or other numbers, every test would have passed, and the model would have failed one day on the last
# token of a batch. That is why test buffers are followed by NaN.
#
# </details>

# %%
P = torch.full((rows, rank), float("nan"), device=device)
first_product[grid](x, V, P, rows, inner, rank, BLOCK_M=32, BLOCK_R=32, BLOCK_K=32)
check("both masks", P, x @ V.T)

# %% [markdown]
# ## Exercise 1 · bytes of a program
#
# Write the formula of *Bytes on paper* for ranks that differ: shared bytes of one program.


# %% tags=["exercise"]
def shared_bytes(
    block_m: int, block_d: int, rank_in: int, rank_out: int, stages: int, itemsize: int
) -> int:
    """One tile of P, and `stages` tiles each of U1 and V2."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
cases = [(64, 32, 64, 64, 3, 2), (128, 32, 160, 96, 3, 2), (32, 32, 64, 32, 2, 4)]


def counted(formula) -> list[int]:
    return [formula(*case) for case in cases]


exercise(
    "shared bytes",
    lambda: [shared_bytes(*case) for case in cases],
    counted(lambda m, d, a, b, s, i: (m * a + s * d * (a + b)) * i),
    mistakes={
        "P is read once and kept: it has one copy, not one per stage": counted(
            lambda m, d, a, b, s, i: s * (m * a + d * (a + b)) * i
        ),
        "the stages are missing: tiles of the next steps are on chip as well": counted(
            lambda m, d, a, b, s, i: (m * a + d * (a + b)) * i
        ),
        "P is missing": counted(lambda m, d, a, b, s, i: s * d * (a + b) * i),
        "these are numbers, not bytes: times the item size": counted(
            lambda m, d, a, b, s, i: m * a + s * d * (a + b)
        ),
        "the tile of t is made on chip, in registers: it is no operand in shared memory": counted(
            lambda m, d, a, b, s, i: (m * a + m * d + s * d * (a + b)) * i
        ),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Three tiles: $B_M \times R_1$, $B_D \times R_1$, $R_2 \times B_D$. Which of them change from step to step?
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def shared_bytes(
#     block_m: int, block_d: int, rank_in: int, rank_out: int, stages: int, itemsize: int
# ) -> int:
#     return (block_m * rank_in + stages * block_d * (rank_in + rank_out)) * itemsize
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · programs on a multiprocessor
#
# How many programs fit by shared memory alone? The system keeps `shared_reserved_bytes` of each program beside
# what it asks for, the sum is rounded up to a multiple of `shared_unit_bytes`, and all share `shared_bytes`.


# %% tags=["exercise"]
def programs_by_shared(program_bytes: int, processor) -> int:
    """How many programs of `program_bytes` share one multiprocessor, by shared memory alone."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
asked = [
    (36_992, "H200"),
    (57_344, "H200"),
    (16_384, "A10"),
    (24_704, "T4"),
    (55_900, "A100 80GB"),
]


def fitting(formula) -> list[int]:
    return [formula(count, gpu(name).processor) for count, name in asked]


exercise(
    "programs by shared memory",
    lambda: [programs_by_shared(count, gpu(name).processor) for count, name in asked],
    fitting(lambda count, one: occupancy(Footprint(2, 0, count), one).blocks),
    mistakes={
        "the system's own share of each program is missing": fitting(
            lambda count, one: one.shared_bytes // count
        ),
        "that is the most one program may ask for; all of them share `shared_bytes`": fitting(
            lambda count, one: (
                one.shared_block_bytes
                // (
                    math.ceil((count + one.shared_reserved_bytes) / one.shared_unit_bytes)
                    * one.shared_unit_bytes
                )
            )
        ),
        "half a program does not run: round down": fitting(
            lambda count, one: math.ceil(
                one.shared_bytes / (count + one.shared_reserved_bytes)
            )
        ),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Round the sum of both up first, with `math.ceil` or `-(-a // b) * b`; then divide and round down.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def programs_by_shared(program_bytes: int, processor) -> int:
#     unit = processor.shared_unit_bytes
#     taken = -(-(program_bytes + processor.shared_reserved_bytes) // unit) * unit
#     return processor.shared_bytes // taken
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · a fused kernel
#
# Now your own: a whole low-rank layer, $y = (x V^\top)\,U^\top$, in one launch, with no $P$ in memory. One
# program per block of rows: sum up its tile of $P$ over the inner dimension as `first_product` does, with all
# ranks in one tile; then multiply the tile with one tile of $U$ after the other, and store each product. Mask
# every edge: `U` is $N \times r$, and followed by NaN.


# %% tags=["exercise"]
@triton.jit
def low_rank_kernel(
    x, v, u, y, rows, inner, rank, outs,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # Your lines: m as above, r = tl.arange(0, BLOCK_R): all ranks at once.
    # P in `sums` over steps of BLOCK_K, then y over steps of BLOCK_N.
    ...


def low_rank(x: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """(x @ v.T) @ u.T by one launch of low_rank_kernel, with tiles of 32."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
x, V, U = guarded(rows, inner), guarded(rank, inner), guarded(75, rank)
V /= inner**0.5
whole_k, whole_n = inner // 32 * 32, 75 // 32 * 32
exact = (x @ V.T) @ U.T
short = exact.clone()
short[:, whole_n:] = float("nan")
fewer_rows = exact.clone()
fewer_rows[rows // 32 * 32 :] = 0


def by_low_rank() -> torch.Tensor:
    return low_rank(x, V, U)


exercise(
    "low rank in one launch",
    by_low_rank,
    exact,
    mistakes={
        "the last tile of the inner dimension is left out: loop while k0 < inner": (
            x[:, :whole_k] @ V[:, :whole_k].T
        )
        @ U.T,
        "the last rows are not written: the grid is ceil(rows / BLOCK_M)": fewer_rows,
        "only the first 32 ranks: BLOCK_R must be the next power of two that holds them all": (
            x @ V[:32].T
        )
        @ U[:, :32].T,
        "the first product is summed but once: keep adding to the same sums": (
            x[:, whole_k:] @ V[:, whole_k:].T
        )
        @ U.T,
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `BLOCK_R = triton.next_power_of_2(rank)`. After the first loop `sums` is $P$, [BM, BR], zero in columns beyond
# `rank` if `v` was masked; still mask `u` there, as 0 times NaN is NaN. The second loop runs over `n0` and
# needs `tl.dot(sums, tl.trans(u_tile), input_precision="ieee")`. Many NaN in the result: a mask is missing, or
# the output is not written everywhere.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# @triton.jit
# def low_rank_kernel(
#     x, v, u, y, rows, inner, rank, outs,
#     BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
# ):
#     m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
#     r = tl.arange(0, BLOCK_R)
#     sums = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
#     for k0 in range(0, inner, BLOCK_K):
#         k = k0 + tl.arange(0, BLOCK_K)
#         x_mask = (m[:, None] < rows) & (k[None, :] < inner)
#         v_mask = (r[:, None] < rank) & (k[None, :] < inner)
#         x_tile = tl.load(x + m[:, None] * inner + k[None, :], mask=x_mask, other=0.0)
#         v_tile = tl.load(v + r[:, None] * inner + k[None, :], mask=v_mask, other=0.0)
#         sums = tl.dot(x_tile, tl.trans(v_tile), sums, input_precision="ieee")
#     for n0 in range(0, outs, BLOCK_N):
#         n = n0 + tl.arange(0, BLOCK_N)
#         u_mask = (n[:, None] < outs) & (r[None, :] < rank)
#         u_tile = tl.load(u + n[:, None] * rank + r[None, :], mask=u_mask, other=0.0)
#         y_tile = tl.dot(sums, tl.trans(u_tile), input_precision="ieee")
#         inside = (m[:, None] < rows) & (n[None, :] < outs)
#         tl.store(y + m[:, None] * outs + n[None, :], y_tile, mask=inside)
#
#
# def low_rank(x: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
#     rows, inner = x.shape
#     outs, rank = u.shape
#     y = torch.full((rows, outs), float("nan"), device=x.device)
#     low_rank_kernel[(triton.cdiv(rows, 32),)](
#         x, v, u, y, rows, inner, rank, outs,
#         BLOCK_M=32, BLOCK_R=triton.next_power_of_2(rank), BLOCK_K=32, BLOCK_N=32,
#     )
#     return y
# ```
#
# </details>

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). What the cells print is the same there but for the last digits of errors. A Triton cell takes
# a second or two the first time, as it is compiled.
#
# ## What this does not do
#
# - Occupancy is not speed. A kernel at 16 of 64 warps can be faster than one at 48 that reads its factors four
#   times as often; the choice of tiles in `flashsvd/kernels/ffn/tiles.py` was measured, not derived.
# - The interpreter does not see the two costliest mistakes: it has no registers to spill and no shared memory
#   to run out of. What fits is asked of the compiler.
# - Nothing is said here of *how often* something is computed: a kernel can hold little and still make $t$ many
#   times over (lesson 07).
#
# ## References
#
# - FlashSVD, arXiv 2508.01506, section on the streamed feed-forward: the kernel of the film.
# - NVIDIA, *CUDA C++ Programming Guide*, technical specifications per compute capability: the numbers of
#   `flashsvd/gpus.py`; the rules of the CUDA Occupancy Calculator: `flashsvd/onchip/occupancy.py`.
# - P. Tillet, H. T. Kung and D. Cox, *Triton: an intermediate language and compiler for tiled neural network
#   computations*, MAPL 2019.
# - In this project: `flashsvd/kernels/ffn/triton_kernel.py`, `flashsvd/onchip/programs.py`; page **Tiles** of
#   the workbench.
