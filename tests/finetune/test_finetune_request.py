"""What a request may hold, and what its defaults become."""

import json

import pytest

from flashsvd.errors import InputError
from flashsvd.finetune.request import FinetuneRequest, settle

REQUEST = FinetuneRequest("stdlib-bert", "out", "bundled")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lr", 0.0, "lr must be above 0, got 0"),
        ("lr", -1e-3, "lr must be above 0"),
        ("lr", float("nan"), "lr must be above 0, got nan"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("epochs", 0.0, "epochs must be above 0"),
        ("batch", 0, "batch must be at least 1"),
        ("eval_every", 0, "eval_every must be at least 1"),
        ("samples", 0, "samples must be at least 1"),
        ("max_length", 2, "max_length must be at least 8"),
        ("temperature", 0.0, "temperature must be above 0"),
        ("distill", -1.0, "distill must be at least 0"),
        ("mask", 1.0, "mask must be from 0 to below 1"),
        ("crop", 0.0, "crop must be above 0 and at most 1"),
        ("seed", -1, "seed must be at least 0"),
        ("train", "some", "train must be one of factors, all"),
    ],
)
def test_a_value_outside_its_range_is_named(field: str, value: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        FinetuneRequest("m", "out", "bundled", **{field: value})  # type: ignore[arg-type]


def test_what_excludes_each_other_is_refused() -> None:
    with pytest.raises(InputError, match="epochs or steps"):
        FinetuneRequest("m", "out", "bundled", epochs=1.0, steps=10)
    with pytest.raises(InputError, match="resume or force"):
        FinetuneRequest("m", "out", "bundled", resume=True, force=True)


def test_the_teacher_decides_what_is_learned() -> None:
    taught = settle(REQUEST, factors=True, teacher=True, examples=510)
    assert (taught.distill, taught.hidden, taught.labels, taught.dropout) == (1.0, 1.0, 0.0, False)
    assert taught.mask > 0 and taught.crop < 1 and taught.weight_decay == 0
    assert taught.steps == 5 * 32
    alone = settle(REQUEST, factors=False, teacher=False, examples=510)
    assert (alone.distill, alone.hidden, alone.labels, alone.dropout) == (0.0, 0.0, 1.0, True)
    assert alone.mask == 0 and alone.crop == 1 and alone.weight_decay > 0
    assert alone.steps == 3 * 32
    assert settle(REQUEST, factors=True, teacher=True, examples=510, can_mask=False).mask == 0


def test_nothing_to_learn_from_is_refused() -> None:
    wanted = FinetuneRequest("m", "out", "bundled", distill=1.0)
    with pytest.raises(InputError, match="name it with teacher"):
        settle(wanted, factors=True, teacher=False, examples=10)
    nothing = FinetuneRequest("m", "out", "bundled", distill=0.0, hidden=0.0, labels=0.0)
    with pytest.raises(InputError, match="nothing would be learned"):
        settle(nothing, factors=True, teacher=True, examples=10)


def test_where_it_runs_is_no_part_of_the_training() -> None:
    here = FinetuneRequest("m", "here", "bundled", device="cpu", force=True)
    assert here.training() == FinetuneRequest("m", "there", "bundled", resume=True).training()
    assert here.training() != FinetuneRequest("m", "here", "bundled", seed=1).training()
    json.dumps(here.training())
