"""The table of compiled kernels: it opens, answers, and is what the launches of today would take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashsvd.errors import CheckpointError, InputError
from flashsvd.gpus import GPUS, gpu
from flashsvd.onchip.build import _SHOWN, _calls, table_calls
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.compiled import Compiled, Manifest, Table, exact, read, shipped, write
from flashsvd.onchip.compiling import prepare
from flashsvd.onchip.fullness import fullness
from flashsvd.onchip.request import CompileRequest

CALL = KernelCall("ffn", "bf16", 32, 512, 128, 128, width=3072, hidden=768)
MANIFEST = Manifest("3.9.0", "2026-11-29", "python -m flashsvd.onchip.build", 1)


def row(call: KernelCall = CALL, name: str = "H200", **changes: object) -> Compiled:
    ready = prepare(call, gpu(name))
    numbers: dict[str, object] = {"warps": 4, "registers": 156, "shared_bytes": 73856, "triton": "3.9.0"}
    return Compiled(call, name, ready.tiles, ready.grid, **{**numbers, **changes})  # type: ignore[arg-type]


def test_a_table_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "kernels.parquet"
    refused = Compiled(CALL, "T4", {}, (), triton="3.9.0", refusal="has no bf16 instructions: choose fp16")
    write(path, [row(), refused], MANIFEST)
    table = read(path)
    assert table.manifest == MANIFEST and len(table) == 2
    assert table.find(CALL, "H200") == row()
    assert table.find(CALL, "T4") == refused and refused.occupancy is None
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not a table" * 50])
def test_another_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "kernels.parquet"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"make it again with python -m flashsvd\.onchip\.build"):
        read(path)


def test_ranks_find_the_row_whose_tiles_hold_them() -> None:
    table = Table([row(), row(CALL.with_rank(96)), row(CALL.with_rank(104))], MANIFEST)

    def found(call: KernelCall) -> int | None:
        one = table.find(call, "H200")
        return None if one is None else one.call.rank

    assert found(CALL.with_rank(120)) == 128 and found(CALL.with_rank(97)) == 128
    assert found(CALL.with_rank(72)) == 96
    assert found(CALL.with_rank(104)) == 104, "of just this rank"
    assert found(CALL.with_rank(32)) is None and found(CALL.with_rank(136)) is None
    uneven = KernelCall("ffn", "bf16", 32, 512, 128, 72, width=3072, hidden=768)
    assert found(uneven) is None, "no row has both tiles"
    assert table.find(CALL, "A10") is None


def test_the_nearest_number_of_tokens_is_taken_and_told() -> None:
    small = KernelCall("ffn", "bf16", 8, 256, 128, 128, width=3072, hidden=768)
    table = Table([row(), row(small)], MANIFEST)
    few = KernelCall("ffn", "bf16", 1, 64, 128, 128, width=768, hidden=192)
    found = table.find(few, "H200")
    assert found is not None and found.call == small
    assert not exact(found, few) and exact(found, small)


def test_json_round_trips() -> None:
    assert Compiled.from_json(json.loads(json.dumps(row().to_json()))) == row()


def test_a_request_counts_its_rows() -> None:
    names = tuple(one.name for one in GPUS)
    assert CompileRequest(CALL, names).count == len(names)
    swept = CompileRequest(CALL, names, "H200", 128)
    assert [call.rank for call in swept.parts[1][0]] == [32, 64, 96, 128]
    assert swept.count == len(names) + 4


def test_fullness_says_why_there_are_no_numbers() -> None:
    rows = {"H200": row(), "A10": row(name="A10", shared_bytes=1 << 20)}
    found = {one.gpu: one for one in fullness(CALL, lambda call, name: rows.get(name))}
    assert found["H200"].warps == 12 and found["H200"].limiter == "registers"
    assert found["H200"].programs == 256 and 0 < found["H200"].waves < 1
    assert found["A10"].refusal == "does not fit: too much shared memory for one program"
    assert found["T4"].refusal == "not compiled yet for these sizes"


def test_the_shipped_table_has_what_pages_open_on() -> None:
    table = shipped()
    assert table.manifest.rows == len(table)
    assert table.manifest.command == "python -m flashsvd.onchip.build"
    for shown in _SHOWN:
        for call in _calls(*shown, 0.5).values():
            for one in GPUS:
                if one.sm >= 80:
                    found = table.find(call, one.name)
                    assert found is not None and exact(found, call), (call, one.name)


def test_the_shipped_tiles_are_those_of_todays_launches() -> None:
    wanted = set(table_calls())
    checked = 0
    for found in shipped():
        assert found.call in wanted
        try:
            ready = prepare(found.call, gpu(found.gpu))
        except InputError as error:
            assert found.refusal == str(error)
            continue
        assert found.tiles == json.loads(json.dumps(ready.tiles)) and found.grid == ready.grid
        checked += 1
        if not found.refusal:
            occupied = found.occupancy
            assert occupied is not None and occupied.blocks >= 1, found
            assert 16 <= found.registers <= 255
    assert checked > 50
