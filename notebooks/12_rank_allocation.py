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
# # 12 · Where to spend ranks
#
# A budget of parameters can be spent evenly, or where it helps. Singular values say how far off every
# *matrix* will be at every rank, for nothing. What has to be known is how far off the *model* will be, and
# that turns out to be another question.
#
# **You will be able to** price a rank · write an allocator, and say when the greedy one is right · tell three
# ways to say what a rank loses, and which of them the model agrees with.
#
# **Before this** lessons 01 and 11. **Time** 25 minutes. **Needs** no GPU, no network.

# %%
from itertools import product

import numpy as np

import flashsvd
from flashsvd.allocate import (
    Budget,
    Costs,
    allocate,
    choices,
    losses_from,
    relative_tails,
    tail_energy,
    total_loss,
    uniform,
)
from flashsvd.allocate.within import least_cut
from flashsvd.calibration import calibration_batches
from flashsvd.curve_set import find_curves, read_curves
from flashsvd.figures.grid import rank_grid
from flashsvd.figures.pareto import pareto
from flashsvd.figures.scattered import scattered
from flashsvd.measure.layer_error import layer_errors
from flashsvd.methods import method_named
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan, rank_for_keep
from flashsvd.results import Calibration
from flashsvd.search.curvature import curvature
from flashsvd.search.scorer import Scorer
from flashsvd.spectra import compute
from flashsvd.teaching import (
    begin,
    check,
    choose,
    exercise,
    menu,
    predict,
    show,
    slider,
    turn,
)
from flashsvd.tradeoff import tradeoff

device = begin()

# %% [markdown]
# ## One rank, two prices
#
# A rank of an $m \times n$ matrix costs $m + n$ parameters. Below is a plan that keeps 30 % of every matrix
# of `stdlib-bert`: rows are layers, columns projections, q, k and v head by head. The colour is the rank, as
# a share of break-even. A plan is a colour for each cell; the budget is what they cost together.

# %%
loaded = flashsvd.load("stdlib-bert", device=device)
spectra = compute(loaded, method_named("svd"))
shape, sigmas = spectra.shape, spectra.sigmas()
even = uniform(shape, 0.3)
show(rank_grid(even), "every cell of one colour: " + even.summary())
print(even.summary())

# %%
v, down = shape.slot(0, "v"), shape.slot(0, "down")
print(
    f"a head of v is {v.unit_out} × {v.in_features}, down is {down.unit_out} × {down.in_features}"
)

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "For the price of one rank of down, how many ranks of one head of v?",
    down.factor_parameters(1) / v.factor_parameters(1),
    why="256 + 1024 parameters against 64 + 256.",
)

# %%
costs = Costs.parameters()
kinds = {}
for layer, slot in shape:
    price = sum(costs.of_unit(layer, slot, rank) for rank in even.get(layer, slot.name))
    kinds[slot.name] = kinds.get(slot.name, 0) + price
for name, price in kinds.items():
    print(
        f"{name:5} {price:>9,.0f} parameters, {price / costs.of_plan(even):.0%} of the plan"
    )

# %% [markdown]
# ## The error of a matrix
#
# For every matrix the relative error at any rank is in its singular values (lesson 01). Cut everything to a
# tenth and average over the layers:

# %%
tenth = uniform(shape, 0.1)
errors = layer_errors(sigmas, tenth)
mean_error = {
    name: float(np.mean([e for (_, slot), e in errors.items() if slot == name]))
    for name in shape.slot_names
}
print(", ".join(f"{name} {error:.0%}" for name, error in mean_error.items()))

# %% [markdown]
# The six kinds are about equally far off. Now cut one kind only, in all layers, leave the rest dense, and ask
# the model: the KL divergence of its predictions from the dense model's, on held-out pieces.

# %%
scorer = Scorer.of(loaded, spectra, samples=16, seed=0)


def only(name: str) -> RankPlan:
    """One kind of matrix cut to a tenth."""
    return RankPlan.build(
        shape,
        lambda layer, slot, unit: rank_for_keep(slot, 0.1) if slot.name == name else None,
    )


measured = {name: scorer.score(only(name)).kl.value for name in shape.slot_names}

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "Which kind hurts the model most when it is cut to a tenth?",
    ["q or k", "v or o", "up", "down"],
    {"q": "q or k", "k": "q or k", "v": "v or o", "o": "v or o"}.get(
        most := max(measured, key=measured.get), most
    ),
    why="Both do far more harm than their errors say; down, as dear as up, does least.",
)

# %%
show(
    scattered(
        {name: (mean_error[name], measured[name]) for name in measured},
        x="mean relative error of the matrices",
        y="KL to dense, nats",
        log_y=True,
    ),
    "points close together from left to right, and far apart from top to bottom",
)
most, least = max(measured, key=measured.get), min(measured, key=measured.get)
print(f"errors: {min(mean_error.values()):.0%} to {max(mean_error.values()):.0%}")
print(
    f"KL: {most} {measured[most]:.3f}, {least} {measured[least]:.3f}: {measured[most] / measured[least]:.0f} times"
)

# %% [markdown]
# A matrix's error knows nothing of what becomes of its output: whether a softmax or a LayerNorm takes it in,
# what is added to it, which tokens are read at the end. Do the losses of the model at least add up?

# %%
together = scorer.score(tenth).kl.value
print(f"sum of the six {sum(measured.values()):.2f} nats, all six at once {together:.2f}")

# %% [markdown]
# ## An allocator
#
# They need not, but no allocator could work without supposing it. Say that unit $i$ loses $L_i(r)$ at rank
# $r$ and costs $c_i(r)$, and that losses add. Then the task is
#
# $$\min_{r_1, r_2, \dots} \sum_i L_i(r_i) \quad\text{with}\quad \sum_i c_i(r_i) \le C .$$
#
# Three matrices of one layer are enough to write one. Ranks come in steps, and "dense" is one more choice.

# %%
small = ModelShape(
    shape.family,
    shape.hidden,
    shape.heads,
    shape.kv_heads,
    shape.head_dim,
    shape.max_positions,
    (tuple(shape.slot(2, name) for name in ("o", "up", "down")),),
)
slots = [slot for _, slot in small]
tails = relative_tails({(0, slot.name): sigmas[2, slot.name] for slot in slots})
options, prices, loss = [], [], []
for slot in slots:
    ranks = choices(slot)
    options.append(ranks)
    prices.append([costs.of_unit(0, slot, rank) for rank in ranks])
    loss.append(
        [0.0 if rank is None else float(tails[0, slot.name][0, rank]) for rank in ranks]
    )
    print(f"{slot.name:5} {ranks}")

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    f"With {', '.join(str(len(o)) for o in options)} choices, how many plans are there?",
    len(list(product(*options))),
    why="One choice for each of three matrices. A whole model of this size has 36 matrices, 18 of them in four heads.",
)

# %% [markdown]
# First the obvious way: try all that fit.

# %%
room = Budget.of_keep(small, 0.3).left
best = min(
    (
        plan
        for plan in product(*(range(len(o)) for o in options))
        if sum(prices[i][at] for i, at in enumerate(plan)) <= room
    ),
    key=lambda plan: sum(loss[i][at] for i, at in enumerate(plan)),
)
print("best of all ", [options[i][at] for i, at in enumerate(best)])

# %% [markdown]
# Then greedy: start from the cheapest choice everywhere, and always make the affordable move that gains most
# **for what it costs**. A move may skip choices: to dense, the last steps gain at once what no step before it
# did.


# %%
def moves(at: list[int], left: float):
    """Every affordable move to a dearer choice: (gain per cost, matrix, choice)."""
    for i, here in enumerate(at):
        for there in range(here + 1, len(options[i])):
            price = prices[i][there] - prices[i][here]
            if 0 < price <= left:
                yield (loss[i][here] - loss[i][there]) / price, i, there


def spent(at: list[int]) -> float:
    return sum(prices[i][choice] for i, choice in enumerate(at))


def lost(at: list[int]) -> float:
    return sum(loss[i][choice] for i, choice in enumerate(at))


at = [0, 0, 0]
while found := max(moves(at, room - spent(at)), default=None):
    _, matrix, choice = found
    at[matrix] = choice
print("greedy      ", [options[i][choice] for i, choice in enumerate(at)])
print(f"loses {lost(at) / lost(best) - 1:.2%} more than the best of all")

# %% [markdown]
# And the one that ships, which keeps the moves in a heap, and takes any shape, cost and loss. Greedy is exact
# where all steps cost the same and every matrix's gains fall from step to step; else it is off by less than
# one move.

# %%
shipped_plan = allocate(small, tails, costs, Budget.of_keep(small, 0.3))
check(
    "the library's plan",
    [shipped_plan.get(0, slot.name)[0] for slot in slots],
    [options[i][choice] for i, choice in enumerate(at)],
)

# %% [markdown]
# ## What does a rank lose?
#
# The allocator is the easy half. Three answers for $L_i(r)$, from cheap to dear:
#
# - **tails**: $\sum_{j>r} \sigma_{ij}^2$, in one unit for the whole model. The plan with the least total
#   error of all weights.
# - **even tails**: the same, divided by each matrix's $\sum_j \sigma_{ij}^2$: every matrix counts alike.
# - **curvature**: what the predictions lose. Multiply component $j$ of matrix $i$ by a factor that is 1 now;
#   with $g_{ij}$ the slope of the log-probabilities in it, cutting it moves the KL by about
#   $\tfrac12 \mathbb{E}\,g_{ij}^2$, so $L_i(r) = \tfrac12 \sum_{j>r} \mathbb{E}\,g_{ij}^2$. One forward and
#   two backward passes give it for every rank of every unit at once. It is the only one that looks at text:
#   here 16 calibration pieces.

# %%
bent = curvature(loaded, spectra, calibration_batches(loaded, Calibration(samples=16)))
losses = {"even tails": losses_from(sigmas, dict.fromkeys(sigmas, 1.0)), "curvature": bent}


def plan_at(rule: str, keep: float) -> RankPlan:
    """The plan of a rule within a share of the parameters."""
    if rule == "uniform":
        return uniform(shape, keep)
    budget = Budget.of_keep(shape, keep)
    if rule == "tails":
        return least_cut(shape, sigmas, budget, costs)
    return allocate(shape, losses[rule], costs, budget)


# %% [markdown]
# ## Turn the budget
#
# Dark cells are near break-even, cells with a stroke stay dense. Watch where the parameters go as the budget
# grows: with even tails, and with curvature.


# %%
def draw_plan(rule: str, keep: float):
    plan = plan_at(rule, keep)
    words = (
        f"{plan.kept_parameters:,} parameters ({plan.keep:.1%}), {plan.dense_units} of {plan.units} units dense; "
        f"{tail_energy(plan, sigmas):.1%} of all σ² cut"
    )
    return rank_grid(plan), words


turn(
    draw_plan,
    rule=menu(["curvature", "even tails", "tails", "uniform"]),
    keep=slider([round(0.05 * step, 2) for step in range(2, 20)], 0.3),
)

# %% [markdown]
# ## Does the model agree?

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "Four plans of the same 30 %. “tails” has the least error of the weights, by construction. Is its model the "
    "nearest to dense?",
    ["yes", "no, uniform", "no, even tails", "no, curvature"],
    "no, curvature",
    why="It is the only one of the four that has asked what the errors do to the predictions.",
)

# %%
print("                 σ² cut   KL, nats")
kl = {}
for rule in ("uniform", "tails", "even tails", "curvature"):
    plan = plan_at(rule, 0.3)
    kl[rule] = scorer.score(plan).kl.value
    print(f"{rule:12} {tail_energy(plan, sigmas):>10.1%} {kl[rule]:>10.3f}")

# %% [markdown]
# All four have the same parameters and the same singular vectors. What does this buy in parameters? The
# recorded curve of uniform plans (512 pieces) says how much more a uniform plan must keep to gain the same
# factor.

# %%
recorded = [
    c
    for c in read_curves(find_curves("stdlib-bert")).curves
    if c.method in ("svd", "whiten")
]
show(
    pareto(tradeoff(recorded, "keep", "kl", dtype="fp32"), "keep", height=320),
    "KL against keep, uniform plans: svd above, whitening below",
)
points = {
    point.asked_keep: point.kl.value for point in recorded[0].points if point.kl.value > 0
}
ratio = kl["curvature"] / kl["uniform"]
enough = min(keep for keep, value in points.items() if value <= ratio * points[0.3])
print(f"KL at keep 0.3, curvature to uniform: {ratio:.2f}")
print(
    f"recorded, uniform plans: that factor below keep 0.3 is first reached at keep {enough:.1f}"
)

# %% [markdown]
# The green curve is the other lever: whitening, the better norm of lesson 11, at uniform ranks. Both can be
# pulled, since an allocator takes the spectra of any method.
#
# How good is the prediction itself? Its *size* is useless: on calibration text the model is sure of its
# answers, and hardly any KL can be seen. What an allocator needs are ratios, and only to choose. This is why
# the library's `calibrated` allocator lets other text, never that of the scores, choose between its plans and
# uniform.

# %%
plan = plan_at("curvature", 0.3)
print(f"expected {total_loss(plan, bent):.6f} nats, measured {kl['curvature']:.4f}")
print(
    f"expected of uniform's: {total_loss(plan, bent) / total_loss(even, bent):.2f}, measured {ratio:.2f}"
)

# %% [markdown]
# ## Can you spot it?
#
# A colleague's allocator always makes the move that gains most.

# %% tags=["bug"]
start = [0, 0, 0]


def wrong_moves(at, left):
    for i, here in enumerate(at):
        for there in range(here + 1, len(options[i])):
            price = prices[i][there] - prices[i][here]
            if 0 < price <= left:
                yield loss[i][here] - loss[i][there], i, there


while found := max(wrong_moves(start, room - spent(start)), default=None):
    start[found[1]] = found[2]
print([options[i][choice] for i, choice in enumerate(start)])
check("loss of the plan", lost(start), lost(at), within=0.01)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# The gain is not divided by its price. The largest gain is nearly always that of the longest move that fits,
# whatever it costs: the first moves take the budget, and what is left does not reach where it would have
# gained more. Dividing by the price makes every parameter compete with every other.
#
# </details>

# %%
start = [0, 0, 0]
while found := max(moves(start, room - spent(start)), default=None):
    start[found[1]] = found[2]
print([options[i][choice] for i, choice in enumerate(start)])
check("loss of the plan", lost(start), lost(at), within=0.01)

# %% [markdown]
# ## Exercise 1 · one move
#
# Write the choice of a greedy allocator: of moves with these gains and prices, the position of the one with
# the largest gain per price among those that cost at most `room`; -1 where none fits.


# %% tags=["exercise"]
def best_move(gains: list[float], prices: list[float], room: float) -> int:
    """gains and prices of the same length -> a position, or -1."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
asked = (
    ([4.0, 9.0, 1.0], [2.0, 6.0, 1.0], 10.0),
    ([4.0, 9.0, 1.0], [9.0, 6.0, 4.0], 5.0),
    ([2.0, 5.0, 8.0], [1.0, 1.0, 4.0], 4.0),
    ([1.0, 2.0], [3.0, 4.0], 2.0),
)
exercise(
    "one move",
    lambda: [best_move(*case) for case in asked],
    [0, 2, 1, -1],
    mistakes={
        "the largest gain, whatever it costs": [1, 2, 2, -1],
        "a move that does not fit the room": [0, 1, 1, 1],
        "the cheapest move, whatever it gains": [2, 2, 0, -1],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Leave out first what does not fit, then take the largest ratio. `max` takes a `key` and a `default`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def best_move(gains: list[float], prices: list[float], room: float) -> int:
#     fits = [i for i, price in enumerate(prices) if price <= room]
#     return max(fits, key=lambda i: gains[i] / prices[i], default=-1)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · one probe, every rank
#
# A cheaper way to a loss is one measurement: cut a matrix to rank `probed`, measure the KL, and suppose that
# the loss is proportional to the tail, $L(r) = \alpha \sum_{j>r} \sigma_j^2 / \sum_j \sigma_j^2$. Write $L$
# at every rank from 0 to all.


# %% tags=["exercise"]
def loss_at_every_rank(sigma: np.ndarray, probed: int, kl: float) -> np.ndarray:
    """sigma [p], largest first -> [p + 1], the loss at rank r in place r; `kl` in place `probed`."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
probed_sigma = sigmas[2, "up"][0]
key = (0, "up")
whole = losses_from({key: probed_sigma[None]}, {key: 1.0})[key][0]
reference = 0.25 * whole / whole[40]
plain = np.append(probed_sigma[::-1].cumsum()[::-1], 0.0)
places = [0, 1, 40, 128, 255, 256]
exercise(
    "loss at every rank",
    lambda: (
        None
        if (mine := loss_at_every_rank(probed_sigma, 40, 0.25)) is None
        else [float(mine[place]) for place in places]
    ),
    [float(reference[place]) for place in places],
    mistakes={
        "the tail is a sum of squares": [
            float(0.25 * plain[p] / plain[40]) for p in places
        ],
        "this is α·tail with α the KL: divide by the tail at the probed rank": [
            float(0.25 * whole[p]) for p in places
        ],
        "shifted by one: at rank r the first r values are kept, so the tail starts at sigma[r]": [
            float(0.25 * whole[min(p + 1, 256)] / whole[41]) for p in places
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Sum the squares from the small end: `np.cumsum(...[::-1])[::-1]`, and append the 0 of full rank. Then scale
# so that the value at `probed` is `kl`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def loss_at_every_rank(sigma: np.ndarray, probed: int, kl: float) -> np.ndarray:
#     tail = np.append(np.cumsum(np.square(sigma)[::-1])[::-1], 0.0)
#     return kl * tail / tail[probed]
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · two matrices
#
# Two matrices lose $L_1(r) = 16 \cdot 0.9^{\,r}$ and $L_2(r) = 16 \cdot 0.5^{\,r}$; a rank costs 1 in both.
# With a budget of `budget` ranks in all, how many does each get? Write it for any budget, by greedy steps of
# one rank.


# %% tags=["exercise"]
def two_ranks(budget: int) -> list[int]:
    """[r1, r2] with r1 + r2 = budget and the least L1(r1) + L2(r2)."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def by_trial(budget: int, better) -> list[int]:
    return min(([r, budget - r] for r in range(budget + 1)), key=better)


def first_loss(plan):
    return 16 * 0.9 ** plan[0]


def second_loss(plan):
    return 16 * 0.5 ** plan[1]


budgets = (3, 6, 9, 13)
right = [by_trial(b, lambda plan: first_loss(plan) + second_loss(plan)) for b in budgets]
exercise(
    "two ranks",
    lambda: (
        None
        if two_ranks(1) is None
        else [rank for budget in budgets for rank in two_ranks(budget)]
    ),
    [rank for plan in right for rank in plan],
    mistakes={
        "this makes the two losses equal; at the optimum the gains of the next rank are": [
            rank
            for b in budgets
            for rank in by_trial(b, lambda plan: abs(first_loss(plan) - second_loss(plan)))
        ],
        "half each: the losses play no part": [
            rank for b in budgets for rank in (b - b // 2, b // 2)
        ],
        "the other way round: look again which of the two gains more from its next rank": [
            rank for plan in right for rank in reversed(plan)
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Keep `[r1, r2]`, start at `[0, 0]`, and give the next rank to the one whose loss falls more: by a tenth of
# $L_1(r_1)$, or by half of $L_2(r_2)$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def two_ranks(budget: int) -> list[int]:
#     ranks = [0, 0]
#     for _ in range(budget):
#         gains = 0.1 * 16 * 0.9 ** ranks[0], 0.5 * 16 * 0.5 ** ranks[1]
#         ranks[gains[1] > gains[0]] += 1
#     return ranks
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
# - Parameters are not **time**: a rank costs what its tiles cost, in steps of 16 (lesson 03). `Costs.latency`
#   takes a table that was measured.
# - Losses are taken to **add**, and the curvature is that of the dense model: at small budgets both are far
#   from true. The library measures once more in the context of the plan (`rounds`), and blends.
# - 16 pieces are few: the KL of a plan has a wide interval here. The page **Accuracy** shows it.
# - It trains nothing. Adaptive rank selection learns masks; fine-tuning mends what any plan has cut.
#
# ## References
#
# - Martens, *New insights and perspectives on the natural gradient method*, JMLR 21 (2020), section 9: the
#   curvature.
# - ASVD: Yuan et al., arXiv 2312.05821, section 3.3: probes and one threshold. Adaptive rank selection: NAACL
#   2024, long paper 13.
# - In this project: `flashsvd/allocate/greedy.py`, `flashsvd/search/curvature.py`,
#   `flashsvd/search/calibrate.py`, `assets/recordings/curves/stdlib-bert.parquet`; pages **Ranks** and
#   **Accuracy** of the workbench.
