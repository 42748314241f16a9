"""A product for Hopper in Gluon: programs stay for many tiles, and store one by TMA while they multiply the next.

At [8192, 768] by [1440, 768] with a bias, bf16, on an H200, in a CUDA graph between other kernels: 32.2 us where cuBLAS
takes 36, 5 of them before its own begins (`hopper.worth_it` says why). In a chain of its own 30.1, and other tiles: 128
by 256 by 64 30.5 us, 128 by 256 by 32 in 6 stages 32.4, 128 by 128 by 64 in 4 stages 32.8. A program per tile: 34.5.

Letters in shape comments: BM rows of x, BN rows of the weight and BK columns of both in a tile.
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

# Triton 3.6's names of what later versions call async_load, async_store and barrier.
_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
_sync = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def _fetch(
    x_desc, weight_desc, tile, across, column, bar, x, weight, pred, BM: gl.constexpr, BN: gl.constexpr
):
    """The BK columns from `column` on of what a tile multiplies, announced to one barrier."""
    mbarrier.expect(bar, x_desc.block_type.nbytes + weight_desc.block_type.nbytes, pred=pred)
    _load(x_desc, [tile // across * BM, column], bar, x, pred=pred)
    _load(weight_desc, [tile % across * BN, column], bar, weight, pred=pred)


# Not the width: that it is a multiple of 16 is 162 registers, and 208 where the compiler knows nothing of it.
@gluon.jit(do_not_specialize=["rows", "depth"])
def linear_hopper_kernel(
    x_desc,
    weight_desc,
    out_desc,
    bias,
    rows,
    width,
    depth,
    HAS_BIAS: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Any number of programs; each takes every so manieth tile [BM, BN] of the output.

    x [M, K] by descriptor in tiles [BM, BK], weight [N, K] in tiles [BN, BK], out [M, N] in tiles [BM, BN]; bias [N].
    Rows and columns past an end come as zeros and are not stored.
    """
    dtype: gl.constexpr = x_desc.dtype
    WARPS: gl.constexpr = gl.num_warps()
    L: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BN, 16]
    )
    xs = gl.allocate_shared_memory(dtype, [STAGES, BM, BK], x_desc.layout)
    ws = gl.allocate_shared_memory(dtype, [STAGES, BN, BK], weight_desc.layout)
    result = gl.allocate_shared_memory(dtype, [BM, BN], out_desc.layout)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
    fence_async_shared()
    _sync()

    across = gl.cdiv(width, BN)
    tiles = gl.cdiv(rows, BM) * across
    steps = gl.cdiv(depth, BK)
    first = gl.program_id(0)
    hop = gl.num_programs(0)
    # What is fetched next, up to STAGES - 1 steps ahead and so perhaps of the tile after this one; past the last tile
    # nothing is.
    next_tile = first
    next_step = 0
    for i in gl.static_range(STAGES):
        _fetch(
            x_desc,
            weight_desc,
            next_tile,
            across,
            next_step * BK,
            bars.index(i),
            xs.index(i),
            ws.index(i),
            next_tile < tiles,
            BM,
            BN,
        )
        next_step += 1
        if next_step == steps:
            next_step = 0
            next_tile += hop

    # [BN]
    n = gl.arange(0, BN, layout=gl.SliceLayout(0, L))
    # Steps that this program is past, over all its tiles: they take the stages in turn.
    past = 0
    for tile in range(first, tiles, hop):
        m0 = tile // across * BM
        n0 = tile % across * BN
        # [BM, BN]
        acc = gl.zeros([BM, BN], gl.float32, L)
        for step in range(0, steps):
            stage = past % STAGES
            mbarrier.wait(bars.index(stage), (past // STAGES) & 1)
            acc = warpgroup_mma(
                xs.index(stage), ws.index(stage).permute((1, 0)), acc, use_acc=step > 0, is_async=True
            )
            # The product before this one is over in all warps after the barrier, so its stage is free.
            acc = warpgroup_mma_wait(1, deps=[acc])
            _sync()
            free = (past + STAGES - 1) % STAGES
            more = (past > 0) & (next_tile < tiles)
            _fetch(
                x_desc,
                weight_desc,
                next_tile,
                across,
                next_step * BK,
                bars.index(free),
                xs.index(free),
                ws.index(free),
                more,
                BM,
                BN,
            )
            next_step += more.to(gl.int32)
            if next_step == steps:
                next_step = 0
                next_tile += hop
            past += 1
        acc = warpgroup_mma_wait(0, deps=[acc])
        if HAS_BIAS:
            acc += gl.load(bias + n0 + n, mask=n0 + n < width, other=0.0).to(gl.float32)[None, :]
        # The tile before this one has left shared memory.
        tma.store_wait(0)
        _sync()
        result.store(acc.to(dtype))
        fence_async_shared()
        _sync()
        _store(out_desc, [m0, n0], result)
    tma.store_wait(0)
