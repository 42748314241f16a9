"""The claim itself, on the bundled model: training the factors takes back most of what a deep cut cost."""

from pathlib import Path

import pytest

import flashsvd
from flashsvd.finetune.request import FinetuneRequest
from flashsvd.finetune.run import finetune
from flashsvd.results import PlanChoice


@pytest.mark.long
def test_half_of_what_a_cut_cost_comes_back_within_a_minute(tmp_path: Path) -> None:
    """Keep 0.2, where the cut costs most, so that 400 held-out pieces can tell; 40 steps of 8 pieces, default losses.
    Longer runs give more back (`python -m flashsvd finetune stdlib-bert OUT --task bundled --keep 0.3`).
    """
    report = finetune(
        FinetuneRequest(
            "stdlib-bert",
            str(tmp_path / "out"),
            "bundled",
            PlanChoice(keep=0.2),
            steps=40,
            batch=8,
            lr=3e-4,
            eval_every=40,
            samples=400,
            device="cpu",
        )
    )
    assert report.dense is not None and report.recovered is not None
    assert report.dense.value - report.before.value > 0.06
    assert report.recovered > 0.5
    assert flashsvd.load_compressed(report.request.out).num_parameters() < 0.5 * report.model.parameters
