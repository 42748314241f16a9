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
# # 10 · Memory timelines
#
# A model's weights take the same memory all the time. Its activations come and go, and what limits the batch or
# the sequence is the moment at which most of them are alive at once. This lesson finds that moment on paper,
# measures it, and moves it.
#
# **You will be able to** predict the peak of a layer from its sizes · read a timeline, and say which tensors
# the peak is made of · tell what is allocated from what is reserved.
#
# **Before this** lessons 01 and 05. **Time** 20 minutes. **Needs** no GPU, no network.

# %%
import copy
import math

import torch

import flashsvd
from flashsvd.allocate import by_role
from flashsvd.engines.build import build, weight_bytes
from flashsvd.errors import format_bytes
from flashsvd.factors import factorise
from flashsvd.figures.memory_map import memory_map
from flashsvd.figures.memory_track import Track
from flashsvd.figures.tiles_film import program_film
from flashsvd.figures.timeline import timeline
from flashsvd.kernels import flash_svd_ffn
from flashsvd.kernels.tiles import ffn_stream_tiles
from flashsvd.measure.allocations import alive
from flashsvd.measure.memory import record_timeline
from flashsvd.methods import method_named
from flashsvd.onchip.programs import Held, Moment, Part
from flashsvd.recording import find, read
from flashsvd.spectra import compute
from flashsvd.teaching import (
    begin,
    check,
    choose,
    exercise,
    peak_bytes,
    predict,
    show,
    slider,
    turn,
)

device = begin()
MIB = 2**20

# %% [markdown]
# ## What is alive at once
#
# Begin with a feed-forward between its factors, as in lessons 03 and 07:
# $S = \mathrm{gelu}(P\,U_1^\top)\,V_2^\top$ for 4,096 tokens at $D = 1024$ and ranks of 64, in fp32. $P$ and
# the factors are there before; count what comes on top.

# %%
tokens, width, rank = 4096, 1024, 64
P = torch.randn(tokens, rank, device=device)
U1 = torch.randn(width, rank, device=device) / rank**0.5
V2 = torch.randn(rank, width, device=device) / width**0.5
gelu = torch.nn.functional.gelu


def naive_ffn(P, U1, V2):
    return gelu(P @ U1.T) @ V2.T


t_bytes, s_bytes = 4 * tokens * width, 4 * tokens * rank
print(f"the wide activation {t_bytes / MIB:.0f} MiB, S {s_bytes / MIB:.0f} MiB")

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "The wide activation is 16 MiB and S is 1 MiB. What is the peak of this line, in MiB, inputs not counted?",
    2 * t_bytes / MIB,
    unit="MiB",
    why="GELU does not write over its input: while it runs, what it reads and what it makes are both alive. Then its "
    "input is freed, before S is made.",
)

# %% [markdown]
# The project's recorder sees every op and follows the memory of what it gives back, on any device. `peak_bytes`
# is the most that was alive at once.

# %%
naive = naive_ffn(P, U1, V2)
naive_peak = peak_bytes(lambda: naive_ffn(P, U1, V2), device)
check("peak on paper", naive_peak / MIB, 2 * t_bytes / MIB, within=0.05)

# %% [markdown]
# ## The picture first
#
# Cut the rows into blocks and take one after the other: of $t$ only one block is alive (dark), then it is gone.
# $S$ is filled block by block (blue). The size of the block is the one that this project's loop takes on a CPU.
# Play it.

# %%
tiles = ffn_stream_tiles(tokens, width, torch.float32)
rows = tiles.block_m
blocks = math.ceil(tokens / rows)


def block_at(step: int) -> Moment:
    parts = (
        Part("P", ("M", "R1"), (tokens, rank), (rows, rank), "left"),
        Part("U1ᵀ", ("R1", "D"), (rank, width), (rank, width), "top"),
        Part("t", ("M", "D"), (tokens, width), (rows, width), "middle", on_chip=True),
        Part("S", ("M", "R2"), (tokens, rank), (rows, rank), "right"),
    )
    held = (
        Held("P", (step, step), (0, 0), "read"),
        Held("U1ᵀ", (0, 0), (0, 0), "read"),
        Held("t", (step, step), (0, 0), "made"),
        Held("S", (0, step), (0, 0), "written"),
    )
    last = min((step + 1) * rows, tokens)
    return Moment(
        parts, held, f"tokens {step * rows + 1:,} to {last:,}", "The block before is freed."
    )


show(
    program_film([block_at(step) for step in range(blocks)], counted="block", height=220),
    "one block of t is alive at a time",
)
print(f"{blocks} blocks of {rows} rows; a block of t is {format_bytes(4 * rows * width)}")

# %% [markdown]
# ## Naive, tiled, fused


# %%
def tiled_ffn(P, U1, V2):
    S = torch.empty(len(P), len(V2), device=P.device)
    for m in range(0, len(P), rows):
        S[m : m + rows] = gelu(P[m : m + rows] @ U1.T) @ V2.T
    return S


def fused_ffn(P, U1, V2):
    return flash_svd_ffn(P, U1, None, V2, activation="gelu")


# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    f"Blocks of {rows} rows: a block of t is {4 * rows * width / MIB:.2f} MiB. What is the peak of the tiled loop?",
    (s_bytes + 2 * 4 * rows * width) / MIB,
    unit="MiB",
    why="S, 1 MiB, is there from the start, and two blocks of t, GELU's input and its output.",
)

# %%
check("tiled", tiled_ffn(P, U1, V2), naive)
check("fused", fused_ffn(P, U1, V2), naive, within=1e-3)
tiled_peak = peak_bytes(lambda: tiled_ffn(P, U1, V2), device)
fused_peak = peak_bytes(lambda: fused_ffn(P, U1, V2), device)
check(
    "peak of tiled on paper",
    tiled_peak / MIB,
    (s_bytes + 8 * rows * width) / MIB,
    within=0.05,
)
for name, peak in (("naive", naive_peak), ("tiled", tiled_peak), ("fused", fused_peak)):
    print(f"{name}: {peak / MIB:5.2f} MiB")

# %% [markdown]
# On a CPU the fused form is a loop too, one that writes GELU over its input. On a GPU it is the kernel of
# lesson 07, whose tiles never leave the chip: there S alone remains.
#
# ## A whole model
#
# `stdlib-bert` has hidden size 256 and feed-forward width 1024. One run of 8 sequences of 256 tokens in fp32.

# %%
loaded = flashsvd.load("stdlib-bert", device=device)
plan = by_role(loaded.shape, head=16, feed_forward=64, output=64)
factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
models = {
    name: build(loaded, name, factors, plan) for name in ("dense", "lowrank", "flash")
}
x_bytes = 4 * 8 * 256 * 256
print(f"one hidden state x: {x_bytes / MIB:.0f} MiB")
# Any tokens will do: memory does not depend on what they say.
ids = torch.randint(loaded.model.config.vocab_size, (8, 256), device=device)


def record(model, tokens: int = 256) -> Track:
    """One forward of 8 sequences: what was alive, op by op."""
    layers = list(loaded.family.layers(model.base_model))

    @torch.no_grad()
    def forward():
        return model(input_ids=ids[:, :tokens])

    if device.type == "cuda":
        forward()  # once before, so that libraries have set themselves up
    engine = next((name for name in models if models[name] is model), "dense")
    return Track.of(engine, record_timeline(model, layers, forward), len(layers))


# %% [markdown]
# On paper: in the feed-forward, GELU's input and its output are alive, $4\,x$ each. So is $x$ itself after
# attention, which is to be added afterwards. So is the block's own input, as the function that called this
# block still holds it. And so is the output of the embedding, which the model's own function holds to the end.

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "One hidden state is 2 MiB. What is the peak of the dense model, in MiB?",
    11 * x_bytes / MIB,
    unit="MiB",
    why="4 + 4 for both sides of GELU, and three hidden states: 11 · 2 MiB. The number of layers is not in it: each "
    "layer frees what it made.",
)

# %%
dense = record(models["dense"])
check("peak of the dense model", dense.peak_bytes / MIB, 11 * x_bytes / MIB, within=0.02)
at_peak = alive(dense.found, dense.peak_event)
for _, tensor in at_peak.sort_values("bytes", ascending=False).iterrows():
    print(f"{tensor['bytes'] / MIB:6.2f} MiB  {tensor['op']:20} {tensor['module']}")

# %% [markdown]
# The same as a map of one layer. Each band is one tensor: it begins when it is made and ends when it is freed,
# and its height is its size. Hover over a band for its name.

# %%
figure, _ = memory_map(dense, dense.layer_window(1), height=340)
show(
    figure,
    "bands of one layer: q, k, v, then attention, then the two wide ones of the feed-forward",
)

# %% [markdown]
# ## The peak moves
#
# GELU could write over its input. That takes 8 MiB out of the peak.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "The peak was 22 MiB, made of 8 + 8 + 3 · 2. With GELU in place, what is the peak of the model?",
    ["14 MiB", "between 14 and 22 MiB", "22 MiB"],
    "between 14 and 22 MiB",
    why="At GELU itself 14 are alive. But the wide activation stays alive while the second matrix, the sum and the "
    "norm make three hidden states more: 8 + 3 · 2 + 3 · 2 = 20. Where one peak is cut, the next one shows.",
)


# %%
class InPlaceGelu(torch.nn.Module):
    def forward(self, x):
        return torch.ops.aten.gelu_(x)


changed = copy.deepcopy(loaded.model)
for layer in loaded.family.layers(changed.base_model):
    layer.intermediate.intermediate_act_fn = InPlaceGelu()
in_place = record(changed)
print(f"GELU in place: {in_place.peak_bytes / MIB:.1f} MiB")

for layer in loaded.family.layers(changed.base_model):
    layer.chunk_size_feed_forward = 32  # transformers' own switch: 32 tokens at a time
chunked = record(changed)
print(f"and the feed-forward in chunks of 32 tokens: {chunked.peak_bytes / MIB:.1f} MiB")
at_peak = chunked.found[chunked.found["born"] == chunked.peak_event]
print("now the peak is at", at_peak["module"].iloc[0])

# %% [markdown]
# Two cuts later nearly half the memory is gone, and not one weight was compressed. What is left is $q$, $k$,
# $v$ and attention's output, and the hidden states that callers hold. To go on, attention has to be streamed
# too.
#
# What of low rank? Factors make the *weights* smaller. Run as two linear layers, they leave the wide tensors as
# they are: the peak should be the dense one, as $P$, which comes on top, is freed before GELU runs.

# %%
tracks = {
    "dense": dense,
    "lowrank": record(models["lowrank"]),
    "flash": record(models["flash"]),
}
for name, track in tracks.items():
    print(
        f"{name:8} weights {weight_bytes(models[name]) / MIB:5.1f} MiB, activations at the peak "
        f"{track.peak_bytes / MIB:5.2f} MiB = {track.peak_bytes / x_bytes:.1f} x"
    )

# %% [markdown]
# ## Turn it
#
# Dense against streamed (the dashed line), at lengths from 32 to 256 tokens, both laid over each other layer by
# layer. They are recorded when you move the slider.

# %%
recorded = {256: (tracks["dense"], tracks["flash"])}


def draw_length(tokens: int):
    if tokens not in recorded:
        recorded[tokens] = record(models["dense"], tokens), record(models["flash"], tokens)
    plain, streamed = recorded[tokens]
    figure, _ = memory_map(plain, (0, plain.last), ghost=streamed, height=340)
    words = (
        f"8 × {tokens} tokens: dense {format_bytes(plain.peak_bytes)}, streamed "
        f"{format_bytes(streamed.peak_bytes)}, {plain.peak_bytes / streamed.peak_bytes:.1f} times less"
    )
    return figure, words


turn(draw_length, tokens=slider([32, 64, 128, 192, 256], 256))

# %% [markdown]
# At short lengths the ratio is smaller: the streamed loop's tiles are a fixed price, the tensors that it avoids
# grow with the length.
#
# ## BERT-base on a GPU
#
# The project ships recordings, which replay anywhere. This one is of BERT-base on an H200. A hidden state is
# $32 \cdot 512 \cdot 768 \cdot 2$ bytes, 24 MiB.

# %%
recording = read(find("bert-base")).comparison
print(
    f"{recording.machine.label}: {recording.batch} × {recording.seq} tokens in {recording.dtype}"
)

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "What was the peak of the dense model there, in MiB?",
    recording.run("dense").peak_activation_bytes / MIB,
    unit="MiB",
    within=0.03,
    why="11 hidden states again: 11 · 24. BERT-base, too, is four times as wide in its feed-forward as in its hidden "
    "state.",
)

# %%
runs = {run.engine: run for run in recording.runs}
for name, run in runs.items():
    print(
        f"{name:8} {run.peak_activation_bytes / MIB:6.1f} MiB, on {recording.machine.label}"
    )
show(
    timeline(runs["flash"], 12, ghost=runs["dense"], source=recording.machine.label),
    "memory over the layers: streamed filled, dense dashed",
)

# %% [markdown]
# ## Allocated is not reserved
#
# PyTorch does not give freed memory back to the GPU. It keeps it for the next tensor, as asking the driver is
# slow. So there are two numbers: *allocated*, what tensors hold now, and *reserved*, what was ever taken from
# the driver and is kept. `nvidia-smi` shows the second, and more (the CUDA context).

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "The forward has ended and all its tensors are freed. What do allocated and reserved say, beyond the weights?",
    ["both 0", "allocated 0, reserved as at the peak", "both as at the peak"],
    "allocated 0, reserved as at the peak",
    why="Nothing holds a tensor any more, but the pool is kept, and never smaller than the peak was.",
)

# %% [markdown]
# Its rules are few. A request is rounded up to 512 bytes. Up to 1 MiB it is served from segments of 2 MiB, up
# to 10 MiB from segments of 20 MiB, and above that from a segment of its own, in steps of 2 MiB. The smallest
# free block that is large enough is taken, and what is left of it stays free. Here they are, so that they can
# be run without a GPU on the timelines above.


# %%
class CachingAllocator:
    """Segments of memory, small or large, each cut into blocks [size, free]."""

    def __init__(self) -> None:
        self.segments: list[tuple[bool, list[list]]] = []

    def take(self, count: int) -> tuple[list, list]:
        size = math.ceil(count / 512) * 512
        small = size <= MIB
        fits = [
            (at, block, blocks)
            for of_small, blocks in self.segments
            for at, block in enumerate(blocks)
            if of_small == small and block[1] and block[0] >= size
        ]
        if not fits:
            large = 20 * MIB if size < 10 * MIB else math.ceil(size / MIB / 2) * 2 * MIB
            blocks = [[2 * MIB if small else large, True]]
            self.segments.append((small, blocks))
            fits = [(0, blocks[0], blocks)]
        at, block, blocks = min(fits, key=lambda fit: fit[1][0])
        rest = block[0] - size
        if rest >= (512 if small else MIB):
            blocks.insert(at + 1, [rest, True])
            block[0] = size
        block[1] = False
        return block, blocks

    def give_back(self, block: list, blocks: list) -> None:
        block[1] = True
        at = 0
        while at + 1 < len(blocks):  # free neighbours become one block
            if blocks[at][1] and blocks[at + 1][1]:
                blocks[at][0] += blocks.pop(at + 1)[0]
            else:
                at += 1

    def sizes(self) -> tuple[int, int]:
        """Bytes allocated, and bytes reserved."""
        found = [block for _, blocks in self.segments for block in blocks]
        return sum(size for size, free in found if not free), sum(size for size, _ in found)


def replay(found) -> tuple[int, int, int]:
    """Allocations -> most bytes allocated, allocated at the end, reserved at the end."""
    pool, held, most = CachingAllocator(), {}, 0
    births, deaths = found.groupby("born").indices, found.groupby("freed").indices
    for event in sorted({*births, *deaths}):
        for index in births.get(event, ()):
            held[index] = pool.take(int(found["bytes"].iloc[index]))
        most = max(most, pool.sizes()[0])
        for index in deaths.get(event, ()):
            pool.give_back(*held.pop(index))
    return most, *pool.sizes()


for name in ("dense", "flash"):
    most, left, reserved = replay(tracks[name].found)
    print(
        f"{name:6} by these rules: {most / MIB:5.2f} MiB at the peak, {reserved / MIB:3.0f} MiB reserved, "
        f"{left} bytes allocated at the end"
    )
if device.type == "cuda":
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    record(models["dense"])
    print(
        f"PyTorch here: {(torch.cuda.memory_reserved() - before[1]) / MIB:.0f} MiB more reserved,"
    )
    print(f"  {(torch.cuda.memory_allocated() - before[0]) / MIB:.0f} MiB more allocated")

# %% [markdown]
# Reserved can be nearly twice the peak. And it can be too little while enough is free: a request must fit into
# *one* free block. So an out-of-memory error may say that several GiB are "reserved but unallocated".
#
# ## Can you spot it?
#
# A colleague wants to watch one column of $t$ while the tiled loop runs, a 1,024th of it. Results stay the
# same. The peak does not.


# %%
def watched_ffn(P, U1, V2, keep):
    S = torch.empty(len(P), len(V2), device=P.device)
    watched = []
    for m in range(0, len(P), rows):
        t = gelu(P[m : m + rows] @ U1.T)
        watched.append(keep(t))
        S[m : m + rows] = t @ V2.T
        del t
    return S, watched


# %% tags=["bug"]
def watched_view():
    return watched_ffn(P, U1, V2, keep=lambda t: t[:, 0])


check("result", watched_view()[0], naive)
check(
    "peak as before", peak_bytes(watched_view, device) / MIB, tiled_peak / MIB, within=0.05
)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# `t[:, 0]` is a **view**: 320 numbers that lie in the memory of the whole block, and keep all of it alive.
# After the loop the list holds 13 columns, and with them all of $t$. The same happens with a list of losses
# that still hold their graph, or with the first token of every sequence kept from a hidden state. `.clone()`
# copies the column and lets the block go.
#
# </details>


# %%
def watched_copy():
    return watched_ffn(P, U1, V2, keep=lambda t: t[:, 0].clone())


check("result", watched_copy()[0], naive)
check(
    "peak as before", peak_bytes(watched_copy, device) / MIB, tiled_peak / MIB, within=0.05
)

# %% [markdown]
# ## Exercise 1 · the peak of an encoder
#
# Write the peak of a dense encoder as found above, in bytes: both sides of GELU, and three hidden states.


# %% tags=["exercise"]
def encoder_peak(batch: int, seq: int, hidden: int, width: int, itemsize: int) -> int:
    """Bytes alive at once in the feed-forward of a dense encoder layer."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
encoders = [(8, 256, 256, 1024, 4), (32, 512, 768, 3072, 2), (16, 384, 1024, 2816, 2)]


def for_all(formula) -> list[int]:
    return [formula(*encoder) for encoder in encoders]


exercise(
    "peak of an encoder",
    lambda: [encoder_peak(*encoder) for encoder in encoders],
    for_all(lambda b, s, d, w, i: b * s * (3 * d + 2 * w) * i),
    mistakes={
        "GELU's input and its output are both alive": for_all(
            lambda b, s, d, w, i: b * s * (3 * d + w) * i
        ),
        "callers still hold the block's input and the embedding's output": for_all(
            lambda b, s, d, w, i: b * s * (d + 2 * w) * i
        ),
        "q, k and v are freed before the feed-forward begins": for_all(
            lambda b, s, d, w, i: b * s * (6 * d + 2 * w) * i
        ),
        "the width is not always four times the hidden size": for_all(
            lambda b, s, d, w, i: b * s * 11 * d * i
        ),
        "these are numbers, not bytes": for_all(
            lambda b, s, d, w, i: b * s * (3 * d + 2 * w)
        ),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# All are matrices of `batch * seq` rows. Two of them are `width` wide and three `hidden`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def encoder_peak(batch: int, seq: int, hidden: int, width: int, itemsize: int) -> int:
#     return batch * seq * (3 * hidden + 2 * width) * itemsize
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · from moves to a peak
#
# A timeline is a list of moves: bytes above 0 are taken, below 0 given back, in order. Write the peak, and the
# *number* of the move after which it is first reached, counted from 0.


# %% tags=["exercise"]
def peak_and_move(moves: list[int]) -> tuple[int, int]:
    """The most bytes alive at once, and the move that first reaches them."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
listed = [[5, 3, -5, 9, -3, -9, 12, -12], [4, -4, 2, 6, -6, 6, -6, -2]]


def running(moves: list[int]) -> list[int]:
    return [sum(moves[: i + 1]) for i in range(len(moves))]


def told(how) -> list[int]:
    return [value for moves in listed for value in how(moves)]


exercise(
    "peak of moves",
    lambda: [value for moves in listed for value in (peak_and_move(moves) or (None,) * 2)],
    told(lambda moves: (max(running(moves)), running(moves).index(max(running(moves))))),
    mistakes={
        "that is all that was ever taken: what was given back in between is not alive": told(
            lambda moves: (
                sum(m for m in moves if m > 0),
                max(i for i, m in enumerate(moves) if m > 0),
            )
        ),
        "that is the largest single move": told(
            lambda moves: (max(moves), moves.index(max(moves)))
        ),
        "the last move that reaches it: the first is asked for": told(
            lambda moves: (
                max(running(moves)),
                max(
                    i
                    for i, total in enumerate(running(moves))
                    if total == max(running(moves))
                ),
            )
        ),
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Keep a running total and the best so far; replace the best only where the total is *larger*.
# `itertools.accumulate` gives the totals at once.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def peak_and_move(moves: list[int]) -> tuple[int, int]:
#     total = peak = place = 0
#     for number, moved in enumerate(moves):
#         total += moved
#         if total > peak:
#             peak, place = total, number
#     return peak, place
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · what a pool reserves
#
# A simpler pool than PyTorch's: blocks are never split or merged. A request takes the **smallest** free block
# that is large enough; if there is none, a new block of just its size is reserved. Write what is reserved in
# the end.


# %% tags=["exercise"]
def reserved_bytes(steps: list[tuple[str, int]]) -> int:
    """steps in order: (name, size) takes memory, (name, 0) gives it back -> bytes in all blocks."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
scripts = [
    [("a", 8), ("b", 4), ("a", 0), ("c", 4), ("b", 0), ("d", 8), ("e", 2)],
    [
        ("a", 9),
        ("b", 5),
        ("a", 0),
        ("b", 0),
        ("c", 5),
        ("d", 9),
        ("c", 0),
        ("d", 0),
        ("e", 10),
    ],
]


def pooled(steps, choose_block=min, reuse: bool = True) -> int:
    blocks_made, free, used = 0, [], {}
    for name, size in steps:
        if size == 0:
            free.append(used.pop(name))
            continue
        fits = [block for block in free if block >= size] if reuse else []
        if fits:
            used[name] = choose_block(fits)
            free.remove(used[name])
        else:
            used[name] = size
            blocks_made += size
    return blocks_made


def most_alive(steps) -> int:
    held, most = {}, 0
    for name, size in steps:
        held[name] = size
        most = max(most, sum(held.values()))
    return most


exercise(
    "reserved bytes",
    lambda: [reserved_bytes(steps) for steps in scripts],
    [pooled(steps) for steps in scripts],
    mistakes={
        "that is the most that was allocated at once: a block that does not fit serves nobody": [
            most_alive(steps) for steps in scripts
        ],
        "free blocks are not used again": [pooled(steps, reuse=False) for steps in scripts],
        "the largest free block was taken: then the large request that follows finds none": [
            pooled(steps, max) for steps in scripts
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Keep a list of free sizes, and a dictionary from names to the size of the block that each holds, which may be
# larger than what was asked for. `min` of the blocks that are large enough is the one to take.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def reserved_bytes(steps: list[tuple[str, int]]) -> int:
#     total, free, held = 0, [], {}
#     for name, size in steps:
#         if size == 0:
#             free.append(held.pop(name))
#             continue
#         fits = [block for block in free if block >= size]
#         if fits:
#             held[name] = min(fits)
#             free.remove(held[name])
#         else:
#             held[name] = size
#             total += size
#     return total
# ```
#
# </details>

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). Four things differ. `fused` keeps 1.00 MiB, S alone. With GELU in place and chunks the peak
# is the same 12.0 MiB, but at the norm behind attention. `flash` takes 10.50 MiB, 5.2 times an x: a kernel
# would have 64 programs for 132 multiprocessors here, so the plan of lesson 07 sends the feed-forward
# through plain products, in one chunk of all 2048 rows. With 16,384 rows, as of `bert-base` above, it keeps
# t on chip. And the allocator answers for itself: with all tensors freed, PyTorch has kept 20 MiB more
# reserved and none allocated.
#
# ## What this does not do
#
# - Training keeps activations for the backward pass, so its peak grows with the number of layers. All of this
#   is inference.
# - The recorder sees what ops take and give back. What a library takes inside an op is seen on a GPU only, by
#   the allocator's counters; on a CPU it is missing.
# - The allocator above has PyTorch's main rules and none of its options (`expandable_segments`, several
#   streams, CUDA graphs with pools of their own).
#
# ## References
#
# - FlashSVD, arXiv 2508.01506: activation memory of low-rank inference, the reason for streaming.
# - PyTorch documentation, *CUDA semantics*, section "Memory management"; `c10/cuda/CUDACachingAllocator.cpp`
#   for the sizes.
# - In this project: `flashsvd/measure/memory.py`, `flashsvd/measure/allocations.py`, `assets/recordings/`; page
#   **Memory** of the workbench.
