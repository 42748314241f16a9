"""The feed-forward sublayer of a post-norm block for Hopper in Gluon: from norm to norm without leaving the chip.

131 us for M = 16384, d = 768, D = 3072, R1 = R2 = 240, bf16, on an H200 with Triton 3.6 in a CUDA graph, where norm,
cuBLAS, `ffn_hopper_kernel`, cuBLAS and norm take 147; without the norm before it 119 and 136. The sublayer's
x is read and written by one program alone, so its second reading and the norms' are from L2. What gained nothing:
chunks of 128 output columns (132.5 us for 127.7 of a first version), and 32 or 8 rows at a time in a norm (152.2, as
they spill, and 140.6).

Letters in shape comments: BM rows, BK = 64 columns at a time of x and of the wide activation, R the padded ranks, NR
rows and BN columns of a norm at a time.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from flashsvd.kernels.ffn.hopper_parts import (
    fetch_both,
    fetch_columns,
    fetch_rows,
    reinterpret,
    stream_width,
    sync,
)


@gluon.jit
def _zero(number):
    """0.0 that the compiler does not know to be 0."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, 0f00000000; // $1", "=f,r", [number], dtype=gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def _fence_global(number):
    """What this thread has stored is seen by TMA once all threads are past the next barrier."""
    gl.inline_asm_elementwise(
        "fence.proxy.async; mov.b32 $0, $1;", "=r,r", [number], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _norm_rows(
    x,
    m0,
    rows,
    hidden,
    x_stride,
    weight,
    shift,
    bias,
    eps,
    HAS_SHIFT: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    BM: gl.constexpr,
    NR: gl.constexpr,
    BN: gl.constexpr,
):
    """LayerNorm of x + bias over BM rows of x from m0 on, in their place; the next NR rows are read ahead."""
    L: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [gl.num_warps(), 1], [1, 0])
    # [BN], [NR]
    n = gl.arange(0, BN, layout=gl.SliceLayout(0, L))
    m = m0 + gl.arange(0, NR, layout=gl.SliceLayout(1, L))
    in_row = n < hidden
    scale = gl.load(weight + n, mask=in_row, other=0.0)
    # [NR, BN]
    at = x + m.to(gl.int64)[:, None] * x_stride + n[None, :]
    ahead = gl.load(at, mask=(m < rows)[:, None] & in_row[None, :], other=0.0)
    for first in range(0, BM, NR):
        y = ahead.to(gl.float32)
        there = (m + NR < rows) & (first + NR < BM)
        ahead = gl.load(at + NR * x_stride, mask=there[:, None] & in_row[None, :], other=0.0)
        if HAS_BIAS:
            y += gl.load(bias + n, mask=in_row, other=0.0).to(gl.float32)[None, :]
        # Two passes over registers, as a mean of squares less the square of the mean cancels.
        y = gl.where(in_row[None, :], y - (gl.sum(y, 1) / hidden)[:, None], 0.0)
        y = y * (1.0 / gl.sqrt(gl.sum(y * y, 1) / hidden + eps))[:, None]
        y = y * scale.to(gl.float32)[None, :]
        if HAS_SHIFT:
            y += gl.load(shift + n, mask=in_row, other=0.0).to(gl.float32)[None, :]
        gl.store(at, y.to(x.dtype.element_ty), mask=(m < rows)[:, None] & in_row[None, :])
        at += NR * x_stride
        m += NR


@gluon.jit
def ffn_block_hopper_kernel(
    x_desc,
    v1_desc,
    u1_desc,
    v2_desc,
    u2_desc,
    x,
    b1,
    b2,
    weight,
    shift,
    entry_weight,
    entry_shift,
    entry_bias,
    rows,
    hidden,
    width,
    x_stride,
    eps,
    entry_eps,
    HAS_B1: gl.constexpr,
    HAS_B2: gl.constexpr,
    HAS_SHIFT: gl.constexpr,
    HAS_ENTRY: gl.constexpr,
    HAS_ENTRY_SHIFT: gl.constexpr,
    HAS_ENTRY_BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    BM: gl.constexpr,
    R: gl.constexpr,
    NR: gl.constexpr,
    BN: gl.constexpr,
):
    """One program per BM rows. x [M, d] by pointer and by descriptor; v1 [R1, d], u1 [D, R1], v2 [R2, D], u2 [d, R2]
    by descriptor in tiles of [R, 64] and [64, R]; b1 [D], b2 and all of the norms [d]. d is a multiple of 64."""
    dtype: gl.constexpr = x_desc.dtype
    WARPS: gl.constexpr = gl.num_warps()
    BK: gl.constexpr = 64
    # Tiles of x that lie where P does later, and where it was.
    STAGES: gl.constexpr = R // BK
    AL: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, R, 16]
    )
    CL: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BK, 16]
    )
    SL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=CL, k_width=2)
    # For the store: 16 bytes per thread.
    FL: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])

    ps = gl.allocate_shared_memory(dtype, [BM, R], gl.NVMMASharedLayout.get_default_for([BM, R], dtype))
    xs = reinterpret(ps, dtype, [STAGES, BM, BK], x_desc.layout)
    # Tiles of V1; then two of U1 and two of V2; then of U2.
    vs = gl.allocate_shared_memory(dtype, [4, R, BK], v1_desc.layout)
    us = reinterpret(vs, dtype, [4, BK, R], u1_desc.layout)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    u_bar = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    v_bar = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    out_bar = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
        mbarrier.init(out_bar.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(u_bar.index(i), count=1)
        mbarrier.init(v_bar.index(i), count=1)
    fence_async_shared()
    sync()

    m0 = gl.program_id(0) * BM
    steps = hidden // BK
    blocks = gl.cdiv(width, BK)
    if HAS_ENTRY:
        _norm_rows(
            x,
            m0,
            rows,
            hidden,
            x_stride,
            entry_weight,
            entry_shift,
            entry_bias,
            entry_eps,
            HAS_ENTRY_SHIFT,
            HAS_ENTRY_BIAS,
            BM,
            NR,
            BN,
        )
        _fence_global(rows)
        sync()

    for i in gl.static_range(STAGES):
        k = i * BK
        fetch_both(x_desc, m0, k, xs.index(i), v1_desc, 0, k, vs.index(i), bars.index(i), True, i < steps)
    # [BM, R]. Were these sums and those over the width both known to start at zero, ptxas 12.8 would give them the same
    # registers of zeros, run out of registers, and let every product wait for the one before it (C7512): 520 bytes of
    # stack, where a zero that it cannot see leaves none.
    acc = gl.full([BM, R], _zero(rows), gl.float32, AL)
    for k in range(0, steps):
        stage = k % STAGES
        mbarrier.wait(bars.index(stage), (k // STAGES) & 1)
        acc = warpgroup_mma(xs.index(stage), vs.index(stage).permute((1, 0)), acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=[acc])
        sync()
        # Every warp is past the product before this one: its tiles are free.
        ahead = k - 1 + STAGES
        free = ahead % STAGES
        fetch_both(
            x_desc,
            m0,
            ahead * BK,
            xs.index(free),
            v1_desc,
            0,
            ahead * BK,
            vs.index(free),
            bars.index(free),
            True,
            (k >= 1) & (ahead < steps),
        )
    p = warpgroup_mma_wait(0, deps=[acc])
    sync()

    for i in gl.static_range(2):
        there = i < blocks
        fetch_rows(u1_desc, None, i * BK, u_bar.index(i), us.index(i), None, False, there)
        fetch_columns(v2_desc, None, i * BK, v_bar.index(i), vs.index(2 + i), None, False, there)
    ps.store(p.to(dtype))
    fence_async_shared()
    sync()
    # [BM, R]
    s, _ = stream_width(
        ps,
        ps,
        us,
        us,
        vs,
        vs,
        u_bar,
        v_bar,
        u1_desc,
        None,
        v2_desc,
        None,
        b1,
        width,
        HAS_B1,
        ACTIVATION,
        False,
        False,
        R,
        16,
        STAGES=2,
        FIRST_V=2,
    )
    sync()

    # U2's tiles lie from the last place back: from the first on, the 16 descriptors of U1's first place, made for the
    # first product above, were kept for this one in 128 bytes of stack.
    for i in gl.static_range(STAGES):
        k = i * BK
        fetch_both(
            x_desc, m0, k, xs.index(i), u2_desc, k, 0, us.index(3 - i), out_bar.index(i), True, i < steps
        )
    s = gl.convert_layout(s.to(dtype), SL)
    # [BM]
    m = m0 + gl.arange(0, BM, layout=gl.SliceLayout(1, FL))
    # [BK]
    o = gl.arange(0, BK, layout=gl.SliceLayout(0, FL))
    c = gl.arange(0, BK, layout=gl.SliceLayout(0, CL))
    at = x + m.to(gl.int64)[:, None] * x_stride + o[None, :]
    inside = (m < rows)[:, None]
    zero = gl.zeros([BM, BK], gl.float32, CL)
    mbarrier.wait(out_bar.index(0), 0)
    # [BM, BK]
    started = warpgroup_mma(s, us.index(3).permute((1, 0)), zero, use_acc=False, is_async=True)
    y = warpgroup_mma_wait(0, deps=[started])
    for k in range(0, steps):
        stage = k % STAGES
        ahead = (k + 1) % STAGES
        # The last product is made once more rather than branched around; nobody reads it.
        mbarrier.wait(out_bar.index(ahead), ((k + 1) // STAGES) & 1, pred=k + 1 < steps)
        started = warpgroup_mma(s, us.index(3 - ahead).permute((1, 0)), zero, use_acc=False, is_async=True)
        y += xs.index(stage).load(CL).to(gl.float32)
        if HAS_B2:
            y += gl.load(b2 + k * BK + c).to(gl.float32)[None, :]
        gl.store(at + k * BK, gl.convert_layout(y.to(dtype), FL), mask=inside)
        y = warpgroup_mma_wait(0, deps=[started])
        sync()
        after = k + STAGES
        fetch_both(
            x_desc,
            m0,
            after * BK,
            xs.index(stage),
            u2_desc,
            after * BK,
            0,
            us.index(3 - stage),
            out_bar.index(stage),
            True,
            after < steps,
        )
    # The loop's last barrier came after its last store.
    _norm_rows(x, m0, rows, hidden, x_stride, weight, shift, shift, eps, HAS_SHIFT, False, BM, NR, BN)
    # Held to the end, so that no other memory takes their place: in that of barriers nobody asked any more, the store's
    # layout change found their old states again, a NaN in one of a hundred runs, when the GPU had gone to another
    # process and come back.
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(bars.index(i))
        mbarrier.invalidate(out_bar.index(i))
    for i in gl.static_range(2):
        mbarrier.invalidate(u_bar.index(i))
        mbarrier.invalidate(v_bar.index(i))
