"""`bench` as a person types it, odd arguments and all."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashsvd.bench import ffn
from flashsvd.bench.saved import read_points
from flashsvd.cli import main
from flashsvd.cli.commands import application
from flashsvd.errors import FlashSVDError
from tests.small_decoders import DecoderFolder

FFN = ("bench", "ffn", "--width", "64", "--rank", "8", "--dtype", "fp32", "--device", "cpu", "--repeats", "3")


@pytest.fixture(autouse=True)
def _quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashsvd.measure.ceilings._MATMUL_SIZE", {"cpu": 32})
    monkeypatch.setattr("flashsvd.measure.ceilings._COPY_BYTES", {"cpu": 4096})


def _run(*arguments: str) -> tuple[str, str]:
    """stdout and stderr; runs in this process, as importing torch anew would be most of the time."""
    done = CliRunner().invoke(application, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_a_sweep_is_one_document_of_rows_that_stand_alone() -> None:
    stdout, stderr = _run(*FFN, "--rows", "32,48", "--rows", "64", "--json")
    found = json.loads(stdout)
    assert [row["config"]["rows"] for row in found["rows"]][::4] == [32, 48, 64]
    assert len(found["rows"]) == 12 and not found["interrupted"] and not found["failures"]
    for row in found["rows"]:
        assert row["machine"]["cpu"] and row["versions"]["torch"] and row["created"] and row["gate"]
        assert row["command"].startswith(f"python -m flashsvd bench ffn --rows {row['config']['rows']} ")
    assert "[3/3] Timing" in stderr.splitlines()


def test_the_command_of_a_row_repeats_it() -> None:
    row = json.loads(_run(*FFN, "--rows", "32", "--json")[0])["rows"][0]
    again = json.loads(_run(*row["command"].split()[3:], "--json")[0])["rows"][0]
    assert again["config"] == row["config"] and again["command"] == row["command"]


def test_tables_come_one_by_one(tiny_folder: Path) -> None:
    stdout, _ = _run(
        "bench",
        "encoder",
        str(tiny_folder),
        *("--ranks", "9,20,11:4,8,8", "--batch", "2", "--seq", "16", "--repeats", "3", "--device", "cpu"),
        *("--engines", "dense,dense-compile,lowrank", "--compile-backend", "eager"),
    )
    assert stdout.count("speed-up over dense-compile, less peak than dense") == 2
    assert "ranks 9,20,11" in stdout and "ranks 4,8,8" in stdout and "ceilings measured now" in stdout
    assert stdout.count(" ok ") == 6 and max(map(len, stdout.splitlines()[5:9])) < 120


def test_save_keeps_every_point_and_append_adds(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.parquet"
    common = ("bench", "encoder", str(tiny_folder), "--method", "random", "--batch", "2", "--repeats", "3")
    common += ("--device", "cpu", "--engines", "dense,lowrank", "--budget", "5", "--save", str(file))
    _run(*common, "--ranks", "9,20,11:4,8,8", "--seq", "8")
    with pytest.raises(FlashSVDError, match="is there already: add --append"):
        _run(*common, "--ranks", "4,8,8", "--seq", "8")
    _run(*common, "--ranks", "4,8,8", "--seq", "8,16", "--append")
    found = read_points(file)
    assert [(one.point.config["ranks"], one.point.config["seq"]) for one in found] == [
        ("9,20,11", 8),
        ("4,8,8", 8),
        ("4,8,8", 16),
    ]
    assert "--method random" in found[0].point.command and "--budget 5.0" in found[0].point.command
    assert all(row.gate and row.gate.passed for one in found for row in one.point.rows)
    _run(*found[2].point.command.split()[3:], "--save", str(file), "--append")
    assert [one.identity for one in read_points(file)] == [one.identity for one in found]


def test_attention_has_its_rows() -> None:
    small = (
        "--batch",
        "2",
        "--seq",
        "9",
        "--heads",
        "2",
        "--head-dim",
        "16",
        "--rank",
        "4",
        "--dtype",
        "fp32",
    )
    found = json.loads(_run("bench", "attention", *small, "--device", "cpu", "--repeats", "3", "--json")[0])
    assert {"dense", "lowrank", "flash"} <= {row["name"] for row in found["rows"]}


def test_decode_and_prefill_are_rows_of_json_and_tables(
    tmp_path: Path, decoder_folder: DecoderFolder
) -> None:
    folder, file = str(decoder_folder("llama")), tmp_path / "run.parquet"
    common = (folder, "--whole", "--method", "random", "--repeats", "3", "--device", "cpu")
    engines, save = ("--engines", "dense,lowrank,flash-graph"), ("--save", str(file), "--append")
    shown, _ = _run("bench", "decode", *common, *engines, "--context", "8,9", "--new-tokens", "3")
    assert shown.count("decode: model") == 2 and "over own dense" in shown and "tokens/s" in shown
    sizes = ("--batch", "1,2", "--context", "8", "--new-tokens", "3")
    found = json.loads(_run("bench", "decode", *common, *engines, *save, *sizes, "--json")[0])
    assert [row["name"] for row in found["rows"]] == ["dense", "lowrank", "flash-graph"] * 2
    assert [row["config"]["batch"] for row in found["rows"][::3]] == [1, 2]
    dense, _, graph = found["rows"][:3]
    assert dense["baselines"] == {
        "latency": "dense-static-compile",
        "peak": "dense",
        "runtime": "dense-graph",
    }
    assert dense["tokens_per_second"] and dense["kv_bytes"] and dense["agreement"] == 1.0
    assert graph["status"] == "left out" and graph["launches"] is None
    again = json.loads(_run(*dense["command"].split()[3:], "--json")[0])["rows"][0]
    assert again["config"] == dense["config"]
    sizes = ("--seq", "8", "--batch", "2", "--engines", "dense,dense-micro")
    found = json.loads(_run("bench", "prefill", *common, *save, *sizes, "--json")[0])
    assert [row["name"] for row in found["rows"]] == ["dense", "dense-micro"]
    assert found["rows"][1]["peak_reduction"] > 1
    assert [one.point.bench for one in read_points(file)] == ["decode", "decode", "prefill"]


def test_a_point_that_does_not_fit_is_one_line_and_the_sweep_goes_on() -> None:
    stdout, _ = _run(*FFN, "--rows", "1000000000000,32")
    assert sum("failed: OutOfMemoryError" in line for line in stdout.splitlines()) == 1
    assert "flash_svd_ffn" in stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_finished_survives_an_interrupt(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ffn.bench_ffn

    def interrupted(request: ffn.FfnRequest, *rest: Any) -> Any:
        if request.rows == 48:
            signal.raise_signal(number)
        return measure(request, *rest)

    monkeypatch.setattr(ffn, "bench_ffn", interrupted)
    done = CliRunner().invoke(application, [*FFN, "--rows", "32,48,64", "--json"])
    found = json.loads(done.stdout)
    assert found["interrupted"] and {row["config"]["rows"] for row in found["rows"]} == {32}
    assert done.exit_code == 130 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("encoder", "no/such"), "hub cannot be reached"),
        (("encoder", "bert-base", "--engines", "dense,warp"), "got 'warp'"),
        (("encoder", "bert-base", "--engines", ","), "--engines names nothing"),
        (("encoder", "bert-base", "--batch", "two"), "--batch takes whole numbers"),
        (("encoder", "bert-base", "--batch", "1.5"), "--batch takes whole numbers"),
        (("encoder", "bert-base", "--seq", ""), "--seq names nothing"),
        (("encoder", "bert-base", "--batch", "0"), "batch must be at least 1"),
        (("encoder", "bert-base", "--repeats", "-1"), "repeats must be at least 1"),
        (("encoder", "bert-base", "--dtype", "bf16,int8"), "dtype must be one of"),
        (("encoder", "bert-base", "--keep", "0.5", "--ranks", "1,2,3"), "one of --keep, --ranks"),
        (("encoder", "bert-base", "--ranks", "40,240"), "three whole numbers"),
        (("encoder", "bert-base", "--keep", "much"), "FIRST:LAST:STEP"),
        (("encoder", "bert-base", "--plan", "missing.json"), "cannot read the plan"),
        (("encoder", "bert-base", "--device", "tpu"), "device must be"),
        (("decode", "electra-small"), "does not write text: expected a causal language model of one of"),
        (("decode", "no/such"), "hub cannot be reached"),
        (("decode", "llama-2-7b", "--engines", "flash-rebuild"), "got 'flash-rebuild'"),
        (("decode", "llama-2-7b", "--context", "0"), "context must be at least 1"),
        (("decode", "llama-2-7b", "--context", "many"), "--context takes whole numbers"),
        (("decode", "llama-2-7b", "--new-tokens", "0"), "new-tokens must be at least 1"),
        (("decode", "llama-2-7b", "--append"), "--append adds to the file of --save"),
        (("prefill", "electra-small"), "does not write text"),
        (
            ("prefill", "llama-2-7b", "--engines", "flash-graph-rank"),
            "engines must be some of dense, dense-compile",
        ),
        (("prefill", "llama-2-7b", "--budget", "0"), "budget must be"),
        (("ffn", "--rows", "64", "--rank", "-3"), "rank must be at least 1"),
        (("ffn", "--activation", "selu"), "activation must be one of"),
        (("ffn", "--device", "cuda:99"), "no "),
        (("attention", "--rank", "65"), "rank must be from 1 to 64"),
        (("encoder", "bert-base", "--method", "zip"), "method must be one of"),
        (("encoder", "bert-base", "--seed", "-1"), "seed must be from 0"),
        (("ffn", "--seed", "4294967296"), "seed must be from 0"),
        (("attention", "--head-dim", "0"), "head-dim must be at least 1"),
        (("encoder", "bert-base", "--append"), "--append adds to the file of --save"),
        (
            ("encoder", "bert-base", "--save", f"{__file__}/x.parquet"),
            "is not a folder that can be written to",
        ),
        (("encoder", "bert-base", "--save", __file__), "is there already: add --append"),
        (("encoder", "bert-base", "--save", __file__, "--append"), "is not a bench recording"),
        (("encoder", "bert-base", "--budget", "-1"), "budget must be"),
        (("ffn", "--rows", ",".join(map(str, range(1, 1200)))), "at most 1000 points"),
    ],
)
def test_bad_input_is_an_error_for_people(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(FlashSVDError, match=words) as error:
        CliRunner().invoke(application, ["bench", *arguments], catch_exceptions=False)
    assert "\n" not in str(error.value)


def test_a_plan_that_does_not_fit_is_one_line_and_exit_code_2(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flashsvd", "bench", "encoder", str(tiny_folder), "--seq", "16,65"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"error: seq must be from 1 to 64 (the positions of {tiny_folder}), got 65"]


def test_what_a_measuring_machine_lacks_is_not_imported() -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['flashsvd', *{[*FFN, '--rows', '32', '--json']!r}]\n"
        "runpy.run_module('flashsvd', run_name='__main__')\n"
    )
    blocked = ("plotly", "streamlit", "dask", "distributed", "platformdirs")
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked) + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 4
