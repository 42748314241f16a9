"""The embedding op: every backend against torch in fp64, indices of every form, and bugs that must not pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from kernel_cases import CPU_BACKENDS, DTYPES, GPU_DTYPES, guarded, skip_without_interpreter

from flashsvd.errors import InputError
from flashsvd.kernels.embedding import INDEX_DTYPES, MAX_TABLES, embed_norm
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.norm import KINDS
from flashsvd.kernels.tiles import STREAM_BUDGET_BYTES

SHAPES = ((1, 1, 1), (3, 1, 17), (2, 17, 64), (5, 9, 97), (2, 3, 1030))
"""Batch, sequence, width."""
ROWS = (50, 31, 2)
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """The arguments of one call: words, positions of every sequence alike, token types."""

    tables: tuple[torch.Tensor, ...]
    indices: tuple[torch.Tensor, ...]
    weight: torch.Tensor
    shift: torch.Tensor | None
    bias: torch.Tensor | None
    kind: str = "layer"

    def run(self, backend: str | None) -> torch.Tensor:
        return embed_norm(
            self.tables,
            self.indices,
            self.weight,
            self.shift,
            EPS,
            bias=self.bias,
            kind=self.kind,  # type: ignore[arg-type]
            backend=backend,
        )

    def cuda(self) -> Case:
        return replace(
            self,
            tables=tuple(table.cuda() for table in self.tables),
            indices=tuple(index.cuda() for index in self.indices),
            weight=self.weight.cuda(),
            shift=None if self.shift is None else self.shift.cuda(),
            bias=None if self.bias is None else self.bias.cuda(),
        )


def case(
    shape: tuple[int, int, int], dtype: torch.dtype, tables: int = 3, kind: str = "layer", plain: bool = False
) -> Case:
    """Random tables with a mean far from 0; `plain` is without shift and bias."""
    batch, seq, width = shape
    generator = torch.Generator().manual_seed(batch * 10000 + seq * 1000 + width)
    weight, shift, bias = (torch.randn(width, generator=generator).to(dtype) for _ in range(3))
    batches = (batch, 1, batch)
    return Case(
        tuple((torch.randn(rows, width, generator=generator) + 1).to(dtype) for rows in ROWS[:tables]),
        tuple(
            torch.randint(rows, (count, seq), generator=generator)
            for rows, count in zip(ROWS[:tables], batches, strict=False)
        ),
        weight,
        None if plain else shift,
        None if plain else bias,
        kind,
    )


def reference(given: Case) -> torch.Tensor:
    """fp64, by torch's own indexing and norms."""
    total: Any = 0
    for table, index in zip(given.tables, given.indices, strict=True):
        total = total + table.double()[index.long()]
    if given.bias is not None:
        total = total + given.bias.double()
    width, weight = total.shape[-1:], given.weight.double()
    shift = None if given.shift is None else given.shift.double()
    if given.kind == "layer":
        return torch.nn.functional.layer_norm(total, width, weight, shift, EPS)
    out = torch.nn.functional.rms_norm(total, width, weight, EPS)
    return out if shift is None else out + shift


def guarded_index(index: torch.Tensor) -> torch.Tensor:
    """The same indices inside a larger buffer of ones that no table has."""
    around = torch.full([size + 2 for size in index.shape], 1 << 30, dtype=index.dtype)
    view = around[1:-1, 1:-1]
    return view.copy_(index)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_definition_is_lookups_and_a_norm(shape: tuple[int, int, int], kind: str) -> None:
    for tables in range(1, MAX_TABLES + 1):
        for plain in (False, True):
            given = case(shape, torch.float64, tables, kind, plain)
            for backend in ("naive", "torch"):
                assert relative_error(given.run(backend), reference(given)) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tables", range(1, MAX_TABLES + 1))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_passes_the_gate_and_reads_nothing_else(
    shape: tuple[int, int, int], tables: int, kind: str, backend: str, dtype: torch.dtype
) -> None:
    skip_without_interpreter(backend)
    for plain in (False, True):
        given = case(shape, dtype, tables, kind, plain)
        held = replace(
            given,
            tables=tuple(guarded(table) for table in given.tables),
            indices=tuple(guarded_index(index) for index in given.indices),
        )
        out = held.run(backend)
        assert out.is_contiguous() and out.dtype == dtype
        assert_close(out, reference(given), given.run("naive"), f"plain {plain}")


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
@pytest.mark.parametrize("dtype", INDEX_DTYPES, ids=str)
def test_indices_may_be_of_either_width_and_any_stride(dtype: torch.dtype, backend: str) -> None:
    skip_without_interpreter(backend)
    given = case((4, 7, 33), torch.float32)
    words, positions, types = given.indices
    expected = given.run(backend)
    for indices in (
        (words, positions, types),
        (words, positions.expand(4, 7), types),
        (words.T.contiguous().T, positions.repeat(4, 1), types.repeat(1, 2)[:, :7]),
    ):
        other = replace(given, indices=tuple(index.to(dtype) for index in indices))
        assert torch.equal(other.run(backend), expected)


def test_one_type_for_every_token_is_a_bias() -> None:
    given = case((3, 5, 40), torch.float32, plain=True)
    words, positions, types = given.indices
    given = replace(given, indices=(words, positions, torch.ones_like(types)))
    short = replace(
        given, tables=given.tables[:2], indices=given.indices[:2], bias=given.tables[2][1].contiguous()
    )
    assert_close(short.run("torch"), reference(given), given.run("naive"), "bias")


@pytest.mark.parametrize("row", [-1, 50, 1 << 31])
def test_a_row_that_no_table_has_is_never_a_number(row: int) -> None:
    given = case((2, 6, 20), torch.float32)
    words = given.indices[0].clone()
    words[1, 4] = row
    broken = replace(given, indices=(words, *given.indices[1:]))
    for backend in ("naive", "torch"):
        with pytest.raises(IndexError):
            broken.run(backend)
    skip_without_interpreter("interpret")
    out, expected = broken.run("interpret"), given.run("interpret")
    assert out[1, 4].isnan().all()
    out[1, 4] = expected[1, 4]
    assert torch.equal(out, expected)


def test_nothing_of_the_size_of_the_output_is_alive_beside_it(
    peak_extra_bytes: Callable[[Callable[[], torch.Tensor]], int],
) -> None:
    given = case((16, 512, 256), torch.float32)
    assert peak_extra_bytes(lambda: given.run("naive")) > 2 * given.run("naive").nbytes
    assert peak_extra_bytes(lambda: given.run("torch")) < 1.1 * STREAM_BUDGET_BYTES


def test_no_tokens_is_no_work() -> None:
    given = case((2, 3, 16), torch.float32)
    empty = replace(given, indices=tuple(index[:, :0] for index in given.indices))
    assert empty.run("torch").shape == (2, 0, 16)


@pytest.mark.parametrize("bug", ["bias", "shift", "mean", "types", "positions", "last column"])
def test_the_gate_sees_a_planted_bug(bug: str) -> None:
    given = case((3, 17, 64), torch.float16)
    words, positions, types = given.indices
    plain = given.run("naive")
    broken = {
        "bias": lambda: replace(given, bias=None).run("torch"),
        "shift": lambda: replace(given, shift=None).run("torch"),
        "mean": lambda: replace(given, kind="rms").run("torch"),
        "types": lambda: replace(given, tables=given.tables[:2], indices=given.indices[:2]).run("torch"),
        "positions": lambda: replace(given, indices=(words, positions.roll(1, 1), types)).run("torch"),
        "last column": lambda: torch.cat([plain[..., :-1], plain[..., :1]], -1),
    }[bug]()
    assert not check(broken, reference(given), plain).passed


def test_bad_arguments_are_one_line() -> None:
    given = case((3, 5, 16), torch.float32)
    words, positions, types = given.indices
    first, second, third = given.tables
    assert given.shift is not None
    for changed, message in (
        ({"tables": ()}, "1 to 3 matrices"),
        ({"tables": (first,) * 4, "indices": (words,) * 4}, "1 to 3 matrices"),
        ({"indices": (words,)}, "got 3 and 1"),
        ({"tables": (first, second[:, :8], third)}, r"tables\[1\] must have shape"),
        ({"tables": (first, second, third.half())}, r"tables\[2\] is torch.float16"),
        ({"tables": (first[None], second, third)}, r"must be \[rows, N\]"),
        ({"tables": (first.T.contiguous().T, second, third)}, "last stride 1"),
        ({"indices": (words.float(), positions, types)}, "int64 or int32"),
        ({"indices": (words, positions[:, :4], types)}, r"must be \[3, 5\] or \[1, 5\], got \[1, 4\]"),
        ({"indices": (words[0], positions, types)}, r"must be \[batch, sequence\]"),
        ({"indices": (words, None, types)}, "got NoneType"),
        ({"indices": (words, positions.to("meta"), types)}, "on meta"),
        ({"weight": given.weight[:8]}, "weight must have shape"),
        ({"weight": given.weight.repeat(2)[::2]}, "weight must have last stride 1"),
        ({"shift": given.shift.half()}, "shift is torch.float16"),
        ({"kind": "batch"}, "one of layer, rms"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            replace(given, **changed).run("torch")  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    skip_without_interpreter("interpret")
    with pytest.raises(InputError, match="use backend 'torch'"):
        case((3, 5, 16), torch.float64).run("interpret")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (9, 511, 768), (3, 171, 4096)], ids=str)
def test_triton_passes_the_gate(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for kind in KINDS:
        for tables in range(1, MAX_TABLES + 1):
            given = case(shape, dtype, tables, kind).cuda()
            short = replace(given, indices=tuple(index.int() for index in given.indices))
            expected, plain = reference(given), given.run("naive")
            for one in (given, short):
                assert_close(one.run(None), expected, plain, f"{kind} {tables}")


@pytest.mark.gpu
def test_triton_reads_nothing_for_a_row_that_no_table_has() -> None:
    given = case((2, 6, 20), torch.float32).cuda()
    expected = given.run(None)
    for row in (-1, 50, 1 << 40):
        words = given.indices[0].clone()
        words[1, 4] = row
        out = replace(given, indices=(words, *given.indices[1:])).run(None)
        assert out[1, 4].isnan().all()
        out[1, 4] = expected[1, 4]
        assert torch.equal(out, expected)
