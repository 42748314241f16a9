"""`compress` and `curve` with the methods that look at data, as a person types them."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flashsvd.cli.commands import application
from flashsvd.compression.compress import CompressRequest, compress
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import CheckpointError, FlashSVDError
from flashsvd.models.load import load
from flashsvd.results import PlanChoice
from flashsvd.session import Session

METHODS = ("svd", "fwsvd", "asvd", "whiten:centred", "svd_llm_v2", "basis_sharing")


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(application, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def _logits(model: object, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits  # type: ignore[operator]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_opens_and_says_how_it_was_made(
    method: str, scored_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half"
    found = json.loads(
        _run("compress", str(scored_folder), str(out), "--method", method, "--keep", "0.5", "--json")
    )
    assert found["method"].startswith(method.split(":")[0])
    assert (found["calibration"] is None) == (method == "svd")
    assert found["compressed_bytes"] < found["dense_bytes"]
    assert all(0 < error < 1 for _, error in found["layer_errors"])
    ids = torch.arange(5, 25).reshape(2, 10)
    flash, lowrank = load_compressed(out), load_compressed(out, engine="lowrank")
    torch.testing.assert_close(_logits(flash, ids), _logits(lowrank, ids), rtol=1e-4, atol=1e-4)
    dense = load(str(scored_folder)).model
    assert (_logits(lowrank, ids) - _logits(dense, ids)).norm() > 0.01 * _logits(dense, ids).norm()
    assert lowrank.config.quantization_config.engine == "lowrank"
    assert flash.config.quantization_config.engine == "flash"
    held = sum(parameter.numel() for parameter in lowrank.parameters())
    assert found["compressed_bytes"] < 4 * held + 32_768
    assert (out / "evaluation.parquet").is_file() and (out / "tokenizer.json").is_file()


def test_data_aware_factors_are_nearer_to_dense(scored_folder: Path) -> None:
    args = ("--method", "svd,whiten", "--keep", "0.4,0.6", "--calibration-seeds", "0,1", "--json")
    curves = json.loads(_run("curve", str(scored_folder), *args))["curves"]
    assert [(curve["method"], curve["calibration"] and curve["calibration"]["seed"]) for curve in curves] == [
        ("svd", None),
        ("whiten", 0),
        ("whiten", 1),
    ]
    for point in range(2):
        plain, first, _ = (curve["points"][point]["kl"]["value"] for curve in curves)
        assert 0 < first < plain
    text = _run(
        "curve",
        str(scored_folder),
        "--method",
        "svd,whiten",
        "--keep",
        "0.5,1",
        "--allocator",
        "calibrated",
        "--calibration-seeds",
        "0,7",
    )
    assert text.count("svd ") == text.count("whiten ") == 4
    assert "KL to dense" in text and "calibrated on the model's own calibration set" in text


def test_low_memory_writes_the_same_model(scored_folder: Path, tmp_path: Path) -> None:
    common = ("--method", "whiten", "--rules", "*.qkv: 9 *.up: 20 L2.o: 11")
    _run("compress", str(scored_folder), str(tmp_path / "one"), *common)
    _run("compress", str(scored_folder), str(tmp_path / "two"), *common, "--low-memory")
    ids = torch.arange(5, 25).reshape(2, 10)
    first, second = (_logits(load_compressed(tmp_path / name), ids) for name in ("one", "two"))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_a_refit_is_another_model_and_no_worse(scored_folder: Path, tmp_path: Path) -> None:
    common = ("--method", "svd", "--keep", "0.4", "--calibration-samples", "40")
    _run("compress", str(scored_folder), str(tmp_path / "cut"), *common)
    _run("compress", str(scored_folder), str(tmp_path / "refit"), *common, "--refit")
    ids = torch.randint(5, 31, (16, 20), generator=torch.Generator().manual_seed(0))
    dense = _logits(load(str(scored_folder)).model, ids)
    cut, refit = (
        (_logits(load_compressed(tmp_path / name), ids) - dense).norm() for name in ("cut", "refit")
    )
    assert refit < cut


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "whiten", "--calibration", "nowhere.csv"), "nowhere.csv"),
        (("--method", "whiten", "--calibration-samples", "0"), "samples must be at least 1"),
        (("--method", "nmf"), "method must be one of"),
        (("--engine", "warp"), "engine must be one of"),
        (("--keep", "0.5", "--refit", "--low-memory"), "cannot refit"),
        (("--method", "fwsvd", "--low-memory"), "needs gradients of the whole model"),
        (
            ("--method", "basis_sharing", "--rules", "L1.up: 9 L2.up: 8"),
            "share a basis: give them equal ranks",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], words: str, scored_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlashSVDError, match=words) as caught:
        _run("compress", str(scored_folder), str(tmp_path / "out"), *arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_text_of_its_own_asks_for_some(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FlashSVDError, match="no tokenizer"):
        _run("compress", str(tiny_folder), str(tmp_path / "out"), "--method", "whiten")


def test_too_little_text_is_a_warning_with_the_number_needed(
    scored_folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    args = ("--method", "whiten", "--calibration-samples", "2")
    _run("compress", str(scored_folder), str(tmp_path / "out"), *args)
    assert "at least 128" in caplog.text


def test_nan_weights_and_a_singular_gram_are_named(scored_folder: Path, tmp_path: Path) -> None:
    session = Session()
    loaded = session.model(str(scored_folder), "fp32", "cpu", True)
    request = CompressRequest(
        str(scored_folder), tmp_path / "out", PlanChoice(keep=0.5), "whiten:sqrt=cholesky"
    )
    with pytest.raises(CheckpointError, match=r"L1\.q: the Gram of 64 inputs is singular"):
        from dataclasses import replace

        from flashsvd.results import Calibration

        compress(replace(request, calibration=Calibration(samples=1, seed=3)), session)
    loaded.model.base_model.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"L2\.down holds NaN or infinity"):
        compress(replace(request, method="svd"), Session(_kept=session._kept.copy()))
    assert list(tmp_path.iterdir()) == []
