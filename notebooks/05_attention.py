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
# # 05 · FlashSVD attention
#
# Factors make q, k and v from thin activations. Run as two linears, they save weights, yet q, k and v still go
# through memory at full width. Here they never do: one kernel rebuilds tiles of them on chip, scores, weighs
# and forgets.
#
# **You will be able to** count the bytes that attention moves, dense, low-rank and streamed · write a Triton
# kernel that rebuilds keys and values on chip · say what rebuilding costs, and what it depends on.
#
# **Before this** lessons 02 (a rank per head) and 04 (online softmax). **Time** 30 minutes. **Needs** no GPU,
# no network.

# %%
import torch

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
from flashsvd.bench import counts
from flashsvd.figures.amounts import amounts
from flashsvd.figures.tiles_film import program_film
from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention
from flashsvd.kernels.attention.triton_kernel import attention_kernel
from flashsvd.kernels.attention.triton_parts import rebuild
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.calls import calls_of
from flashsvd.onchip.compiled import shipped as compiled
from flashsvd.onchip.programs import moment, programs, steps
from flashsvd.roofline import Setting, forward_ops

MIB = 2**20
kernel = "triton" if device.type == "cuda" else "interpret"

# %% [markdown]
# ## What goes through memory
#
# The shape of this lesson is BERT-base: hidden width $d = 768$, $H = 12$ heads of $h = 64$ columns. The input
# is a batch of 32 sequences of 512 tokens, so $M = 16\,384$ tokens, and a number takes $e = 2$ bytes. With
# factors, head $i$ of a projection is
#
# $$k_i = P_i A_i + b_i, \qquad P_i = x\,V_i^\top \ \text{of}\ M \times r,
# \qquad A_i \ \text{of}\ r \times h .$$
#
# $P$ is called the *rank-space* activation. All heads of it side by side have $H r$ columns, where k has $H h$.

# %%
bert = shape_of(resolve("bert-base"))
batch, seq, rank = 32, 512, 32
plan = by_role(bert, head=rank, feed_forward=192, output=192)
setting = Setting(batch, seq, itemsize=2)
tokens, width = batch * seq, bert.heads * bert.head_dim

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "How many MiB are q, k and v of one layer together? (16,384 tokens, 768 columns each, 2 bytes a number; 1 MiB is "
    "1,048,576 bytes.)",
    3 * tokens * width * 2 / MIB,
    unit="MiB",
    why="3 · 16,384 · 768 · 2 bytes. One hidden state is 24 MiB, and q, k and v are three of that size.",
)

# %% [markdown]
# At rank 32 per head, $P_q$, $P_k$ and $P_v$ are half as wide. The usual way to run factors is two linears: the
# first writes $P$, the second reads it and writes q, k and v, and attention reads those. Count every tensor
# once when it is written and once when it is read.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "Run as two linears at rank 32, do q, k, v and attention move fewer bytes than dense, as many, or more?",
    ["fewer", "as many", "more"],
    "more",
    why="The second linear still writes q, k and v at full width, and P is written and read on top of that.",
)


# %%
def moved(plan, engine: str, setting: Setting) -> dict[str, float]:
    """MiB that the first layer's projections to q, k, v and its attention move, by operation."""
    ops = [op for op in forward_ops(plan, engine, setting) if op.layer == 0]
    products = [op.bytes / MIB for op in ops if op.name == "q, k, v"]
    (attention,) = (op.bytes / MIB for op in ops if op.name == "attention")
    second = sum(products[1:])  # of two linears; others have one product
    return {"project x": products[0], "make q, k, v": second, "attend": attention}


WAYS = {"dense": "dense", "two linears": "lowrank", "FlashSVD": "flash"}


def draw_bytes(rank: int, seq: int):
    plan = by_role(bert, head=rank, feed_forward=192, output=192)
    setting = Setting(tokens // seq, seq, itemsize=2)
    ways = {name: moved(plan, engine, setting) for name, engine in WAYS.items()}
    dense, two, flash = (sum(parts.values()) for parts in ways.values())
    words = (
        f"rank {rank}, {tokens // seq} sequences of {seq}: two linears move "
        f"{two / dense:.2f} × the bytes of dense, FlashSVD {flash / dense:.2f} ×"
    )
    return amounts(ways, unit="MiB"), words


turn(draw_bytes, rank=slider(range(8, 57, 8), rank), seq=slider([128, 512, 2048], seq))

# %% [markdown]
# Two linears move more than the dense layer at every rank: compression made the layer smaller and its traffic
# larger. FlashSVD writes $P$ once and reads it once. The length of the sequences changes nothing, as long as
# the number of tokens stays: no way writes the scores.
#
# ## One head, all in memory
#
# First the definition, for one head, on few tokens.

# %%
S, h, r = 80, 32, 16  # queries and keys, a head's columns, its rank
scale = h**-0.5


def factors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """P [S, r], A [r, h] and b [h] of one head, of a size as in a trained model."""
    p, a, b = torch.randn(S, r), torch.randn(r, h) / r**0.5, 0.5 * torch.randn(h)
    return p.to(device), a.to(device), b.to(device)


(q_p, q_a, q_b), (k_p, k_a, k_b), (v_p, v_a, v_b) = factors(), factors(), factors()

# %%
q, k, v = q_p @ q_a + q_b, k_p @ k_a + k_b, v_p @ v_a + v_b  # [S, h] each
naive = (q @ k.T * scale).softmax(-1) @ v
print(f"q, k, v {3 * q.numel():,} numbers, their P {3 * q_p.numel():,}, scores {S * S:,}")

# %% [markdown]
# The library's op takes each projection as $P$, its factors and a layout that says where every head's columns
# are. Its backend `naive` is just the lines above.

# %%
one_head = HeadLayout((r,))
projections = [
    Projection(p[None], a, b, one_head, None)
    for p, a, b in ((q_p, q_a, q_b), (k_p, k_a, k_b), (v_p, v_a, v_b))
]
reference = flash_svd_attention(*projections, heads=1, head_dim=h, backend="naive")[0]
check("one head, all in memory", naive, reference)

# %% [markdown]
# ## The same, tile by tile
#
# Lesson 04 summed softmax over tiles of keys. Only one thing is new: **a tile of k or v is not read, it is
# made**, by one thin product, just before it is used.


# %%
def tiled(block_m: int, block_n: int) -> torch.Tensor:
    out = torch.full_like(naive, float("nan"))
    for m in range(0, S, block_m):
        q = q_p[m : m + block_m] @ q_a + q_b  # rebuilt once, and kept
        pivot = torch.full((len(q), 1), -1e30, device=device)
        total, acc = torch.zeros_like(pivot), torch.zeros_like(q)
        for n in range(0, S, block_n):
            k = k_p[n : n + block_n] @ k_a + k_b  # rebuilt for this block of queries
            v = v_p[n : n + block_n] @ v_a + v_b
            scores = q @ k.T * scale
            new = torch.maximum(pivot, scores.amax(1, keepdim=True))
            weights, shrink = (scores - new).exp(), (pivot - new).exp()
            total, acc = (
                total * shrink + weights.sum(1, keepdim=True),
                acc * shrink + weights @ v,
            )
            pivot = new
        out[m : m + block_m] = acc / total
    return out


check("tile by tile", tiled(block_m=32, block_n=16), reference)

# %% [markdown]
# The library has such a loop in plain torch, too, for many heads. Its peak is what a forward would keep alive.
# Here are both ways on two sequences of 256 tokens with four heads, as the recorder of the Memory page sees
# them.

# %%
heads, head_dim, ranks = 4, 64, (24, 24, 16, 24)  # a head may have a rank of its own
layout = HeadLayout(ranks)


def projection(tokens: int) -> Projection:
    p = torch.randn(2, tokens, layout.p_width, device=device)
    u = torch.randn(layout.u_rows, head_dim, device=device) / max(ranks) ** 0.5
    return Projection(p, u, torch.randn(heads * head_dim, device=device), layout, None)


many = [projection(256) for _ in range(3)]
for backend in ("naive", "torch"):
    peak = peak_bytes(
        lambda b=backend: flash_svd_attention(
            *many, heads=heads, head_dim=head_dim, backend=b
        ),
        device,
    )
    print(f"{backend:6} keeps {peak / MIB:.2f} MiB alive at its peak")

# %% [markdown]
# The scores of `naive` alone are $2 \cdot 4 \cdot 256^2$ numbers of 4 bytes, 2 MiB, and softmax makes as many
# again. The loop keeps one tile of each thing, and the output.
#
# ## Tiles of one program
#
# Now the kernel. A *program* is one block of queries of one head of one sequence. The film shows two programs
# of a real launch, with the tiles that the compiler was given for an H100: blue stays on chip for all steps,
# orange is read in this step, the rest is made. `scores` never is anywhere else.

# %%
call = calls_of(plan, 0, batch, seq, "bf16")["attention"]
row = compiled().find(call, "H100 SXM")
show(
    program_film(
        [
            moment(row, call, program, s)
            for program in (1, 2)
            for s in range(steps(row, call, program))
        ],
        counted="step",
    ),
    "Two programs of the attention kernel: each keeps a block of queries and walks over all keys",
)
block_m, block_n = row.tiles["block_m"], row.tiles["block_n"]
print(f"{programs(row, call):,} programs, {block_m} queries by {block_n} keys a step")

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    f"A sequence has 512 keys and a block {block_m} queries. How many times is each key of a head rebuilt?",
    -(-seq // block_m),
    why=f"Once for every block of queries: 512 / {block_m}. Programs cannot share what is on chip.",
)

# %% [markdown]
# ## What rebuilding costs
#
# For a block of $B_M$ queries against $B_N$ keys, scoring and weighing take $4 B_M B_N h$ operations, and
# rebuilding k and v takes $2 B_N h\,(r_k + r_v)$. So rebuilding adds the share
#
# $$\frac{2 B_N h\,(r_k + r_v)}{4 B_M B_N h} = \frac{r_k + r_v}{2 B_M}.$$


# %%
def work(blocks: int) -> int:
    """FLOPs of one layer where each block of queries rebuilds all keys and values."""
    return counts.flash_layer(plan, 0, batch, seq, 2, query_blocks=blocks).flops


blocks = -(-seq // block_m)
rebuilding = work(blocks) - work(0)
scoring = 4 * batch * seq**2 * width

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    f"At rank 32 for k and for v and {block_m} queries in a block, how much does rebuilding add to attention's FLOPs?",
    rebuilding / scoring,
    why=f"(32 + 32) / (2 · {block_m}): a quarter. The library's count of the whole layer gives the same.",
)

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "With sequences of 4,096 tokens, each key is rebuilt eight times as often. Does the share of rebuilding grow?",
    ["it grows", "it stays", "it falls"],
    "it stays",
    why="Scoring grows by just as much: a rebuilt tile meets one block of queries. Only ranks and B_M are in it.",
)

# %%
print(f"rebuilding {rebuilding / scoring:.0%} of the FLOPs of scoring and weighing")
longer = counts.flash_layer(plan, 0, 4, 4096, 2, query_blocks=4096 // block_m).flops
longer -= counts.flash_layer(plan, 0, 4, 4096, 2, query_blocks=0).flops
print(f"at 4,096 tokens {longer / (4 * 4 * 4096**2 * width):.0%}")

# %% [markdown]
# The same holds for bytes. Each block of queries reads all of $P_k$ and $P_v$, just as in dense flash attention
# it reads all of k and v, with $h$ columns in place of $r$. The counts above are the least that has to come
# from memory; what is read again comes from the L2 cache as long as it fits.
#
# So memory is bought with arithmetic. On an H200 in bf16, 12 heads of 64 at rank 32, the kernel took 106 µs
# with sequences of 512 and 637 µs with sequences of 4,096; torch's flash attention on dense heads 108 and 693
# µs (`flashsvd/kernels/tiles.py`): half the memory at about the same time.
#
# ## The kernel that ships
#
# One head's factor is loaded once and stays; a tile of $P$ comes in, and one product makes the tile of k:

# %%
shipped(rebuild, after="elif ONE_PASS", before="if TURNED")

# %% [markdown]
# The rest of its loop is the online softmax of lesson 04. `scale_log2` is the scale times $\log_2 e$, as the
# hardware computes $2^x$ and not $e^x$.

# %%
shipped(attention_kernel, after="new_pivot = tl.maximum", before="if dtype == tl.float32")

# %% [markdown]
# Then `weights` multiply the rebuilt v, and the pointers to $P$ move on. Every head may have its own rank, and
# any number of tokens will do; in the interpreter few will have to.

# %%
few = [projection(70) for _ in range(3)]
key_mask = torch.arange(70, device=device).expand(2, 70) < torch.tensor(
    [[70], [41]], device=device
)
options = {"heads": heads, "head_dim": head_dim, "key_mask": key_mask}
fused = flash_svd_attention(*few, **options, backend=kernel)
check("the kernel that ships", fused, flash_svd_attention(*few, **options, backend="naive"))

# %% [markdown]
# ## A kernel of your own
#
# This is a small flash attention for one **dense** head: a program per block of queries, tiles of keys in a
# loop. It reads k and v; exercise 2 changes it so that it makes them. Without a GPU the interpreter runs it.
# With one, the same cell compiles it, and then no side of a product may be below 16.


# %%
@triton.jit
def dense_head(
    q, k, v, out, tokens, scale, BM: tl.constexpr, BN: tl.constexpr, H: tl.constexpr
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    h = tl.arange(0, H)
    q_tile = tl.load(q + m[:, None] * H + h[None, :], mask=m[:, None] < tokens, other=0.0)
    pivot = tl.full([BM], -1.0e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, H], tl.float32)
    for n0 in range(0, tokens, BN):
        n = n0 + tl.arange(0, BN)
        inside = n < tokens
        # [BN, H] each
        k_tile = tl.load(k + n[:, None] * H + h[None, :], mask=inside[:, None], other=0.0)
        v_tile = tl.load(v + n[:, None] * H + h[None, :], mask=inside[:, None], other=0.0)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new = tl.maximum(pivot, tl.max(scores, 1))
        shrink = tl.exp(pivot - new)
        weights = tl.exp(scores - new[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights, v_tile, input_precision="ieee")
        pivot = new
    tl.store(
        out + m[:, None] * H + h[None, :], acc / total[:, None], mask=m[:, None] < tokens
    )


def attend_dense(block_m: int) -> torch.Tensor:
    out = torch.full_like(q, float("nan"))  # what no program writes stays NaN
    grid = (triton.cdiv(S, block_m),)
    dense_head[grid](q, k, v, out, S, scale, BM=block_m, BN=32, H=h)
    return out


check("one dense head", attend_dense(32), reference)

# %% [markdown]
# ## Can you spot it?
#
# A colleague tunes the block of queries, finds that 16 is "twice as fast as 32", and sends this.

# %% tags=["bug"]
BLOCK_M = 32


def attend_fast(block_m: int) -> torch.Tensor:
    out = torch.full_like(q, float("nan"))
    grid = (triton.cdiv(S, BLOCK_M),)
    dense_head[grid](q, k, v, out, S, scale, BM=block_m, BN=32, H=h)
    return out


check("tuned", attend_fast(16), reference)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# The grid is counted from a default, the kernel runs with other tiles: 3 programs of 16 rows write 48 of 80. It
# is fast because it does not do its work. Without the NaNs one may never see it: fresh memory often still holds
# the right result of the run before. The grid has to come from the tiles that run, and outputs of tests start
# as NaN.
#
# </details>


# %%
def attend_fast(block_m: int) -> torch.Tensor:
    out = torch.full_like(q, float("nan"))
    grid = (triton.cdiv(S, block_m),)
    dense_head[grid](q, k, v, out, S, scale, BM=block_m, BN=32, H=h)
    return out


check("tuned", attend_fast(16), reference)

# %% [markdown]
# ## Exercise 1 · bytes on paper
#
# Write the bytes of **activations** that FlashSVD moves from $x$ to attention's output, when every head of q, k
# and v has rank $r$. Weights are left out.


# %% tags=["exercise"]
def flash_bytes(
    tokens: int, hidden: int, heads: int, head_dim: int, rank: int, itemsize: int
) -> int:
    """x is read, Pq, Pk and Pv are written and read, attention's output [tokens, heads·head_dim] is written."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def by_count(rank: int, batch: int) -> int:
    of_rank = by_role(bert, head=rank, feed_forward=192, output=192)
    ops = forward_ops(of_rank, "flash", Setting(batch, 512, itemsize=2))
    return sum(
        op.activation_bytes
        for op in ops
        if op.layer == 0 and op.name in ("q, k, v", "attention")
    )


sizes = ((32, 32), (56, 1))
exercise(
    "bytes of FlashSVD attention",
    lambda: [flash_bytes(batch * 512, 768, 12, 64, rank, 2) for rank, batch in sizes],
    [by_count(rank, batch) for rank, batch in sizes],
    mistakes={
        "P goes through memory twice: it is written by the projection, and read by attention": [
            batch * 512 * 2 * (768 + 3 * 12 * rank + 768) for rank, batch in sizes
        ],
        "every head has its own r columns of P: the heads are missing": [
            batch * 512 * 2 * (768 + 6 * rank + 768) for rank, batch in sizes
        ],
        "there are three of P, of q, k and v": [
            batch * 512 * 2 * (768 + 2 * 12 * rank + 768) for rank, batch in sizes
        ],
        "numbers, not bytes: the size of one is missing": [
            by_count(rank, batch) // 2 for rank, batch in sizes
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Count columns first: how many numbers does each token read and write? Then tokens and bytes. The likely
# mistake is to count $P$ once.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def flash_bytes(tokens: int, hidden: int, heads: int, head_dim: int, rank: int, itemsize: int) -> int:
#     p = 3 * heads * rank
#     return itemsize * tokens * (hidden + 2 * p + heads * head_dim)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · rebuild on chip
#
# Here is `dense_head` again, with $P$, $A$ and $b$ of k and of v in place of k and v (q stays dense, to keep it
# short). Load both factors and biases before the loop, rebuild `k_tile` and `v_tile` within it, and delete the
# line that says `raise`.


# %% tags=["exercise"]
@triton.jit
def factored_head(
    q, k_p, k_a, k_b, v_p, v_a, v_b, out, tokens, scale,
    BM: tl.constexpr, BN: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    h = tl.arange(0, H)
    q_tile = tl.load(q + m[:, None] * H + h[None, :], mask=m[:, None] < tokens, other=0.0)
    # Load here: the factors [R, H] and the biases [H].
    pivot = tl.full([BM], -1.0e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, H], tl.float32)
    for n0 in range(0, tokens, BN):
        n = n0 + tl.arange(0, BN)
        inside = n < tokens
        k_tile = ...  # [BN, H]
        v_tile = ...  # [BN, H]
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new = tl.maximum(pivot, tl.max(scores, 1))
        shrink = tl.exp(pivot - new)
        weights = tl.exp(scores - new[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights, v_tile, input_precision="ieee")
        pivot = new
    tl.store(
        out + m[:, None] * H + h[None, :], acc / total[:, None], mask=m[:, None] < tokens
    )


def attend_factored() -> torch.Tensor:
    raise NotImplementedError  # delete this line
    out = torch.full_like(q, float("nan"))
    factored_head[(triton.cdiv(S, 32),)](
        q, k_p, k_a, k_b, v_p, v_a, v_b, out, S, scale, BM=32, BN=32, H=h, R=r
    )
    return out


# %% jupyter={"source_hidden": true} tags=["check"]
def attention_of(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.T * scale).softmax(-1) @ v


exercise(
    "k and v rebuilt on chip",
    attend_factored,
    reference,
    mistakes={
        "v lacks its bias": attention_of(k, v - v_b),
        "v is rebuilt with k's factor": attention_of(k, v_p @ k_a + v_b),
        "v is rebuilt of k's P": attention_of(k, k_p @ v_a + v_b),
        "the factor is read as if it were transposed: its rows are ranks, each of H numbers": attention_of(
            k_p @ k_a.reshape(h, r).T + k_b, v_p @ v_a.reshape(h, r).T + v_b
        ),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A factor is a tile of $R \times H$ at `k_a + r[:, None] * H + h[None, :]`. A tile of $P_k$ has rows `n` of `R`
# numbers each, and needs the mask. The product is `tl.dot(p_tile, a_tile, input_precision="ieee")`; the bias is
# added to every row. The likely mistake is to forget v's bias.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# @triton.jit
# def factored_head(
#     q, k_p, k_a, k_b, v_p, v_a, v_b, out, tokens, scale,
#     BM: tl.constexpr, BN: tl.constexpr, H: tl.constexpr, R: tl.constexpr,
# ):
#     m = tl.program_id(0) * BM + tl.arange(0, BM)
#     h = tl.arange(0, H)
#     r = tl.arange(0, R)
#     q_tile = tl.load(q + m[:, None] * H + h[None, :], mask=m[:, None] < tokens, other=0.0)
#     k_factor = tl.load(k_a + r[:, None] * H + h[None, :])
#     v_factor = tl.load(v_a + r[:, None] * H + h[None, :])
#     k_bias, v_bias = tl.load(k_b + h), tl.load(v_b + h)
#     pivot = tl.full([BM], -1.0e30, tl.float32)
#     total = tl.zeros([BM], tl.float32)
#     acc = tl.zeros([BM, H], tl.float32)
#     for n0 in range(0, tokens, BN):
#         n = n0 + tl.arange(0, BN)
#         inside = n < tokens
#         at = n[:, None] * R + r[None, :]
#         kp_tile = tl.load(k_p + at, mask=inside[:, None], other=0.0)
#         vp_tile = tl.load(v_p + at, mask=inside[:, None], other=0.0)
#         k_tile = tl.dot(kp_tile, k_factor, input_precision="ieee") + k_bias[None, :]
#         v_tile = tl.dot(vp_tile, v_factor, input_precision="ieee") + v_bias[None, :]
#         scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
#         scores = tl.where(inside[None, :], scores, float("-inf"))
#         new = tl.maximum(pivot, tl.max(scores, 1))
#         shrink = tl.exp(pivot - new)
#         weights = tl.exp(scores - new[:, None])
#         total = total * shrink + tl.sum(weights, 1)
#         acc = acc * shrink[:, None] + tl.dot(weights, v_tile, input_precision="ieee")
#         pivot = new
#     tl.store(
#         out + m[:, None] * H + h[None, :], acc / total[:, None], mask=m[:, None] < tokens
#     )
#
#
# def attend_factored() -> torch.Tensor:
#     out = torch.full_like(q, float("nan"))
#     factored_head[(triton.cdiv(S, 32),)](
#         q, k_p, k_a, k_b, v_p, v_a, v_b, out, S, scale, BM=32, BN=32, H=h, R=r
#     )
#     return out
# ```
#
# Leave out the bias of k, and the check still passes. That is no slack of the check: softmax over keys does not
# see that bias at all, and lesson 06 is built on it.
#
# </details>

# %% [markdown]
# ## Exercise 3 · FLOPs of one head
#
# Write the FLOPs that one head of one sequence spends on rebuilding k and v in such a launch, all programs
# together. The last block of queries may be partly empty: it rebuilds all keys nevertheless.


# %% tags=["exercise"]
def rebuild_flops(seq: int, block_m: int, head_dim: int, rank_k: int, rank_v: int) -> int:
    """A product [m, k]·[k, n] is 2·m·k·n FLOPs."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def rebuild_by_count(seq: int, block_m: int) -> int:
    """Of one of 12 heads at rank 32, by the library's count of a layer with and without rebuilding."""
    with_it, without = (
        counts.flash_layer(plan, 0, 1, seq, 2, query_blocks=n).flops
        for n in (-(-seq // block_m), 0)
    )
    return (with_it - without) // bert.heads


launches = ((512, 128), (500, 64))
exercise(
    "FLOPs of rebuilding",
    lambda: [rebuild_flops(seq, block_m, 64, 32, 32) for seq, block_m in launches],
    [rebuild_by_count(seq, block_m) for seq, block_m in launches],
    mistakes={
        "that rebuilds every key once: each block of queries does it again": [
            rebuild_by_count(seq, seq) for seq, _ in launches
        ],
        "rounded down: the last, partly empty block of queries rebuilds all keys, too": [
            rebuild_by_count(seq, seq) * (seq // block_m) for seq, block_m in launches
        ],
        "k and v are rebuilt both: this is one of them": [
            rebuild_by_count(seq, block_m) // 2 for seq, block_m in launches
        ],
        "a multiplication and an addition are two FLOPs, and v is rebuilt, too": [
            rebuild_by_count(seq, block_m) // 4 for seq, block_m in launches
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# One block of queries rebuilds `seq` keys of `head_dim` columns by products of inner dimension `rank_k`, and as
# many values by `rank_v`. How many blocks are there? `-(-a // b)` rounds up.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def rebuild_flops(seq: int, block_m: int, head_dim: int, rank_k: int, rank_v: int) -> int:
#     blocks = -(-seq // block_m)
#     return blocks * 2 * seq * head_dim * (rank_k + rank_v)
# ```
#
# </details>

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). What the cells print is the same there but for the last digits of errors. The kernel that
# ships is compiled for tensor cores, and 7.9e-07 from the reference; interpreted 3.9e-07.
#
# ## What this does not do
#
# - It saves **no arithmetic**: heads are scored at full width, and rebuilding comes on top. Without rotary
#   positions nothing need be rebuilt at all (lesson 06).
# - It does not shrink the **cache** of a decoder by itself (lesson 09), nor the feed-forward (lesson 07).
# - The interpreter shows that a kernel is **right**, not that it is fast, and not that it compiles: bounds,
#   registers and on-chip memory are checked by a compiler only (lesson 03).
#
# ## References
#
# - FlashSVD, arXiv 2508.01506: FlashSVDAttn. FlashAttention-2, arXiv 2307.08691, for the online softmax.
# - In this project: `flashsvd/kernels/attention/` (`naive.py`, `stream.py`, `triton_kernel.py`),
#   `flashsvd/bench/counts.py`, `flashsvd/roofline/`; pages **Tiles** and **Roofline** of the workbench.
