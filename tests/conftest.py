"""One home folder per test session, and small models of the real classes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flashsvd.threads import spin_briefly

# Modules and tests stay to the end: looking at them in every collection of garbage took a fifth of the time.
gc.disable()
spin_briefly()
# One of several processes of tests: threads of all together would be more than there are cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if TYPE_CHECKING:
    from flashsvd.models.load import LoadedModel

# Before anything imports triton: its decorators read the variable once.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# A busy machine is no failed property.
settings.register_profile("flashsvd", deadline=None)
settings.load_profile("flashsvd")
# As on a machine with no network, wherever the tests run.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Folders are tested on up to four cores, where pytest-xdist is installed and there is no GPU to share.

    Files, and what `-k`, `-m` or `-n` ask for, are run as ever.
    """
    option = config.option
    alone = option.keyword or option.markexpr or option.usepdb or option.trace or torch.cuda.is_available()
    if alone or hasattr(config, "workerinput") or getattr(option, "numprocesses", 0) is not None:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(4, cores)
    if workers > 1 and all(Path(argument).is_dir() for argument in config.args):
        option.numprocesses, option.dist, option.loadscopereorder = workers, "loadfile", False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" not in config.option.markexpr and not any("::" in argument for argument in config.args):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if hasattr(config, "workerinput"):
        # The longest files begin first, or in the end one worker would wait for another.
        slow = {item.path for item in items for name in ("slow", "browser") if item.get_closest_marker(name)}
        items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """While a quiet test runs, the other workers wait: they share one room, through a door that it keeps shut."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    import fcntl

    folder = Path(item.config.option.basetemp).parent
    with (folder / "door").open("w") as door, (folder / "room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("quiet") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Spectra and runs of the tests stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("FLASHSVD_HOME")
    os.environ["FLASHSVD_HOME"] = str(folder)
    yield folder
    os.environ.pop("FLASHSVD_HOME")
    if before is not None:
        os.environ["FLASHSVD_HOME"] = before


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BertForSequenceClassification: 3 layers, 2 heads of 32, random weights, biases that matter."""
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


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    """The tiny model, loaded; treat it as read-only."""
    from flashsvd.models.load import load

    return load(str(tiny_folder))


@pytest.fixture(scope="session")
def scored_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer, a calibration set and held-out pieces, labelled by the dense model itself."""
    import pandas as pd
    import transformers

    from flashsvd.models.load import load

    folder = tmp_path_factory.mktemp("scored")
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    texts = [
        " ".join(
            chr(97 + int(letter)) for letter in torch.randint(26, (3 + index % 40,), generator=generator)
        )
        for index in range(100)
    ]
    model = load(str(folder)).model
    logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    # Random weights prefer one class by far; about its mean the model tells texts apart.
    model.classifier.bias.sub_(logits[:60].mean(0))
    model.save_pretrained(folder)
    labels = (logits - logits[:60].mean(0)).argmax(-1).tolist()
    table = pd.DataFrame({"text": texts, "label": labels})
    table[:60].to_parquet(folder / "evaluation.parquet")
    table[60:].to_parquet(folder / "calibration.parquet")
    return folder


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LlamaForCausalLM with a tokenizer and sets of text that it wrote itself: none predicts it better."""
    import pandas as pd
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=96,
        vocab_size=40,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                # Linears of which half can be cut, as of trained ones: their singular values fall.
                fall = torch.logspace(0, -2, parameter.shape[1]) if name.endswith("proj.weight") else 1.0
                parameter.data.normal_(std=0.25).mul_(fall)
        written = model.generate(
            torch.full((60, 1), 2), do_sample=True, top_k=0, max_new_tokens=30, suppress_tokens=[0, 1, 2, 3]
        )
    folder = tmp_path_factory.mktemp("language")
    model.save_pretrained(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[BOS]": 2, "[EOS]": 3, **{f"w{n}": n for n in range(4, 40)}}
    reader = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    reader.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    reader.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=reader,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
    ).save_pretrained(folder)
    texts = [" ".join(f"w{token}" for token in row[1:]) for row in written.tolist()]
    table = pd.DataFrame({"text": texts, "source": [f"{row}.txt" for row in range(len(texts))]})
    table[:40].to_parquet(folder / "evaluation.parquet")
    table[40:].to_parquet(folder / "calibration.parquet")
    return folder
