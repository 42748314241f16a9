"""Rank-space attention for Hopper in Gluon, for heads of one rank: the waits and the loads are placed by hand.

At [16, 512], 12 heads, bf16, on an H200: 37 us at rank 40 where `triton_kernel` takes 43 and cuDNN 39; at [4, 2048]
118, 142 and 122; at [1, 16384] 1640, 2007 and 1669. What it does that they do not: 48 columns of scores for a rank of
40 (three steps of 16 in place of four), and programs that stay for several tiles and have the next tile's queries and
keys fetched while they finish one (38.5 us without, at S = 512). What gained nothing: a polynomial for every second or
fourth exp2 (2 to 7 % slower: instructions are as scarce as the exp2 unit), and keeping ptxas from moving the wait for
the second product ahead of the softmax (two programs on a multiprocessor overlap each other anyway).

Letters in shape comments: BM query rows and BN keys of a tile, HS columns of q and k and HV of v in a tile.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Triton 3.6's names of what later versions call async_load and barrier.
_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_sync = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def _place(tile, blocks, heads, BM: gl.constexpr):
    """Sequence, head and first row of a tile; row blocks run fastest, so that their keys are found in L2."""
    group = tile // blocks
    return group // heads, group % heads, (tile % blocks) * BM


@gluon.jit
def _fetch(k_desc, v_desc, b, row, k_column, v_column, bar, k, v, pred):
    """A block of keys and values, announced to one barrier."""
    mbarrier.expect(bar, k_desc.block_type.nbytes + v_desc.block_type.nbytes, pred=pred)
    _load(k_desc, [b, row, k_column], bar, k, pred=pred)
    _load(v_desc, [b, row, v_column], bar, v, pred=pred)


@gluon.jit
def _own(q, FIRST: gl.constexpr, RANK: gl.constexpr, L: gl.constexpr):
    """Columns FIRST and on of a tile of queries, those of the next head replaced by zeros."""
    WIDTH: gl.constexpr = q.shape[1]
    if FIRST + WIDTH > RANK:
        mine = FIRST + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, L)) < RANK
        q = gl.where(mine[None, :], q, gl.zeros_like(q))
    return q


@gluon.jit
def _scores(
    q, q_tail, k, MAIN: gl.constexpr, TAIL: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, SL: gl.constexpr
):
    """Starts q·kᵀ [BM, BN] over the first MAIN + TAIL columns of k [BN, HS]."""
    zero = gl.zeros([BM, BN], gl.float32, SL)
    if TAIL > 0:
        main = k.slice(0, MAIN, dim=1).permute((1, 0))
        tail = k.slice(MAIN, TAIL, dim=1).permute((1, 0))
        started = warpgroup_mma(q, main, zero, use_acc=False, is_async=True)
        started = warpgroup_mma(q_tail, tail, started, is_async=True)
    else:
        started = warpgroup_mma(q, k.permute((1, 0)), zero, use_acc=False, is_async=True)
    return started


@gluon.jit
def _allowed(
    scores,
    mask_row,
    n0,
    seq,
    HAS_MASK: gl.constexpr,
    EVEN_N: gl.constexpr,
    BN: gl.constexpr,
    SL: gl.constexpr,
):
    """Scores, minus infinity where a key is none or masked."""
    if HAS_MASK or not EVEN_N:
        # [BN]
        n = n0 + gl.arange(0, BN, layout=gl.SliceLayout(0, SL))
        allowed = n < seq
        if HAS_MASK:
            allowed = gl.load(mask_row + n, mask=allowed, other=0) != 0
        scores = gl.where(allowed[None, :], scores, float("-inf"))
    return scores


@gluon.jit
def _weights(scores, pivot, scale_log2, BM: gl.constexpr, BN: gl.constexpr, SL: gl.constexpr):
    """exp2(scores·scale_log2 - pivot), one fma and one exp2 each."""
    zero = gl.zeros([BM, BN], gl.float32, SL)
    return gl.exp2(gl.fma(scores, zero + scale_log2, zero - pivot[:, None]))


@gluon.jit(do_not_specialize=["batch", "seq", "heads"])
def rank_space_hopper_kernel(
    q_desc,
    k_desc,
    v_desc,
    out,
    key_mask,
    batch,
    seq,
    heads,
    out_stride_b,
    out_stride_s,
    scale_log2,
    SCORE: gl.constexpr,
    VALUE: gl.constexpr,
    HAS_MASK: gl.constexpr,
    EVEN_N: gl.constexpr,
    MAIN: gl.constexpr,
    TAIL: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    HS: gl.constexpr,
    HV: gl.constexpr,
    STAGES: gl.constexpr,
    STRIDE_ALIGN: gl.constexpr,
):
    """Any number of programs; each takes every so manieth block of BM query rows of one head of one sequence.

    q, k [B, S, heads * SCORE] and v [B, S, heads * VALUE] by descriptor, in tiles of [1, BM or BN, HS or HV], of which
    MAIN + TAIL >= SCORE columns count for scores: a tile also brings columns of the next head, which meet zeros of q
    or are not stored. out [B, S, heads * VALUE], its strides in units of STRIDE_ALIGN elements, may be q: this program
    alone reads its rows and columns of q, before it stores. key_mask: bytes [B, S]. `scale_log2` is scale·log2(e),
    above 0.
    """
    dtype: gl.constexpr = q_desc.dtype
    WARPS: gl.constexpr = gl.num_warps()
    SL: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BN, 16]
    )
    OL: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, HV, 16]
    )
    QL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SL, k_width=2)
    WL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=OL, k_width=2)
    ROWS: gl.constexpr = gl.SliceLayout(1, OL)
    # For the store: 16 bytes per thread.
    FL: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HV, HV // 8], [WARPS, 1], [1, 0])

    qs = gl.allocate_shared_memory(dtype, [1, BM, HS], q_desc.layout)
    ks = gl.allocate_shared_memory(dtype, [STAGES, 1, BN, HS], k_desc.layout)
    vs = gl.allocate_shared_memory(dtype, [STAGES, 1, BN, HV], v_desc.layout)
    q_bar = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_bar.index(0), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
    fence_async_shared()
    _sync()

    blocks = gl.cdiv(seq, BM)
    tiles = blocks * heads * batch
    key_blocks = gl.cdiv(seq, BN)
    first = gl.program_id(0)
    step = gl.num_programs(0)
    b, head, m0 = _place(first, blocks, heads, BM)
    mbarrier.expect(q_bar.index(0), q_desc.block_type.nbytes)
    _load(q_desc, [b, m0, head * SCORE], q_bar.index(0), qs)
    for i in gl.static_range(STAGES):
        _fetch(
            k_desc,
            v_desc,
            b,
            i * BN,
            head * SCORE,
            head * VALUE,
            bars.index(i),
            ks.index(i),
            vs.index(i),
            i < key_blocks,
        )

    # Key blocks that this program is past, over all its tiles: they take the stages in turn.
    past = 0
    turn = 0
    for tile in range(first, tiles, step):
        mask_row = key_mask
        if HAS_MASK:
            mask_row = key_mask + b.to(gl.int64) * seq
        mbarrier.wait(q_bar.index(0), turn)
        turn ^= 1
        queries = qs.reshape((BM, HS))
        # [BM, MAIN], [BM, TAIL]
        if TAIL > 0:
            q = _own(queries.slice(0, MAIN, dim=1).load(QL), 0, SCORE, QL)
            q_tail = _own(queries.slice(MAIN, TAIL, dim=1).load(QL), MAIN, SCORE, QL)
        else:
            q = _own(queries.load(QL), 0, SCORE, QL)
            q_tail = q
        _sync()
        # The next tile's queries come while this one is worked on.
        after = tile + step
        next_b, next_head, next_m0 = _place(after, blocks, heads, BM)
        mbarrier.expect(q_bar.index(0), q_desc.block_type.nbytes, pred=after < tiles)
        _load(q_desc, [next_b, next_m0, next_head * SCORE], q_bar.index(0), qs, pred=after < tiles)

        stage = past % STAGES
        mbarrier.wait(bars.index(stage), (past // STAGES) & 1)
        # [BM, BN]
        started = _scores(q, q_tail, ks.index(stage).reshape((BN, HS)), MAIN, TAIL, BM, BN, SL)
        scores = warpgroup_mma_wait(0, deps=[started])
        scores = _allowed(scores, mask_row, 0, seq, HAS_MASK, EVEN_N, BN, SL)
        # [BM], finite: against -inf, a block with no allowed key would give exp2(-inf + inf) = NaN.
        pivot = gl.maximum(gl.max(scores, 1) * scale_log2, -1.0e30)
        weights = _weights(scores, pivot, scale_log2, BM, BN, SL)
        # [BM]
        total = gl.sum(weights, 1)
        p = gl.convert_layout(weights.to(dtype), WL)
        # [BM, HV]
        acc = gl.zeros([BM, HV], gl.float32, OL)
        for n0 in range(BN, seq, BN):
            done = past % STAGES
            past += 1
            stage = past % STAGES
            mbarrier.wait(bars.index(stage), (past // STAGES) & 1)
            started = _scores(q, q_tail, ks.index(stage).reshape((BN, HS)), MAIN, TAIL, BM, BN, SL)
            summed = warpgroup_mma(p, vs.index(done).reshape((BN, HV)), acc, is_async=True)
            scores = warpgroup_mma_wait(1, deps=[started])
            scores = _allowed(scores, mask_row, n0, seq, HAS_MASK, EVEN_N, BN, SL)
            new_pivot = gl.maximum(pivot, gl.max(scores, 1) * scale_log2)
            shrink = gl.exp2(pivot - new_pivot)
            weights = _weights(scores, new_pivot, scale_log2, BM, BN, SL)
            total = total * shrink + gl.sum(weights, 1)
            pivot = new_pivot
            # No product may run while its sums are scaled, or ptxas makes all of them wait for each other (a first
            # version: 1976 us at S = 16384), nor while p, which it reads from registers, is written.
            acc, weights = warpgroup_mma_wait(0, deps=[summed, weights])
            acc = acc * gl.convert_layout(shrink, ROWS)[:, None]
            p = gl.convert_layout(weights.to(dtype), WL)
            _sync()
            ahead = n0 + (STAGES - 1) * BN
            _fetch(
                k_desc,
                v_desc,
                b,
                ahead,
                head * SCORE,
                head * VALUE,
                bars.index(done),
                ks.index(done),
                vs.index(done),
                ahead < seq,
            )
        summed = warpgroup_mma(p, vs.index(past % STAGES).reshape((BN, HV)), acc, is_async=True)
        # A row that saw no key has sums of 0, and stays 0.
        share = 1.0 / gl.where(total > 0.0, total, 1.0)
        acc = warpgroup_mma_wait(0, deps=[summed])
        _sync()
        past += 1
        for i in gl.static_range(STAGES):
            stage = (past + i) % STAGES
            _fetch(
                k_desc,
                v_desc,
                next_b,
                i * BN,
                next_head * SCORE,
                next_head * VALUE,
                bars.index(stage),
                ks.index(stage),
                vs.index(stage),
                (after < tiles) & (i < key_blocks),
            )
        acc = acc * gl.convert_layout(share, ROWS)[:, None]
        result = gl.convert_layout(acc.to(dtype), FL)
        # [BM], [HV]
        m = gl.arange(0, BM, layout=gl.SliceLayout(1, FL))
        o = gl.arange(0, HV, layout=gl.SliceLayout(0, FL))
        stride_s = out_stride_s * STRIDE_ALIGN
        at = out + b.to(gl.int64) * out_stride_b * STRIDE_ALIGN + m0.to(gl.int64) * stride_s + head * VALUE
        inside = (m < seq - m0)[:, None] & (o < VALUE)[None, :]
        gl.store(at + m[:, None] * stride_s + o[None, :], result, mask=inside)
        b, head, m0 = next_b, next_head, next_m0
