"""Checkpoints in every published layout, each written by a module that computes as the source family's own does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "vocab_size": 30,
    "max_position_embeddings": 24,
}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 40,
    "vocab_size": 30,
    "max_position_embeddings": 24,
    "word_embed_proj_dim": 32,
}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 30,
    "max_position_embeddings": 24,
    "num_labels": 3,
}
IDS = torch.arange(22).reshape(2, 11) % 30


@dataclass(frozen=True)
class Example:
    """A checkpoint's folder, its layout, and the module that wrote it."""

    layout: str
    folder: Path
    model: Any

    def logits(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(IDS).logits


class Two(nn.Module):
    """Two linears; `first` and `second` are their names in the order in which they run."""

    def __init__(self, linear: nn.Linear, rank: int, first: str, second: str) -> None:
        super().__init__()
        self.names = (first, second)
        bias = linear.bias is not None
        self.add_module(first, nn.Linear(linear.in_features, rank, bias=False))
        self.add_module(second, nn.Linear(rank, linear.out_features, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.names
        return getattr(self, second)(getattr(self, first)(x))


class Groups(nn.Module):
    """Palu's low-rank linear: one V, one U per group of heads."""

    def __init__(self, linear: nn.Linear, ranks: list[int]) -> None:
        super().__init__()
        self.ranks = ranks
        rows = linear.out_features // len(ranks)
        self.VT = nn.Linear(linear.in_features, sum(ranks), bias=False)
        self.U = nn.ModuleList(nn.Linear(rank, rows, bias=linear.bias is not None) for rank in ranks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.VT(x).split(self.ranks, -1)
        return torch.cat([u(part) for u, part in zip(self.U, parts, strict=True)], -1)


class Elsewhere(nn.Module):
    """A linear whose two halves live in its parent, under names of their own."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.halves = [first, second]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.halves[1](self.halves[0](x))


class Block(nn.Module):
    """A BERT block of FlashSVD v1: x·P·V per head, x·U·V elsewhere."""

    def __init__(self, heads: int, hidden: int, width: int, rank: int, eps: float, leading: bool) -> None:
        super().__init__()
        self.heads = heads
        head_dim = hidden // heads
        one = (1,) if leading else ()
        for name in "qkv":
            setattr(self, f"P{name}", nn.Parameter(torch.empty(*one, heads, hidden, rank)))
            setattr(self, f"V{name}", nn.Parameter(torch.empty(*one, heads, rank, head_dim)))
            setattr(self, f"b{name}", nn.Parameter(torch.empty(1, heads, 1, head_dim)))
        for first, second, bias, rows, columns in (
            ("Uo", "Vo", "bo_attn", hidden, hidden),
            ("U1", "V1", "b1", hidden, width),
            ("U2", "V2", "b2", width, hidden),
        ):
            setattr(self, first, nn.Parameter(torch.empty(rows, 3 * rank)))
            setattr(self, second, nn.Parameter(torch.empty(3 * rank, columns)))
            setattr(self, bias, nn.Parameter(torch.empty(columns)))
        self.ln1, self.ln2 = (nn.LayerNorm(hidden, eps=eps) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = dict(self.named_parameters())
        q, k, v = (
            torch.einsum("bsd,...hdr,...hrw->bhsw", x, p[f"P{name}"], p[f"V{name}"]) + p[f"b{name}"]
            for name in "qkv"
        )
        heads = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = self.ln1(x + heads.transpose(1, 2).flatten(-2) @ p["Uo"] @ p["Vo"] + p["bo_attn"])
        wide = nn.functional.gelu(x @ p["U1"] @ p["V1"] + p["b1"])
        return self.ln2(x + wide @ p["U2"] @ p["V2"] + p["b2"])


def _dense(family: str, sizes: dict[str, Any], **more: Any) -> Any:
    config = transformers.AutoConfig.for_model(family, **{**sizes, **more})
    auto = (
        transformers.AutoModelForSequenceClassification
        if family == "bert"
        else transformers.AutoModelForCausalLM
    )
    return auto.from_config(config).double().eval()


def _fill(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3


def _linears(model: Any) -> list[tuple[str, nn.Linear]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name and "layers." in name
    ]


def _save(
    folder: Path, model: Any, config: dict[str, Any], state: dict[str, torch.Tensor] | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict() if state is None else state
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    settings = {**model.config.to_dict(), **config}
    (folder / "config.json").write_text(json.dumps(settings, default=str))


def svd_llm(folder: Path, family: str = "llama") -> Example:
    """Halves beside each other in the parent: q_u_proj, q_v_proj; fc1_u_proj, out_u_proj."""
    model = _dense(family, OPT if family == "opt" else LLAMA)
    for index, (name, linear) in enumerate(_linears(model)):
        parent_path, _, leaf = name.rpartition(".")
        parent = model.get_submodule(parent_path)
        rank = 5 + index % 4
        short = leaf.removesuffix("_proj")
        v = nn.Linear(linear.in_features, rank, bias=False)
        u = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)
        setattr(parent, leaf, Elsewhere(v, u))
        parent.add_module(f"{short}_u_proj", u)
        parent.add_module(f"{short}_v_proj", v)
    _fill(model)
    _save(folder, model, {})
    return Example("svd_llm", folder, model)


def _two(folder: Path, layout: str, family: str, first: str, second: str, **config: Any) -> Example:
    model = _dense(family, OPT if family == "opt" else LLAMA)
    ranks = {}
    for index, (name, linear) in enumerate(_linears(model)):
        if index == 1:
            # One linear that the search left as it was.
            continue
        ranks[name] = 32 if linear.in_features == linear.out_features == 32 and index < 5 else 6 + index % 3
        model.set_submodule(name, Two(linear, ranks[name], first, second))
    _fill(model)
    _save(folder, model, {"truncation_ranks": ranks} if config.get("ranks") else {})
    return Example(layout, folder, model)


def asvd(folder: Path, family: str = "llama", *, ranks: bool = True) -> Example:
    """BLinear = V first, then ALinear = U; some square ones at full rank, and one linear left dense."""
    return _two(folder, "asvd", family, "BLinear", "ALinear", ranks=ranks)


def dobi(folder: Path, family: str = "llama") -> Example:
    """ALinear = V first, then BLinear = U."""
    return _two(folder, "dobi", family, "ALinear", "BLinear")


def palu(folder: Path, family: str = "llama") -> Example:
    """k and v in groups of heads, of unequal ranks; the last layer in one group."""
    model = _dense(family, OPT if family == "opt" else LLAMA)
    ranks: dict[str, list[int]] = {}
    for name, linear in _linears(model):
        if name.endswith(("k_proj", "v_proj")):
            last = ".2." in name
            ranks[name] = [7] if last else [5, 3] if name.endswith("k_proj") else [4, 6]
            model.set_submodule(name, Groups(linear, ranks[name]))
    _fill(model)
    _save(
        folder,
        model,
        {"head_wise_ranks": ranks, "model_type": f"palu{family}", "architectures": ["PaluLlamaForCausalLM"]},
    )
    return Example("palu", folder, model)


def basis_sharing(folder: Path, *, keep_aliases: bool = True, groups: bool = True) -> Example:
    """Layers 1 and 2 share a basis, layer 3 has its own; the basis is in every layer and in the model's table."""
    model = _dense("llama", LLAMA)
    config: dict[str, Any] = {}
    for name, linear in _linears(model):
        layer, parent_path, leaf = int(name.split(".")[2]), *name.rpartition(".")[::2]
        short = leaf.removesuffix("_proj")
        parts = [[0, 1], [2]] if short != "down" else [[0], [1, 2]]
        config[f"{short}_groups"], config[f"num_basis_{short}"] = parts, 18
        table = getattr(model.model, f"{short}_basis", None)
        if table is None:
            table = nn.ModuleDict()
            for group in parts:
                basis = nn.Linear(linear.in_features, 18, bias=False)
                table.update({str(member): basis for member in group})
            model.model.add_module(f"{short}_basis", table)
        parent = model.get_submodule(parent_path)
        coefficient = nn.Linear(18, linear.out_features, bias=False)
        basis = table[str(layer)]
        parent.add_module(f"{short}_basis", basis)
        parent.register_forward_pre_hook(_nothing)
        setattr(parent, leaf, coefficient)
        coefficient.register_forward_pre_hook(lambda _, args, basis=basis: (basis(args[0]),))
    _fill(model)
    state = model.state_dict()
    if not keep_aliases:
        seen: set[int] = set()
        state = {
            name: tensor
            for name, tensor in sorted(state.items())
            if not (tensor.data_ptr() in seen or seen.add(tensor.data_ptr()))
        }
    _save(folder, model, config if groups else {}, state)
    return Example("basis_sharing", folder, model)


def _nothing(*_: Any) -> None:
    """A hook that changes nothing."""


def flashsvd_v1(folder: Path, *, leading: bool = False, nested: bool = True) -> Example:
    """Blocks of BERT, with or without the shim's `block.`, and with or without a leading 1 in the heads' factors."""
    model = _dense("bert", BERT)
    config = model.config
    blocks = [
        Block(4, 32, 40, 5, config.layer_norm_eps, leading).double() for _ in range(config.num_hidden_layers)
    ]
    layers = []
    for block in blocks:
        layer: nn.Module = block
        if nested:
            layer = nn.Module()
            layer.block = block
            layer.forward = lambda x, *_, block=block, **__: block(x)  # type: ignore[method-assign]
        else:
            block.forward = _only_states(block.forward)  # type: ignore[method-assign]
        layers.append(layer)
    model.bert.encoder.layer = nn.ModuleList(layers)
    _fill(model)
    _save(folder, model, {})
    return Example("flashsvd_v1", folder, model)


def _only_states(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, *_, **__: forward(x)


EXAMPLES: dict[str, Callable[[Path], Example]] = {
    "svd_llm": svd_llm,
    "svd_llm of OPT": lambda folder: svd_llm(folder, "opt"),
    "svd_llm of Mistral": lambda folder: svd_llm(folder, "mistral"),
    "asvd": asvd,
    "asvd of OPT": lambda folder: asvd(folder, "opt"),
    "asvd of Qwen2, ranks untold": lambda folder: asvd(folder, "qwen2", ranks=False),
    "dobi": dobi,
    "dobi of OPT": lambda folder: dobi(folder, "opt"),
    "palu": palu,
    "palu of Qwen2": lambda folder: palu(folder, "qwen2"),
    "basis_sharing": basis_sharing,
    "basis_sharing, one name each": lambda folder: basis_sharing(folder, keep_aliases=False),
    "basis_sharing, groups untold": lambda folder: basis_sharing(folder, groups=False),
    "flashsvd_v1": flashsvd_v1,
    "flashsvd_v1, bare": lambda folder: flashsvd_v1(folder, leading=True, nested=False),
}
