"""What the Hopper feed-forward kernels share, in Gluon: loads by TMA, the activation, and the loop over the width.

Letters in shape comments: BM rows, BD columns of the wide activation, R1 and R2 the input and output ranks, each in
a large part A and a small part B (0 where not needed).
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

# Triton 3.6's names of what later versions call async_load, barrier and reinterpret.
tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
sync = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_Shared = gl.shared_memory_descriptor
reinterpret = _Shared.reinterpret if hasattr(_Shared, "reinterpret") else _Shared._reinterpret


@gluon.jit
def _tanh(x):
    return gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _activate(x, ACTIVATION: gl.constexpr):
    """The activations of `activation.py` in fp32, each at the price of at most one hardware tanh."""
    if ACTIVATION == "relu":
        return gl.maximum(x, 0.0)
    elif ACTIVATION == "silu":
        half = 0.5 * x
        return gl.fma(half, _tanh(half), half)
    elif ACTIVATION == "gelu_tanh":
        half = 0.5 * x
        return gl.fma(half, _tanh(x * gl.fma(x * x, 0.035677408136300125, 0.7978845608028654)), half)
    else:
        # erf by a tanh of an odd polynomial, within 2.5e-5 of GELU everywhere: below a half type's rounding.
        z = gl.minimum(x * x, 36.0)
        q = gl.fma(gl.fma(z, -0.000351520915, 0.0370056729), z, 0.797507853)
        half = 0.5 * x
        return gl.fma(half, _tanh(x * q), half)


@gluon.jit
def fetch_both(
    main,
    row,
    column,
    to,
    other,
    other_row,
    other_column,
    to_other,
    bar,
    HAS_OTHER: gl.constexpr,
    pred,
):
    """A tile of each of two matrices, announced to one barrier; of the first alone without HAS_OTHER."""
    bytes: gl.constexpr = main.block_type.nbytes + (other.block_type.nbytes if HAS_OTHER else 0)
    mbarrier.expect(bar, bytes, pred=pred)
    tma_load(main, [row, column], bar, to, pred=pred)
    if HAS_OTHER:
        tma_load(other, [other_row, other_column], bar, to_other, pred=pred)


@gluon.jit
def fetch_rows(main, tail, row, bar, to, to_tail, HAS_TAIL: gl.constexpr, pred):
    """Both column parts of a block of rows."""
    fetch_both(main, row, 0, to, tail, row, main.block_type.shape[1], to_tail, bar, HAS_TAIL, pred)


@gluon.jit
def fetch_columns(main, tail, column, bar, to, to_tail, HAS_TAIL: gl.constexpr, pred):
    """Both row parts of a block of columns."""
    fetch_both(main, 0, column, to, tail, main.block_type.shape[0], column, to_tail, bar, HAS_TAIL, pred)


@gluon.jit
def _first(
    p, p_tail, u, u_tail, HAS_TAIL: gl.constexpr, BM: gl.constexpr, BD: gl.constexpr, TL: gl.constexpr
):
    """Starts t [BM, BD] = P·Uᵀ."""
    t = warpgroup_mma(p, u.permute((1, 0)), gl.zeros([BM, BD], gl.float32, TL), use_acc=False, is_async=True)
    if HAS_TAIL:
        t = warpgroup_mma(p_tail, u_tail.permute((1, 0)), t, is_async=True)
    return t


@gluon.jit
def stream_width(
    ps,
    pt,
    us,
    ut,
    vs,
    vt,
    u_bar,
    v_bar,
    u_desc,
    u_tail_desc,
    v_desc,
    v_tail_desc,
    b1,
    width,
    HAS_BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    T1: gl.constexpr,
    T2: gl.constexpr,
    R2A: gl.constexpr,
    R2B: gl.constexpr,
    STAGES: gl.constexpr,
    FIRST_V: gl.constexpr,
):
    """act(P·Uᵀ + b1)·Vᵀ in fp32, [BM, R2A] and [BM, R2B], of a P that is in shared memory.

    ps, pt [BM, R1A and R1B]; us, ut [at least STAGES, BD, R1A and R1B]; vs, vt [FIRST_V + STAGES, R2A and R2B, BD], of
    which the first FIRST_V are somebody else's. The first STAGES blocks of u and v are on their way, announced to
    u_bar and v_bar. T1, T2: whether the parts B are there; one that is not has a shape, and is not looked at.
    """
    dtype: gl.constexpr = u_desc.dtype
    BM: gl.constexpr = ps.shape[0]
    BD: gl.constexpr = u_desc.block_type.shape[0]
    WARPS: gl.constexpr = gl.num_warps()
    TL: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BD, 16]
    )
    AL: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, R2A, 16]
    )
    BL: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, R2B, 16]
    )
    HL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=AL, k_width=2)
    HB: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=BL, k_width=2)

    blocks = gl.cdiv(width, BD)
    mbarrier.wait(u_bar.index(0), 0)
    # [BM, BD]
    started = _first(ps, pt, us.index(0), ut.index(0), T1, BM, BD, TL)
    t = warpgroup_mma_wait(0, deps=[started])
    sync()
    fetch_rows(
        u_desc, u_tail_desc, STAGES * BD, u_bar.index(0), us.index(0), ut.index(0), T1, blocks > STAGES
    )
    # [BM, R2A], [BM, R2B]
    acc = warpgroup_mma_init(gl.zeros([BM, R2A], gl.float32, AL))
    acc_tail = warpgroup_mma_init(gl.zeros([BM, R2B], gl.float32, BL))
    # [BD]
    d = gl.arange(0, BD, layout=gl.SliceLayout(0, TL))
    for j in range(0, blocks):
        ahead = (j + 1) % STAGES
        # The last block's product is made once more rather than branched around; nobody reads it.
        mbarrier.wait(u_bar.index(ahead), ((j + 1) // STAGES) & 1, pred=j + 1 < blocks)
        started = _first(ps, pt, us.index(ahead), ut.index(ahead), T1, BM, BD, TL)
        if HAS_BIAS:
            t += gl.load(b1 + j * BD + d, mask=j * BD + d < width, other=0.0).to(gl.float32)[None, :]
        wide = _activate(t, ACTIVATION)
        # The second product reads h from registers while it runs, and every block's h is in the same ones: block
        # j - 1's has to be over before they are written. Without this wait up to three rows of four were wrong.
        if T2:
            wide, acc, acc_tail = warpgroup_mma_wait(2 if T1 else 1, deps=[wide, acc, acc_tail])
        else:
            wide, acc = warpgroup_mma_wait(2 if T1 else 1, deps=[wide, acc])
        h = wide.to(dtype)
        stage = j % STAGES
        mbarrier.wait(v_bar.index(stage), (j // STAGES) & 1)
        acc = warpgroup_mma(
            gl.convert_layout(h, HL), vs.index(FIRST_V + stage).permute((1, 0)), acc, is_async=True
        )
        if T2:
            acc_tail = warpgroup_mma(
                gl.convert_layout(h, HB), vt.index(FIRST_V + stage).permute((1, 0)), acc_tail, is_async=True
            )
        # Of this block's products only the second may still run; the one before it is done too.
        t = warpgroup_mma_wait(2 if T2 else 1, deps=[started])
        sync()
        # Every warp is past the first product of block j + 1 and the second of block j - 1: both buffers are free.
        next_u = j + 1 + STAGES
        fetch_rows(
            u_desc,
            u_tail_desc,
            next_u * BD,
            u_bar.index(ahead),
            us.index(ahead),
            ut.index(ahead),
            T1,
            next_u < blocks,
        )
        next_v = j - 1 + STAGES
        free = next_v % STAGES
        fetch_columns(
            v_desc,
            v_tail_desc,
            next_v * BD,
            v_bar.index(free),
            vs.index(FIRST_V + free),
            vt.index(FIRST_V + free),
            T2,
            (j >= 1) & (next_v < blocks),
        )
    return warpgroup_mma_wait(0, deps=[acc, acc_tail])
