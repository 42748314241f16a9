"""A language model that reads and writes bytes, small enough to write in a moment, and a runtime to write with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from flashsvd.demo.tokenizer import train_causal_tokenizer
from flashsvd.engines.build import weight_bytes


@pytest.fixture(scope="session")
def speaker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LlamaForCausalLM of 64 positions with a byte-level tokenizer; </s> ends a text."""
    tokenizer = train_causal_tokenizer(["def main():\n    return 0\n"] * 3, vocab_size=280, max_length=64)
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.15)
    folder = tmp_path_factory.mktemp("speaker")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class FakeRuntime:
    """Reads everything again for every token."""

    plan = "read as it is"

    def __init__(self, loaded: Any, model: Any, shape: Any, *, batch: int, context: int) -> None:
        self._model = model
        self.context = context
        self.weight_bytes = weight_bytes(model)
        self.kv_bytes = batch * context

    @torch.no_grad()
    def generate(
        self, ids: torch.Tensor, mask: Any, *, max_new_tokens: int, sampling: Any, on_token: Any
    ) -> None:
        mask = torch.ones_like(ids) if mask is None else mask.long()
        for _ in range(max_new_tokens):
            positions = (mask.cumsum(-1) - 1).clamp_min(0)
            logits = self._model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
            tokens = logits.argmax(-1)
            on_token(tokens)
            ids = torch.cat([ids, tokens[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(tokens)[:, None]], 1)
            assert ids.shape[1] <= self.context


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    modules = {"runtime": {"Runtime": FakeRuntime}, "sampling": {"Sampling": SimpleNamespace}}
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, f"flashsvd.decoding.{name}", module)
    monkeypatch.setitem(sys.modules, "flashsvd.decoding", ModuleType("decoding"))
    return lambda: None
