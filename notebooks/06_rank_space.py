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
# # 06 · Rank-space attention
#
# Lesson 05 rebuilt keys and values on chip. Without rotary positions none of it is needed: the factors fold
# into one another once, when the model is loaded, and attention runs on the thin activations as they are.
#
# **You will be able to** fold the factors of q and k, and of v and the output projection · say what becomes of
# every bias · count what it saves, and show why rotary positions stop it on one side.
#
# **Before this** lesson 05. **Time** 20 minutes. **Needs** no GPU, no network.

# %%
import torch

from flashsvd.teaching import (
    begin,
    check,
    choose,
    exercise,
    image,
    predict,
    shipped,
    show,
    slider,
    turn,
)

device = begin()

# %%
import flashsvd
from flashsvd.allocate import by_role
from flashsvd.bench import counts
from flashsvd.engines import absorb
from flashsvd.figures.amounts import amounts
from flashsvd.figures.tiles_film import program_film
from flashsvd.figures.tiles_stairs import staircase
from flashsvd.kernels import HeadLayout, rank_space_attention
from flashsvd.kernels.rank_space.triton_kernel import rank_space_kernel
from flashsvd.kernels.rotary.naive import naive_rotary
from flashsvd.methods import method_named
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.calls import calls_of
from flashsvd.onchip.compiled import shipped as compiled
from flashsvd.onchip.programs import moment, steps
from flashsvd.onchip.stairs import sentence, stairs
from flashsvd.roofline import Setting, forward_ops
from flashsvd.spectra import compute

kernel = "triton" if device.type == "cuda" else "interpret"

# %% [markdown]
# ## What softmax does not see
#
# One head: $q = P_q A_q + b_q$ and $k = P_k A_k + b_k$, with $P$ of $S \times r$ and $A$ of $r \times h$. A row
# of weights is softmax over the scores of one query with all keys.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "Add 3 to all scores of one query, its whole row. What happens to its weights?",
    ["they grow", "they even out", "nothing"],
    "nothing",
    why="exp(s + 3) = exp(s)·exp(3), and that factor is in the sum below as well.",
)

# %% [markdown]
# So write the scores out, and look for what is the same for all keys:
#
# $$q k^\top = P_q\,(A_q A_k^\top)\,P_k^\top + b_q A_k^\top P_k^\top
# + \underbrace{(P_q A_q + b_q)\,b_k^\top}_{\text{one number a row}} .$$
#
# The last term depends on the query alone: softmax does not see it, and with it goes $b_k$, for good. The other
# two have $P_k^\top$ on their right:
#
# $$\text{scores} \sim q'\,P_k^\top, \qquad
# q' = P_q\,A_q A_k^\top + b_q A_k^\top \ \text{ of } S \times r_k .$$
#
# The keys are $P_k$ itself. **The rank takes the place of the head dimension**, and nothing is left to rebuild.

# %%
S, h = 70, 32
r_q, r_k, r_v = 24, 16, 20
scale = h**-0.5


def factors(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """P [S, r], A [r, h] and b [h] of one head, of a size as in a trained model."""
    p, a, b = torch.randn(S, rank), torch.randn(rank, h) / rank**0.5, torch.randn(h)
    return p.to(device), a.to(device), b.to(device)


(q_p, q_a, q_b), (k_p, k_a, k_b), (v_p, v_a, v_b) = factors(r_q), factors(r_k), factors(r_v)
q, k, v = q_p @ q_a + q_b, k_p @ k_a + k_b, v_p @ v_a + v_b
weights = (q @ k.T * scale).softmax(-1)

# %%
core = q_a @ k_a.T  # [rq, rk]: made once, when a model is loaded
q_thin = q_p @ core + q_b @ k_a.T
check("weights without q or k", (q_thin @ k_p.T * scale).softmax(-1), weights)
print(
    f"largest difference of the scores themselves: {float((q_thin @ k_p.T - q @ k.T).abs().max()):.1f}"
)

# %% [markdown]
# The scores differ, by what softmax does not see. The weights are equal.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "Without biases, the core A<sub>q</sub>·A<sub>k</sub>ᵀ may be folded into either side. With ranks 24 for q "
    "and 16 for k, how few columns can both sides of the scores have?",
    min(r_q, r_k),
    why="Folded into q they have the columns of k's P, and the other way round. The library folds to the smaller side.",
)

# %% [markdown]
# ## The other side
#
# Values are weighed, and the weights of a row sum to one. So
#
# $$\mathrm{softmax}(\cdot)\,v = \mathrm{softmax}(\cdot)\,(P_v A_v + b_v)
# = \big(\mathrm{softmax}(\cdot)\,P_v\big)\,A_v + b_v .$$
#
# Weigh $P_v$, and the output of attention is thin, too. $A_v$ comes after, where the output projection $W_o$
# multiplies anyway: $W_o A_v^\top$ is one matrix, made at load. $W_o\,b_v$ joins its bias.

# %%
reference = weights @ v
out_thin = weights @ v_p  # [S, rv]
check("values without v", out_thin @ v_a + v_b, reference)

# %% [markdown]
# ## In tiles
#
# What is left is ordinary flash attention of $q'$, $P_k$ and $P_v$, with the online softmax of lesson 04. Two
# of its programs, for BERT-base at rank 32 on an H100; compare the film of lesson 05: no $A$ is anywhere.

# %%
bert = shape_of(resolve("bert-base"))
plan = by_role(bert, head=32, feed_forward=192, output=192)
call = calls_of(plan, 0, 32, 512, "bf16")["rank_space"]
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
    "Two programs of the rank-space kernel: queries of rank columns stay, keys and values of rank columns pass by",
)

# %% [markdown]
# The heart of the kernel: a tile of keys is read, and scored as it is.

# %%
shipped(rank_space_kernel, after="k_tile = _tile(", before="else:")

# %%
fused = rank_space_attention(
    q_thin[None],
    k_p[None],
    v_p[None],
    score=HeadLayout((r_k,)),
    value=HeadLayout((r_v,)),
    scale=scale,
    backend=kernel,
)
check("the kernel that ships", fused[0] @ v_a + v_b, reference)

# %% [markdown]
# ## What it saves
#
# For every pair of a query and a key, a dense head takes $4h$ FLOPs, half to score and half to weigh. Here it
# is $2\,(s + r_v)$, where $s$ is the rank of the scores.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "Heads of 64 columns, rank 32 for scores and for values: FLOPs per pair, as a share of dense?",
    2 * (32 + 32) / (4 * 64),
    why="(32 + 32) / (2 · 64). FlashSVD attention of lesson 05 took 1.25 times dense at the same rank.",
)


# %%
def draw_work(rank: int, seq: int):
    plan = by_role(bert, head=rank, feed_forward=192, output=192)
    batch = 16384 // seq

    def attention(engine: str, absorbing: bool = False):
        ops = forward_ops(
            plan, engine, Setting(batch, seq, itemsize=2, absorbing=absorbing)
        )
        return [op for op in ops if op.layer == 0 and op.name in ("q, k, v", "attention")]

    scored = {name: attention(*of)[-1].flops / 1e9 for name, of in ROUTES.items()}
    blocks = -(-seq // 128)  # of queries, as in lesson 05
    again = counts.flash_layer(plan, 0, batch, seq, 2, query_blocks=blocks).flops
    again -= counts.flash_layer(plan, 0, batch, seq, 2, query_blocks=0).flops
    ways = {
        "dense": {"score and weigh": scored["dense"]},
        "rebuilt on chip": {"score and weigh": scored["dense"], "rebuild": again / 1e9},
        "rank space": {"score and weigh": scored["rank space"]},
    }
    moved = {
        name: sum(op.bytes for op in attention(*of)) / 2**20 for name, of in ROUTES.items()
    }
    words = (
        f"rank {rank}, {batch} sequences of {seq}; MiB moved from x to attention's output: "
        + ", ".join(f"{name} {mib:.0f}" for name, mib in moved.items())
    )
    return amounts(ways, unit="GFLOP of attention"), words


ROUTES = {"dense": ("dense",), "rebuilt on chip": ("flash",), "rank space": ("flash", True)}
turn(draw_work, rank=slider(range(8, 57, 8), 32), seq=slider([128, 512, 2048], 512))

# %% [markdown]
# Fewer FLOPs **and** fewer bytes, and equal up to rounding: not an approximation on top of the factors, but the
# same function in another order.
#
# ## Rank is a staircase
#
# A head dimension is a power of two in most models. A rank is whatever the plan says, and kernels multiply
# whole tiles. Below, the share of padding; above it, how many warps share a multiprocessor (lesson 03), from
# the compiler's registers and on-chip memory.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "A kernel takes tiles of 16, 32, 64 or 128 columns. At rank 40, what share of its multiplications falls on "
    "columns that hold nothing?",
    1 - 40 / 64,
    why="A tile of 64 holds 40: 24 of 64 columns are zeros. Rank 32 would take half the multiplications.",
)


# %%
stair = stairs(call, 128, lambda one: compiled().find(one, "H100 SXM"))


def draw_stairs(rank: int):
    return staircase(stair, rank=rank), " ".join(sentence(stair, rank))


turn(draw_stairs, rank=slider(range(8, 129, 8), 40))

# %% [markdown]
# ## In a model
#
# `absorb` does all this for a layer: every head, either side, all biases. Here is the third layer of
# `stdlib-bert`, the project's small encoder, with 24 ranks for each head of 64 columns.

# %%
loaded = flashsvd.load("stdlib-bert", device=device)
ranks = by_role(loaded.shape, head=24, feed_forward=96, output=96)
made = flashsvd.factorise(loaded, compute(loaded, method_named("svd")), ranks)
low_rank = flashsvd.build(loaded, "lowrank", made, ranks)
modules = [
    low_rank.base_model.get_submodule(loaded.family.path(2, name)) for name in "qkvo"
]
folded = absorb.absorb(*modules, heads=loaded.shape.heads, head_dim=loaded.shape.head_dim)
print(
    f"x → q', k, v: {tuple(folded.qkv.shape)}; bias: {int((folded.qkv_bias != 0).sum())} numbers, all of q'"
)
print(f"heads → hidden state: {tuple(folded.out.shape)}, in place of two factors")

# %% [markdown]
# The engine `flash` runs the whole model so. Its answers are those of the engine that rebuilds, and of two
# linears.

# %%
ids = torch.randint(0, 500, (2, 48), device=device)
with torch.no_grad():
    logits = low_rank(ids).logits
    for name, rebuild in (("rebuilt", True), ("rank space", False)):
        model = flashsvd.build(loaded, "flash", made, ranks, rebuild=rebuild)
        check(f"stdlib-bert, {name}", model(ids).logits, logits, within=1e-3)

# %% [markdown]
# ## Where it stops
#
# Rotary positions turn q and k by the place of their token before they are scored: $q_i R_i$ and $k_j R_j$,
# with matrices $R$ of $h \times h$ for which $R_i R_j^\top$ depends on the distance alone. A score becomes
#
# $$q_i R_i R_j^\top k_j^\top = P_{q,i}\,\big(A_q\,R_{i-j}\,A_k^\top\big)\,P_{k,j}^\top .$$
#
# The core is another one for every distance: a model would have to hold one for each distance and head, and no
# two keys of a tile share one for the same query. Turn it:


# %%
def turned(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Rows of x [n, h], each turned as a head at its place [n]."""
    angle = place[:, None] * 10000.0 ** (-torch.arange(0, h, 2, device=device) / h)
    angle = torch.cat([angle, angle], -1)[None]
    return naive_rotary(x[None], angle.cos(), angle.sin())[0]


def core_at(distance: int) -> torch.Tensor:
    at = torch.full((r_q,), float(distance), device=device)
    return turned(q_a, at) @ k_a.T


def draw_core(distance: int):
    now, still = core_at(distance), core_at(0)
    words = (
        f"distance {distance}: the core differs from that at 0 by "
        f"{float((now - still).norm() / still.norm()):.0%} of its size"
    )
    return image(
        now,
        f"A<sub>q</sub> R A<sub>k</sub>ᵀ at distance {distance}",
        limit=float(still.abs().max()),
    ), words


turn(draw_core, distance=slider([0, 1, 2, 4, 8, 16, 32, 64], 4))

# %%
places = torch.arange(S, dtype=torch.float32, device=device)
turned_scores = turned(q_p @ q_a, places) @ turned(k_p @ k_a, places).T
i, j = 50, 43
check(
    "one score by its own core",
    q_p[i] @ core_at(i - j) @ k_p[j],
    float(turned_scores[i, j]),
)

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "Which side of attention can still run in rank space with rotary positions?",
    ["scores", "values", "both", "neither"],
    "values",
    why="Values are never turned: softmax(·)·P<sub>v</sub> does not care where the weights came from.",
)

# %% [markdown]
# So with rotary positions keys are rebuilt, then turned, as in lesson 05, and values may stay thin. The library
# says so, too:

# %%
llama = shape_of(resolve("stdlib-llama"))
print(
    calls_of(by_role(llama, head=24, feed_forward=96, output=96), 0, 1, 64, "bf16")[
        "rank_space"
    ]
)
thin = (turned_scores * scale).softmax(-1) @ v_p @ v_a + v_b
check("rotary, values in rank space", thin, (turned_scores * scale).softmax(-1) @ v)

# %% [markdown]
# ## Can you spot it?
#
# "Softmax does not see biases", a colleague concludes, and drops both from the scores.

# %% tags=["bug"]
check("without biases", (q_p @ core @ k_p.T * scale).softmax(-1), weights)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# $b_k$ meets the query and gives one number a row: gone. $b_q$ meets the **keys**: $b_q A_k^\top P_k^\top$ is
# another number for every column, a preference for some keys whatever the query. It has to stay. Trained models
# use it, and the mistake gives plausible weights: nothing is NaN, every row sums to one.
#
# </details>

# %%
check("with q's bias", ((q_p @ core + q_b @ k_a.T) @ k_p.T * scale).softmax(-1), weights)

# %% [markdown]
# ## Exercise 1 · the smaller side
#
# Write both sides of the scores, without biases, with as few columns as possible, whichever rank is the
# smaller.


# %% tags=["exercise"]
def thin_sides(q_p, q_a, k_p, k_a) -> tuple[torch.Tensor, torch.Tensor]:
    """left and right, both [S, min(rq, rk)], with left @ right.T = (q_p @ q_a) @ (k_p @ k_a).T."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def tried(sides) -> list | None:
    """Scores and columns, with q's rank the larger, then the smaller."""
    found = [sides(q_p, q_a, k_p, k_a), sides(k_p, k_a, q_p, q_a)]
    if any(pair is None for pair in found):
        return None
    return [value for left, right in found for value in (left @ right.T, left.shape[1])]


plain_scores = (q_p @ q_a) @ (k_p @ k_a).T
exercise(
    "the smaller side",
    lambda: tried(thin_sides),
    [plain_scores, r_k, plain_scores.T, r_k],
    mistakes={
        "right, but always folded into q: where q's rank is the smaller, fold into k": [
            plain_scores,
            r_k,
            plain_scores.T,
            r_q,
        ],
        "right, but always folded into k: where k's rank is the smaller, fold into q": [
            plain_scores,
            r_q,
            plain_scores.T,
            r_k,
        ],
        "right, but folded to the larger side": [plain_scores, r_q, plain_scores.T, r_q],
        "these are rebuilt heads: they have h columns": [
            plain_scores,
            h,
            plain_scores.T,
            h,
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `core = q_a @ k_a.T` is $r_q \times r_k$. `q_p @ core` has $r_k$ columns; `k_p @ core.T` has $r_q$. The likely
# mistake is to fold always into q.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def thin_sides(q_p, q_a, k_p, k_a) -> tuple[torch.Tensor, torch.Tensor]:
#     core = q_a @ k_a.T
#     if core.shape[1] <= core.shape[0]:
#         return q_p @ core, k_p
#     return q_p, k_p @ core.T
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · into the output projection
#
# Two heads with their own ranks and a dense output projection $y = o\,W_o^\top + b_o$, where $o$ is both heads'
# outputs side by side. Fold $A_v$ and $b_v$ of both heads into it.

# %%
d = 48
head_a = [torch.randn(rank, h, device=device) / 4 for rank in (12, 20)]
v_bias = torch.randn(2 * h, device=device)
w_o, b_o = torch.randn(d, 2 * h, device=device) / 8, torch.randn(d, device=device)


# %% tags=["exercise"]
def fold_values(head_a, v_bias, w_o, b_o) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [d, r1 + r2] and bias [d] that take the heads' thin outputs, side by side, to y."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
blocks = w_o.split(h, dim=1)
wide = torch.cat([block @ a.T for block, a in zip(blocks, head_a, strict=True)], dim=1)
exercise(
    "values folded into the output",
    lambda: fold_values(head_a, v_bias, w_o, b_o),
    (wide, b_o + w_o @ v_bias),
    mistakes={
        "v's bias is missing: every row of weights sums to one, so W_o·b_v is added": (
            wide,
            b_o,
        ),
        "the output projection's own bias is missing": (wide, w_o @ v_bias),
        "each head's factor meets its own columns of W_o: these are swapped": (
            torch.cat([blocks[1] @ head_a[0].T, blocks[0] @ head_a[1].T], dim=1),
            b_o + w_o @ v_bias,
        ),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# $y = (o_1 A_1 + b_1)\,W_1^\top + (o_2 A_2 + b_2)\,W_2^\top + b_o$, where $W_1$ is the first $h$ columns of
# $W_o$ and $W_2$ the others. What multiplies $o_1$? The likely mistake is to forget what the bias of v becomes.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def fold_values(head_a, v_bias, w_o, b_o) -> tuple[torch.Tensor, torch.Tensor]:
#     blocks = w_o.split(head_a[0].shape[1], dim=1)
#     weight = torch.cat([block @ a.T for block, a in zip(blocks, head_a)], dim=1)
#     return weight, b_o + w_o @ v_bias
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · a bias on the small side
#
# Now q has the **smaller** rank, so its $P_q$ stays as it is and k takes the core. Where does $b_q$ go? It
# gives each key a number of its own: one more column. Write both sides with $r_q + 1$ columns.

# %%
(small_p, small_a, small_b), (large_p, large_a, large_b) = factors(12), factors(28)


# %% tags=["exercise"]
def biased_sides(q_p, q_a, q_b, k_p, k_a) -> tuple[torch.Tensor, torch.Tensor]:
    """left and right [S, rq + 1] whose product has the weights of (q_p @ q_a + q_b) @ (k_p @ k_a).T."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def weighed(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left @ right.T * scale).softmax(-1)


def of_sides(sides) -> list | None:
    found = sides(small_p, small_a, small_b, large_p, large_a)
    return None if found is None else [weighed(*found), found[0].shape[1]]


large_k = large_p @ large_a
exercise(
    "a bias on the small side",
    lambda: of_sides(biased_sides),
    [weighed(small_p @ small_a + small_b, large_k), 13],
    mistakes={
        "q's bias has no effect here: the new column of left must be ones": [
            weighed(small_p @ small_a, large_k),
            13,
        ],
        "q's bias is missing": [weighed(small_p @ small_a, large_k), 12],
        "right, with more columns than needed: fold the core into k, not into q": [
            weighed(small_p @ small_a + small_b, large_k),
            28,
        ],
        "these are rebuilt heads: they have h columns": [
            weighed(small_p @ small_a + small_b, large_k),
            h,
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# $(P_q A_q + b_q)\,k^\top = P_q\,(k A_q^\top)^\top + 1\,(k\,b_q)^\top$ with $k = P_k A_k$. The product of a
# column of ones and a column $k\,b_q$ is the second term. The likely mistake is to put zeros where the ones
# belong.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def biased_sides(q_p, q_a, q_b, k_p, k_a) -> tuple[torch.Tensor, torch.Tensor]:
#     left = torch.cat([q_p, torch.ones_like(q_p[:, :1])], dim=1)
#     right = k_p @ torch.cat([k_a @ q_a.T, (k_a @ q_b)[:, None]], dim=1)
#     return left, right
# ```
#
# The library does just this (`_score` in `flashsvd/engines/absorb.py`).
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
# - It needs a rank **per head**: heads that share one $P$ would each need all of its columns (lesson 02).
# - It does not hold with **rotary positions** on the side of the scores, nor where a norm stands between q and
#   k.
# - It is exact on paper, **rounded** in half precision: products of factors are made in fp32 or fp64 once, then
#   cast.
#
# ## References
#
# - FlashSVD, arXiv 2508.01506: the factors that are folded here. FlashAttention-2, arXiv 2307.08691, for the
#   loop. RoFormer, arXiv 2104.09864, for rotary positions. The folding itself is derived above, as in
#   `flashsvd/engines/absorb.py`.
# - In this project: `flashsvd/engines/absorb.py`, `flashsvd/kernels/rank_space/`, `flashsvd/bench/counts.py`;
#   pages **Tiles** and **Roofline** of the workbench.
