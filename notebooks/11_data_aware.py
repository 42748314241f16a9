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
# # 11 · Norms that know the data
#
# The SVD of a weight is the best approximation *of the weight*. What a model needs is its outputs, on the
# inputs that it really gets. Four published methods differ in how they say so, and they turn out to be one
# method: a plain SVD, in another norm.
#
# **You will be able to** write the output error of a layer from the weight and one matrix of statistics ·
# derive FWSVD, ASVD and whitening as one SVD each · say what calibration text buys, and how much of it is
# enough.
#
# **Before this** lesson 01. **Time** 25 minutes. **Needs** no GPU, no network.

# %%
import textwrap

import torch

import flashsvd
from flashsvd.allocate import uniform
from flashsvd.calibration import calibration_batches
from flashsvd.curve_set import find_curves, read_curves
from flashsvd.errors import CheckpointError
from flashsvd.figures.amounts import lines
from flashsvd.figures.pareto import pareto
from flashsvd.methods import method_named
from flashsvd.methods.base import decompose_diagonal
from flashsvd.models.linears import linear_of
from flashsvd.results import Calibration
from flashsvd.search.scorer import Scorer
from flashsvd.spectra import compute, decompose_slot, weight_of
from flashsvd.stats.collect import collect
from flashsvd.stats.fisher import sequence_losses
from flashsvd.tasks import batches, sample, task_named
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
from flashsvd.tradeoff import tradeoff

device = begin()

# %% [markdown]
# ## Two features are enough to see it
#
# A layer has two inputs and two outputs, $W = \mathrm{diag}(2, 1)$, and may keep rank 1. Its inputs are
# uncorrelated; the mean of $x_1^2$ is 1 and that of $x_2^2$ is 100. The mean squared output is then
# $4 \cdot 1 + 1 \cdot 100 = 104$. Plain SVD keeps the larger singular value, the 2.

# %%
toy = torch.diag(torch.tensor([2.0, 1.0]))
toy_gram = torch.diag(torch.tensor([1.0, 100.0]))


def lost(weight, approximation, gram):
    """The mean squared output that an approximation loses, as a share of all."""
    gone = weight - approximation
    return float((gone @ gram @ gone.T).trace() / (weight @ gram @ weight.T).trace())


keeps_the_two, keeps_the_one = (
    torch.diag(torch.tensor([2.0, 0])),
    torch.diag(torch.tensor([0, 1.0])),
)

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "What share of the mean squared output does plain SVD lose at rank 1?",
    lost(toy, keeps_the_two, toy_gram),
    why="It cuts the 1, and with it 1·100 of 104. Cutting the 2 would lose 4 of 104: the larger singular value is the "
    "wrong one to keep, since hardly anything comes in along it.",
)

# %%
print(
    f"plain SVD keeps the 2 and loses {lost(toy, keeps_the_two, toy_gram):.1%} of the output"
)
print(f"keeping the 1 instead loses     {lost(toy, keeps_the_one, toy_gram):.1%}")

# %% [markdown]
# ## The inputs of a real layer
#
# The first feed-forward matrix of the fourth layer of `stdlib-bert`, and 32 pieces of the source code it was
# trained on. The library runs the dense model once and adds up, at every linear, the Gram matrix of its
# inputs $X$ (a row per token, padding left out):
#
# $$G = X^\top X = \sum_{\text{tokens}} x\,x^\top .$$

# %%
loaded = flashsvd.load("stdlib-bert", device=device)
text = calibration_batches(loaded, Calibration(samples=32))
statistics = collect(loaded, text, ["gram", "mean", "mean_abs", "fisher"])

validation = sample(task_named("bundled", loaded).load("validation"), 24, seed=0)
held_out = collect(loaded, batches(validation, loaded, 16), ["gram"])

layer, rank = 3, 64
slot = loaded.shape.slot(layer, "up")
weight = weight_of(loaded, layer, slot).detach().double()
stats = statistics.by_slot[layer, "up"]
gram, unseen = stats.gram, held_out.by_slot[layer, "up"].gram
print(
    f"weight {list(weight.shape)}, Gram {list(gram.shape)} of {statistics.tokens:,} tokens"
)

# %% [markdown]
# Drawn as correlations, and only a corner of it. If the inputs were round (every direction as frequent as any
# other), it would be white off the diagonal, and plain SVD would be the best there is.

# %%
size = gram.diagonal().sqrt()
correlation = gram / size / size[:, None]
show(
    image(correlation[:64, :64], "correlation of the first 64 inputs, L4.up", limit=1.0),
    "orange and blue far from the diagonal: inputs come together",
)

# %%
energies = torch.linalg.eigvalsh(gram).flip(0)
held = energies.cumsum(0) / energies.sum()
print(f"1 direction of {len(held)} holds {float(held[0]):.0%} of the inputs' energy")
print(f"{int((held < 0.9).sum()) + 1} hold 90 %, {int((held < 0.99).sum()) + 1} hold 99 %")

# %% [markdown]
# ## All that is needed of the text is $G$
#
# With $D = W - \hat W$ the squared error of the outputs is
#
# $$\lVert X D^\top \rVert_F^2 = \operatorname{tr}(D\,X^\top X\,D^\top) = \operatorname{tr}(D\,G\,D^\top),$$
#
# so the text can be thrown away once $G$ has been added up: $n \times n$ numbers, however long it was.


# %%
def output_error(weight, approximation, gram):
    """‖X(W - Ŵ)ᵀ‖ / ‖XWᵀ‖ from G = XᵀX."""
    return max(lost(weight, approximation, gram), 0.0) ** 0.5


few = torch.randn(20, weight.shape[1], dtype=weight.dtype, device=device)
half = weight / 2
check(
    "from the Gram alone",
    output_error(weight, half, few.T @ few),
    float((few @ (weight - half).T).norm() / (few @ weight.T).norm()),
)

# %% [markdown]
# Plain SVD on real inputs, for a start:

# %%
u, sigma, v = torch.linalg.svd(weight, full_matrices=False)
plain = (u[:, :rank] * sigma[:rank]) @ v[:rank]
print(f"weight  {float((weight - plain).norm() / weight.norm()):.1%} off")
print(f"outputs {output_error(weight, plain, gram):.1%} off")

# %% [markdown]
# ## Choose $M$, then take a plain SVD
#
# Take any square $M$ with $M M^\top = G$. Then $\operatorname{tr}(D G D^\top) = \lVert D M \rVert_F^2$, and
# the best rank $r$ in *that* norm is the SVD of $W M$, with $M$ taken off again:
#
# $$W M = U \Sigma Z^\top, \qquad \hat W = U_r \Sigma_r Z_r^\top M^{-1} = U_r U_r^\top W .$$
#
# The last form holds because $\Sigma_r Z_r^\top = U_r^\top W M$: nothing has to be inverted, and $M$ decides
# one thing only, which $r$ output directions are kept. First as the formula says. LayerNorm leaves one
# direction along which these inputs hardly move; the eigenvalue of $G$ there is rounding and may come out below
# zero, where Cholesky refuses. Three millionths of the mean diagonal, added to it, hold it up:

# %%
held_up = gram + 3e-6 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
low = torch.linalg.eigvalsh(gram)[:2]
print(f"smallest eigenvalues of G: {float(low[0]):.0e} and {float(low[1]):.0f}")
root = torch.linalg.cholesky(held_up)  # lower triangular, root @ root.T is the Gram
u, sigma, z = torch.linalg.svd(weight @ root, full_matrices=False)
inverted = (u[:, :rank] * sigma[:rank]) @ z[:rank] @ torch.linalg.inv(root)
check(
    "its error is the tail of the new σ²",
    output_error(weight, inverted, gram) ** 2,
    float(sigma[rank:].square().sum() / sigma.square().sum()),
)

# %% [markdown]
# Then without the inverse; then as it ships, where not even a root is taken: the wanted $U$ are eigenvectors
# of $W G W^\top$ (or, where the weight is taller than wide, come from those of $G$).

# %%
kept = u[:, :rank]
check("no inverse", kept @ (kept.T @ weight), inverted)

whitened = decompose_slot(weight, slot, method_named("whiten"), stats)
left, right = whitened.factors(0, rank)
check("the library's factors", left @ right, inverted)

# %%
from flashsvd.methods.base import decompose_gram

shipped(decompose_gram)

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    f"Plain SVD at rank {rank} leaves these outputs {output_error(weight, plain, gram):.0%} off. And whitening, at the "
    "same rank, with factors of the same size?",
    ["nearly as much", "less than half", "nothing"],
    "less than half",
    why="Nothing would need inputs that lie in 64 directions; these take more than 150 for 99 %.",
)

# %%
for name, seen_by in (("this text", gram), ("other text", unseen)):
    before, after = (
        output_error(weight, approximation, seen_by)
        for approximation in (plain, left @ right)
    )
    print(f"{name:10} plain SVD {before:.1%} off, whitening {after:.1%}")

# %% [markdown]
# ## Four methods, one norm apart
#
# | method | looks at | $M$ |
# |---|---|---|
# | SVD | nothing | $I$ |
# | FWSVD | squared gradients of the loss, $d_j$: summed over the weights of input $j$ | $\mathrm{diag}(\sqrt{d})$ |
# | ASVD | how large input $j$ is: $s_j$, the mean of $\lvert x_j \rvert$; $\alpha = 0.5$ | $\mathrm{diag}(s^\alpha)$ |
# | whitening (DRONE, SVD-LLM) | which inputs come together | any root of $G$ |
#
# FWSVD and ASVD can stretch axes; only whitening can turn them. Which of the two matters here? The diagonal
# of $G$ has every input's exact size and no correlation. Put $M = \sqrt{\operatorname{diag} G}$ and see how
# much of the gain is left.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "With the sizes of the inputs but not their correlations: how much of whitening's gain over plain SVD is left?",
    ["hardly any", "half", "nearly all"],
    "hardly any",
    why="LayerNorm has just made the inputs of this matrix of about one size. What is special in them is how they come "
    "together.",
)


# %%
def basis(spectrum, weight, rank):
    """The approximation that a method's basis of outputs gives."""
    kept = spectrum.u[0, :, :rank].to(weight)
    return kept @ (kept.T @ weight)


spectra = {
    name: decompose_slot(weight, slot, method_named(name), stats)
    for name in ("svd", "fwsvd", "asvd")
}
spectra |= {
    "√diag G": decompose_diagonal(weight[None], gram.diagonal().sqrt()[None]),
    "whiten": whitened,
}
for name, spectrum in spectra.items():
    print(
        f"{name:8} outputs {output_error(weight, basis(spectrum, weight, rank), unseen):.1%} off, on text not seen"
    )

# %% [markdown]
# ## Turn it
#
# The same for other layers and matrices, at every rank, on held-out text. Look at the matrices of the last
# layer: its output is read at one token only, and its inputs need few directions.

# %%
NAMES = ("whiten", "asvd", "svd", "fwsvd")


def draw_errors(matrix: str, layer: int):
    slot, key = loaded.shape.slot(layer - 1, matrix), (layer - 1, matrix)
    weight = weight_of(loaded, layer - 1, slot).detach().double()
    seen, new = statistics.by_slot[key], held_out.by_slot[key].gram
    outputs = weight @ new @ weight.T
    ranks = range(0, slot.full_rank + 1, 8)
    drawn, words = {}, []
    for name in NAMES:
        basis = decompose_slot(weight, slot, method_named(name), seen).u[0]
        # The energy along every direction kept; all ranks are sums of these.
        along = ((outputs @ basis) * basis).sum(0).cumsum(0) / outputs.trace()
        off = [1.0, *(1 - along).clamp_min(0).sqrt().tolist()]
        drawn[name] = (list(ranks), [off[rank] for rank in ranks])
        words.append(f"{name} {off[64]:.1%}")
    figure = lines(drawn, x="rank", y="output error", here=64, legend=True)
    return figure, f"L{layer}.{matrix} at rank 64: " + ", ".join(words)


turn(draw_errors, matrix=menu(["up", "down", "o"]), layer=slider(range(1, 7), 4))

# %% [markdown]
# ## What it buys in the model
#
# A layer's error is not yet a model's. These are recorded curves of `stdlib-bert`: 512 held-out pieces, 256
# calibration pieces, the same share of parameters kept everywhere.

# %%
recorded = [
    c for c in read_curves(find_curves("stdlib-bert")).curves if c.allocator == "uniform"
]
curves = {curve.method: curve for curve in recorded if curve.method in NAMES}

# %% jupyter={"source_hidden": true} tags=["question"]
at_tenth = {name: curve.points[0].metric.value for name, curve in curves.items()}
choose(
    "One of the data-aware methods scores below plain SVD at every small keep. Which?",
    ["fwsvd", "asvd", "whiten"],
    min(at_tenth, key=at_tenth.get),
    why="It stretches axes by squared gradients of the loss, and those are very uneven over the pieces of a text.",
)

# %%
show(
    pareto(
        tradeoff(list(curves.values()), "keep", "score", dtype="fp32"), "keep", height=340
    ),
    "accuracy against keep: whitening above asvd and svd, fwsvd below",
)
for name, curve in curves.items():
    shares = ", ".join(
        f"{p.metric.value:.1%} at {p.asked_keep:.0%}" for p in curve.points[:3]
    )
    print(f"{name:7} {shares} kept; dense {curve.dense.value:.1%}")

# %% [markdown]
# What does FWSVD go by? Its weights $d$ are sums over sequences of squared gradients, and one sequence's
# gradient of $W$ is $\delta^\top x$: the gradients of the outputs times the inputs. For the layer
# from above, piece by piece:

# %%
up = linear_of(loaded.model.base_model, loaded.family, loaded.shape, layer, "up")
caught = []
hook = up.register_forward_hook(
    lambda _, args, out: caught.append((args[0], out.requires_grad_()))
)
parts = []
for batch in text:
    inputs = {k: t.to(device) for k, t in batch.items() if k != "labels"}
    logits = loaded.model(**inputs).logits
    losses = sequence_losses(loaded.model, logits, batch, inputs["attention_mask"].bool())
    x, outputs = caught.pop()
    (delta,) = torch.autograd.grad(losses.sum(), outputs)
    parts.append((delta.mT @ x.detach()).square().sum((1, 2)))
hook.remove()
parts = torch.cat(parts).double()
check("the library's Fisher", float(parts.sum()), float(stats.fisher.sum()))
shares = (parts / parts.sum()).sort(descending=True).values
print(
    f"of {len(shares)} pieces one has {float(shares[0]):.0%} of all squared gradients, "
    f"three have {float(shares[:3].sum()):.0%}; alike, they would have {3 / len(shares):.0%}"
)

# %% [markdown]
# A few pieces decide a good part of what FWSVD keeps. That fits its place among the curves, and does not prove
# that it is the reason.
#
# Now live, with the statistics from above: an eighth of the calibration text of the recording, a fifth of the
# weights kept, and few pieces to score, so read the KL divergence from the dense model and not the accuracy.
# The gain is smaller than the recorded one. The same 32 pieces were enough to halve the error of the layer
# above; the model asks more.

# %%
scorer = Scorer.of(loaded, compute(loaded, method_named("svd")), samples=40, seed=0)
plan = uniform(loaded.shape, 0.2)
divergence = {}
for name in ("svd", "whiten"):
    scorer.spectra = compute(loaded, method_named(name), statistics)
    divergence[name] = scorer.score(plan).kl
    point = curves[name].points[1]
    print(
        f"{name:7} keep {plan.keep:.2f}: KL {divergence[name].value:.3f} nats on "
        f"{divergence[name].n} pieces; recorded {point.kl.value:.3f} on {point.kl.n}"
    )

# %% [markdown]
# ## How much text
#
# A Gram matrix of $t$ tokens has rank $t$ at most. The second feed-forward matrix has 1024 inputs. To see
# what that does, take its inputs themselves: one hook, one pass, token by token.

# %%
down = loaded.shape.slot(layer, "down")
wide = weight_of(loaded, layer, down).detach().double()
rows = []
module = linear_of(loaded.model.base_model, loaded.family, loaded.shape, layer, "down")
hook = module.register_forward_pre_hook(lambda _, args: rows.append(args[0].detach()))
with torch.inference_mode():
    for batch in text:
        loaded.model.base_model(
            **{k: t.to(device) for k, t in batch.items() if k != "labels"}
        )
hook.remove()
pieces = [
    piece[mask.bool()].double()
    for states, batch in zip(rows, text, strict=True)
    for piece, mask in zip(states, batch["attention_mask"], strict=True)
]
whole = torch.cat(pieces)
check("the library's Gram", whole.T @ whole, statistics.by_slot[layer, "down"].gram)

# %%
order = torch.randperm(len(pieces)).tolist()
tokens = torch.cat([pieces[number] for number in order])
first = len(pieces[order[0]])

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    f"From the first piece alone, {first} tokens: at which rank does whitening reproduce every output of these "
    "tokens exactly?",
    int(torch.linalg.matrix_rank(tokens[:first] @ wide.T)),
    within=0.03,
    why=f"{first} outputs span {first} directions at most, though the matrix has 256. Above that rank the method has "
    "nothing left to fit, and nothing to go by.",
)

# %%
other = held_out.by_slot[layer, "down"].gram
counts = [2**power for power in range(5, 13)]
inside, outside = [], []
for count in counts:
    part = tokens[:count].T @ tokens[:count]
    u = torch.linalg.eigh(wide @ part @ wide.T)[1].flip(1)[:, :rank]
    inside.append(output_error(wide, u @ (u.T @ wide), part))
    outside.append(output_error(wide, u @ (u.T @ wide), other))
u = torch.linalg.svd(wide, full_matrices=False)[0][:, :rank]
blind = output_error(wide, u @ (u.T @ wide), other)
show(
    lines(
        {"its own text": (counts, inside), "held-out text": (counts, outside)},
        x="calibration tokens",
        y=f"output error of L4.down at rank {rank}",
        level=(blind, "plain SVD, held-out text"),
        legend=True,
        log_x=True,
    ),
    "error on its own text rises from zero, on held-out text falls below plain SVD's",
)
better = next(count for count, error in zip(counts, outside, strict=True) if error < blind)
print(
    f"below plain SVD on held-out text from {better} tokens on; "
    f"at {counts[-1]:,}: {outside[-1]:.1%} against {blind:.1%}"
)

# %% [markdown]
# Two things to take away. The error on the calibration text itself says nothing when there is little of it:
# with no more tokens than ranks it is zero. And the *inputs'* width is no threshold: whitening gains long
# before the Gram matrix has full rank, since most of the energy is in the first few directions. It is
# Cholesky that insists:

# %%
short = collect(loaded, [{k: t[:1] for k, t in text[0].items()}], ["gram"]).by_slot[
    layer, "down"
]
try:
    decompose_slot(wide, down, method_named("whiten:sqrt=cholesky"), short, layer=layer)
except CheckpointError as error:
    print(textwrap.fill(str(error), 96))
print(
    "eigh:",
    list(decompose_slot(wide, down, method_named("whiten"), short, layer=layer).u.shape),
)

# %% [markdown]
# ## Can you spot it?
#
# A colleague prefers upper triangular matrices. `torch.linalg.cholesky(..., upper=True)` gives a root of $G$,
# too. It should be as good as the lower one, and it does worse than plain SVD.

# %% tags=["bug"]
root = torch.linalg.cholesky(held_up, upper=True)
u, sigma, _ = torch.linalg.svd(weight @ root, full_matrices=False)
upper = u[:, :rank] @ (u[:, :rank].T @ weight)
print(f"outputs {output_error(weight, upper, gram):.1%} off")
check(
    "its error is the tail of σ²",
    output_error(weight, upper, gram) ** 2,
    float(sigma[rank:].square().sum() / sigma.square().sum()),
)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# The upper factor $R$ has $R^\top R = G$. The norm needs $M M^\top = G$, so $M$ is $R^\top$. With $M = R$ the
# SVD minimises the error in another norm, that of $R R^\top$: a matrix with the eigenvalues of $G$ and other
# eigenvectors. Shapes fit and numbers look sane; only the tail tells.
#
# </details>

# %%
root = torch.linalg.cholesky(held_up, upper=True).T
u, sigma, _ = torch.linalg.svd(weight @ root, full_matrices=False)
upper = u[:, :rank] @ (u[:, :rank].T @ weight)
print(f"outputs {output_error(weight, upper, gram):.1%} off")
check(
    "its error is the tail of σ²",
    output_error(weight, upper, gram) ** 2,
    float(sigma[rank:].square().sum() / sigma.square().sum()),
)

# %% [markdown]
# ## Exercise 1 · FWSVD
#
# Write the approximation of rank `rank` that is best when the squared error of column $j$ of the weight
# counts $d_j$ times.


# %% tags=["exercise"]
def weighted_svd(weight: torch.Tensor, d: torch.Tensor, rank: int) -> torch.Tensor:
    """weight [m, n], d [n] positive -> Ŵ [m, n] of least Σ d_j (W - Ŵ)_ij²."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
fisher = stats.fisher[0] / stats.fisher.mean()


def cut_in(scale: torch.Tensor, back: bool = True) -> torch.Tensor:
    u, s, z = torch.linalg.svd(weight * scale, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ z[:rank] / (scale if back else 1.0)


exercise(
    "weighted SVD",
    lambda: weighted_svd(weight, fisher, rank),
    basis(spectra["fwsvd"], weight, rank),
    mistakes={
        "the weights count squared errors, so the columns are scaled by √d, not d": cut_in(
            fisher
        ),
        "this approximates W·M: M must be taken off again": cut_in(
            fisher.sqrt(), back=False
        ),
        "this is plain SVD: d changes nothing in it": plain,
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# $\sum_j d_j\,(\cdot)_{ij}^2 = \lVert D\,\mathrm{diag}(\sqrt d) \rVert^2$. Scale the columns, take the SVD,
# cut, and divide the columns again.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def weighted_svd(weight: torch.Tensor, d: torch.Tensor, rank: int) -> torch.Tensor:
#     u, s, z = torch.linalg.svd(weight * d.sqrt(), full_matrices=False)
#     return (u[:, :rank] * s[:rank]) @ z[:rank] / d.sqrt()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · every rank at once
#
# A method gives an orthonormal basis $U$ of the outputs, best direction first, and
# $\hat W_r = U_r U_r^\top W$. Write the relative output errors
# $\lVert X D^\top \rVert / \lVert X W^\top \rVert$ at ranks $1, 2, \dots, p$ without forming any $\hat W_r$.


# %% tags=["exercise"]
def errors_at_all_ranks(
    weight: torch.Tensor, u: torch.Tensor, gram: torch.Tensor
) -> torch.Tensor:
    """weight [m, n], u [m, p], gram [n, n] -> [p], the error at rank 1 first."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
directions = spectra["svd"].u[0].to(weight)
along = ((weight @ unseen @ weight.T @ directions) * directions).sum(0) / (
    weight @ unseen @ weight.T
).trace()
one_by_one = [
    output_error(weight, basis(spectra["svd"], weight, r), unseen) for r in (1, 2, 64, 128)
]
picked = [0, 1, 63, 127]
exercise(
    "errors at all ranks",
    lambda: (
        None
        if (mine := errors_at_all_ranks(weight, directions, unseen)) is None
        else [float(mine[i]) for i in picked]
    ),
    one_by_one,
    mistakes={
        "these are squared errors: take the root": [error**2 for error in one_by_one],
        "this is what is held, not what is lost": (along.cumsum(0)[picked]).tolist(),
        "each direction's own share: sum over those that are kept": (
            (1 - along)[picked].sqrt()
        ).tolist(),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# What is lost is $\operatorname{tr}(S) - \operatorname{tr}(U_r^\top S\,U_r)$ with $S = W G W^\top$. The
# second trace is a sum over the first $r$ columns: `cumsum`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def errors_at_all_ranks(weight: torch.Tensor, u: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
#     outputs = weight @ gram @ weight.T
#     held = ((outputs @ u) * u).sum(0).cumsum(0) / outputs.trace()
#     return (1 - held).clamp_min(0).sqrt()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · the bias takes up the mean
#
# Inputs have a mean $\mu$. An approximation is off by $(W - \hat W)\mu$ on average, which is the same for
# every token: a constant, and the layer has a bias to put it in. Write the bias $b'$ of the compressed layer
# so that its mean output is the dense layer's.


# %% tags=["exercise"]
def corrected_bias(
    bias: torch.Tensor,
    weight: torch.Tensor,
    approximation: torch.Tensor,
    mean: torch.Tensor,
) -> torch.Tensor:
    """bias [m], weight and approximation [m, n], mean [n] of the inputs -> [m]."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
bias = (
    linear_of(loaded.model.base_model, loaded.family, loaded.shape, layer, "up")
    .bias.detach()
    .double()
)
mean = stats.mean
exercise(
    "corrected bias",
    lambda: corrected_bias(bias, weight, plain, mean),
    bias + weight @ mean - plain @ mean,
    mistakes={
        "the sign: what the cut takes away must be added": bias - (weight - plain) @ mean,
        "this adds the whole mean output; the factors still give their part of it": bias
        + weight @ mean,
        "this adds what the factors give anyway": bias + plain @ mean,
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Set the two mean outputs equal: $W\mu + b = \hat W\mu + b'$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def corrected_bias(
#     bias: torch.Tensor, weight: torch.Tensor, approximation: torch.Tensor, mean: torch.Tensor
# ) -> torch.Tensor:
#     return bias + (weight - approximation) @ mean
# ```
#
# </details>
#
# The library does both halves: `whiten:centred` takes the SVD in the norm of the covariance, as the mean
# costs nothing any more, and moves the bias. On its own text that is never worse than uncentred.

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). The one difference: the smallest eigenvalue of G is -2e-04 there and 1e-04 on a CPU. It is
# rounding in both.
#
# ## What this does not do
#
# - It fits the **calibration text**. On text of another kind the norm is another one; measure on what you
#   will run.
# - It looks at **one layer at a time**, on the inputs of the dense model. Compressed layers below give
#   others; SVD-LLM refits $U$ to them (`flashsvd/compression/refit.py`).
# - It says nothing of **which layer** should have how many ranks: that is lesson 12.
# - It makes nothing **smaller or faster** than plain SVD at the same rank. It is the same shape of factors,
#   with better numbers in them.
#
# ## References
#
# - FWSVD: Hsu et al., arXiv 2207.00112, eq. 6. ASVD: Yuan et al., arXiv 2312.05821, section 3.2.
# - Whitening: Chen et al., DRONE, NeurIPS 2021; Wang et al., SVD-LLM, arXiv 2403.07378, and V2, arXiv
#   2503.12340.
# - In this project: `flashsvd/methods/`, `flashsvd/stats/`, `assets/recordings/curves/stdlib-bert.parquet`;
#   page **Accuracy** of the workbench.
