"""One home folder per test session, and small models of the real classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports triton: its decorator reads this once, and compiles kernels for good without it.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Spectra and runs of the tests stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("FLASHSVD_HOME")
    os.environ["FLASHSVD_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["FLASHSVD_HOME"]
    else:
        os.environ["FLASHSVD_HOME"] = before


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BertForSequenceClassification: 3 layers, 2 heads of 32, random weights, biases that matter."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=128,
        vocab_size=200,
        max_position_embeddings=64,
        num_labels=5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.15 if parameter.dim() == 1 else 0.25)
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with no network: the hub answers nothing."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
