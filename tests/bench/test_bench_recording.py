"""A sweep saved point by point: what is read back is what was measured, and nothing finished is ever lost."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_points import GREEN, MACHINE, PLACE, row, saved, saved_decode, saved_prefill

from flashsvd import recording
from flashsvd.bench import request
from flashsvd.bench import saved as files
from flashsvd.bench.encoder import EncoderRequest, bench_encoder
from flashsvd.bench.record import (
    measure_points,
    model_requests,
    record_decode,
    record_encoder,
    record_prefill,
)
from flashsvd.bench.request import ModelBench
from flashsvd.bench.rows import Row
from flashsvd.bench.saved import SavedPoint, add_point, check_target, merged, read_points, write_points
from flashsvd.errors import InputError
from flashsvd.results import PlanChoice, Quantiles
from flashsvd.session import Session
from flashsvd.tables import Kind, write_table

ENGINES = ("dense", "dense-compile", "lowrank", "flash", "flash-graph")
OPTIONS: dict[str, Any] = {
    "batch": [2],
    "dtype": ["fp32"],
    "device": "cpu",
    "engines": ENGINES,
    "compile_backend": "eager",
    "repeats": 3,
}


@pytest.fixture(scope="module")
def swept(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real sweep of four points, recorded in two runs, with ceilings of a moment."""
    file = tmp_path_factory.mktemp("swept") / "deep" / "tiny.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashsvd.measure.ceilings._MATMUL_SIZE", {"cpu": 32})
        patch.setattr("flashsvd.measure.ceilings._COPY_BYTES", {"cpu": 4096})
        patch.setattr(Session, "spectra", lambda *_: pytest.fail("decomposed"))
        for seq in (8, 16):
            record_encoder(
                file, str(tiny_folder), ranks=[(9, 20, 11), (4, 8, 8)], seq=[seq], append=True, **OPTIONS
            )
    return file


def test_a_sweep_in_two_runs_is_one_file_of_whole_points(swept: Path, tiny_folder: Path) -> None:
    points = read_points(swept)
    assert [(one.point.config["seq"], one.point.config["ranks"]) for one in points] == [
        (8, "9,20,11"),
        (8, "4,8,8"),
        (16, "9,20,11"),
        (16, "4,8,8"),
    ]
    for one in points:
        assert one.point.command.startswith(f"python -m flashsvd bench encoder {tiny_folder} --ranks")
        assert "--method random" in one.point.command and one.point.created.endswith("+00:00")
        assert one.place.machine.cpu and one.place.versions["flashsvd"] and one.place.ceilings.fp32_tflops
        assert [row.name for row in one.point.rows] == list(ENGINES)
        for measured in one.point.rows[:-1]:
            assert measured.gate and measured.gate.passed and measured.latency_ms and measured.speedup
            assert measured.repeats == 3 and measured.weight_bytes and measured.tflops
        assert one.point.rows[-1].status == "left out" and one.point.rows[-1].latency_ms is None
    assert points[0].place != points[2].place or points[0].point.created <= points[2].point.created
    assert [path.name for path in swept.parent.iterdir()] == ["tiny.parquet"]


def test_the_table_can_be_read_with_no_header(swept: Path) -> None:
    frame = pq.read_table(swept).to_pandas()
    assert len(frame) == 4 * len(ENGINES)
    flash = frame[(frame["name"] == "flash") & (frame["seq"] == 16) & (frame["ranks"] == "(4,8,8)")].iloc[0]
    assert (
        flash["p20_ms"] <= flash["p50_ms"] <= flash["p80_ms"] and flash["gate_error"] <= flash["gate_limit"]
    )
    assert flash["peak_bytes"] > 0 and flash["ceiling_share"] >= flash["compute_share"]
    assert flash["dtype"] == "fp32" and flash["batch"] == 2 and flash["machine"].startswith("CPU")


def test_equal_points_are_replaced_and_the_others_stay(swept: Path, tmp_path: Path) -> None:
    points = read_points(swept)
    file = tmp_path / "again.parquet"
    write_points(file, points)
    newer = replace(points[1], point=replace(points[1].point, created="2030-01-01T00:00:00+00:00"))
    add_point(file, newer)
    assert read_points(file) == (points[0], newer, *points[2:])


numbers = st.none() | st.floats(allow_nan=False)
counts = st.none() | st.integers(0, 2**62)
words = st.none() | st.text(max_size=20)
rows = st.builds(
    Row,
    name=st.text(max_size=8),
    what=st.text(max_size=8),
    status=st.sampled_from(["measured", "failed", "left out"]),
    reason=words,
    latency_ms=st.none() | st.builds(Quantiles, *(st.floats(0, 1e9),) * 3),
    repeats=st.integers(0, 2**31),
    peak_bytes=counts,
    weight_bytes=counts,
    flops=counts,
    bytes=counts,
    tflops=numbers,
    speedup=numbers,
    speedup_refused=words,
    runtime_speedup=numbers,
    runtime_refused=words,
    tokens_per_second=numbers,
    kv_bytes=counts,
    kernels=counts,
    launches=counts,
    agreement=numbers,
    differences=counts,
    gate=st.none() | st.just(GREEN) | st.just(replace(GREEN, error=math.inf, passed=False)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.lists(rows, max_size=3), max_size=3))
def test_any_rows_read_back_as_they_were(tmp_path: Path, groups: list[list[Row]]) -> None:
    points = tuple(
        SavedPoint(replace(saved(seq=index + 1).point, rows=tuple(group)), PLACE)
        for index, group in enumerate(groups)
    )
    write_points(tmp_path / "any.parquet", points)
    assert read_points(tmp_path / "any.parquet") == points


@given(st.lists(st.tuples(st.sampled_from([128, 512]), st.sampled_from(["9,9,9", "8,8,8"]), st.booleans())))
def test_merging_keeps_one_of_each_and_never_loses_a_measured_one(
    additions: list[tuple[int, str, bool]],
) -> None:
    found: tuple[SavedPoint, ...] = ()
    for index, (seq, ranks, fails) in enumerate(additions):
        found = merged(
            found, saved(seq=seq, ranks=ranks, created=str(index), failure="full" if fails else None)
        )
    settings_seen = {(seq, ranks) for seq, ranks, _ in additions}
    assert {(one.point.config["seq"], one.point.config["ranks"]) for one in found} == settings_seen
    assert len(found) == len(settings_seen)
    for one in found:
        key = one.point.config["seq"], one.point.config["ranks"]
        mine = [(str(index), fails) for index, (*what, fails) in enumerate(additions) if tuple(what) == key]
        measured = [created for created, fails in mine if not fails]
        assert one.point.created == (measured or [created for created, _ in mine])[-1]


def test_another_machine_dtype_or_split_is_another_point_and_how_it_was_measured_is_not() -> None:
    elsewhere = replace(PLACE, machine=replace(MACHINE, accelerator="NVIDIA A100"))
    points = [
        saved(),
        saved(dtype="fp16"),
        saved(batch=8),
        saved(per_head=False),
        saved(model="bert-large"),
        saved(place=elsewhere),
    ]
    assert len({one.identity for one in points}) == len(points)
    again = saved(method="svd", repeats=5, budget=3.0, seed=7, engines=("dense",), device="cuda:0")
    assert again.identity == saved().identity


def test_decode_and_prefill_points_are_points_of_their_own(tmp_path: Path) -> None:
    points = (saved(), saved_decode(), saved_prefill(), saved_decode(context=4096), saved_decode(batch=16))
    assert len({one.identity for one in points}) == len(points)
    assert saved_decode(new_tokens=8, seed=3).identity == saved_decode().identity
    write_points(tmp_path / "all.parquet", points)
    assert read_points(tmp_path / "all.parquet") == points
    frame = pq.read_table(tmp_path / "all.parquet").to_pandas()
    graph = frame[(frame["bench"] == "decode") & (frame["name"] == "flash-graph")].iloc[0]
    assert (graph["context"], graph["launches"], graph["tokens_per_second"]) == (512, 1, 500)
    assert frame[frame["bench"] == "prefill"]["seq"].eq(2048).all()


def test_files_from_before_decoders_are_read(tmp_path: Path) -> None:
    file = tmp_path / "old.parquet"
    write_points(file, [saved()])
    later = ["bench", "context", "kv_bytes", "launches", "agreement", "runtime_speedup"]
    pq.write_table(pq.read_table(file).drop_columns(later), file)
    assert read_points(file) == (saved(),)


def test_decoders_are_recorded_with_nothing_but_a_call(
    writer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flashsvd.measure.ceilings._MATMUL_SIZE", {"cpu": 32})
    monkeypatch.setattr("flashsvd.measure.ceilings._COPY_BYTES", {"cpu": 4096})
    monkeypatch.setattr(Session, "spectra", lambda *_: pytest.fail("decomposed"))
    file = tmp_path / "writer.parquet"
    options: dict[str, Any] = {"keep": [0.5], "dtype": ["fp32"], "device": "cpu", "per_head": False}
    options |= {"engines": ("dense", "lowrank"), "repeats": 3}
    record_decode(file, str(writer_folder), batch=[1, 2], context=[8], new_tokens=3, **options)
    record_prefill(file, str(writer_folder), seq=[8, 9], append=True, **options)
    printed = capsys.readouterr().out
    assert printed.count("decode: model") == printed.count("prefill: model") == 2
    points = [one.point for one in read_points(file)]
    assert [point.bench for point in points] == ["decode"] * 2 + ["prefill"] * 2
    assert points[1].command.startswith(f"python -m flashsvd bench decode {writer_folder} --keep 0.5 --whole")
    assert all(row.gate and row.gate.passed and row.agreement == 1 for point in points for row in point.rows)


def _measured(request: EncoderRequest, *_: object) -> tuple[str, tuple[Row, ...]]:
    return "about", (row("dense", 1.0),)


def _requests() -> list[EncoderRequest]:
    plan = (PlanChoice(ranks=(9, 9, 9)), ("ranks", "9,9,9"))
    return model_requests(
        EncoderRequest, [plan], {"dtype": ["fp32"], "batch": [1], "seq": [1, 2, 3]}, model="any"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA error"), SystemExit(1)])
def test_what_was_finished_is_in_the_file_whatever_ends_the_sweep(
    tmp_path: Path, error: BaseException
) -> None:
    file = tmp_path / "cut.parquet"

    def measure(request: EncoderRequest, *rest: object) -> tuple[str, tuple[Row, ...]]:
        if request.seq == 3:
            raise error
        assert request.seq == 1 or len(read_points(file)) == request.seq - 1
        return _measured(request)

    with pytest.raises(type(error)):
        list(measure_points(_requests(), measure, PLACE, lambda *_: None, save=file))
    assert [one.point.config["seq"] for one in read_points(file)] == [1, 2]


def test_a_point_out_of_memory_is_saved_as_one(tmp_path: Path) -> None:
    file = tmp_path / "full.parquet"

    def measure(request: EncoderRequest, *_: object) -> tuple[str, tuple[Row, ...]]:
        if request.seq == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return _measured(request)

    list(measure_points(_requests(), measure, PLACE, lambda *_: None, save=file))
    found = read_points(file)
    assert [one.point.failure for one in found] == [None, "OutOfMemoryError: CUDA out of memory", None]


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kept.parquet"
    add_point(file, saved())
    before = file.read_bytes()

    def full(_: pa.Table, part: Path, **__: object) -> None:
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match=r"cannot write .*kept.parquet: No space left on device$"):
        add_point(file, saved(seq=128))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def _text(file: Path) -> None:
    file.write_text("hello")


def _plain_table(file: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), file)


def _other_kind(file: Path) -> None:
    file.write_bytes(recording.bundled()[0].read_bytes())


def _fewer_columns(file: Path) -> None:
    pq.write_table(pq.read_table(file).drop_columns(["p50_ms", "gate_error"]), file)


def _words_for_numbers(file: Path) -> None:
    table = pq.read_table(file)
    column = pa.array(["many"] * len(table))
    pq.write_table(table.set_column(table.column_names.index("repeats"), "repeats", column), file)


def _header(**changes: Any) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        kind, table = Kind("bench recording", "flashsvd-bench-recording/1"), pq.read_table(file)
        write_table(file, kind, changes, table)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_cut, "is not a bench recording or is cut short"),
        (_text, "is not a bench recording or is cut short"),
        (_plain_table, "is not a bench recording or is cut short"),
        (Path.unlink, "is not there; expected a bench recording"),
        (_other_kind, "has format 'flashsvd-recording/1', expected 'flashsvd-bench-recording/1'"),
        (_fewer_columns, "lacks the columns p50_ms, gate_error"),
        (_words_for_numbers, "is malformed"),
        (_header(), "is malformed"),
        (_header(points=7), "is malformed"),
        (_header(points=[{"bench": "encoder"}]), "is malformed"),
    ],
)
def test_a_file_that_is_no_bench_recording_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    file = tmp_path / "run.parquet"
    add_point(file, saved())
    spoil(file)
    with pytest.raises(InputError, match=words) as error:
        read_points(file)
    assert str(error.value).startswith("run.parquet ") and "\n" not in str(error.value)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_point(tmp_path / "run.parquet", saved())
    monkeypatch.setattr("flashsvd.tables._LIMIT_BYTES", 2**10)
    with pytest.raises(InputError, match=r"run.parquet is larger than a bench recording may be"):
        read_points(tmp_path / "run.parquet")


def test_where_a_sweep_could_not_be_saved_is_said_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.parquet"
    check_target(tmp_path / "new" / "folder" / "run.parquet", append=False)
    check_target(file, append=True)
    assert list(tmp_path.iterdir()) == []
    add_point(file, saved())
    check_target(file, append=True)
    with pytest.raises(InputError, match="is there already: add --append"):
        check_target(file, append=False)
    with pytest.raises(InputError, match="is not a folder that can be written to"):
        check_target(file / "below.parquet", append=False)
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="is not a folder that can be written to"):
        check_target(tmp_path / "other.parquet", append=False)


def test_bad_sweeps_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for changes, words_expected in (
        ({"engines": ("dense", "warp")}, "engines must be some of dense, dense-compile, .*, got 'warp'"),
        ({"ranks": []}, "at least one plan"),
        ({"budget": 0}, "budget must be"),
        ({"budget": math.nan}, "budget must be"),
        ({"method": "zip"}, "method must be one of"),
    ):
        arguments: dict[str, Any] = {"ranks": [(9, 9, 9)], "seq": [8], **OPTIONS, **changes}
        with pytest.raises(InputError, match=words_expected):
            record_encoder(tmp_path / "none.parquet", "no/such/model", **arguments)


def test_recording_needs_nothing_of_the_command_line() -> None:
    missing = ("typer", "rich", "plotly", "streamlit", "dask", "distributed", "platformdirs")
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    code += "from flashsvd.bench.record import record_decode, record_encoder, record_prefill\n"
    code += "from flashsvd.bench.report import report\n"
    code += "from flashsvd.generation.generate import generate\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def graphs() -> Iterator[list[int]]:
    """Gets an entry for every graph that the backend "counted" compiles."""
    found: list[int] = []

    def counted(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        found.append(len(inputs))
        return module.forward

    torch._dynamo.register_backend(counted, name="counted")
    yield found


def test_the_dense_model_is_compiled_once_for_all_plans_of_an_input(
    tiny_folder: Path, graphs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "MOST_COMPILED", 3)
    compiled = []
    bench = ModelBench(Session(), bench_encoder)
    fixed = {**OPTIONS, "engines": ("dense-compile",), "compile_backend": "counted", "method": "random"}
    sizes = {name: fixed.pop(name) for name in ("dtype", "batch")} | {"seq": [8, 16]}
    plans = [(PlanChoice(ranks=(9, 20, rank)), ("ranks", f"9,20,{rank}")) for rank in (5, 7, 9, 11)]
    requests = model_requests(EncoderRequest, plans, sizes, model=str(tiny_folder), **fixed)
    for asked in requests:
        graphs.clear()
        _, (dense,) = bench(asked, PLACE.ceilings, lambda *_: None)
        assert dense.gate and dense.gate.passed, dense
        compiled.append(len(graphs))
    assert compiled == [1, 0, 0, 1] * 2
