"""Where examples come from: names, columns, splits, and the one line that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.data import evaluation_samples
from flashsvd.errors import FlashSVDError, InputError, ModelError
from flashsvd.models.load import LoadedModel, load
from flashsvd.tasks import Examples, sample, task_named
from flashsvd.tasks.columns import is_held_out
from flashsvd.tasks.glue import TASKS
from flashsvd.tasks.wikitext import articles, passages

ROWS = [{"text": f"piece {n}", "label": n % 3} for n in range(40)]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    frame = pd.DataFrame(rows)
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
    return path


def message(spec: object, loaded: LoadedModel | None = None) -> str:
    """The one line that a task that cannot be had gives."""
    with pytest.raises(FlashSVDError) as caught:
        task_named(str(spec), loaded).load("train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".json"])
def test_every_format_gives_the_same_task(tmp_path: Path, suffix: str) -> None:
    task = task_named(str(write(tmp_path / f"set{suffix}", ROWS)))
    assert (task.kind, task.metric, task.classes) == ("classification", "accuracy", ("0", "1", "2"))
    train, held_out = task.load("train"), task.load("validation")
    assert len(train) + len(held_out) == 40 and len(held_out) > 0
    found = dict(
        zip((*train.first, *held_out.first), (*(train.labels or ()), *(held_out.labels or ())), strict=True)
    )
    assert found == {row["text"]: row["label"] for row in ROWS}
    assert held_out.first == tuple(row["text"] for row in ROWS if is_held_out(str(row["text"])))


def test_no_text_is_on_both_sides_and_rows_added_move_none(tmp_path: Path) -> None:
    rows = [{"text": f"piece {n % 20}", "label": n % 2} for n in range(100)]
    task = task_named(str(write(tmp_path / "few.jsonl", rows)))
    train, held_out = set(task.load("train").first), set(task.load("validation").first)
    assert train and held_out and not train & held_out
    longer = task_named(str(write(tmp_path / "more.jsonl", [{"text": "new", "label": 1}, *rows])))
    assert train <= set(longer.load("train").first) and held_out <= set(longer.load("validation").first)


def test_about_a_fifth_is_held_out() -> None:
    # 4 standard deviations of a fair fifth of 5000; a quarter or a sixth would be outside.
    share = sum(is_held_out(f"text {n}") for n in range(5000)) / 5000
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 5000) ** 0.5
    assert [is_held_out(f"{n}", seed=1) for n in range(99)] != [is_held_out(f"{n}") for n in range(99)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("question", "sentence"),
    ],
)
def test_pairs_are_recognised(tmp_path: Path, first: str, second: str) -> None:
    rows = [{"idx": n, second: f"b{n}", first: f"a{n}", "gold": n % 2} for n in range(30)]
    train = task_named(str(write(tmp_path / "pairs.csv", rows))).load("train")
    assert train.second == tuple(text.replace("a", "b") for text in train.first)


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"a": f"x{n}", "b": f"y{n}", "c": n % 2, "label": "no"} for n in range(30)]
    path = write(tmp_path / "odd.csv", rows)
    assert "no column of texts found among a, b, c, label" in message(path)
    train = task_named(f"{path}:text=b,second=a,label=c").load("train")
    assert (
        train.first[0][0] == "y"
        and train.second
        and train.second[0][0] == "x"
        and set(train.labels or ()) == {0, 1}
    )
    assert "has no column 'd': it has a, b, c, label" in message(f"{path}:text=b,label=d")
    assert "has no column 'd'" in message(f"{path}:text=d")
    assert "unknown option 'lable'" in message(f"{path}:text=b,lable=c")


def test_words_of_a_csv_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "na.csv"
    path.write_text(
        "text,label\n" + "".join(f"{word} {n},null\n" for n in range(30) for word in ("NA", "nan"))
    )
    task = task_named(str(path))
    assert task.classes == ("null",) and task.load("train").first[0].split()[0] in ("NA", "nan")


def test_a_folder_of_two_files_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"text": "a", "label": "yes"}])
    write(tmp_path / "validation.csv", [{"text": "b", "label": "no"}])
    task = task_named(str(tmp_path))
    assert task.classes == ("no", "yes")
    assert task.load("train") == Examples(("a",), None, (1,))
    assert task.load("validation") == Examples(("b",), None, (0,))
    write(tmp_path / "train.csv", [{"text": "c", "label": "no"}])
    assert "has both train.csv and train.jsonl" in message(tmp_path)
    (tmp_path / "only").mkdir()
    assert "no train file" in message(tmp_path / "only")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "kind": 1}] * 9, "no label column found among text, kind"),
        ([{"text": "a", "label": 0.5}, {"text": "b", "label": float("nan")}], "no label (missing or NaN)"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], "no label (missing or NaN)"),
        ([{"text": None, "label": 1}] * 9, "no text in column 'text'"),
        ([{"text": "a", "label": -1}] * 9, "-1 stands for a hidden label"),
        ([{"text": "a", "label": 1}] * 9, "too few to hold some out"),
        ([], "is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    tmp_path: Path, rows: list[dict[str, object]], said: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    path = folder / "train.json"
    path.write_text(json.dumps(rows))
    if said.startswith("too few"):
        assert said in message(path)
        return
    (folder / "validation.json").write_text(json.dumps(rows))
    assert said in message(folder)


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "a.jsonl").write_text('{"text": "a"\n')
    (tmp_path / "a.json").write_text('{"text": "a"')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "a.xls").write_text("")
    assert "cannot be read as parquet" in message(tmp_path / "a.parquet")
    assert "cannot be read as jsonl" in message(tmp_path / "a.jsonl")
    assert "cannot be read as json" in message(tmp_path / "a.json")
    assert "expected a list of objects" in message(tmp_path / "list.json")
    assert "is empty" in message(tmp_path / "a.csv")
    assert "expected a file that ends in .csv" in message(tmp_path / "a.xls")
    assert "is not there" in message(tmp_path / "b.csv")
    assert "unknown task 'imdb'" in message("imdb")


def test_mixed_labels_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"a{n}", "label": "x" if n else 1} for n in range(20)]
    assert "all words or all numbers, got int, str" in message(write(tmp_path / "mixed.jsonl", rows))


def labelled(folder: Path, labels: list[object]) -> str:
    rows = [{"text": f"piece {n} {label}", "label": label} for n in range(12) for label in labels]
    return str(write(folder / "labelled.jsonl", rows))


def test_words_become_the_classes_of_the_head(
    tmp_path: Path, with_head: Callable[..., LoadedModel], reading: LoadedModel
) -> None:
    spec = labelled(tmp_path, ["no", "yes"])
    assert task_named(spec, with_head("yes", "no", "maybe")).classes == ("yes", "no", "maybe")
    turned = task_named(spec, with_head("YES", "No")).load("train")
    assert all(
        label == (text.endswith("no")) for text, label in zip(turned.first, turned.labels or (), strict=True)
    )
    assert "names its own good, bad" in message(spec, with_head("good", "bad"))
    # Five nameless classes: sorted order can only be theirs where the file has all five.
    assert "has 2 classes (no, yes) but the head" in message(spec, reading)
    assert task_named(labelled(tmp_path, list("edcba")), reading).classes == tuple("abcde")


def test_numbers_are_classes_or_targets_as_the_head_wants(
    tmp_path: Path, with_head: Callable[..., LoadedModel], reading: LoadedModel
) -> None:
    spec = labelled(tmp_path, [0, 1, 7])
    assert "label 7 is beyond the 5 classes" in message(spec, reading)
    assert task_named(spec, with_head("score")).kind == "regression"
    assert task_named(spec, reading, new_head=True).classes == tuple("01234567")
    halves = labelled(tmp_path, [0.5, 1.0])
    assert task_named(halves).kind == "regression" and task_named(halves).metric == "pearson"
    assert "label 0.5 is no class" in message(halves, reading)
    assert task_named(labelled(tmp_path, [0.0, 1.0]), reading).load("train").labels
    assert task_named(labelled(tmp_path, [True, False])).classes == ("0", "1")


def test_a_model_without_labels_gets_texts_alone(tmp_path: Path, decoder: LoadedModel) -> None:
    rows = [{"text": f"piece {n}"} for n in range(30)]
    task = task_named(str(write(tmp_path / "plain.jsonl", rows)), decoder)
    assert (task.kind, task.metric, task.load("train").labels) == ("language", "perplexity", None)


# What datasets writes


def test_a_saved_dataset_dict(tmp_path: Path, with_head: Callable[..., LoadedModel]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["z", "a"]),
        }
    )
    one = datasets.Dataset.from_dict({"premise": ["p"], "hypothesis": ["h"], "label": [0]}, features=features)
    datasets.DatasetDict({"train": one, "validation": one, "test": one}).save_to_disk(str(tmp_path / "set"))
    task = task_named(str(tmp_path / "set"))
    assert task.classes == ("z", "a") and task.load("validation") == Examples(("p",), ("h",), (0,))
    assert task_named(str(tmp_path / "set"), with_head("a", "z")).load("train").labels == (1,)


def test_a_saved_set_of_one_split_is_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"t{n}" for n in range(30)], "label": ["x"] * 30}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "one"))
    assert len(task_named(str(tmp_path / "one")).load("validation")) > 0
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(str(tmp_path / "two"))
    assert "has no split train: it has test" in message(tmp_path / "two")
    empty = datasets.Dataset.from_dict({"text": [], "label": []})
    datasets.DatasetDict({"train": empty, "validation": empty}).save_to_disk(str(tmp_path / "none"))
    assert "is empty or not a set" in message(tmp_path / "none")
    (tmp_path / "one" / "state.json").write_text("{")
    assert "not a set that datasets saved" in message(tmp_path / "one")


# GLUE and WikiText-2


class Rows(dict[str, list[object]]):
    """A stand-in for a datasets.Dataset."""

    @property
    def column_names(self) -> list[str]:
        return list(self)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """A hub that has every set with three rows, and what it was asked for."""
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[object, ...]] = []

    def load_dataset(repository: str, configuration: str, *, split: str) -> Rows:
        asked.append((repository, configuration, split))
        if repository.endswith("wikitext"):
            return Rows(text=["", " = A = \n", "", " one \n", " = B = \n", " two \n"])
        about = TASKS[configuration]
        columns: dict[str, list[object]] = {about.text: ["a", "b", "c"], "label": [0, 1, 1], "idx": [0, 1, 2]}
        if about.second:
            columns[about.second] = ["x", "y", "z"]
        return Rows(columns)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("flashsvd.tasks.hub._reachable", lambda repository: True)
    return asked


@pytest.mark.parametrize("name", TASKS)
def test_glue_tasks(name: str, hub: list[tuple[object, ...]]) -> None:
    task = task_named(f"glue/{name}")
    assert hub == []
    held_out = task.load("validation")
    validation = "validation_matched" if name == "mnli" else "validation"
    assert hub == [("nyu-mll/glue", name, validation)]
    assert held_out.first == ("a", "b", "c")
    assert held_out.second == (None if name in ("sst2", "cola") else ("x", "y", "z"))
    assert held_out.labels == (0, 1, 1) and isinstance(
        (held_out.labels or ())[0], float if name == "stsb" else int
    )
    assert task.metric == {"cola": "matthews", "stsb": "pearson", "mrpc": "f1", "qqp": "f1"}.get(
        name, "accuracy"
    )
    assert len(task.classes) == {"stsb": 0, "mnli": 3}.get(name, 2)


def test_glue_labels_follow_the_names_of_the_head(
    hub: list[tuple[object, ...]], with_head: Callable[..., LoadedModel], reading: LoadedModel
) -> None:
    turned = task_named("glue/mrpc", with_head("Equivalent", "NOT_equivalent"))
    assert turned.load("train").labels == (1, 0, 0) and turned.positive == 0
    assert task_named("glue/mrpc").positive == 1
    assert "glue/mnli has 3 classes" in message("glue/mnli", with_head("no", "yes"))
    assert "names its own no, yes" in message("glue/sst2", with_head("no", "yes"))
    assert "numbers as labels but the head" in message("glue/stsb", reading)
    assert "expected glue/ and one of sst2" in message("glue/sst")


def test_wikitext_gives_articles_and_scores_the_published_test_split(hub: list[tuple[object, ...]]) -> None:
    found = task_named("wikitext-2").load("validation")
    assert hub == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]
    assert len(found) == 3 and found.first[1].startswith(" = A = ")


@given(st.lists(st.sampled_from(["", " = A = \n", " = = B = = \n", " words \n"]), min_size=1))
def test_articles_joined_are_the_rows_joined(rows: list[str]) -> None:
    assert "\n\n".join(articles(rows)) == "\n\n".join(rows)


def test_without_a_network_one_line_says_so() -> None:
    pytest.importorskip("datasets")
    assert message("glue/sst2") == "glue/sst2 is not on this machine and the hub cannot be reached"
    assert message("wikitext-2") == "wikitext-2 is not on this machine and the hub cannot be reached"


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert message("glue/rte") == "glue/rte needs the package datasets: pip install 'flashsvd[glue]'"


# Plain text


def test_text_is_cut_in_passages_of_whole_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {n} " + "word " * 100 for n in range(100)]
    assert "\n\n".join(passages("\n\n".join(paragraphs))) == "\n\n".join(paragraphs)
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    task = task_named(f"text:{tmp_path / 'a.txt'}")
    train, held_out = task.load("train"), task.load("validation")
    assert sorted("\n\n".join((*train.first, *held_out.first)).split("\n\n")) == sorted(paragraphs)
    assert task.kind == "language" and train.labels is None


def test_text_errors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    assert "1 passages, too few" in message(f"text:{tmp_path / 'a.txt'}")
    assert "is empty" in message(f"text:{tmp_path / 'b.txt'}")
    assert "not UTF-8" in message(f"text:{tmp_path / 'c.txt'}")
    assert "is not there" in message(f"text:{tmp_path / 'd.txt'}")
    assert "train.txt is not there" in message(f"text:{tmp_path}")


# A model's own sets


def test_bundled_sets_and_the_pieces_drawn_of_them() -> None:
    loaded = load("stdlib-bert")
    task = task_named("bundled", loaded)
    drawn = sample(task.load("validation"), 50, seed=3)
    expected = evaluation_samples(loaded, 50, seed=3)
    assert expected and drawn.labels == expected.labels
    assert not set(task.load("train").first) & set(task.load("validation").first)
    assert len(task.classes) == 17


def test_bundled_errors(tiny: LoadedModel, tiny_folder: Path, tmp_path: Path) -> None:
    import dataclasses

    assert "name the model" in message("bundled")
    assert "has no sets of its own" in message("bundled", tiny)
    for name in ("calibration", "evaluation"):
        (tmp_path / f"{name}.parquet").write_bytes(b"no")
    broken = dataclasses.replace(tiny, source=dataclasses.replace(tiny.source, folder=tmp_path))
    with pytest.raises(ModelError, match="cannot be read as parquet"):
        task_named("bundled", broken)


@given(st.integers(1, 30), st.integers(0, 50))
def test_a_sample_has_no_row_twice(count: int, seed: int) -> None:
    examples = Examples(tuple(map(str, range(20))), None, tuple(range(20)))
    drawn = sample(examples, count, seed)
    assert len(set(drawn.first)) == len(drawn) == min(count, 20)
    assert drawn.labels == tuple(map(int, drawn.first))
    assert drawn == sample(examples, count, seed)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, -1)])
def test_a_sample_of_nothing_is_refused(count: int, seed: int) -> None:
    with pytest.raises(InputError):
        sample(Examples(("a",), None, None), count, seed)
