"""Several curves in one go: each what it is alone, on any task, and the costs of their plans."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from flashsvd.cli.commands import application
from flashsvd.curve import score_curve
from flashsvd.curve_set import CurvePart, CurvesRequest, find_curves, read_curves
from flashsvd.curves import score_curves
from flashsvd.errors import InputError, ModelError
from flashsvd.evaluation.task_held_out import held_out_on
from flashsvd.jobs.kinds import kind_of
from flashsvd.methods import method_named
from flashsvd.models.load import load
from flashsvd.ranks import RankPlan
from flashsvd.results import CurveRequest, to_json
from flashsvd.session import Session

SESSION = Session()
KEEPS = (0.4, 1.0)


def test_each_curve_is_what_it_is_alone_and_its_points_come_in(scored_folder: Path) -> None:
    model, parts = str(scored_folder), []
    request = CurvesRequest(model, KEEPS, ("svd", "basis_sharing"), samples=24, timed=(2, 8))
    found = score_curves(request, SESSION, on_point=parts.append)
    alone = score_curve(CurveRequest(model, KEEPS, "basis_sharing", samples=24), SESSION)
    assert [curve.method for curve in found.curves] == ["svd", "basis_sharing"]
    assert found.curves[1].points == alone.points and found.curves[1].dense == alone.dense
    assert [(part.method, part.point) for part in parts] == [
        (curve.method, point) for curve in found.curves for point in curve.points
    ]
    (costs,) = found.costs
    assert (costs.batch, costs.seq, costs.repeats > 2) == (2, 8, True)
    for curve in found.curves:
        for point in curve.points:
            cost = costs.of(curve.method, point.plan)
            assert cost is not None and cost.engine == "flash"
            assert cost.latency_ms and cost.latency_ms.p50 > 0 and cost.peak_activation_bytes > 0
    small, full = (costs.of("svd", point.plan) for point in found.curves[0].points)
    assert small and full and small.weight_bytes < full.weight_bytes
    assert costs.dense.weight_bytes > small.weight_bytes


def test_the_job_sends_parts_that_json_holds(scored_folder: Path) -> None:
    request = CurvesRequest(str(scored_folder), (0.5,), ("svd",), samples=8)
    kind, parts = kind_of(request), []
    found = kind.run(request, SESSION, lambda stage, share: None, parts.append)
    part = kind.part(json.loads(json.dumps(parts[0])))
    assert isinstance(part, CurvePart) and part.point == found.curves[0].points[0]
    assert kind.keep and not found.costs


def test_nothing_to_do_and_what_does_not_fit_is_one_line(scored_folder: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        score_curves(CurvesRequest(str(scored_folder), KEEPS, ()), SESSION)
    with pytest.raises(InputError, match="seq must be from 1"):
        score_curves(CurvesRequest(str(scored_folder), KEEPS, ("svd",), timed=(1, 10**6)), SESSION)
    with pytest.raises(InputError, match="method must be one of"):
        score_curves(CurvesRequest(str(scored_folder), KEEPS, ("svd", "nonsense")), SESSION)


def test_the_models_own_set_named_as_a_task_gives_the_same_score(scored_folder: Path) -> None:
    own = score_curve(CurveRequest(str(scored_folder), (0.5,), samples=24, seed=3), SESSION)
    named = score_curve(CurveRequest(str(scored_folder), (0.5,), samples=24, seed=3, task="bundled"), SESSION)
    assert named.task == "bundled" and own.task is None
    assert named.dense == own.dense and named.points == own.points


def test_a_table_of_ones_own_is_scored(scored_folder: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(scored_folder / "evaluation.parquet")[["text", "label"]]
    rows.to_csv(tmp_path / "mine.csv", index=False)
    found = score_curve(CurveRequest(str(scored_folder), (1.0,), task=str(tmp_path / "mine.csv")), SESSION)
    assert found.dense.name == "accuracy" and 0 < found.dense.n < len(rows), "a fifth of a file is held out"
    assert found.points[0].agreement is not None and found.points[0].agreement.value == 1.0


def test_text_of_ones_own_is_perplexity(language_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n\n".join(f"a b c d {n}" for n in range(400)))
    found = held_out_on(load(str(language_folder)), f"text:{tmp_path / 'mine.txt'}", 2, 0)
    assert "held-out tokens" in found.words


@pytest.mark.parametrize("task", ["nowhere.csv", "text:nowhere.txt", "nonsense"])
def test_a_task_that_is_not_there_is_one_line(scored_folder: Path, task: str) -> None:
    with pytest.raises(InputError) as caught:
        score_curve(CurveRequest(str(scored_folder), (1.0,), task=task), SESSION)
    assert "\n" not in str(caught.value)


def test_random_weights_have_no_score_on_any_task() -> None:
    with pytest.raises(ModelError, match="random weights"):
        held_out_on(load("electra-small"), "glue/sst2", None, 0)


def test_the_command_writes_a_recording_that_says_how_it_was_made(
    scored_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "curves.parquet"
    args = ["curve", str(scored_folder), "--method", "svd,whiten", "--keep", "0.5", "--samples", "8"]
    done = CliRunner().invoke(application, [*args, "--timed", "1x8", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    found = read_curves(out)
    said = json.loads(done.stdout)["curves"][1]["points"]
    assert [to_json(point) for point in found.curves[1].points] == said
    assert found.command.startswith("python -m flashsvd") and len(found.costs) == 1
    with pytest.raises(InputError, match="BATCHxTOKENS"):
        CliRunner().invoke(application, [*args, "--timed", "8"], catch_exceptions=False)


def test_the_recording_that_ships_holds_every_method() -> None:
    path = find_curves("stdlib-bert")
    assert path is not None and find_curves("nothing") is None
    found = read_curves(path)
    assert {curve.method for curve in found.curves} == {"svd", "fwsvd", "asvd", "whiten", "basis_sharing"}
    assert all(len(curve.points) == 10 and curve.dense.n == 512 for curve in found.curves)
    for curve in found.curves:
        shape = method_named(curve.method).shape(curve.model.shape)
        assert all(RankPlan.from_text(shape, point.plan).keep == point.keep for point in curve.points)
        assert all(found.costs[0].of(curve.method, point.plan) for point in curve.points)
    assert "--method svd,fwsvd,asvd,whiten,basis_sharing" in found.command
