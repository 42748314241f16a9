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
# # 01 · Low-rank factorisation
#
# A linear layer multiplies by a matrix. If two thin matrices multiply to nearly the same one, the layer needs fewer
# bytes and fewer multiplications. This lesson is about *nearly*: how thin, how near, and when it pays.
#
# **You will be able to** say from $m$, $n$ and $r$ alone whether factors are smaller than the matrix · read an
# approximation's error off its singular values · factor a layer of a real model and check what you got.
#
# **Before this** matrix products, a little PyTorch. **Time** 20 minutes. **Needs** no GPU, no network.

# %%
import torch

import flashsvd
from flashsvd.figures.spectrum import spectrum
from flashsvd.models.shape import Slot
from flashsvd.spectra import weight_of
from flashsvd.teaching import begin, check, choose, exercise, image, predict, slider, turn

device = begin()

# %% [markdown]
# ## Two thin matrices for one
#
# A layer computes $y = x\,W^\top$ with $W$ of $m$ rows and $n$ columns. Put $W \approx U V$ with $U$ of size
# $m \times r$ and $V$ of size $r \times n$. Then
#
# $$y \approx (x\,V^\top)\,U^\top .$$
#
# The product in brackets has $r$ columns only. Nobody ever forms $UV$ again: that is the whole trick, and the
# reason to
# count before running.

# %%
up = Slot(
    "up", out_features=3072, in_features=768
)  # the first feed-forward matrix of BERT-base

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "BERT-base's first feed-forward matrix is 3072 × 768. Up to which rank have its two factors no more entries than "
    "it has?",
    up.break_even,
    within=0.02,
    why="Factors have r·(m + n) entries and the matrix m·n, so they meet at r = m·n / (m + n), far below the full "
    "rank of 768.",
)

# %%
rank = 256
m, n = up.out_features, up.in_features
print(f"dense    {m * n:>9,} entries")
print(
    f"rank {rank} {up.factor_parameters(rank):>9,.0f} entries, {up.factor_parameters(rank) / (m * n):.0%} of dense"
)
print(
    f"rank {up.full_rank} {up.factor_parameters(up.full_rank):>9,.0f} entries: exact, and larger than the matrix"
)

# %% [markdown]
# ## A matrix that was trained
#
# `stdlib-bert` is a small BERT that ships with this project. It was trained to tell which module of Python's
# standard
# library a piece of source is from. Here is the same matrix of its third layer.

# %%
loaded = flashsvd.load("stdlib-bert")
layer = 2
slot = loaded.shape.slot(layer, "up")
weight = weight_of(loaded, layer, slot).detach()
left, sigma, right = torch.linalg.svd(weight, full_matrices=False)
print(
    f"weight {list(weight.shape)}: {len(sigma)} singular values, from {sigma[0]:.2f} to {sigma[-1]:.3f}"
)

# %% [markdown]
# `torch.linalg.svd` wrote it as a sum of matrices of rank one, largest first:
#
# $$W = \sum_{i=1}^{p} \sigma_i\, u_i v_i^\top, \qquad p = \min(m, n).$$
#
# Keeping the first $r$ terms is the best that any two factors of rank $r$ can do (Eckart and Young 1936).

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "A matrix of the same size filled with random numbers: is it easier or harder to compress than this one?",
    ["easier", "as easy", "harder"],
    "harder",
    why="Its singular values fall slowly, so every term that is cut takes much with it. Training puts more into a few "
    "directions.",
)

# %%
noise = torch.randn_like(weight) * weight.std()
noise_sigma = torch.linalg.svdvals(noise)


def held(values: torch.Tensor, rank: int) -> float:
    """The share of the squared singular values that the first `rank` of them hold."""
    return float(values[:rank].square().sum() / values.square().sum())


for share in (8, 4, 2):
    kept = len(sigma) // share
    print(
        f"rank {kept:3}: trained {held(sigma, kept):.0%} of the energy, random {held(noise_sigma, kept):.0%}"
    )

# %% [markdown]
# ## Turn it
#
# The curve is every singular value; what is shaded is kept. The dashed line is the break-even rank: right of it,
# factors
# are larger than the matrix.

# %%
spectral = sigma.double().numpy()


def draw_spectrum(rank: int):
    words = (
        f"rank {rank}: {slot.factor_parameters(rank):,.0f} of {slot.unit_parameters:,} entries, "
        f"{held(sigma, rank):.1%} of the energy, error {(1 - held(sigma, rank)) ** 0.5:.1%}"
    )
    return spectrum(spectral, rank, slot), words


turn(draw_spectrum, rank=slider(range(4, len(sigma) + 1, 4), 64))

# %% [markdown]
# Look at what is cut, too. This is the upper left corner of $W - UV$ on the colours of $W$ itself: at a small
# rank it
# still shows the stripes of strong rows and columns, later only noise.


# %%
def draw_residual(rank: int):
    residual = weight - (left[:, :rank] * sigma[:rank]) @ right[:rank]
    corner = image(
        residual[:48, :96],
        f"W - UV at rank {rank}",
        limit=float(weight[:48, :96].abs().max()),
    )
    return (
        corner,
        f"rank {rank}: ‖W - UV‖ / ‖W‖ = {float(residual.norm() / weight.norm()):.1%}",
    )


turn(draw_residual, rank=slider([0, 1, 4, 16, 64, 128, 192, len(sigma)], 16))

# %% [markdown]
# ## The error is the tail
#
# The terms of the sum are orthogonal to each other, so the error needs no second product:
#
# $$\lVert W - UV \rVert_F^2 = \sum_{i > r} \sigma_i^2 .$$

# %%
rank = 64

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    f"The squares of the singular values sum to {float(sigma.square().sum()):.1f}; the first {rank} of them hold "
    f"{held(sigma, rank):.1%}. What is ‖W - UV‖² at rank {rank}?",
    float(sigma[rank:].square().sum()),
    why="It is what the first 64 do not hold.",
)

# %%
U, V = left[:, :rank] * sigma[:rank], right[:rank]
check(
    "error is the tail of σ²",
    float((weight - U @ V).square().sum()),
    float(sigma[rank:].square().sum()),
)

# %% [markdown]
# Three ways to choose 64 directions, from easy to best. The second projects on the 64 longest rows: a basis that is
# there already. Only the last is an SVD.

# %%
random_basis = torch.linalg.qr(torch.randn(weight.shape[1], rank))[0]
longest = weight[weight.norm(dim=1).topk(rank).indices]
row_basis = torch.linalg.qr(longest.T)[0]
for name, basis in (
    ("random", random_basis),
    ("longest rows", row_basis),
    ("SVD", right[:rank].T),
):
    error = (weight - weight @ basis @ basis.T).norm() / weight.norm()
    print(f"{name:13} {float(error):.1%} off")

# %% [markdown]
# ## Running it
#
# First the obvious way, that throws the gain away; then the one that keeps it.

# %%
x = torch.randn(512, weight.shape[1])
rebuilt = x @ (U @ V).T  # forms the full matrix again: more work than the dense layer
thin = (x @ V.T) @ U.T  # two thin products
check("two thin products", thin, rebuilt)

# %%
m, n = weight.shape

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    f"Multiplications of the two thin products for one token, as a share of the dense layer's (m = {m}, n = {n}, "
    f"r = {rank})?",
    slot.factor_parameters(rank) / (m * n),
    why="r·(m + n) of m·n, the same share as of the entries: a linear layer multiplies once per entry and token.",
)

# %% [markdown]
# What of the output? The weight's error is an upper bound in one sense only: inputs that lie in the cut
# directions are
# lost, others are kept exactly. On random inputs the output is as far off as the weight; on real ones it may be
# nearer or
# much farther. Lesson 11 asks the inputs.

# %%
exact = x @ weight.T
print(f"weight {float((weight - U @ V).norm() / weight.norm()):.1%} off")
print(f"output {float((exact - thin).norm() / exact.norm()):.1%} off, on random inputs")

# %% [markdown]
# ## Can you spot it?
#
# A colleague shares the singular values between both factors, "so that their entries are alike". The error is
# off. Find
# out why before you open the answer.

# %% tags=["bug"]
even_left, even_right = left[:, :rank] * sigma[:rank], sigma[:rank, None] * right[:rank]
check("shared evenly", even_left @ even_right, U @ V)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# Both factors carry all of $\sigma$, so their product carries $\sigma^2$. An even split gives each $\sqrt\sigma$;
# that is
# what the library does, since half precision needs entries of one range.
#
# </details>

# %%
even_left, even_right = (
    left[:, :rank] * sigma[:rank].sqrt(),
    sigma[:rank, None].sqrt() * right[:rank],
)
check("shared evenly", even_left @ even_right, U @ V)
for name, factors in (("σ on the left", (U, V)), ("√σ on both", (even_left, even_right))):
    print(
        f"{name:14} largest entries {float(factors[0].abs().max()):.2f} and {float(factors[1].abs().max()):.2f}"
    )

# %% [markdown]
# ## Exercise 1 · break-even
#
# Write the largest **whole** rank at which the factors have fewer entries than the matrix.


# %% tags=["exercise"]
def largest_rank(m: int, n: int) -> int:
    """The largest r with r·(m + n) < m·n."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
exercise(
    "largest rank that saves",
    lambda: [largest_rank(3072, 768), largest_rank(64, 768), largest_rank(512, 512)],
    [614, 59, 255],
    mistakes={
        "at 512 × 512 the two meet exactly at rank 256, which saves nothing yet": [
            614,
            59,
            256,
        ],
        "that is the full rank, min(m, n): there the factors hold the matrix, and are larger": [
            768,
            64,
            512,
        ],
        "rounded up: one more than saves": [615, 60, 256],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Solve $r\,(m+n) < m\,n$ for $r$. The strict sign matters where the division is exact; `//` on integers makes no
# rounding
# error.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def largest_rank(m: int, n: int) -> int:
#     return (m * n - 1) // (m + n)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · the rank for an error
#
# Write the smallest rank whose error $\lVert W - UV\rVert / \lVert W \rVert$ is at most `error`.


# %% tags=["exercise"]
def rank_for_error(sigma: torch.Tensor, error: float) -> int:
    """sigma, largest first -> the smallest rank that is at most `error` off, relative to the whole."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def by_trial(values: torch.Tensor, error: float) -> int:
    return next(
        r
        for r in range(len(values) + 1)
        if values[r:].square().sum() <= error**2 * values.square().sum()
    )


def energy_at_least(values: torch.Tensor, share: float) -> int:
    return int((torch.cumsum(values.square(), 0) / values.square().sum() < share).sum()) + 1


errors = (0.5, 0.3, 0.1)
plain_shares = torch.cumsum(sigma, 0) / sigma.sum()
exercise(
    "rank for an error",
    lambda: [rank_for_error(sigma, error) for error in errors],
    [by_trial(sigma, error) for error in errors],
    mistakes={
        "the tail is a sum of squares: this took the singular values themselves": [
            int((plain_shares < 1 - error).sum()) + 1 for error in errors
        ],
        "an error of 0.3 leaves 0.3² = 0.09 of the energy, not 0.3: square it": [
            energy_at_least(sigma, 1 - error) for error in errors
        ],
        "one short: the rank counts values, and the first index that is enough counts from 0": [
            by_trial(sigma, error) - 1 for error in errors
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The share of the energy that must be kept is $1 - \text{error}^2$. `torch.cumsum` of the squares gives the share
# held by
# every rank at once.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def rank_for_error(sigma: torch.Tensor, error: float) -> int:
#     held = torch.cumsum(sigma.square(), 0) / sigma.square().sum()
#     return int((held < 1 - error**2).sum()) + 1
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
# - It says nothing of **accuracy**: a weight 30 % off may cost a model nothing or everything (lessons 11 and 12).
# - It saves no **time** by itself: two small products can be slower than one large one, and $x V^\top$ must go
# through
#   memory between them (lessons 03 and 05).
# - The matrices of attention heads are small and wide, where the break-even rank is nearly the full one (lesson
# 02).
#
# ## References
#
# - C. Eckart and G. Young, *The approximation of one matrix by another of lower rank*, Psychometrika 1 (1936).
# - FlashSVD, arXiv 2508.01506, section 3: where the factors of this lesson are streamed.
# - In this project: `flashsvd/methods/svd.py`, `flashsvd/models/shape.py`; page **Ranks** of the workbench.
