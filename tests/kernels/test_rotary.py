"""The rotary op: every backend against complex numbers in fp64, in place and nowhere else, and planted bugs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from kernel_cases import CPU_BACKENDS, DTYPES, GPU_DTYPES, guarded, skip_without_interpreter

from flashsvd.errors import InputError
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.rotary import rotate_heads
from flashsvd.kernels.rotary.tiles import rotary_tiles
from flashsvd.kernels.tiles import STREAM_BUDGET_BYTES


@dataclass(frozen=True)
class Case:
    """One call. `own`: whether every sequence has positions of its own."""

    batch: int
    seq: int
    heads: int
    kv_heads: int
    head_dim: int
    own: bool = False


CASES = (
    Case(1, 1, 1, 1, 2),
    Case(2, 17, 12, 12, 64),
    Case(3, 63, 4, 1, 80, own=True),
    Case(2, 97, 3, 5, 32),
    Case(1, 33, 6, 2, 256, own=True),
    Case(2, 5, 2, 2, 6),
)


def inputs(case: Case, dtype: torch.dtype, angle_dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """q, k and the cosines and sines of positions that are not in order."""
    generator = torch.Generator().manual_seed(case.seq)
    q, k = (
        torch.randn(case.batch, case.seq, count * case.head_dim, generator=generator).to(dtype)
        for count in (case.heads, case.kv_heads)
    )
    positions = torch.randint(500, (case.batch if case.own else 1, case.seq, 1), generator=generator)
    half = 10_000.0 ** -torch.arange(0, 1, 2 / case.head_dim, dtype=torch.float64)
    angles = (positions * half).repeat(1, 1, 2)
    return [q, k, *(part.to(angle_dtype or dtype) for part in (angles.cos(), angles.sin()))]


def reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """fp64: pairs as complex numbers, times those of the angles."""
    half = cos.shape[-1] // 2
    turn = torch.complex(cos[..., :half].double(), sin[..., :half].double())[:, :, None]
    heads = x.double().unflatten(-1, (-1, 2 * half))
    turned = torch.complex(heads[..., :half], heads[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1).flatten(-2)


def turned(
    x: list[torch.Tensor], backend: str | None, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, cos, sin = (part.to(device, copy=True) for part in x)
    return rotate_heads(q, k, cos, sin, backend=backend)


def packed_views(
    case: Case, given: list[torch.Tensor], device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One product with q and k among its columns, and the two; NaN all around and between."""
    q, k, _, _ = given
    apart = torch.full((case.batch, case.seq, 8), float("nan"), dtype=q.dtype)
    packed = guarded(torch.cat([q, apart, k, apart], -1).to(device), 8, 8)
    start = q.shape[-1] + 8
    return packed, packed[..., : q.shape[-1]], packed[..., start : start + k.shape[-1]]


def gate(case: Case, given: list[torch.Tensor], backend: str | None, device: str = "cpu") -> None:
    """Both outputs, of views of one guarded product whose other columns stay as they are, angles in NaN too."""
    plain = turned(given, "naive")
    packed, q, k = packed_views(case, given, device)
    whole = packed._base
    assert whole is not None
    before = whole.clone()
    cos, sin = (part.clone().to(device) for part in given[2:])
    for part in (cos, sin):
        part[..., case.head_dim // 2 :] = float("nan")
    out = rotate_heads(q, k, guarded(cos), guarded(sin), backend=backend)
    assert out[0] is q and out[1] is k
    for name, x, mine, theirs in zip("qk", given[:2], out, plain, strict=True):
        assert_close(mine, reference(x, *given[2:]), theirs.to(device), name)
    q.fill_(0), k.fill_(0)
    rest = before.isnan() | (whole == 0)
    assert rest.all() and whole.isnan().sum() == before.isnan().sum()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_definition_is_the_rotation(case: Case) -> None:
    given = inputs(case, torch.float64)
    for x, out in zip(given[:2], turned(given, "naive"), strict=True):
        assert relative_error(out, reference(x, *given[2:])) < 1e-14


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_passes_the_gate_where_it_stands_and_writes_nowhere_else(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    skip_without_interpreter(backend)
    gate(case, inputs(case, dtype), backend)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_angles_may_be_of_another_dtype(backend: str) -> None:
    skip_without_interpreter(backend)
    for dtype, angle_dtype in ((torch.float16, torch.float32), (torch.float32, torch.float16)):
        gate(CASES[1], inputs(CASES[1], dtype, angle_dtype), backend)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_any_strides_but_the_last(backend: str) -> None:
    skip_without_interpreter(backend)
    given = inputs(Case(3, 17, 2, 2, 16, own=True), torch.float32)
    expected = [reference(x, *given[2:]) for x in given[:2]]
    # [S, B, width] in memory.
    q, k, cos, sin = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in given)
    for mine, wanted in zip(rotate_heads(q, k, cos, sin, backend=backend), expected, strict=True):
        assert relative_error(mine, wanted) < 1e-6


@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_float64_stays_float64(backend: str) -> None:
    given = inputs(CASES[2], torch.float64)
    for x, out in zip(given[:2], turned(given, backend), strict=True):
        assert out.dtype == torch.float64 and relative_error(out, reference(x, *given[2:])) < 1e-14


def test_no_token_is_no_work() -> None:
    q, k, cos, sin = inputs(CASES[1], torch.float32)
    assert rotate_heads(q[:, :0], k[:, :0], cos[:, :0], sin[:, :0])[0].shape == (2, 0, 768)


def test_the_stream_keeps_a_few_tokens_only(peak_extra_bytes: object) -> None:
    given = inputs(Case(4, 1024, 4, 4, 64), torch.float32)
    extra = peak_extra_bytes(lambda: rotate_heads(*given, backend="torch")[0])  # type: ignore[operator]
    # What comes back was there before, so its bytes are taken off once too often.
    assert extra + given[0].nbytes <= 1.5 * STREAM_BUDGET_BYTES < 0.6 * given[0].nbytes


@pytest.mark.parametrize("bug", ["sign", "position", "pairs", "k", "last token"])
def test_the_gate_sees_a_planted_bug(bug: str) -> None:
    case = CASES[1]
    given = inputs(case, torch.float16)
    q, k, cos, sin = (x.clone() for x in given)
    plain = turned(given, "naive")
    broken = {
        "sign": lambda: rotate_heads(q, k, cos, -sin),
        "position": lambda: rotate_heads(q, k, cos.roll(1, 1), sin),
        "pairs": lambda: rotate_heads(q, k, *(x[..., :32].repeat_interleave(2, -1) for x in (cos, sin))),
        "k": lambda: (rotate_heads(q, k.clone(), cos, sin)[0], k),
        "last token": lambda: (torch.cat([plain[0][:, :-1], q[:, -1:]], 1), plain[1]),
    }[bug]()
    results = [
        check(mine, reference(x, *given[2:]), theirs)
        for x, mine, theirs in zip(given[:2], broken, plain, strict=True)
    ]
    assert not all(result.passed for result in results)


def test_groups_divide_the_heads() -> None:
    for heads, kv_heads, head_dim, seq in (
        (12, 12, 64, 512),
        (7, 1, 80, 3),
        (32, 8, 128, 4096),
        (1, 1, 2, 1),
    ):
        tiles = rotary_tiles(seq, heads, kv_heads, head_dim)
        assert heads % tiles.q_group == kv_heads % tiles.k_group == 0
        assert tiles.block_m * max(tiles.q_group, tiles.k_group) * tiles.block_h <= 2048
        assert tiles.block_h >= head_dim // 2


def test_bad_arguments_are_one_line() -> None:
    q, k, cos, sin = inputs(Case(2, 9, 3, 3, 8), torch.float32)
    packed = torch.zeros(2, 9, 40)
    for call, words in (
        (lambda: rotate_heads(q[0], k, cos, sin), "q must have 3 dimensions"),
        (lambda: rotate_heads(q[..., :20], k, cos, sin), "q must have whole heads of 8 columns"),
        (lambda: rotate_heads(q, k[:, :5], cos, sin), r"k must have shape \[2, 9, 24\]"),
        (lambda: rotate_heads(q, k.half(), cos, sin), "k is torch.float16"),
        (lambda: rotate_heads(q, k, cos[:, :5], sin), r"cos must be \[2 or 1, 9, 8\]"),
        (lambda: rotate_heads(q, k, cos[..., :7], sin[..., :7]), "even head dim"),
        (lambda: rotate_heads(q, k, cos, sin[..., :4]), "sin must have shape"),
        (lambda: rotate_heads(q, k, cos, sin.half()), "sin is torch.float16 but cos"),
        (lambda: rotate_heads(q, k, cos.long(), sin), "cos must be float16"),
        (lambda: rotate_heads(q, k, cos.to("meta"), sin.to("meta")), "cos is on meta but q on cpu"),
        (lambda: rotate_heads(q, q, cos, sin), "q and k must not share memory"),
        (lambda: rotate_heads(packed[..., :24], packed[..., 16:], cos, sin), "must not share memory"),
        (lambda: rotate_heads(q[:, :1].expand(2, 9, 24), k, cos, sin), "rows of q must not share memory"),
        (lambda: rotate_heads(q.mT.contiguous().mT, k, cos, sin), "last stride 1"),
        (lambda: rotate_heads([0.0], k, cos, sin), "q must be a tensor"),  # type: ignore[arg-type]
    ):
        # Refused after a good call too.
        rotate_heads(q, k, cos, sin)
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_kernel_refuses_float64() -> None:
    skip_without_interpreter("interpret")
    with pytest.raises(InputError, match="use backend 'torch'"):
        rotate_heads(*inputs(CASES[1], torch.float64), backend="interpret")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", [*CASES, Case(8, 511, 12, 12, 64), Case(2, 1025, 32, 8, 128, own=True)], ids=str
)
def test_triton_passes_the_gate(case: Case, dtype: torch.dtype) -> None:
    gate(case, inputs(case, dtype), "triton", "cuda")
    gate(case, inputs(case, dtype, torch.float32), "triton", "cuda")
