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
# # 09 · Decoders: rotation, groups, cache, steps
#
# An encoder sees a text once. A decoder writes one, token by token, and every token must give what a pass
# over the whole text would have given. Four things make that work and make it cheap: a rotation that only
# knows distances, a mask, heads that share keys, and a cache. This lesson builds a step out of them, and then
# asks where factors help and where they cannot.
#
# **You will be able to** turn queries and keys, and say why · show that prefill is step-by-step decode ·
# count the bytes of a cache and of a token · say which half of a cache can stay in rank space · write a
# kernel that appends to a cache.
#
# **Before this** lessons 05 and 06. **Time** 30 minutes. **Needs** no GPU, no network.

# %%
import math

import torch

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

# %%
import triton
import triton.language as tl

import flashsvd
from flashsvd.allocate import uniform
from flashsvd.bench.model_counts import kv_bytes
from flashsvd.bench.saved import read_points
from flashsvd.decoding.cache import CacheWidths
from flashsvd.decoding.runtime import Runtime
from flashsvd.engines.absorb import padded_rank
from flashsvd.engines.build import build
from flashsvd.factors import factorise
from flashsvd.figures.amounts import amounts
from flashsvd.figures.tiles_film import program_film
from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention
from flashsvd.kernels.rotary.naive import naive_rotary
from flashsvd.kernels.step.attend_kernel import attend_kernel
from flashsvd.methods import method_named
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.calls import calls_of
from flashsvd.onchip.compiled import shipped as compiled
from flashsvd.onchip.programs import moment, steps
from flashsvd.paths import assets
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute

GB = 1e9
kernel = "triton" if device.type == "cuda" else "interpret"

# %% [markdown]
# ## The text and the model
#
# `stdlib-llama` ships with this project: six layers, four query heads, two kv heads of 64 columns, trained on
# the source of Python's standard library.

# %%
loaded = flashsvd.load("stdlib-llama", device=device)
shape = loaded.shape
heads, kv_heads, h = shape.heads, shape.kv_heads, shape.head_dim
text = "def read(self, size=-1):\n    if self.closed:\n        raise ValueError("
ids = loaded.tokenizer(text, return_tensors="pt").input_ids.to(device)
tokens = ids.shape[1]
print(f"{tokens} tokens, {heads} query heads, {kv_heads} kv heads, head dim {h}")

# %% [markdown]
# ## Rotation
#
# Attention is a sum over keys, and a sum has no order. RoPE puts the order back: columns $i$ and $i + h/2$ of
# every query and key are a point in a plane, and the point of the token at place $m$ is turned by the angle
# $m\,\theta_i$, with $\theta_i = 10000^{-2i/h}$. Two turned points depend on their distance alone:
#
# $$ (R_m q)^\top (R_n k) = q^\top R_m^\top R_n\, k = q^\top R_{n-m}\, k . $$
#
# These are the cosines, as the model makes them: left fast hands of a clock, right slow ones.

# %%
places = torch.arange(512, device=device)[None]
cos, sin = loaded.model.base_model.rotary_emb(torch.zeros(1, 1, h, device=device), places)
show(
    image(
        cos[0, :96, : h // 2], "cos of place (down) and pair of columns (across)", limit=1.0
    ),
    "stripes that are dense on the left and wide on the right",
)


# %%
def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [..., S, h] turned by the rows of cos and sin [S, h], whose two halves are alike."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    c, s = cos[..., :half], sin[..., :half]
    return torch.cat((first * c - second * s, second * c + first * s), -1)


some = torch.randn(1, tokens, heads * h, device=device)
by_head = some.unflatten(-1, (heads, h)).transpose(1, 2)
check(
    "rotation",
    rotate(by_head, cos[0, :tokens], sin[0, :tokens]),
    naive_rotary(some, cos[:, :tokens], sin[:, :tokens])
    .unflatten(-1, (heads, h))
    .transpose(1, 2),
)

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "A query at place 7 and a key at place 2 have some score. Both are moved by 300 places. Their score",
    ["falls", "stays", "changes sign"],
    "stays",
    why="Only the distance is left, 5 in both cases.",
)

# %%
q_one, k_one = torch.randn(2, h, device=device)


def score_at(m: int, n: int) -> float:
    return float(rotate(q_one, cos[0, m], sin[0, m]) @ rotate(k_one, cos[0, n], sin[0, n]))


print(f"places 7 and 2: {score_at(7, 2):.4f}, 307 and 302: {score_at(307, 302):.4f}")
print(f"places 7 and 3: {score_at(7, 3):.4f}")

# %% [markdown]
# ## Causal, and in groups
#
# A token sees itself and what was before it. And two query heads read one kv head here (grouped-query
# attention): query head $i$ reads kv head $\lfloor i / g \rfloor$, $g = H / H_k$.
#
# The film shows three programs of the shipped attention kernel on this model, with the tiles that the
# compiler was given for an H100. A block of 128 rows is 64 tokens of two query heads: both read the same
# keys, so keys are rebuilt once for both. Blue stays on chip, orange is read in this step, dark is made. Each
# program stops at the diagonal.

# %%
plan = RankPlan.from_text(shape, "*.qkv: 32 *.o: 96 *.gate: 128 *.up: 128 *.down: 128")
call = calls_of(plan, 0, 32, 512, "bf16")["attention"]
row = compiled().find(call, "H100 SXM")
show(
    program_film(
        [
            moment(row, call, program, step)
            for program in (0, 4, 7)
            for step in range(steps(row, call, program))
        ],
        counted="step",
    ),
    "three programs: the last queries see all keys, the middle ones half, the first one tile",
)
print("steps of the programs of a pair of heads:", [steps(row, call, p) for p in range(8)])

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "512 tokens, blocks of 64 queries and of 64 keys. Of the 64 tiles of scores of a head, how many are computed?",
    sum(steps(row, call, program) for program in range(8)),
    why="1 + 2 + … + 8. Little more than half; a mask that only hides scores would compute all 64.",
)

# %% [markdown]
# ## One layer, all at once
#
# The first layer's queries, keys and values of the whole text, and attention as it is defined. `start` is the
# place of the first query: 0 for a whole text.

# %%
block = loaded.model.base_model.layers[0]
with torch.inference_mode():
    x = block.input_layernorm(loaded.model.base_model.embed_tokens(ids))[0]


def projected(x: torch.Tensor, start: int):
    """q [H, S, h], k and v [Hk, S, h] of tokens at places start, start + 1, ...; q and k are turned."""
    attention, turns = block.self_attn, slice(start, start + len(x))
    q, k, v = (
        made(x).unflatten(-1, (-1, h)).transpose(0, 1)
        for made in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    c, s = cos[0, turns], sin[0, turns]
    return rotate(q, c, s), rotate(k, c, s), v


def attend(q, k, v, start: int) -> torch.Tensor:
    """Queries at places start, ... over keys at places 0, 1, ...: [H, S, h]."""
    group = len(q) // len(k)
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = q @ k.mT * h**-0.5
    back = start + torch.arange(q.shape[1], device=device)[:, None]
    hidden = torch.arange(k.shape[1], device=device) > back
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


with torch.inference_mode():
    q, k, v = projected(x, 0)
    whole = attend(q, k, v, 0)
    mine = block.self_attn.o_proj(whole.transpose(0, 1).flatten(1))
    turns = (cos[:, :tokens], sin[:, :tokens])
    theirs = block.self_attn(x[None], position_embeddings=turns, attention_mask=None)[0][0]
check("transformers' own layer", mine, theirs)

# %% [markdown]
# ## Prefill is step-by-step decode
#
# Row $m$ of that result looks at keys $0 \dots m$ only. Nothing that comes later can change it. So rows may
# be computed one at a time, if the keys and values of earlier ones are kept: **the cache**. Keys are kept
# turned, since their place never changes.

# %%
k_cache = torch.empty(kv_heads, tokens, h, device=device)
v_cache = torch.empty_like(k_cache)
rows = []
with torch.inference_mode():
    for place in range(tokens):
        q_new, k_new, v_new = projected(x[place : place + 1], place)
        k_cache[:, place], v_cache[:, place] = k_new[:, 0], v_new[:, 0]
        rows.append(attend(q_new, k_cache[:, : place + 1], v_cache[:, : place + 1], place))
check("prefill = step by step", torch.cat(rows, 1), whole)

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "After a prompt of 100 tokens a model writes 50 more. Without a cache, every new token takes a pass over all "
    "tokens before it. How many times as many tokens go through the model as with a cache?",
    sum(range(100, 150)) / (100 + 49),
    within=0.03,
    why="100 + 101 + … + 149 = 6,225 tokens, against 100 of the prompt and 49 of the new ones (the last is not read).",
)

# %% [markdown]
# The whole model, with the library's runtime: prefill through the model's own forward, then a *step* that was
# laid out once, and on a GPU is one graph of kernels. It allocates nothing.

# %%
runtime = Runtime(loaded, loaded.model, shape, batch=1, context=64)
prompt = 8
with torch.inference_mode():
    every = loaded.model(ids).logits[0].float()
logits = [runtime.prefill(ids[:, :prompt])]
logits += [runtime.step(ids[:, place]).clone() for place in range(prompt, tokens)]
check("six layers, step by step", torch.cat(logits), every[prompt - 1 :])
written = runtime.generate(ids, max_new_tokens=12).tokens
print(text + loaded.tokenizer.decode(written[0]))

# %% [markdown]
# ## One step, tile by tile
#
# At step $m$ there is one query for each head, and $m + 1$ keys. Take the last token. Online softmax (lesson
# 04) walks over tiles of the cache; the queries of a group share every tile.

# %%
q_last, wanted = q[:, -1], whole[:, -1]  # [H, h] each
group = heads // kv_heads


def step_tiled(block_t: int) -> torch.Tensor:
    out = torch.empty_like(q_last)
    for head in range(kv_heads):
        queries = q_last[head * group : (head + 1) * group]
        pivot = torch.full((group, 1), -1e30, device=device)
        total, acc = torch.zeros_like(pivot), torch.zeros_like(queries)
        for t in range(0, tokens, block_t):
            keys, values = k_cache[head, t : t + block_t], v_cache[head, t : t + block_t]
            scores = queries @ keys.T * h**-0.5
            new = torch.maximum(pivot, scores.amax(1, keepdim=True))
            weights, shrink = (scores - new).exp(), (pivot - new).exp()
            total = total * shrink + weights.sum(1, keepdim=True)
            acc, pivot = acc * shrink + weights @ values, new
        out[head * group : (head + 1) * group] = acc / total
    return out


check("tile by tile", step_tiled(block_t=8), wanted)

# %% [markdown]
# As a kernel, one program per kv head. With two queries there is nothing for the matrix units to do, which
# want 16 rows: products and sums will do, as in the shipped kernel for a single query.


# %%
@triton.jit
def step_kernel(
    q, keys, values, out, tokens, scale,
    G: tl.constexpr, H: tl.constexpr, BT: tl.constexpr, CONTEXT: tl.constexpr,
):  # fmt: skip
    """q and out [Hk·G, H], keys and values [Hk, CONTEXT, H]."""
    head = tl.program_id(0)
    g, d = tl.arange(0, G), tl.arange(0, H)
    own = (head * G + g)[:, None] * H + d[None, :]
    query = tl.load(q + own)  # [G, H]
    pivot = tl.full([G], -1.0e30, tl.float32)
    total = tl.zeros([G], tl.float32)
    acc = tl.zeros([G, H], tl.float32)
    for t0 in range(0, tokens, BT):
        t = t0 + tl.arange(0, BT)
        inside = (t < tokens)[:, None]
        at = (head * CONTEXT + t)[:, None] * H + d[None, :]
        k = tl.load(keys + at, mask=inside, other=0.0)  # [BT, H]
        v = tl.load(values + at, mask=inside, other=0.0)
        scores = tl.sum(query[:, None, :] * k[None, :, :], 2) * scale  # [G, BT]
        scores = tl.where((t < tokens)[None, :], scores, -1.0e30)
        new = tl.maximum(pivot, tl.max(scores, 1))
        weights = tl.where((t < tokens)[None, :], tl.exp(scores - new[:, None]), 0.0)
        shrink = tl.exp(pivot - new)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.sum(weights[:, :, None] * v[None, :, :], 1)
        pivot = new
    tl.store(out + own, acc / total[:, None])


out = torch.full_like(q_last, float("nan"))
step_kernel[(kv_heads,)](
    q_last.contiguous(),
    k_cache,
    v_cache,
    out,
    tokens,
    h**-0.5,
    G=group,
    H=h,
    BT=16,
    CONTEXT=tokens,
)
check("one kernel", out, wanted)

# %% [markdown]
# The shipped one does more in the same launch: it turns q and k, appends k and v to the cache, and cuts a
# long cache into shares, since two programs would leave a GPU empty. Share 0 also counts the new token, which
# no other program has to read back:

# %%
shipped(attend_kernel, after="source = heads + b", before="in_g = g < GROUP")

# %% [markdown]
# ## Can the cache hold less?
#
# With factors, $k = R_n\,(P_k A_k)$ and $v = P_v A_v$ per head, where $P$ has $r < h$ columns. Keeping $P$ in
# place of k and v would save the share $1 - r/h$ of the cache. For the values nothing stands in the way
# (lesson 06):
#
# $$\Big(\sum_t w_t\, P_{v,t}\Big) A_v = \sum_t w_t\, (P_{v,t} A_v),$$
#
# so $A_v$ is multiplied once per step and not once per token, and can be folded into the output projection
# beforehand.

# %% jupyter={"source_hidden": true} tags=["question"]
choose(
    "And the keys? Without rotation the score was P<sub>q</sub> (A<sub>q</sub> A<sub>k</sub>ᵀ) P<sub>k</sub>ᵀ, "
    "with the bracket made once.",
    [
        "the same trick",
        "one bracket for each distance",
        "no trick: k is not low-rank any more",
    ],
    "one bracket for each distance",
    why="The turn stands between the factors: A<sub>q</sub> R A<sub>k</sub>ᵀ depends on how far apart the two "
    "tokens are. k itself still has rank r before the turn, so it could be made again from P at every step.",
)

# %% [markdown]
# To make keys again at every step is what the attention kernel on factors does when it is given a cache of
# $P$. It rebuilds a tile of keys on chip, turns it, scores it. Here with random factors: first in memory, then
# tile by tile, then fused.

# %%
r = 32
layout, layout_q = HeadLayout((r,) * kv_heads), HeadLayout((r,) * heads)


def of_rank(layout: HeadLayout, count: int) -> Projection:
    p = torch.randn(1, count, layout.p_width, device=device)
    return Projection(
        p, torch.randn(layout.u_rows, h, device=device) / r**0.5, None, layout, None
    )


q_new, k_kept, v_kept = (
    of_rank(layout_q, 1),
    of_rank(layout, tokens),
    of_rank(layout, tokens),
)
turned = (cos[:, :tokens], sin[:, :tokens])


def head_of(projection: Projection, head: int, rows=slice(None)) -> torch.Tensor:
    """P·A of one head, before the turn."""
    p, a, _ = projection.head_parts(head, h)
    return p[0, rows] @ a


queries = rotate(
    torch.stack([head_of(q_new, i) for i in range(heads)]),
    cos[0, tokens - 1],
    sin[0, tokens - 1],
)
keys = rotate(
    torch.stack([head_of(k_kept, i) for i in range(kv_heads)]),
    cos[0, :tokens],
    sin[0, :tokens],
)
values = torch.stack([head_of(v_kept, i) for i in range(kv_heads)])
in_memory = attend(queries, keys, values, tokens - 1)[:, 0]


def step_rebuilt(block_t: int) -> torch.Tensor:
    out = []
    for i in range(heads):
        pivot, total, acc = -1e30, 0.0, 0.0
        for t in range(0, tokens, block_t):
            rows = slice(t, t + block_t)
            made = rotate(
                head_of(k_kept, i // group, rows),
                cos[0, :tokens][rows],
                sin[0, :tokens][rows],
            )
            scores = (made @ queries[i, 0]) * h**-0.5
            new = max(pivot, float(scores.max()))
            weights, shrink = (scores - new).exp(), math.exp(pivot - new)
            # The values stay in rank space; their factor comes last.
            p, _, _ = v_kept.head_parts(i // group, h)
            total, acc, pivot = (
                total * shrink + weights.sum(),
                acc * shrink + weights @ p[0, rows],
                new,
            )
        out.append(acc / total @ v_kept.head_parts(i // group, h)[1])
    return torch.stack(out)


check("rebuilt tile by tile", step_rebuilt(block_t=8), in_memory)
fused = flash_svd_attention(
    q_new,
    k_kept,
    v_kept,
    heads=heads,
    kv_heads=kv_heads,
    head_dim=h,
    causal=True,
    rotation=turned,
    backend=kernel,
)
check("the shipped kernel, one query", fused[0, 0].unflatten(0, (heads, h)), in_memory)

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "Scoring a key against one query takes 2·h FLOPs. Rebuilding the key takes 2·h·r. With r = 32 and two query "
    "heads to a kv head, how many times the FLOPs of its scores does rebuilding a key cost in a step?",
    2 * h * r / (2 * h * group),
    why="r / g. In prefill a block of 64 tokens shares each rebuilt key; in a step only the group does.",
)

# %% [markdown]
# So the library rebuilds keys once, and keeps them at head dim. Its cache in "rank space" is half of one:
# keys turned, at 64 columns, values at their rank, and $A_v$ folded into the output projection.

# %%
spectra = compute(loaded, method_named("svd"))
factors = factorise(loaded, spectra, plan)
with torch.inference_mode():
    wanted_logits = build(loaded, "lowrank", factors, plan)(ids).logits[0].float()
caches = {}
for cache in ("dense", "rank"):
    model = build(loaded, "flash", factors, plan, cache=cache)
    caches[cache] = Runtime(loaded, model, plan.shape, batch=1, context=64)
    logits = [caches[cache].prefill(ids[:, :prompt])]
    logits += [caches[cache].step(ids[:, place]).clone() for place in range(prompt, tokens)]
    check(f"low-rank model, {cache} cache", torch.cat(logits), wanted_logits[prompt - 1 :])

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "Keys at 64 columns, values at rank 32: which share of the dense cache's bytes does this one take?",
    caches["rank"].kv_bytes / caches["dense"].kv_bytes,
    why="64 + 32 columns of 128.",
)

# %%
print(
    f"dense {caches['dense'].kv_bytes:,} bytes for 64 tokens, rank space {caches['rank'].kv_bytes:,}"
)
check(
    "keys at head dim, values at rank",
    caches["rank"].kv_bytes,
    len(shape.layers) * CacheWidths(kv_heads, h, r).nbytes(1, 64, itemsize=4),
)

# %% [markdown]
# ## Bytes of a cache, bytes of a token
#
# Now a model of 7 billion parameters: Llama-2-7B has 32 layers and 32 kv heads of 128 columns; numbers take 2
# bytes.

# %%
seven = shape_of(resolve("llama-2-7b"))
print(f"{len(seven.layers)} layers, {seven.kv_heads} kv heads of {seven.head_dim} columns")

# %% jupyter={"source_hidden": true} tags=["question"]
predict(
    "How many KiB does one token take in its cache?",
    kv_bytes(uniform(seven, 1.0), 1, 1, 2) / 1024,
    unit="KiB",
    why="A key and a value, of 32 · 128 numbers in 32 layers, 2 bytes each. Llama-3-8B, with 8 kv heads, takes a "
    "quarter.",
)

# %%
recorded = read_points(assets() / "recordings" / "bench" / "decode-llama-2-7b.parquet")
first = recorded[0]
dense = next(way for way in first.point.rows if way.name == "dense")
context = int(first.point.config["context"])
check(
    "the recorded cache", kv_bytes(uniform(seven, 1.0), 1, context + 1, 2), dense.kv_bytes
)

# %% [markdown]
# A step reads every weight once, whatever the batch, and the cache of every sequence. It multiplies little by
# them: a decode step is a matter of bytes. What can factors do about it?


# %%
def draw_step(model: str, batch: int, context: int):
    shape = shape_of(resolve(model))
    half = uniform(shape, 0.5)
    value = padded_rank(max(half.get(0, "v")))
    cache = kv_bytes(half, batch, context, 2) / GB
    widths = CacheWidths(shape.kv_heads, shape.head_dim, value)
    narrow = len(shape.layers) * widths.nbytes(batch, context, 2) / GB
    weights, kept = 2 * shape.dense_parameters / GB, 2 * half.kept_parameters / GB
    ways = {
        "dense": {"weights": weights, "cache": cache},
        "half the weights": {"weights": kept, "cache": cache},
        "values at rank": {"weights": kept, "cache": narrow},
    }
    whole = weights + cache
    words = (
        f"{model}, {batch} × {context:,} tokens: half the weights leave {(kept + cache) / whole:.0%} "
        f"of the bytes; values at rank {value} as well, {(kept + narrow) / whole:.0%}"
    )
    return amounts(ways, unit="GB read in a step"), words


turn(
    draw_step,
    model=menu(["llama-2-7b", "llama-3-8b"]),
    batch=slider([1, 4, 16, 64], 1),
    context=slider([512, 1024, 2048, 4096], 512),
)

# %% [markdown]
# Turn the batch to 16 and the context to 4,096: the cache is what is read, and half the weights are of little
# use. These are recorded steps on an H200, in bf16, keeping half of every linear's parameters. The last
# column is the least time in which the bytes could be read, at the rate of a copy that was measured in the
# same run.

# %%
ways = ("dense", "lowrank", "dense-static-compile", "lowrank-static-compile")
ways += ("dense-graph", "flash-graph")
print("batch  context  way                     launches     ms  floor")
for saved in recorded:
    config, rate = saved.point.config, saved.place.ceilings.copy_tbps
    for way in saved.point.rows:
        if config["keep"] == 0.5 and way.name in ways:
            print(
                f"{config['batch']:5}  {config['context']:7}  {way.name:23} {way.launches:8}  "
                f"{way.latency_ms.p50:5.2f}  {way.bytes / rate / 1e9:5.2f}"
            )

# %% [markdown]
# `dense` and `lowrank` are the model library's eager steps: many small launches, for which the GPU waits.
# Halving the weights added launches, and made a step slower; compiled, it changed next to nothing. `-graph`
# is this library's runtime, one graph for a step, and only there do the saved bytes become saved time. At 16
# sequences of 4,064 tokens they hardly do, as you have just turned up.
#
# ## Can you spot it?
#
# A colleague repeats the kv heads another way. Shapes fit, nothing fails, and with equal numbers of heads the
# result is right.

# %% tags=["bug"]
k_wide, v_wide = k.repeat(group, 1, 1), v.repeat(group, 1, 1)
check("repeated kv heads", attend(q, k_wide, v_wide, 0), whole)

# %% [markdown]
# <details><summary>What is wrong</summary>
#
# `repeat` puts the whole list of heads behind itself: 0 1 0 1. Query head $i$ then reads kv head
# $i \bmod H_k$. It was trained to read $\lfloor i / g \rfloor$, which is 0 0 1 1: `repeat_interleave`. The
# kernels divide, and copy nothing.
#
# </details>

# %%
k_wide, v_wide = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
check("repeated kv heads", attend(q, k_wide, v_wide, 0), whole)

# %% [markdown]
# ## Exercise 1 · bytes of a cache
#
# Write the bytes of keys and values of `batch` sequences of `context` tokens. Keys have `head_dim` columns,
# values `value_rank`.


# %% tags=["exercise"]
def cache_bytes(
    layers: int, heads: int, kv_heads: int, head_dim: int, value_rank: int,
    batch: int, context: int, itemsize: int,
) -> int:  # fmt: skip
    """Numbers of `itemsize` bytes; heads: of the queries."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
def counted(kv_heads: int, value: int, layers: int = 32, batch: int = 4) -> int:
    return layers * CacheWidths(kv_heads, 128, value).nbytes(batch, 2048, 2)


exercise(
    "bytes of a cache",
    lambda: [cache_bytes(32, 32, 8, 128, value, 4, 2048, 2) for value in (128, 64)],
    [counted(8, 128), counted(8, 64)],
    mistakes={
        "kept are the kv heads, 8 here: query heads are made and forgotten": [
            counted(32, 128),
            counted(32, 64),
        ],
        "one of keys and values is missing: a token leaves both": [counted(8, 0)] * 2,
        "every layer has a cache of its own": [counted(8, 128, 1), counted(8, 64, 1)],
        "every sequence has a cache of its own": [
            counted(8, 128, batch=1),
            counted(8, 64, batch=1),
        ],
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Numbers of one token in one layer first: `kv_heads` keys and as many values. The likely mistake is to count
# query heads.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def cache_bytes(
#     layers: int, heads: int, kv_heads: int, head_dim: int, value_rank: int,
#     batch: int, context: int, itemsize: int,
# ) -> int:
#     return layers * batch * context * kv_heads * (head_dim + value_rank) * itemsize
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2 · a kernel that turns and appends
#
# Finish the kernel: one program per kv head reads the new key, turns it by the angle of its place, and writes
# it to the cache. Mend the lines with a comment, then delete the one that raises.


# %% tags=["exercise"]
@triton.jit
def append_kernel(k, cos, sin, cache, place, CONTEXT: tl.constexpr, HALF: tl.constexpr):
    """k [Hk, 2·HALF] of one token, cos and sin [tokens, 2·HALF], cache [Hk, CONTEXT, 2·HALF]."""
    head = tl.program_id(0)
    i = tl.arange(0, HALF)
    first = tl.load(k + head * 2 * HALF + i)
    second = tl.load(k + head * 2 * HALF + HALF + i)
    # Load here: the cosines and sines of this place, HALF of each.
    turned_first = first  # to be turned
    turned_second = second  # to be turned
    at = cache  # where this head's key at `place` begins
    tl.store(at + i, turned_first)
    tl.store(at + HALF + i, turned_second)


def append(k: torch.Tensor, cache: torch.Tensor, place: int) -> torch.Tensor:
    raise NotImplementedError  # delete this line
    append_kernel[(len(k),)](
        k, cos[0].contiguous(), sin[0].contiguous(), cache, place,
        CONTEXT=cache.shape[1], HALF=h // 2,
    )  # fmt: skip
    return cache


# %% jupyter={"source_hidden": true} tags=["check"]
new_key, at_place = torch.randn(kv_heads, h, device=device), 5


def with_key(key: torch.Tensor, place: int = at_place) -> torch.Tensor:
    cache = torch.zeros(kv_heads, 8, h, device=device)
    cache[:, place] = key
    return cache


def turned_by(sign: float, place: int = at_place) -> torch.Tensor:
    return rotate(new_key, cos[0, place], sign * sin[0, place])


one_row = torch.zeros(kv_heads, 8, h, device=device)
one_row[0, at_place] = turned_by(1.0)[-1]
exercise(
    "turn and append",
    lambda: append(new_key, torch.zeros(kv_heads, 8, h, device=device), at_place),
    with_key(turned_by(1.0)),
    mistakes={
        "turned the other way: the first half is first·c - second·s": with_key(
            turned_by(-1.0)
        ),
        "written as it came, not turned": with_key(new_key),
        "written to the first token's row: the place is missing": with_key(
            turned_by(1.0), 0
        ),
        "all heads wrote to the first one: a head's keys begin CONTEXT rows after the one before": one_row,
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The turn is that of `rotate`. Row `place` of head `head` is row `head * CONTEXT + place` of a matrix of
# `2 * HALF` columns; forgetting the head's share lets all programs write to one row.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# @triton.jit
# def append_kernel(k, cos, sin, cache, place, CONTEXT: tl.constexpr, HALF: tl.constexpr):
#     head = tl.program_id(0)
#     i = tl.arange(0, HALF)
#     first = tl.load(k + head * 2 * HALF + i)
#     second = tl.load(k + head * 2 * HALF + HALF + i)
#     c = tl.load(cos + place * 2 * HALF + i)
#     s = tl.load(sin + place * 2 * HALF + i)
#     turned_first = first * c - second * s
#     turned_second = second * c + first * s
#     at = cache + (head * CONTEXT + place) * 2 * HALF
#     tl.store(at + i, turned_first)
#     tl.store(at + HALF + i, turned_second)
#
#
# def append(k: torch.Tensor, cache: torch.Tensor, place: int) -> torch.Tensor:
#     append_kernel[(len(k),)](
#         k, cos[0].contiguous(), sin[0].contiguous(), cache, place,
#         CONTEXT=cache.shape[1], HALF=h // 2,
#     )
#     return cache
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3 · a step in rank space
#
# Write one step of one head whose values are kept as $P_v$: the output of query `q` (turned) over keys `k`
# (turned). Multiply by $A_v$ once.


# %% tags=["exercise"]
def rank_step(
    q: torch.Tensor, k: torch.Tensor, p_v: torch.Tensor, a_v: torch.Tensor
) -> torch.Tensor:
    """q [h], k [T, h], p_v [T, r], a_v [r, h] -> [h]; the scale is 1/√h."""
    ...


# %% jupyter={"source_hidden": true} tags=["check"]
p_one, a_one, _ = v_kept.head_parts(0, h)
p_one = p_one[0]
raw = keys[0] @ queries[0, 0]
exercise(
    "a step in rank space",
    lambda: rank_step(queries[0, 0], keys[0], p_one, a_one),
    in_memory[0],
    mistakes={
        "the scores are not scaled: by 1/√h": raw.softmax(0) @ p_one @ a_one,
        "scaled by 1/√r: the keys still have h columns": (raw * r**-0.5).softmax(0)
        @ p_one
        @ a_one,
        "these are the scores' own sums: softmax is missing": raw * h**-0.5 @ p_one @ a_one,
        "this is still in rank space: A is missing": (raw * h**-0.5).softmax(0) @ p_one,
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Weights of the tokens first, then their weighted sum of the rows of $P_v$, which has $r$ numbers, then
# $A_v$. The scale goes by the columns that are multiplied in the score.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def rank_step(
#     q: torch.Tensor, k: torch.Tensor, p_v: torch.Tensor, a_v: torch.Tensor
# ) -> torch.Tensor:
#     weights = (k @ q * k.shape[1] ** -0.5).softmax(0)
#     return (weights @ p_v) @ a_v
# ```
#
# </details>

# %% [markdown]
# ## On a GPU
#
# Every cell of this lesson was run on an H200 too, exercises, solutions and mistakes included (torch 2.11,
# Triton 3.6). The drawn numbers differ, as a GPU draws others, so that the scores at places 7 and 2 are
# both 5.5737. All else is the same but for the last digits of errors.
#
# ## What this does not do
#
# - It does not page or quantise the cache: memory for the whole context is taken when the runtime is made.
# - It does not time anything here: on a CPU a step is plain torch, op by op. The recorded numbers are an
#   H200's.
# - A batch of **prompts** of different length needs padding on the left, and a first place for each sequence;
#   the runtime takes a mask for it.
# - Learned positions (GPT-2, OPT) are added, not turned. There keys, too, can stay in rank space (lesson 06),
#   and `cache="rank"` keeps them so.
#
# ## References
#
# - Su et al., *RoFormer*, arXiv 2104.09864, section 3.2: the rotation. Ainslie et al., *GQA*, arXiv
#   2305.13245.
# - FlashSVD, arXiv 2508.01506. Flash-Decoding, which cuts a cache into shares: Dao et al. 2023.
# - In this project: `flashsvd/decoding/`, `flashsvd/kernels/step/`, `flashsvd/engines/parts.py` (why turned
#   keys are not kept at rank), `assets/recordings/bench/decode-llama-2-7b.parquet`; pages **Generate** and
#   **Memory** of the workbench.
