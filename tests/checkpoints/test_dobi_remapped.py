"""Dobi-SVD's remapped form: 8-bit halves, decoded as its own loader does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from published import IDS, LLAMA

from flashsvd.checkpoints.imported import write
from flashsvd.checkpoints.importing import import_checkpoint
from flashsvd.checkpoints.layouts.dobi import decode, dynamic_code
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import CheckpointError

Entries = dict[str, dict[str, Any]]


def _quantise(vector: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = vector.abs().max()
    return (vector[:, None] / scale - code).abs().argmin(1).to(torch.uint8), scale


def _entry(weight: torch.Tensor, rank: int) -> dict[str, Any]:
    """A weight [m, n] as its factors with 8-bit halves; Σ goes to the longer side, whose end stays fp16."""
    code = dynamic_code()
    u, sigma, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    rows, columns = weight.shape
    u, vh = (u[:, :rank] * sigma[:rank], vh[:rank]) if rows >= columns else (
        u[:, :rank], sigma[:rank, None] * vh[:rank])  # fmt: skip
    short = min(rows, columns)
    us = [_quantise(u[:short, i], code) for i in range(rank)]
    vt = [_quantise(vh[i, :short], code) for i in range(rank)]
    info = None
    if rows != columns:
        info = ("us", u[short:].half()) if rows > columns else ("vt", vh[:, short:].half())
    return {
        "us_quan": torch.stack([quantised for quantised, _ in us]),
        "vt_quan": torch.stack([quantised for quantised, _ in vt]),
        "us_absmax": torch.stack([scale for _, scale in us]).half(),
        "vt_absmax": torch.stack([scale for _, scale in vt]).half(),
        "tuple_info": info,
    }


@pytest.fixture(scope="module")
def entries() -> tuple[Any, Entries]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.2)
    found = {}
    for index, (name, linear) in enumerate(model.model.named_modules(prefix="model")):
        if isinstance(linear, torch.nn.Linear):
            # One of them keeps so much that two factors would be larger than the weight.
            found[name] = _entry(
                linear.weight.detach(), 14 if name.endswith("2.self_attn.k_proj") else 4 + index % 3
            )
    return model, found


def _write(folder: Path, model: Any, found: Entries) -> Path:
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    torch.save(found, folder / "remapping_weight.pt")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    return folder


def test_the_code_book_is_the_dynamic_data_type() -> None:
    code = dynamic_code()
    assert len(code) == len(code.unique()) == 256
    assert torch.equal(code, code.sort().values) and code[-1] == 1 and (code == 0).any()
    assert float(code[0]) == pytest.approx(-0.99296875)
    assert float(code[code > 0][0]) == pytest.approx(0.55e-6)
    assert torch.allclose(-code[code < 0].flip(0), code[code > 0][:-1])


@pytest.mark.parametrize(("rows", "columns"), [(24, 16), (16, 24), (16, 16)])
def test_decoding_is_within_what_eight_bits_lose(rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    entry = _entry(weight, 16)
    u, v = decode(entry, rows, columns, dynamic_code(), "x")
    assert u.shape == (rows, 16) and v.shape == (16, columns) and u.dtype == torch.float16
    error = (u.float() @ v.float() - weight).norm() / weight.norm()
    assert error < 0.03
    swapped = {**entry, "us_quan": entry["vt_quan"], "vt_quan": entry["us_quan"]}
    u, v = decode(swapped, rows, columns, dynamic_code(), "x")
    assert (u.float() @ v.float() - weight).norm() / weight.norm() > 0.5


def test_the_remapped_model_computes_what_its_factors_do(
    entries: tuple[Any, Entries], tmp_path: Path
) -> None:
    model, found = entries
    imported = import_checkpoint(_write(tmp_path / "source", model, found), allow_pickle=True)
    assert imported.method == "dobi" and imported.config.dtype == torch.float16
    assert imported.plan.get(2, "k") == (None,) * 2, "factors that save nothing are one weight"
    write(imported, tmp_path / "ours")
    reference = transformers.LlamaForCausalLM(model.config).double().eval()
    reference.load_state_dict(model.state_dict())
    code = dynamic_code()
    for name, entry in found.items():
        linear = reference.get_submodule(name)
        u, v = decode(entry, linear.out_features, linear.in_features, code, name)
        linear.weight.data = u.double() @ v.double()
    with torch.inference_mode():
        ours = load_compressed(tmp_path / "ours", dtype=torch.float64)(IDS).logits
        expected = reference(IDS).logits
        dense = model.double()(IDS).logits
    # The one multiplied out is rounded to fp16, as its own loader does.
    assert (ours - expected).abs().max() < 5e-3 * (expected - dense).abs().max()
    model.float()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("us_absmax"), "lacks us_absmax"),
        (
            lambda entry: entry.update(us_quan=torch.zeros(4, 3, dtype=torch.uint8)),
            r"expected uint8 \[4, 32\]",
        ),
        (lambda entry: entry.update(vt_quan=entry["vt_quan"].float()), "received float32"),
        (lambda entry: entry.update(tuple_info=("vt", torch.zeros(1))), r"expected \('us', \[8, "),
        (lambda entry: entry.update(tuple_info=None), "tuple_info of"),
        (lambda entry: entry.clear(), "lacks us_quan"),
    ],
)
def test_a_damaged_entry_is_named(
    entries: tuple[Any, Entries], tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    model, found = entries
    damaged = {name: dict(entry) for name, entry in found.items()}
    change(damaged["model.layers.0.mlp.up_proj"])
    with pytest.raises(CheckpointError, match=message) as error:
        import_checkpoint(_write(tmp_path / "source", model, damaged), allow_pickle=True)
    assert "model.layers.0.mlp.up_proj" in str(error.value)


def test_an_entry_that_is_not_there_is_named(entries: tuple[Any, Entries], tmp_path: Path) -> None:
    model, found = entries
    less = {name: entry for name, entry in found.items() if name != "model.layers.1.mlp.gate_proj"}
    folder = _write(tmp_path / "source", model, less)
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.gate_proj"):
        import_checkpoint(folder, allow_pickle=True)
    with pytest.raises(CheckpointError, match="is a pickle"):
        import_checkpoint(folder)
