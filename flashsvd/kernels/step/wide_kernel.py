"""W·xᵀ for 2 to 16 rows of x in a half type, in Gluon for Hopper: weights go from memory straight into the registers
that the tensor cores read, and the first of them are asked for before the wait of the chain.

`block_kernel` brings both operands to shared memory in a loop that begins after the wait. Here every load of W is one
of 16 bytes that nothing moves afterwards. A thread has 8 neighbours along k, where mma.m16n8k16 wants pairs from four
threads side by side; both operands are loaded alike, so the products take k in another order than memory has it
(`_for_mma`). x is the operand of 16 rows, which costs the same for 2 sequences as for 16.

The warps of a program share its columns: in a step of BK of them each takes its own, and their sums meet in shared
memory. The programs that share rows leave theirs in memory, where the one that is done last adds them in order.

Sixteen sequences, bf16, H200, us of a kernel in a chain of its kind, beside the time of a copy and that of
`block_kernel`: 3072 x 4096 8.6 (6.0, 9.7); 1024 x 4096 4.3 (2.0, 5.6); 4096 x 1024 3.7 (2.0, 5.6); 2992 x 4096 8.5
(5.8, 9.6); two of 11008 x 1496 19.1 (15.7, 29.1); 1496 x 11008 11.3 (7.8, 11.8); 4096 x 1496 5.3 (2.9, 8.2). All seven,
a layer of Llama-2-7B: 63.0 (42.3, 79.7), of eight sequences 59.9 (96.9), of four 57.6 (114.4), of two 57.0 (113.0).

Tried beside it: the programs that share rows as a cluster, sums by distributed shared memory, 0.1 to 1 us less of a
kernel and 58.7 of a layer, for an exchange in PTX, as Gluon has none; further weights brought to the L2 cache before
the wait, no gain; 64 rows to a program, 22.2 for 19.4 of the two products; W as the operand of 16 rows, four moves for
every product; one or two of a layer's products by `block_kernel`, 5.5 to 5.8 ms of a step for 4.08, all of them 4.55.
"""

# mypy: allow-untyped-defs, disable-error-code=assignment
# Triton knows no unpacking into a tuple.
# ruff: noqa: RUF005
from __future__ import annotations

from triton import constexpr_function
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from flashsvd.kernels.step.chain import last_of, wait
from flashsvd.kernels.step.outcome import sum_of, write

# Triton 3.6's name of what later versions call barrier.
_sync = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@constexpr_function
def _as_loaded(warps, rows, columns):
    """Layout of [warps, rows, columns]: 8 neighbours of a row to a thread, 4 threads to a row, 8 rows to a warp."""

    def doubled(first, end):
        return [first << i for i in range((end // first).bit_length() - 1)]

    registers = [[0, 0, k] for k in (1, 2, 4, *doubled(32, columns))] + [[0, n, 0] for n in doubled(8, rows)]
    lanes = [[0, 0, 8], [0, 0, 16], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    return gl.DistributedLinearLayout(
        registers, lanes, [[warp, 0, 0] for warp in doubled(1, warps)], [], [warps, rows, columns]
    )


@gluon.jit
def _for_mma(tile, OPERAND: gl.constexpr, MMA: gl.constexpr):
    """[W, rows, columns] with the columns in the order in which every thread has what mma wants of it; transposed for
    the second operand. No instruction comes of it."""
    W: gl.constexpr = tile.shape[0]
    ROWS: gl.constexpr = tile.shape[1]
    COLUMNS: gl.constexpr = tile.shape[2]
    # 32 columns are 4 threads with 4 pairs each: the first pairs of all threads come first.
    pairs = gl.reshape(tile, [W, ROWS, COLUMNS // 32, 4, 4, 2])
    if OPERAND == 0:
        ordered = gl.reshape(gl.permute(pairs, [0, 1, 2, 4, 3, 5]), [W, ROWS, COLUMNS])
    else:
        ordered = gl.reshape(gl.permute(pairs, [0, 2, 4, 3, 5, 1]), [W, COLUMNS, ROWS])
    return gl.convert_layout(ordered, gl.DotOperandLayout(OPERAND, MMA, 2), assert_trivial=True)


@gluon.jit
def _rows(ROWS: gl.constexpr, L: gl.constexpr):
    """[1, ROWS, 1]"""
    return gl.arange(0, ROWS, layout=gl.SliceLayout(0, gl.SliceLayout(2, L)))[None, :, None]


@gluon.jit
def _columns(split, W: gl.constexpr, COLUMNS: gl.constexpr, L: gl.constexpr):
    """[W, 1, COLUMNS]: those of the first step."""
    warp = gl.arange(0, W, layout=gl.SliceLayout(1, gl.SliceLayout(2, L)))[:, None, None]
    k = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, gl.SliceLayout(1, L)))[None, None, :]
    return (split * W + warp) * COLUMNS + k


@gluon.jit
def _loaded(at, column, width, CHUNK: gl.constexpr, CHUNKS: gl.constexpr, STEP: gl.constexpr):
    """What is CHUNK steps further on. Only the last step may go past the width."""
    if CHUNK < CHUNKS - 1:
        return gl.load(at + CHUNK * STEP)
    else:
        return gl.load(at + CHUNK * STEP, mask=column + CHUNK * STEP < width, other=0.0)


@gluon.jit
def _tile(
    at, at_up, column, width, width_up, CHUNK: gl.constexpr, CHUNKS: gl.constexpr, CHUNKS_UP: gl.constexpr,
    STEP: gl.constexpr,
):  # fmt: skip
    """[W, rows, columns]: of the first product's operand, and after its CHUNKS of the second's."""
    if CHUNK < CHUNKS:
        return _loaded(at, column, width, CHUNK, CHUNKS, STEP)
    else:
        return _loaded(at_up, column, width_up, CHUNK - CHUNKS, CHUNKS_UP, STEP)


@gluon.jit
def _first_tiles(
    at, at_up, column, width, width_up, COUNT: gl.constexpr, CHUNKS: gl.constexpr, CHUNKS_UP: gl.constexpr,
    STEP: gl.constexpr,
):  # fmt: skip
    tiles = ()
    for chunk in gl.static_range(COUNT):
        tiles = tiles + (_tile(at, at_up, column, width, width_up, chunk, CHUNKS, CHUNKS_UP, STEP),)
    return tiles


@gluon.jit
def _over_warps(acc, shared, L: gl.constexpr):
    """[BN, BM] from [W, BM, BN]: a thread adds what all warps have of an element."""
    shared.store(acc)
    _sync()
    return gl.sum(shared.permute((0, 2, 1)).load(L), 0)


@gluon.jit
def wide_kernel(
    x,
    w,
    bias,
    x_up,
    w_up,
    bias_up,
    squares,
    residual,
    gamma,
    out,
    scaled,
    out_squares,
    sums,
    arrived,
    batch,
    rows,
    width8,
    stride8,
    x_stride8,
    width_up8,
    stride_up8,
    x_up_stride8,
    out_stride,
    norm_width,
    squares_parts,
    eps,
    HAS_BIAS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    GATED: gl.constexpr,
    NORMED: gl.constexpr,
    NORMED_UP: gl.constexpr,
    ADDED: gl.constexpr,
    SCALED: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    BK: gl.constexpr,
    BP: gl.constexpr,
    SPLITS: gl.constexpr,
    CHUNKS: gl.constexpr,
    CHUNKS_UP: gl.constexpr,
    AHEAD: gl.constexpr,
    X_AHEAD: gl.constexpr,
    CHAINED: gl.constexpr,
):
    """Programs (BN rows of w, share of the columns): `flashsvd.kernels.step.instructions.Rows` for several sequences.

    CHUNKS and CHUNKS_UP: steps over the columns of either product, of SPLITS·BK each. AHEAD: how many of them have
    their weights asked for before x is there, X_AHEAD: their x as soon as it is. sums: fp32 [blocks, SPLITS, 2 if GATED
    else 1, BM, BN]; arrived: int32 [blocks], zero before and after.
    """
    W: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = BK // W
    MMA: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[W, 1, 1], instr_shape=[1, 16, 8]
    )
    WL: gl.constexpr = _as_loaded(W, BN, COLUMNS)
    XL: gl.constexpr = _as_loaded(W, BM, COLUMNS)
    # [W, BN, BM], of which a thread has all warps' of two neighbours in a row of out.
    L: gl.constexpr = gl.BlockedLayout([W, 2, 1], [1, BN // 2, 64 // BN], [1, 1, W], [1, 2, 0])
    OUT: gl.constexpr = gl.SliceLayout(0, L)
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(8, 2 if BN < 32 else 1, min(4, BN // 8), [2, 1, 0])
    STEP: gl.constexpr = SPLITS * BK
    ALL: gl.constexpr = CHUNKS + CHUNKS_UP if GATED else CHUNKS

    block, split = gl.program_id(0), gl.program_id(1)
    width, width_up = width8 * 8, width_up8 * 8
    # Rows past the end are read again instead of masked: what comes of them is not stored.
    row = gl.minimum(block * BN + _rows(BN, WL), rows - 1).to(gl.int64)
    column = _columns(split, W, COLUMNS, WL)
    w_at = w + row * (stride8 * 8) + column
    w_up_at = w_up + row * (stride_up8 * 8) + column
    tiles = _first_tiles(w_at, w_up_at, column, width, width_up, min(ALL, AHEAD), CHUNKS, CHUNKS_UP, STEP)
    x_row = gl.minimum(_rows(BM, XL), batch - 1)
    x_column = _columns(split, W, COLUMNS, XL)
    x_at = x + x_row * (x_stride8 * 8) + x_column
    x_up_at = x_up + x_row * (x_up_stride8 * 8) + x_column
    shared = gl.allocate_shared_memory(gl.float32, [W, BM, BN], SHARED)

    wait(CHAINED, rows)
    xs = _first_tiles(x_at, x_up_at, x_column, width, width_up, min(ALL, X_AHEAD), CHUNKS, CHUNKS_UP, STEP)
    if NORMED or NORMED_UP:
        SQ: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [W, 1], [1, 0])
        m = gl.arange(0, BM, layout=gl.SliceLayout(1, SQ))[:, None]
        part = gl.arange(0, BP, layout=gl.SliceLayout(0, SQ))[None, :]
        before = gl.load(
            squares + m * squares_parts + part, mask=(m < batch) & (part < squares_parts), other=0.0
        )
    acc = gl.zeros([W, BM, BN], gl.float32, MMA)
    for chunk in gl.static_range(ALL):
        if chunk == CHUNKS:
            # The second product begins.
            y = _over_warps(acc, shared, L)
            _sync()
            acc = gl.zeros([W, BM, BN], gl.float32, MMA)
        acc = mma_v2(_for_mma(xs[0], 0, MMA), _for_mma(tiles[0], 1, MMA), acc)
        tiles, xs = tiles[1:], xs[1:]
        if chunk == 0 and (NORMED or NORMED_UP):
            x_squares = gl.sum(before, 1)
        if chunk + AHEAD < ALL:
            tiles = tiles + (
                _tile(w_at, w_up_at, column, width, width_up, chunk + AHEAD, CHUNKS, CHUNKS_UP, STEP),
            )
        if chunk + X_AHEAD < ALL:
            xs = xs + (
                _tile(x_at, x_up_at, x_column, width, width_up, chunk + X_AHEAD, CHUNKS, CHUNKS_UP, STEP),
            )
    up = _over_warps(acc, shared, L)
    if not GATED:
        y = up

    n = gl.arange(0, BN, layout=gl.SliceLayout(1, OUT))
    m = gl.arange(0, BM, layout=gl.SliceLayout(0, OUT))
    done = True
    if SPLITS > 1:
        KINDS: gl.constexpr = 2 if GATED else 1
        place = m[None, :] * BN + n[:, None]
        mine = sums + (block * SPLITS + split) * (KINDS * BN * BM)
        gl.store(mine + place, y)
        if GATED:
            gl.store(mine + BN * BM + place, up)
        done = last_of(arrived + block, SPLITS)
    if done:
        if SPLITS > 1:
            base = sums + block * (SPLITS * KINDS * BN * BM)
            y = sum_of(base, KINDS * BN * BM, place, SPLITS)
            if GATED:
                up = sum_of(base + BN * BM, KINDS * BN * BM, place, SPLITS)
        total = None
        if NORMED or NORMED_UP:
            total = gl.convert_layout(x_squares, gl.SliceLayout(0, OUT))
        write(
            y, up, total, block * BN + n, m, bias, bias_up, residual, gamma, out, scaled, out_squares, batch, rows,
            out_stride, norm_width, eps, HAS_BIAS, ACTIVATION, GATED, NORMED, NORMED_UP, ADDED, SCALED, False,
        )  # fmt: skip
