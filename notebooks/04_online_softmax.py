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
# # 04 · Online softmax
#
# Softmax seems to need a whole row of scores before it can give the first weight. Attention kernels cannot wait
# for it: a row may be thousands of scores long, and they see one tile of it at a time. This lesson makes
# softmax work on tiles that come one by one, and stay right where scores are huge, and where a row sees nothing
# at all.
#
# **You will be able to** say where plain softmax breaks, and why · update maximum, sum and output by one tile
# of keys, and merge two partial results · write attention as a small Triton kernel that survives every mask.
#
# **Before this** lesson 03. **Time** 20 minutes. **Needs** no GPU, no network.

# %%
import math

import torch

from flashsvd.figures.tiles_film import program_film
from flashsvd.kernels import HeadLayout, rank_space_attention
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.compiled import shipped as compiled_table
from flashsvd.onchip.programs import moment, steps
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

# %% [markdown]
# ## The plain one breaks
#
# $$\mathrm{softmax}(x)_j = \frac{e^{x_j}}{\sum_i e^{x_i}}$$

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "The largest number in fp32 is about 3.4 · 10³⁸. Above which x is exp(x) infinite?",
    math.log(torch.finfo(torch.float32).max),
    within=0.01,
    why="ln(3.4 · 10³⁸) = 38 · 2.303 + 1.22. In fp16, whose largest number is 65,504, it is 11.1 already.",
)


# %%
def plain(x: torch.Tensor) -> torch.Tensor:
    return x.exp() / x.exp().sum(-1, keepdim=True)


x = torch.randn(4, 64, device=device)
for factor in (1, 10, 100):
    y = plain(factor * x)
    error = float((y - torch.softmax(factor * x, -1)).abs().max())
    print(
        f"x · {factor:3}: {int(y.isnan().sum()):3} of {y.numel()} are NaN, error {error:.1e}"
    )

# %% [markdown]
# At $100\,x$ some terms are infinite, and so is their sum. Infinity over infinity is NaN; the other weights are
# something over infinity, 0. **Both are wrong, and only one of them shows.**
#
# Softmax does not change when a constant is added to all of $x$: it cancels. So subtract the largest score.
# Then no exponent is above 0, no term above 1, and the largest term is exactly 1, so the sum is never 0.


# %%
def safe(x: torch.Tensor) -> torch.Tensor:
    largest = x.amax(-1, keepdim=True)
    weights = (x - largest).exp()
    return weights / weights.sum(-1, keepdim=True)


check("safe at x · 100", safe(100 * x), torch.softmax(100 * x, -1))

# %% [markdown]
# ## Why not just do that
#
# The maximum must be known before the first term. That is one pass over the row for the maximum, and another
# for terms and sum, and in attention a third to weigh $v$. The scores would have to be kept in between, in
# memory.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "BERT-base: 32 sequences of 512 tokens, 12 heads. How many MiB do the scores of one layer take in bf16?",
    32 * 12 * 512 * 512 * 2 / 2**20,
    unit="MiB",
    why="32 · 12 · 512 · 512 scores of 2 bytes. One hidden state of the same batch is 24 MiB. And scores grow with "
    "the square of the length.",
)

# %% [markdown]
# ## The picture first
#
# What one program of this project's attention kernel does instead: it keeps its block of queries and its sums
# (blue), reads one tile of keys and of values (orange), makes a tile of scores, and moves on. When it comes to
# the second tile, the first one's scores are gone.

# %%
call = KernelCall(
    "rank_space", "bf16", 1, 1024, rank=32, rank_out=32, hidden=64, heads=2, kv_heads=2
)
row = compiled_table().find(call, "H200")
film = [moment(row, call, 2, step) for step in range(steps(row, call, 2))]
show(program_film(film, counted="step"), "scores are made tile by tile, and forgotten")

# %% [markdown]
# ## One tile after the other
#
# Keep three things per query: the largest score so far, the **pivot** $m$; the sum $\ell$ of the terms so far,
# relative to $m$; and the weighted sum $a$ of the values so far, relative to $m$. A new tile with scores $x_j$
# and values $v_j$ may have a larger maximum. Then what was summed must shrink:
#
# $$m' = \max\bigl(m, \max_j x_j\bigr), \qquad s = e^{m - m'},$$
# $$\ell' = s\,\ell + \sum_j e^{x_j - m'}, \qquad a' = s\,a + \sum_j e^{x_j - m'}\, v_j .$$
#
# At the end the output is $a / \ell$. Nothing was approximated: each term was only scaled later than usual.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "A row has scores 1 and 3 in its first tile, 2 and 5 in the second. What is the sum ℓ after the first tile?",
    math.exp(-2) + 1,
    within=0.01,
    why="The pivot is 3: e⁻² + e⁰.",
)

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "And after the second tile?",
    (math.exp(-2) + 1) * math.exp(-2) + math.exp(-3) + 1,
    within=0.01,
    why="The pivot becomes 5, so what was there shrinks by e⁻²: 1.135 · 0.135 = 0.154, and e⁻³ + e⁰ come on top. All "
    "at once it is the same: e⁻⁴ + e⁻² + e⁻³ + 1.",
)


# %%
def online(q, k, v, block: int, seen: list | None = None) -> torch.Tensor:
    """softmax(q kᵀ) v, [S, h], from tiles of `block` keys; `seen` collects (m, l) after each tile."""
    pivot = torch.full((len(q), 1), -1e30, device=q.device)
    total = torch.zeros(len(q), 1, device=q.device)
    acc = torch.zeros(len(q), v.shape[1], device=q.device)
    for n in range(0, len(k), block):
        scores = q @ k[n : n + block].T
        new_pivot = torch.maximum(pivot, scores.amax(1, keepdim=True))
        shrink = (pivot - new_pivot).exp()
        weights = (scores - new_pivot).exp()
        total = total * shrink + weights.sum(1, keepdim=True)
        acc = acc * shrink + weights @ v[n : n + block]
        pivot = new_pivot
        if seen is not None:
            seen.append((pivot.clone(), total.clone()))
    return acc / total


q, k, v = (torch.randn(count, 32, device=device) for count in (24, 72, 72))
q /= 32**0.5
naive = torch.softmax(q @ k.T, -1) @ v
check("online", online(q, k, v, block=8), naive)
check(
    "online at scores · 100",
    online(100 * q, k, v, block=8),
    torch.softmax(100 * q @ k.T, -1) @ v,
)

# %% [markdown]
# Watch the shrinking. Rows are queries, columns keys; a cell is the term $e^{x_j - m}$ of a key at the pivot
# *so far*. Unseen keys are empty. As tiles come, early terms fade where a larger score turns up.

# %%
states: list = []
online(q, k, v, block=8, seen=states)
all_scores = q @ k.T


def draw_terms(tiles_seen: int):
    pivot, total = states[tiles_seen - 1]
    terms = (all_scores - pivot).exp()
    terms[:, 8 * tiles_seen :] = 0
    words = (
        f"{tiles_seen} of {len(states)} tiles: row 0 has pivot {float(pivot[0]):.2f} and sum "
        f"{float(total[0]):.2f}; in {int((terms == 1).any(1).sum())} of 24 rows one term is exactly 1"
    )
    return image(terms, "terms relative to the pivot so far", limit=1.0), words


turn(draw_terms, tiles_seen=slider(range(1, len(states) + 1), 3))

# %% [markdown]
# What does it cost? One more exponential per row and tile, for $s$, and a scaling of $a$.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "Tiles of 64 keys: by how many percent does the shrinking raise the number of exponentials?",
    100 / 64,
    unit="%",
    within=0.03,
    why="One for each row and tile, beside 64 terms. Against that, no score is ever written or read.",
)

# %% [markdown]
# ## As it ships
#
# These lines of the project's kernel are the same update. Two things differ. It uses $2^x$, which is one
# instruction on a GPU, so scores are multiplied by $\log_2 e$ along with the usual scale:
# $e^{x} = 2^{x \log_2 e}$. And `scale` is applied after the maximum, so that scaling and subtracting are one
# instruction.

# %%
from flashsvd.kernels.rank_space.triton_kernel import rank_space_kernel

shipped(rank_space_kernel, after="new_pivot = tl.max", before="total = total * shrink")
shipped(rank_space_kernel, after="acc = tl.dot(weights", before="pivot = new_pivot")

# %%
backend = "triton" if device.type == "cuda" else "interpret"
one_head = HeadLayout((32,))


def fused(q, k, v, allowed=None) -> torch.Tensor:
    """The shipped kernel for one head; `allowed` [T] says which keys may be seen."""
    return rank_space_attention(
        q[None],
        k[None],
        v[None],
        score=one_head,
        value=one_head,
        key_mask=None if allowed is None else allowed[None],
        backend=backend,
    )[0]


q = torch.randn(72, 32, device=device)
naive = torch.softmax(q @ k.T, -1) @ v
check("fused", fused(q, k, v), naive)
check("fused at scores · 100", fused(100 * q, k, v), torch.softmax(100 * q @ k.T, -1) @ v)

# %% [markdown]
# ## A row that sees nothing
#
# Sequences of a batch are padded to one length, and padded keys must not count. The usual way is a score of
# $-\infty$: its term is $e^{-\infty} = 0$. But a whole *tile* may be padding, and with a pivot that starts at
# $-\infty$, as the maximum of nothing should, then the new pivot is $-\infty$ too.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "Pivot -∞, and a tile whose scores are all -∞. What are its terms exp(x - m')?",
    ["0", "1", "NaN"],
    "NaN",
    why="-∞ - (-∞) has no value. And NaN stays: every later tile multiplies it by the next shrink factor, so the row "
    "is lost even if it sees keys later. With padding on the left, that is every row.",
)

# %% [markdown]
# So the kernel's pivot starts at a **finite** number that is below any score:

# %%
shipped(rank_space_kernel, after="# [BM], finite", before="# [BM, BV]")
shipped(rank_space_kernel, after="# A row that saw no key", before="# [BM]")

# %% [markdown]
# Then $e^{-\infty + 10^{30}} = 0$, and a tile of padding changes nothing. A row that never sees a key ends with
# $a = 0$ and $\ell = 0$, so its output needs a choice. Here it is 0, by dividing by 1.

# %%
none_seen = torch.zeros(72, dtype=torch.bool, device=device)
last_six = torch.arange(72, device=device) >= 66
reference = torch.softmax((q @ k.T).masked_fill(~last_six, -math.inf), -1) @ v
check("only the last 6 keys are seen", fused(q, k, v, last_six), reference)
check("no key is seen", fused(q, k, v, none_seen), torch.zeros_like(q))
torch_says = torch.softmax((q @ k.T).masked_fill(~none_seen, -math.inf), -1) @ v
print("torch.softmax of -inf only:", "NaN" if torch_says.isnan().all() else "not NaN")
most_negative = torch.finfo(torch.float32).min
lenient = torch.softmax((q @ k.T).masked_fill(~none_seen, most_negative), -1) @ v
check("with a finite mask it is the mean of all v", lenient, v.mean(0).expand(72, 32))

# %% [markdown]
# The last line is the quiet failure: with the most negative number in place of $-\infty$, nothing is NaN, and a
# row that should see no key sees **all of them alike**, the padding included.
#
# ## Can you spot it?
#
# A colleague starts the pivot at 0: finite, no NaN, "and with a maximum above 0 it makes no difference". The
# test with random scores passes.


# %%
def started_at(
    start: float, scores: torch.Tensor, v: torch.Tensor, block: int = 8
) -> torch.Tensor:
    pivot = torch.full((len(scores), 1), start, device=scores.device)
    total = torch.zeros(len(scores), 1, device=scores.device)
    acc = torch.zeros(len(scores), v.shape[1], device=scores.device)
    for n in range(0, scores.shape[1], block):
        tile = scores[:, n : n + block]
        new_pivot = torch.maximum(pivot, tile.amax(1, keepdim=True))
        shrink, weights = (pivot - new_pivot).exp(), (tile - new_pivot).exp()
        total = total * shrink + weights.sum(1, keepdim=True)
        acc = acc * shrink + weights @ v[n : n + block]
        pivot = new_pivot
    return acc / torch.where(total > 0, total, 1.0)


# %% tags=["bug"]
scores = q @ k.T
check("random scores", started_at(0.0, scores, v), torch.softmax(scores, -1) @ v)
check(
    "scores lower by 150", started_at(0.0, scores - 150, v), torch.softmax(scores, -1) @ v
)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# Softmax does not see a constant, so both lines should give the same. But with a pivot that stays at 0, terms
# are $e^{-150}$, which fp32 rounds to 0. The row looks like one that saw no key, and its output is 0, with no
# NaN to warn. Scores do drift: a query and all keys with a large common part of opposite sign are enough. The
# start must lie below every score that can occur, and the first tile must replace it.
#
# </details>

# %%
check("random scores", started_at(-1e30, scores, v), torch.softmax(scores, -1) @ v)
check(
    "scores lower by 150", started_at(-1e30, scores - 150, v), torch.softmax(scores, -1) @ v
)

# %% [markdown]
# ## Exercise 1 · one number per row
#
# Write $\log \sum_j e^{x_j}$ of each row in **one** pass over tiles of columns. Only the pivot and the sum are
# kept.


# %% tags=["exercise"]
def log_sum_exp(x: torch.Tensor, block: int) -> torch.Tensor:
    """x [rows, columns] -> [rows], reading `block` columns at a time."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
given = 3 * torch.randn(5, 70, device=device) + torch.linspace(0, 60, 70, device=device)
shrunk_wrong = []
for columns in given.split(16, 1):
    shrunk_wrong.append(
        (columns.amax(1), (columns - columns.amax(1, keepdim=True)).exp().sum(1))
    )
exercise(
    "log-sum-exp",
    lambda: [log_sum_exp(given, 16), log_sum_exp(100 * given, 16)],
    [torch.logsumexp(given, 1), torch.logsumexp(100 * given, 1)],
    mistakes={
        "earlier sums are not shrunk when the pivot rises": [
            f * given.amax(1)
            + sum(
                (f * part - f * part.amax(1, keepdim=True)).exp().sum(1)
                for part in given.split(16, 1)
            ).log()
            for f in (1, 100)
        ],
        "the pivot was left out of the result: it is m + log(sum)": [
            torch.logsumexp(f * given, 1) - f * given.amax(1) for f in (1, 100)
        ],
        "only whole tiles were read: the last 6 columns are missing": [
            torch.logsumexp(f * given[:, :64], 1) for f in (1, 100)
        ],
        "that is the maximum alone": [f * given.amax(1) for f in (1, 100)],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Start with a pivot of $-10^{30}$ and a sum of 0, one per row. `x.split(block, dim=1)` gives the tiles, the
# last one narrower. The order matters: new pivot first, then shrink the old sum, then add.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def log_sum_exp(x: torch.Tensor, block: int) -> torch.Tensor:
#     pivot = torch.full((len(x),), -1e30, device=x.device)
#     total = torch.zeros(len(x), device=x.device)
#     for tile in x.split(block, dim=1):
#         new_pivot = torch.maximum(pivot, tile.amax(1))
#         total = total * (pivot - new_pivot).exp() + (tile - new_pivot[:, None]).exp().sum(1)
#         pivot = new_pivot
#     return pivot + total.log()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · merge two halves
#
# With one query and a long cache, keys are shared out over many programs (*split-K*, or flash decoding). Each
# gives its $(m, \ell, a)$, with $a$ not yet divided. Write what two of them make together. One of them may have
# seen no key: then its $m$ is $-10^{30}$ and the rest 0.


# %% tags=["exercise"]
def merge(m1, l1, a1, m2, l2, a2) -> tuple:
    """(m, l, a) of all keys from those of two parts; m and l [rows, 1], a [rows, h]."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def part_of(keys: slice, factor: float = 1.0) -> tuple:
    tile = factor * q @ k[keys].T
    if tile.shape[1] == 0:
        return (
            torch.full((72, 1), -1e30, device=device),
            torch.zeros(72, 1, device=device),
            torch.zeros_like(q),
        )
    top = tile.amax(1, keepdim=True)
    terms = (tile - top).exp()
    return top, terms.sum(1, keepdim=True), terms @ v[keys]


def merged(how, factor: float, cut: int) -> list:
    return list(how(*part_of(slice(0, cut), factor), *part_of(slice(cut, 72), factor)))


def all_cases(how) -> list:
    return merged(how, 1.0, 30) + merged(how, 40.0, 30) + merged(how, 1.0, 0)


def right(m1, l1, a1, m2, l2, a2):
    m = torch.maximum(m1, m2)
    return (
        m,
        l1 * (m1 - m).exp() + l2 * (m2 - m).exp(),
        a1 * (m1 - m).exp() + a2 * (m2 - m).exp(),
    )


def added(m1, l1, a1, m2, l2, a2):
    return torch.maximum(m1, m2), l1 + l2, a1 + a2


def half(m1, l1, a1, m2, l2, a2):
    m = torch.maximum(m1, m2)
    return m, l1 * (m1 - m).exp() + l2 * (m2 - m).exp(), a1 + a2


def one_side(m1, l1, a1, m2, l2, a2):
    m = torch.maximum(m1, m2)
    return m, l1 * (m1 - m).exp() + l2, a1 * (m1 - m).exp() + a2


exercise(
    "merge",
    lambda: all_cases(lambda *parts: merge(*parts) or (None,) * 3),
    all_cases(right),
    mistakes={
        "the sums were added as they are, though they refer to different pivots": all_cases(
            added
        ),
        "a must shrink with the sum": all_cases(half),
        "only the first part shrinks: either may have the smaller pivot": all_cases(
            one_side
        ),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The first part is "what was there", the second "a tile" whose terms refer to a pivot of its own. So both
# shrink, one of them by $e^0 = 1$. Neither part comes first: the result is the same with parts exchanged.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def merge(m1, l1, a1, m2, l2, a2) -> tuple:
#     m = torch.maximum(m1, m2)
#     s1, s2 = (m1 - m).exp(), (m2 - m).exp()
#     return m, s1 * l1 + s2 * l2, s1 * a1 + s2 * a2
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · attention in one launch
#
# The loop over tiles stands there, masks included: keys at or beyond `keys`, and keys whose byte in `allowed`
# is 0, come with a score of $-\infty$. Two things are yours. `update` is the step of this lesson in Triton, on
# scores that were multiplied by `scale_log2`. `attend` launches one program per 32 queries, with tiles of 32
# keys.


# %% tags=["exercise"]
import triton
import triton.language as tl


@triton.jit
def update(scores, v_tile, pivot, total, acc):
    """scores [BM, BN], v_tile [BN, W], pivot and total [BM], acc [BM, W] -> (pivot, total, acc)."""
    ...


@triton.jit
def attend_kernel(
    q, k, v, allowed, out, queries, keys, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, WIDTH)
    q_tile = tl.load(
        q + m[:, None] * WIDTH + c[None, :], mask=m[:, None] < queries, other=0.0
    )
    pivot = tl.full([BLOCK_M], -1.0e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for n0 in range(0, keys, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        at = n[:, None] * WIDTH + c[None, :]
        k_tile = tl.load(k + at, mask=n[:, None] < keys, other=0.0)
        v_tile = tl.load(v + at, mask=n[:, None] < keys, other=0.0)
        seen = tl.load(allowed + n, mask=n < keys, other=0) != 0
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
        scores = tl.where(seen[None, :], scores, float("-inf"))
        pivot, total, acc = update(scores, v_tile, pivot, total, acc)
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + m[:, None] * WIDTH + c[None, :], acc, mask=m[:, None] < queries)


def attend(q, k, v, allowed, scale: float) -> torch.Tensor:
    """softmax(q kᵀ · scale) v over allowed keys; q [S, 32], k and v [T, 32], allowed [T] bool."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
few = torch.randn(40, 32, device=device)
scale = 32**-0.5
left_padded = torch.arange(72, device=device) >= 45
masks = [torch.ones_like(left_padded), left_padded, torch.zeros_like(left_padded)]


def by_hand(mask, base: float = math.e, hide: bool = True, extra: int = 0) -> torch.Tensor:
    x = few @ k.T * scale
    values = v
    if hide:
        x = x.masked_fill(~mask, -math.inf)
    if extra:
        x = torch.cat([x, torch.zeros(40, extra, device=device)], 1)
        values = torch.cat([v, torch.zeros(extra, 32, device=device)])
    return (torch.softmax(x * math.log(base), -1) @ values).nan_to_num(0.0)


def not_shrunk(mask, both: bool) -> torch.Tensor:
    x = (few @ k.T * scale).masked_fill(~mask, -math.inf)
    pivot, total, acc = torch.full((40, 1), -1e30, device=device), 0.0, 0.0
    for n in range(0, 72, 32):
        new = torch.maximum(pivot, x[:, n : n + 32].amax(1, keepdim=True))
        shrink, weights = (pivot - new).exp(), (x[:, n : n + 32] - new).exp()
        total = total * (1 if both else shrink) + weights.sum(1, keepdim=True)
        acc, pivot = acc + weights @ v[n : n + 32], new
    return acc / torch.where(total > 0, total, 1.0)


exercise(
    "attention in one launch",
    lambda: [attend(few, k, v, mask, scale) for mask in masks],
    [by_hand(mask) for mask in masks],
    mistakes={
        "acc is not shrunk when the pivot rises": [
            not_shrunk(mask, False) for mask in masks
        ],
        "neither total nor acc is shrunk": [not_shrunk(mask, True) for mask in masks],
        "exp2 of scores that were not multiplied by log2(e)": [
            by_hand(mask, base=2.0) for mask in masks
        ],
        "every key is seen: `allowed` did not reach the kernel": [
            by_hand(mask, hide=False) for mask in masks
        ],
        "nothing was summed up: the loop leaves acc at 0": [torch.zeros_like(few)] * 3,
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# In `update`: `tl.max(scores, 1)`, `tl.maximum`, `tl.exp2`, `tl.sum(weights, 1)`, and
# `acc * shrink[:, None] + tl.dot(weights, v_tile, input_precision="ieee")`; return the **new** pivot. In
# `attend`: `scale_log2 = scale * math.log2(math.e)`, and `allowed.to(torch.int8)`.
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
# def update(scores, v_tile, pivot, total, acc):
#     new_pivot = tl.maximum(pivot, tl.max(scores, 1))
#     shrink = tl.exp2(pivot - new_pivot)
#     weights = tl.exp2(scores - new_pivot[:, None])
#     total = total * shrink + tl.sum(weights, 1)
#     acc = acc * shrink[:, None] + tl.dot(weights, v_tile, input_precision="ieee")
#     return new_pivot, total, acc
#
#
# @triton.jit
# def attend_kernel(
#     q, k, v, allowed, out, queries, keys, scale_log2,
#     BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
# ):
#     m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
#     c = tl.arange(0, WIDTH)
#     q_tile = tl.load(q + m[:, None] * WIDTH + c[None, :], mask=m[:, None] < queries, other=0.0)
#     pivot = tl.full([BLOCK_M], -1.0e30, tl.float32)
#     total = tl.zeros([BLOCK_M], tl.float32)
#     acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
#     for n0 in range(0, keys, BLOCK_N):
#         n = n0 + tl.arange(0, BLOCK_N)
#         at = n[:, None] * WIDTH + c[None, :]
#         k_tile = tl.load(k + at, mask=n[:, None] < keys, other=0.0)
#         v_tile = tl.load(v + at, mask=n[:, None] < keys, other=0.0)
#         seen = tl.load(allowed + n, mask=n < keys, other=0) != 0
#         scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
#         scores = tl.where(seen[None, :], scores, float("-inf"))
#         pivot, total, acc = update(scores, v_tile, pivot, total, acc)
#     acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
#     tl.store(out + m[:, None] * WIDTH + c[None, :], acc, mask=m[:, None] < queries)
#
#
# def attend(q, k, v, allowed, scale: float) -> torch.Tensor:
#     out = torch.full_like(q, float("nan"))
#     attend_kernel[(triton.cdiv(len(q), 32),)](
#         q, k, v, allowed.to(torch.int8), out, len(q), len(k), scale * math.log2(math.e),
#         BLOCK_M=32, BLOCK_N=32, WIDTH=32,
#     )
#     return out
# ```
#
# </details>

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). The one difference: `safe at x · 100` is equal to the bit there and 1.5e-39 off on a CPU,
# which keeps numbers under 1.2e-38 that the GPU's exponential gives as 0.
#
# ## What this does not do
#
# - It saves memory, not multiplications: all $S^2$ scores are still computed. On a GPU the exponentials
#   themselves can become the limit in long sequences; no softmax trick removes them.
# - Order of summing matters in rounding: results of different tile sizes differ in the last digits, and none of
#   them is *the* right one. The library's gate compares with fp64.
# - Nothing here is compressed yet. What the queries, keys and values come from is lesson 05.
#
# ## References
#
# - M. Milakov and N. Gimelshein, *Online normalizer calculation for softmax*, arXiv 1805.02867, algorithm 3.
# - T. Dao, *FlashAttention-2*, arXiv 2307.08691, algorithm 1: the update with the output divided once, at the
#   end.
# - In this project: `flashsvd/kernels/rank_space/triton_kernel.py`, `flashsvd/kernels/online_softmax.py` (the
#   same loop in PyTorch), `flashsvd/kernels/rank_space/naive.py` (the definition); page **Tiles** of the
#   workbench.
