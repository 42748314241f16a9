"""Training runs from end to end on a model of two small layers."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import flashsvd
from flashsvd.errors import Cancelled, FlashSVDError, InputError
from flashsvd.finetune import batches, run, students
from flashsvd.finetune.request import FinetuneReport, FinetuneRequest
from flashsvd.finetune.run import finetune, report_json
from flashsvd.results import PlanChoice, from_json

IDS = torch.arange(5, 29).reshape(2, 12)
KEEP = PlanChoice(keep=0.4)


def _cut(trained: FinetuneReport, out: Path, **changes: Any) -> FinetuneRequest:
    return replace(
        FinetuneRequest(
            trained.request.out,
            str(out),
            trained.request.task,
            KEEP,
            steps=12,
            batch=8,
            eval_every=5,
            lr=2e-3,
            device="cpu",
        ),
        **changes,
    )


def _weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return dict(flashsvd.load_compressed(folder).state_dict())


@pytest.fixture(scope="module")
def recovered(trained: FinetuneReport, tmp_path_factory: pytest.TempPathFactory) -> FinetuneReport:
    """A cut of the trained model and 12 steps of training its factors."""
    return finetune(_cut(trained, tmp_path_factory.mktemp("recovered") / "out"))


def test_a_base_model_learns_a_task(trained: FinetuneReport) -> None:
    assert trained.mode == "dense" and trained.dense is None and trained.recovered is None
    assert trained.losses[-1].loss < 0.6 * trained.losses[0].loss
    assert trained.after.value > trained.before.value + 0.3
    assert [point.step for point in trained.curve] == [0, 45, 90]
    assert trained.curve[0].metric == trained.before and trained.curve[-1].metric == trained.after


def test_what_is_written_is_an_ordinary_model(trained: FinetuneReport) -> None:
    loaded = flashsvd.load(trained.request.out)
    assert isinstance(loaded.model, transformers.BertForSequenceClassification)
    assert loaded.model.config.num_labels == 5 and loaded.tokenizer is not None
    assert loaded.parameters == trained.trained_parameters
    assert sorted(path.name for path in Path(trained.request.out).iterdir()) == [
        "config.json", "finetune.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_the_report_is_written_beside_the_model_and_can_be_read(recovered: FinetuneReport) -> None:
    written = json.loads((Path(recovered.request.out) / "finetune.json").read_text())
    assert written == json.loads(json.dumps(report_json(recovered)))
    assert written["recovered"] == recovered.recovered
    assert from_json(FinetuneReport, written) == recovered


def test_training_the_factors_brings_the_cut_nearer_to_dense(
    recovered: FinetuneReport, trained: FinetuneReport, tmp_path: Path
) -> None:
    assert recovered.mode == "factors" and recovered.plan == KEEP.resolve(
        flashsvd.load(trained.request.out).shape
    )
    assert recovered.dense == trained.after
    assert recovered.losses[-1].loss < 0.8 * recovered.losses[0].loss
    dense = flashsvd.load(trained.request.out)
    before = _untrained(trained)
    after = flashsvd.load_compressed(recovered.request.out)

    with (Path(trained.request.task) / "validation.csv").open() as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert dense.tokenizer is not None
    inputs = dense.tokenizer(texts, padding=True, return_tensors="pt")

    def distance(model: Any) -> float:
        with torch.inference_mode():
            return float((model(**inputs).logits - dense.model(**inputs).logits).norm())

    assert distance(after) < 0.8 * distance(before)


def _untrained(trained: FinetuneReport) -> Any:
    from flashsvd.factors import factorise
    from flashsvd.session import Session

    session = Session()
    loaded = session.model(trained.request.out, "fp32", "cpu", True)
    plan = KEEP.resolve(loaded.shape)
    return flashsvd.build(
        loaded, "lowrank", factorise(loaded, session.spectra(loaded, "svd", None)[0], plan), plan
    )


def _moved(trained: FinetuneReport, folder: str | Path) -> set[str]:
    """The last words of the names of all parameters that training changed."""
    start = _untrained(trained).state_dict()
    end = _weights(folder)
    assert start.keys() == end.keys()
    return {name.rpartition(".")[2] for name in start if not torch.equal(start[name], end[name])}


def test_every_factor_moves_and_nothing_else(recovered: FinetuneReport, trained: FinetuneReport) -> None:
    assert _moved(trained, recovered.request.out) == {"U", "V"}
    start, end = _untrained(trained).state_dict(), _weights(recovered.request.out)
    still = [name for name in start if name.endswith((".U", ".V")) and torch.equal(start[name], end[name])]
    assert still == []


def test_factors_that_were_left_frozen_would_be_seen(
    trained: FinetuneReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = students.set_trainable

    def planted(model: Any, what: str) -> int:
        count = whole(model, what)
        for name, parameter in model.named_parameters():
            if name.endswith(".U"):
                parameter.requires_grad_(False)
        return count

    monkeypatch.setattr(students, "set_trainable", planted)
    finetune(_cut(trained, tmp_path / "out", steps=2))
    assert _moved(trained, tmp_path / "out") == {"V"}


def test_all_trains_biases_norms_and_head_but_no_embeddings(trained: FinetuneReport, tmp_path: Path) -> None:
    finetune(_cut(trained, tmp_path / "out", train="all", steps=2))
    start, end = _untrained(trained).state_dict(), _weights(tmp_path / "out")
    still = {name for name in start if torch.equal(start[name], end[name])}
    assert still == {name for name in start if "_embeddings." in name}


def test_the_dense_model_is_not_touched(trained: FinetuneReport, tmp_path: Path) -> None:
    from flashsvd.session import Session

    session = Session()
    loaded = session.model(trained.request.out, "fp32", "cpu", True)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    finetune(_cut(trained, tmp_path / "out", train="all", steps=2), session)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_what_was_trained_is_what_is_read(
    trained: FinetuneReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = students.cut
    monkeypatch.setattr(students, "cut", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1])
    finetune(_cut(trained, tmp_path / "out", steps=2))
    with torch.inference_mode():
        assert torch.equal(flashsvd.load_compressed(tmp_path / "out")(IDS).logits, seen[0](IDS).logits)
    flash = flashsvd.load_compressed(tmp_path / "out", engine="flash")
    with torch.inference_mode():
        torch.testing.assert_close(flash(IDS).logits, seen[0](IDS).logits, rtol=1e-4, atol=1e-4)


class _StopAt:
    """Presses Ctrl-C after so many steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, stage: str, share: float) -> None:
        if stage.startswith("Training"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def test_a_resumed_run_gives_what_an_uninterrupted_one_gives(
    recovered: FinetuneReport, trained: FinetuneReport, tmp_path: Path
) -> None:
    request = _cut(trained, tmp_path / "out")
    with pytest.raises(Cancelled, match=r"stopped after checkpoint 5 of 12 steps.*--resume") as stopped:
        finetune(request, progress=_StopAt(8))
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "out" / "config.json").exists()
    resumed = finetune(replace(request, resume=True, keep_checkpoints=True))
    assert resumed.resumed_from == 5
    assert (resumed.curve, resumed.losses) == (recovered.curve, recovered.losses)
    whole, parts = _weights(recovered.request.out), _weights(tmp_path / "out")
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=0, atol=1e-7, msg=name)
    left = {path.name for path in (tmp_path / "out" / "checkpoints").rglob("*") if path.is_file()}
    # Trainer writes its arguments as a pickle that nothing reads.
    assert "model.safetensors" in left and "training_args.bin" not in left


def test_a_resumed_run_with_dropout_gives_the_same_too(base: Path, letters: Path, tmp_path: Path) -> None:
    def request(name: str) -> FinetuneRequest:
        return FinetuneRequest(
            str(base), str(tmp_path / name), str(letters), steps=6, lr=3e-3, eval_every=3, device="cpu"
        )

    finetune(request("whole"))
    with pytest.raises(Cancelled):
        finetune(request("parts"), progress=_StopAt(5))
    torch.manual_seed(123)
    finetune(replace(request("parts"), resume=True))
    whole, parts = (flashsvd.load(str(tmp_path / name)).model.state_dict() for name in ("whole", "parts"))
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=0, atol=1e-7, msg=name)


def test_other_steps_would_not_pass_for_the_same_run(
    recovered: FinetuneReport, trained: FinetuneReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: an order that forgets where it was, by one position."""
    order = batches.TrainingOrder.__getitem__
    monkeypatch.setattr(
        batches.TrainingOrder, "__getitem__", lambda self, at: order(self, (at + 1) % len(self))
    )
    finetune(_cut(trained, tmp_path / "out"))
    whole, other = _weights(recovered.request.out), _weights(tmp_path / "out")
    assert max(float((whole[name] - other[name]).abs().max()) for name in whole) > 1e-4


def test_a_compressed_folder_can_be_trained_on(
    recovered: FinetuneReport, trained: FinetuneReport, tmp_path: Path
) -> None:
    task = trained.request.task
    again = FinetuneRequest(recovered.request.out, str(tmp_path / "again"), task, steps=4, device="cpu")
    alone = finetune(again)
    assert alone.plan == recovered.plan and alone.dense is None
    assert alone.settings.labels == 1 and alone.before == recovered.after
    taught = finetune(
        replace(again, out=str(tmp_path / "taught"), teacher=trained.request.out, lr=1e-3, train="all")
    )
    assert taught.dense == trained.after and taught.settings.distill == 1
    assert _weights(tmp_path / "taught").keys() == _weights(recovered.request.out).keys()


def test_the_validation_split_is_never_trained_on(
    trained: FinetuneReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (Path(trained.request.task) / "validation.csv").open() as file:
        held_out = {row["text"] for row in csv.DictReader(file)}
    seen: list[str] = []
    original = run.encode

    def encode(examples: Any, *rest: Any) -> Any:
        seen.extend(examples.first)
        return original(examples, *rest)

    monkeypatch.setattr(run, "encode", encode)
    report = finetune(_cut(trained, tmp_path / "out", steps=1))
    assert len(seen) == report.train_examples == 96
    assert not held_out & set(seen)
    assert report.before.n == len(held_out) == 60


def test_a_preset_learns_from_random_weights_with_a_tokenizer_that_it_is_given(
    base: Path, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = FinetuneRequest("electra-small", str(tmp_path / "out"), str(letters), steps=1, device="cpu")
    with pytest.raises(InputError, match="--tokenizer FOLDER"):
        finetune(request)
    with pytest.raises(InputError, match="holds no tokenizer"):
        finetune(replace(request, tokenizer=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "no/such"}, "unknown task"),
        ({"task": f"text:{__file__}"}, "no labels"),
        ({"choice": PlanChoice(keep=1.0)}, "no factors to train"),
        ({"teacher": "stdlib-bert"}, "leave teacher out"),
        ({"new_head": True}, "keeps the head"),
        ({"max_length": 999}, "max_length must be at most 32"),
        ({"model": "electra-small"}, "random weights"),
        ({"device": "tpu"}, "device must be"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(
    trained: FinetuneReport, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        finetune(replace(_cut(trained, tmp_path / "out"), **change))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "checkpoints" / "request.json").exists()


def test_a_head_for_other_classes_is_refused_or_replaced(trained: FinetuneReport, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "two" / f"{split}.csv").write_text("text,label\n" + "a b c,yes\nx y z,no\n" * 8)
    cut = _cut(trained, tmp_path / "out", task=str(tmp_path / "two"), steps=1)
    with pytest.raises(InputError, match="2 classes"):
        finetune(cut)
    dense = replace(cut, choice=None)
    with pytest.raises(InputError, match="2 classes"):
        finetune(dense)
    finetune(replace(dense, new_head=True))
    assert flashsvd.load(str(tmp_path / "out")).model.config.id2label == {0: "no", 1: "yes"}


def test_numbers_as_labels_make_a_regression(base: Path, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    for split in ("train", "validation"):
        rows = "".join(f"{'a ' * (n + 1)},{n / 4}\n" for n in range(12))
        (tmp_path / "scores" / f"{split}.csv").write_text("text,label\n" + rows)
    report = finetune(
        FinetuneRequest(
            str(base), str(tmp_path / "out"), str(tmp_path / "scores"), steps=30, lr=3e-3, device="cpu"
        )
    )
    assert report.before.name == "pearson"
    assert report.losses[-1].loss < report.losses[0].loss
    assert flashsvd.load(str(tmp_path / "out")).model.config.num_labels == 1


def test_a_loss_that_is_not_finite_stops_the_run_by_name(trained: FinetuneReport, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained.request.out, broken)
    model = transformers.BertForSequenceClassification.from_pretrained(broken)
    model.classifier.bias.data.fill_(float("inf"))
    model.save_pretrained(broken)
    with pytest.raises((FlashSVDError, FloatingPointError), match=r"not finite|the loss is"):
        finetune(_cut(replace(trained, request=replace(trained.request, out=str(broken))), tmp_path / "out"))


def test_without_accelerate_the_remedy_is_named(
    trained: FinetuneReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'flashsvd\[finetune\]'"):
        finetune(_cut(trained, tmp_path / "out"))


def test_a_whole_plan_decides_whether_heads_are_cut_alone(trained: FinetuneReport, tmp_path: Path) -> None:
    plan = KEEP.resolve(flashsvd.load(trained.request.out, per_head=False).shape)
    report = finetune(_cut(trained, tmp_path / "out", choice=PlanChoice(plan=plan), steps=1))
    assert report.plan == plan and not plan.shape.per_head


def test_a_tokenizer_of_pairs_is_told_that_the_model_knows_no_pairs(base: Path) -> None:
    pair = ["a b", "c d"]
    assert "token_type_ids" in students.read_tokenizer(str(base), token_types=2)(*pair)
    assert "token_type_ids" not in students.read_tokenizer(str(base), token_types=1)(*pair)
