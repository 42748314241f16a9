"""Every published layout is recognised, and what is imported computes what its own module does."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from published import EXAMPLES, IDS, LLAMA, Example, asvd, dobi, palu, svd_llm
from safetensors.torch import load_file, save_file

from flashsvd.checkpoints import importers
from flashsvd.checkpoints.imported import Imported, write
from flashsvd.checkpoints.importing import import_checkpoint
from flashsvd.checkpoints.layouts import svd_llm as svd_llm_layout
from flashsvd.checkpoints.reading import read
from flashsvd.checkpoints.two_linears import a_linear, b_linear, order, read_two
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import CheckpointError, ModelError
from flashsvd.factors import reconstruct

Made = Callable[[str], Example]
every_example = pytest.mark.parametrize("name", EXAMPLES)
LIMIT = 1e-12


def _logits(imported: Imported, folder: Path) -> torch.Tensor:
    write(imported, folder)
    with torch.inference_mode():
        logits: torch.Tensor = load_compressed(folder)(IDS).logits
    return logits


def _changed(example: Example, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of an example's folder with other tensors."""
    shutil.copytree(example.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _settings(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@every_example
def test_the_imported_model_computes_what_its_source_does(example: Made, name: str, tmp_path: Path) -> None:
    source = example(name)
    imported = import_checkpoint(source.folder)
    assert imported.method == source.layout
    torch.testing.assert_close(_logits(imported, tmp_path / "ours"), source.logits(), rtol=0, atol=LIMIT)


@every_example
def test_every_importer_but_one_leaves_a_checkpoint_alone(example: Made, name: str) -> None:
    source = read(example(name).folder)
    claims = [importer.name for importer in importers().values() if importer.claims(source)]
    assert claims == [example(name).layout]


def test_the_published_layouts_are_all_here() -> None:
    assert importers().keys() == {"asvd", "basis_sharing", "dobi", "flashsvd_v1", "palu", "svd_llm"}
    assert {example_name.split(" ")[0].rstrip(",") for example_name in EXAMPLES} == importers().keys()


def test_dense_and_our_own_checkpoints_are_told_apart(example: Made, tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="no layout that is known here: expected one of ASVD"):
        import_checkpoint(tmp_path / "dense")
    write(import_checkpoint(example("palu").folder), tmp_path / "ours")
    with pytest.raises(CheckpointError, match="no layout that is known here"):
        import_checkpoint(tmp_path / "ours")


# What the plan says


def test_grouped_query_attention_keeps_its_shapes(example: Made) -> None:
    imported = import_checkpoint(example("svd_llm").folder)
    q, k = imported.shape.slot(0, "q"), imported.shape.slot(0, "k")
    assert (q.heads, q.out_features, k.heads, k.out_features, k.per_head) == (4, 32, 2, 16, False)
    assert imported.plan.get(0, "q") == (5,) and imported.plan.get(0, "k") == (6,)


def test_a_linear_that_was_left_dense_stays_dense(example: Made) -> None:
    imported = import_checkpoint(example("asvd").folder)
    assert imported.plan.get(0, "k") == (None,) * 2
    assert (0, "k") not in imported.factors and "model.layers.0.self_attn.k_proj.weight" in imported.rest


def test_groups_of_heads_are_big_heads(example: Made) -> None:
    imported = import_checkpoint(example("palu").folder)
    slot = imported.shape.slot(0, "k")
    assert (slot.heads, slot.per_head, slot.unit_out) == (2, True, 8)
    assert imported.plan.get(0, "k") == (5, 3) and imported.plan.get(2, "v") == (7,)
    source = read(example("palu").folder).tensors
    prefix = "model.layers.0.self_attn.k_proj"
    v = source[f"{prefix}.VT.weight"]
    blocks = [source[f"{prefix}.U.{group}.weight"] for group in range(2)]
    expected = torch.cat([blocks[0] @ v[:5], blocks[1] @ v[5:]])
    torch.testing.assert_close(reconstruct(slot, imported.factors[0, "k"]), expected, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("basis_sharing")])
def test_layers_that_share_a_basis_hold_one_tensor(example: Made, name: str, tmp_path: Path) -> None:
    imported = import_checkpoint(example(name).folder)
    assert imported.groups["q"] == ((0, 1), (2,)) and imported.groups["down"] == ((0,), (1, 2))
    assert imported.factors[0, "q"].v is imported.factors[1, "q"].v
    assert imported.factors[2, "q"].v is not imported.factors[1, "q"].v
    assert imported.shape.slot(1, "down").sharing == 2
    write(imported, tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "model.safetensors").keys()
    assert "model.layers.0.self_attn.q_proj.V" in names and "model.layers.1.self_attn.q_proj.V" not in names
    model: Any = load_compressed(tmp_path / "ours")
    first, second = (model.model.layers[layer].self_attn.q_proj.V for layer in (0, 1))
    assert first.data_ptr() == second.data_ptr()


def test_more_than_full_rank_is_multiplied_out(example: Made) -> None:
    imported = import_checkpoint(example("basis_sharing").folder)
    assert imported.plan.get(1, "k") == (18,), "two layers of 16 outputs have rank 18 between them"
    assert imported.plan.get(2, "k") == (None,) * 2, "one has not"


def test_biases_are_where_the_source_has_them(example: Made) -> None:
    imported = import_checkpoint(example("svd_llm of OPT").folder)
    source = read(example("svd_llm of OPT").folder).tensors
    stored = source["model.decoder.layers.1.self_attn.v_u_proj.bias"]
    assert torch.equal(imported.biases[1, "v"], stored) and not imported.biased
    assert imported.biases.keys() == imported.factors.keys()


def test_a_bias_that_the_architecture_lacks_is_kept(tmp_path: Path) -> None:
    example = svd_llm(tmp_path / "source")
    bias = torch.randn(32, dtype=torch.float64)
    folder = _changed(
        example,
        tmp_path / "biased",
        lambda t: t.update({"model.layers.1.self_attn.v_u_proj.bias": bias[:16]}),
    )
    imported = import_checkpoint(folder)
    assert imported.biased
    example.model.model.layers[1].self_attn.v_u_proj.bias = torch.nn.Parameter(bias[:16])
    torch.testing.assert_close(_logits(imported, tmp_path / "ours"), example.logits(), rtol=0, atol=LIMIT)


# U and V


def test_the_v_of_v_is_not_mistaken(example: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting `_v_proj` out of a key, not its end, makes v's own V something else."""
    source = read(example("svd_llm").folder).tensors
    imported = import_checkpoint(example("svd_llm").folder)
    path = "model.layers.2.self_attn"
    assert torch.equal(imported.factors[2, "v"].v, source[f"{path}.v_v_proj.weight"])
    assert torch.equal(imported.factors[2, "q"].v, source[f"{path}.q_v_proj.weight"])
    assert svd_llm_layout._left("a.v_proj") == "a.v_u_proj"
    wrong = replace(
        importers()["svd_llm"],
        read=lambda keys, target: read_two(
            keys,
            target,
            lambda path: path.replace("v_proj", "u_proj"),
            lambda path: path.replace("q_proj", "q_v_proj"),
        ),
    )
    monkeypatch.setattr("flashsvd.checkpoints.importing.importers", lambda: {"svd_llm": wrong})
    with pytest.raises(CheckpointError, match="lacks"):
        import_checkpoint(example("svd_llm").folder)


@pytest.mark.parametrize("layout", ["asvd", "dobi"])
def test_square_factors_follow_the_other_layers(example: Made, layout: str) -> None:
    """o of layer 1 is [32, 32] times [32, 32]: its shapes tell nothing."""
    source = read(example(layout).folder).tensors
    prefix = "model.layers.0.self_attn.o_proj"
    a, b = source[f"{prefix}.ALinear.weight"], source[f"{prefix}.BLinear.weight"]
    assert a.shape == b.shape == (32, 32)
    imported = import_checkpoint(example(layout).folder)
    made = reconstruct(imported.shape.slot(0, "o"), imported.factors[0, "o"])
    right, wrong = (a @ b, b @ a) if layout == "asvd" else (b @ a, a @ b)
    torch.testing.assert_close(made, right, rtol=0, atol=LIMIT)
    assert (made - wrong).abs().max() > 1e3 * LIMIT


@pytest.mark.parametrize("layout", ["asvd", "dobi"])
def test_swapped_square_factors_would_be_seen(
    example: Made, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(tensors: dict[str, torch.Tensor]) -> None:
        a, b = (f"model.layers.0.self_attn.o_proj.{half}Linear.weight" for half in "AB")
        tensors[a], tensors[b] = tensors[b], tensors[a]

    folder = _changed(example(layout), tmp_path / "swapped", swapped)
    logits = _logits(import_checkpoint(folder), tmp_path / "ours")
    assert (logits - example(layout).logits()).abs().max() > 1e6 * LIMIT


def test_where_all_factors_are_square_the_configuration_decides(example: Made, tmp_path: Path) -> None:
    folder = _changed(example("asvd"), tmp_path / "square", lambda tensors: None)
    tensors = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if "layers.0.self_attn.o_proj" in name
    }
    save_file(tensors, folder / "model.safetensors")
    assert order(read(folder)) == "asvd"
    _settings(folder, truncation_ranks=None)
    with pytest.raises(CheckpointError, match="do not tell whether ALinear or BLinear comes first"):
        order(read(folder))


def test_layouts_are_not_mixed(example: Made, tmp_path: Path) -> None:
    other = load_file(example("dobi").folder / "model.safetensors")

    def mixed(tensors: dict[str, torch.Tensor]) -> None:
        for half in "AB":
            name = f"model.layers.1.mlp.up_proj.{half}Linear.weight"
            tensors[name] = other[name]

    with pytest.raises(CheckpointError, match="no published layout mixes them"):
        import_checkpoint(_changed(example("asvd"), tmp_path / "pairs", mixed))
    two = _changed(example("asvd"), tmp_path / "two", lambda t: t.update({"x.VT.weight": torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match="mixes the layouts of ASVD and Palu"):
        import_checkpoint(two)


# What is missing, left over or misshaped

FACTOR = {
    "svd_llm": ("model.layers.1.mlp.up_u_proj.weight", r"\[40, k\]"),
    "asvd": ("model.layers.1.mlp.up_proj.BLinear.weight", r"\[\d+, 32\]"),
    "dobi": ("model.layers.1.mlp.up_proj.BLinear.weight", r"\[40, k\]"),
    "palu": ("model.layers.1.self_attn.v_proj.U.1.weight", r"\[8, 6\]"),
    "basis_sharing": ("model.layers.1.mlp.up_proj.weight", r"\[40, 18\]"),
    "flashsvd_v1": ("bert.encoder.layer.1.block.V2", r"\[15, 32\]"),
}


@pytest.mark.parametrize("layout", FACTOR)
def test_a_missing_factor_of_a_layout_is_named(example: Made, layout: str, tmp_path: Path) -> None:
    key, size = FACTOR[layout]
    folder = _changed(example(layout), tmp_path / "less", lambda tensors: tensors.pop(key))
    pattern = rf"lacks 1 tensor, first {key.replace('.', chr(92) + '.')}: expected one of {size}"
    with pytest.raises(CheckpointError, match=pattern) as error:
        import_checkpoint(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", FACTOR)
def test_a_misshaped_factor_is_named_with_both_shapes(example: Made, layout: str, tmp_path: Path) -> None:
    key, size = FACTOR[layout]
    odd = torch.zeros(39, 7, dtype=torch.float64)
    folder = _changed(example(layout), tmp_path / "odd", lambda tensors: tensors.update({key: odd}))
    with pytest.raises(
        CheckpointError, match=rf"of another shape, first .*: expected {size}, received \[39, 7\]"
    ):
        import_checkpoint(folder)


@pytest.mark.parametrize("layout", FACTOR)
def test_what_has_no_place_is_named(example: Made, layout: str, tmp_path: Path) -> None:
    extra = {f"adapter.{index}.weight": torch.zeros(2, 3) for index in range(3)}
    folder = _changed(example(layout), tmp_path / "more", lambda tensors: tensors.update(extra))
    with pytest.raises(
        CheckpointError, match=r"holds 3 tensors .* no place for, first adapter\.0\.weight of \[2, 3\]"
    ):
        import_checkpoint(folder)


def test_many_missing_are_counted(example: Made, tmp_path: Path) -> None:
    def less(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.2.mlp" in name]:
            del tensors[name]

    folder = _changed(example("svd_llm"), tmp_path / "less", less)
    with pytest.raises(
        CheckpointError, match=r"lacks 6 tensors, first model\.layers\.2\.mlp\.gate_u_proj\.weight"
    ):
        import_checkpoint(folder)


def test_other_weights_are_checked_too(example: Made, tmp_path: Path) -> None:
    norm = "model.layers.1.input_layernorm.weight"
    folder = _changed(example("palu"), tmp_path / "less", lambda tensors: tensors.pop(norm))
    with pytest.raises(
        CheckpointError, match=r"first model\.layers\.1\.input_layernorm\.weight: expected one of \[32\]"
    ):
        import_checkpoint(folder)
    folder = _changed(example("palu"), tmp_path / "tables", lambda t: t.update({
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)
    }))  # fmt: skip
    assert import_checkpoint(folder).method == "palu", "tables that transformers makes itself"


def test_numbers_that_are_none_are_refused(example: Made, tmp_path: Path) -> None:
    key = FACTOR["svd_llm"][0]
    folder = _changed(example("svd_llm"), tmp_path / "nan", lambda tensors: tensors[key].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=r"SVD-LLM factors of L2\.up hold NaN"):
        import_checkpoint(folder)


def test_a_basis_that_differs_within_its_group_is_refused(example: Made, tmp_path: Path) -> None:
    key = "model.layers.1.self_attn.q_basis.weight"
    folder = _changed(example("basis_sharing"), tmp_path / "odd", lambda tensors: tensors[key].add_(1))
    with pytest.raises(CheckpointError, match="are to be one basis and are not equal"):
        import_checkpoint(folder)


def test_tied_embeddings_are_one_weight(tmp_path: Path) -> None:
    example = palu(tmp_path / "source")
    head, embeddings = "lm_head.weight", "model.embed_tokens.weight"
    for name, change in {
        "both": lambda tensors: tensors.update({head: tensors[embeddings].clone()}),
        "one": lambda tensors: tensors.pop(head),
        "other": lambda tensors: tensors.update({head: tensors.pop(embeddings)}),
    }.items():
        folder = _changed(example, tmp_path / name, change)
        _settings(folder, tie_word_embeddings=True)
        rest = import_checkpoint(folder).rest
        assert embeddings in rest and head not in rest
    folder = _changed(example, tmp_path / "untied", lambda tensors: None)
    _settings(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="they differ: set tie_word_embeddings to false"):
        import_checkpoint(folder)


# config.json


def test_a_configuration_that_contradicts_the_factors_is_refused(tmp_path: Path) -> None:
    folder = asvd(tmp_path / "asvd").folder
    _settings(folder, truncation_ranks={"model.layers.1.mlp.up_proj": 30})
    with pytest.raises(
        CheckpointError, match=r"gives model\.layers\.1\.mlp\.up_proj rank 30, its factors have"
    ):
        import_checkpoint(folder)
    folder = palu(tmp_path / "palu").folder
    _settings(folder, head_wise_ranks={"model.layers.0.self_attn.k_proj": [2, 2, 2]})
    with pytest.raises(CheckpointError, match="has 3 groups, which 2 heads cannot be divided into"):
        import_checkpoint(folder)
    _settings(folder, head_wise_ranks="no table")
    with pytest.raises(CheckpointError, match="malformed for Palu"):
        import_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": None}, "names no model_type"),
        ({"hidden_size": "many"}, "is no llama configuration"),
        ({"num_key_value_heads": 3}, "key heads|no llama configuration|another shape"),
        ({"hidden_size": 64}, "of another shape, first"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = svd_llm(tmp_path / "source").folder
    _settings(folder, **change)
    with pytest.raises((CheckpointError, ModelError), match=message) as error:
        import_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_an_architecture_without_a_family_is_named(tmp_path: Path) -> None:
    folder = svd_llm(tmp_path / "source").folder
    _settings(folder, model_type="t5")
    with pytest.raises(ModelError, match="'t5' is not supported yet"):
        import_checkpoint(folder)


# The base


def test_the_base_lends_what_the_source_leaves_out(tmp_path: Path) -> None:
    example = dobi(tmp_path / "source")
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).double()
    state = dense.state_dict()
    dense.load_state_dict({k: v for k, v in example.model.state_dict().items() if k in state}, strict=False)
    dense.save_pretrained(tmp_path / "base")

    def factors_alone(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "embed" in name or "norm" in name or "lm_head" in name]:
            del tensors[name]

    folder = _changed(example, tmp_path / "bare", factors_alone)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="name the dense model with --base"):
        import_checkpoint(folder)
    imported = import_checkpoint(folder, base=tmp_path / "base")
    torch.testing.assert_close(_logits(imported, tmp_path / "ours"), example.logits(), rtol=0, atol=LIMIT)


def test_the_base_never_stands_in_for_a_factor(tmp_path: Path) -> None:
    example = svd_llm(tmp_path / "source")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "base")

    def less(tensors: dict[str, torch.Tensor]) -> None:
        for half in "uv":
            del tensors[f"model.layers.0.mlp.up_{half}_proj.weight"]

    folder = _changed(example, tmp_path / "less", less)
    with pytest.raises(CheckpointError, match="lacks 2 tensors"):
        import_checkpoint(folder, base=tmp_path / "base")


def test_the_random_weights_of_a_preset_are_not_lent(tmp_path: Path) -> None:
    folder = svd_llm(tmp_path / "source").folder
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"of another shape|lacks"):
        import_checkpoint(folder, base="qwen2.5-0.5b")


def test_two_orders_read_each_other_to_nothing(example: Made) -> None:
    """Reading ASVD's names in Dobi-SVD's order is an error of shapes, never another matrix."""
    from flashsvd.checkpoints.base import Keys
    from flashsvd.checkpoints.target import make_target, plain_config

    source = read(example("asvd").folder)
    target, _ = make_target(source, plain_config(source, None))
    keys = Keys(source)
    read_two(keys, target, b_linear, a_linear)
    with pytest.raises(CheckpointError, match="of another shape"):
        keys.check()


def test_imported_encoders_run_on_the_flash_engine_too(example: Made, tmp_path: Path) -> None:
    source = example("flashsvd_v1")
    write(import_checkpoint(source.folder), tmp_path / "ours")
    with torch.inference_mode():
        logits = load_compressed(tmp_path / "ours", engine="flash")(IDS).logits
    torch.testing.assert_close(logits, source.logits(), rtol=0, atol=1e-10)
