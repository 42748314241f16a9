"""Budgets in every unit, and the smallest model that loses little enough, on the bundled model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flashsvd.allocate import Costs
from flashsvd.cli.budget import budget as command
from flashsvd.errors import InputError, PlanError
from flashsvd.models.sources import resolve
from flashsvd.ranks import RankPlan
from flashsvd.results import Calibration
from flashsvd.search.budget import Setting, plan_for_budget
from flashsvd.search.smallest import smallest_within
from flashsvd.search.text_split import TextSplit, rows_of
from flashsvd.session import Session

MODEL = "stdlib-bert"
FEW = Calibration(samples=16)
SETTING = Setting(MODEL, allocator="uniform", calibration=FEW, samples=16, per_head=False)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


@pytest.fixture(scope="module")
def application() -> typer.Typer:
    found = typer.Typer(pretty_exceptions_enable=False)
    found.command("budget")(command)
    return found


def test_a_parameter_budget_counts_the_whole_model(session: Session) -> None:
    found = plan_for_budget(SETTING, "parameters", 4e6, session)
    assert found.got <= 4e6
    assert found.dense == found.model.parameters
    assert (
        found.got == found.model.parameters - found.plan.shape.dense_parameters + found.plan.kept_parameters
    )
    # The largest uniform plan that fits: one rank more in one layer would not.
    assert found.got > 0.99 * 4e6
    assert found.score is not None and found.score.n == 16
    assert found.kl == found.uniform_kl


def test_a_byte_budget_is_the_parameter_budget_in_bytes(session: Session) -> None:
    found = plan_for_budget(replace(SETTING, samples=0), "bytes", 16e6, session)
    assert found.got <= 16e6
    fixed = found.model.parameters - found.plan.shape.dense_parameters
    assert 0 <= found.got - 4 * (fixed + found.plan.kept_parameters) < 1e5  # buffers


def test_a_flop_budget_is_per_token_of_the_linears(session: Session) -> None:
    found = plan_for_budget(replace(SETTING, samples=0), "flops", 4e6, session)
    assert 2 * found.plan.kept_parameters == found.got <= 4e6


def test_a_budget_below_the_embeddings_names_the_least(session: Session) -> None:
    calibrated = replace(SETTING, allocator="calibrated", samples=0)
    with pytest.raises(PlanError, match=r"the least possible is .* of it for what is not factored"):
        plan_for_budget(calibrated, "parameters", 1e6, session)


def test_calibrated_beats_uniform_on_held_out_text(session: Session) -> None:
    setting = Setting(MODEL, calibration=FEW, samples=0, per_head=False)
    found = plan_for_budget(setting, "parameters", 3.5e6, session)
    assert found.got <= 3.5e6
    assert found.kl is not None and found.uniform_kl is not None and found.kl < found.uniform_kl
    assert [row.name for row in found.candidates][:3] == ["uniform", "even tails", "curvature"]
    assert found.score is None


def test_a_latency_budget_is_measured_on_the_whole_model(session: Session) -> None:
    setting = Setting(MODEL, allocator="energy", calibration=FEW, samples=0, per_head=False, batch=1, seq=64)
    found = plan_for_budget(setting, "latency_ms", 1e4, session)
    assert found.plan == RankPlan.dense(found.plan.shape)
    assert found.latency_ms is not None and found.dense_latency_ms is not None
    assert found.got == pytest.approx(found.dense)
    with pytest.raises(PlanError, match="fits"):
        plan_for_budget(setting, "latency_ms", 1e-3, session)


def test_the_smallest_within_a_loss_brackets_it(session: Session) -> None:
    found = smallest_within(SETTING, 0.02, metric="kl", tolerance=0.3, session=session)
    assert found.passes is not None and found.passes.kl is not None and found.passes.kl <= 0.02
    assert found.fails is not None and found.fails.kl is not None and found.fails.kl > 0.02
    assert found.fails.keep < found.passes.keep < found.fails.keep + 0.35
    assert found.plan is not None and found.plan.keep == found.passes.keep
    assert [row.keep for row in found.tried] == sorted(row.keep for row in found.tried)


def test_a_loss_that_no_factored_model_keeps_is_not_reachable(session: Session) -> None:
    found = smallest_within(SETTING, 0.0, metric="kl", tolerance=0.5, session=session)
    assert found.plan is None and found.passes is None
    assert found.fails == found.best == found.tried[0]


def test_everything_passes_where_any_loss_will_do(session: Session) -> None:
    found = smallest_within(SETTING, 1.0, tolerance=0.5, smallest_keep=0.3, session=session)
    assert found.fails is None
    assert found.passes is not None and found.passes.keep == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "f1"}, "metric must be"),
        ({"tolerance": 0}, "tolerance within"),
        ({"smallest_keep": 0.99}, "smallest keep within"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(session: Session, change: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        smallest_within(SETTING, 0.01, session=session, **change)


def test_no_allocator_sees_what_is_scored(session: Session) -> None:
    import pandas as pd

    loaded = session.model(MODEL, "fp32", "cpu", False)
    folder = resolve(MODEL).folder
    assert folder is not None and loaded.tokenizer is not None
    scored = {
        tuple(ids)
        for ids in loaded.tokenizer(
            pd.read_parquet(folder / "evaluation.parquet")["text"].tolist(),
            truncation=True,
            max_length=loaded.shape.max_positions,
        )["input_ids"]
    }
    split = TextSplit.drawn(loaded, Calibration(samples=10_000))
    seen = {tuple(row["input_ids"].tolist()) for row in rows_of((*split.probe, *split.held_out))}
    assert len(seen) > 400 and not seen & scored


def test_the_command_prints_and_writes_a_plan(application: typer.Typer, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    asked = f"{MODEL} --parameters 4M --allocator uniform --whole --calibration-samples 8 --samples 8"
    found = CliRunner().invoke(application, [*asked.split(), "--out", str(out)], catch_exceptions=False)
    assert "asked 4,000,000, got 3,9" in found.stdout and "held-out KL" in found.stdout
    plan = RankPlan.from_json(out.read_text(encoding="utf-8"))
    assert Costs.parameters().of_plan(plan) == plan.kept_parameters < plan.shape.dense_parameters
    found = CliRunner().invoke(application, [*asked.split(), "--json"], catch_exceptions=False)
    assert json.loads(found.stdout)["kind"] == "parameters"


def test_the_command_answers_a_question(application: typer.Typer) -> None:
    asked = f"{MODEL} --max-loss 99% --allocator uniform --whole --calibration-samples 8 --samples 8"
    found = CliRunner().invoke(application, asked.split(), catch_exceptions=False)
    assert "smallest with at most 99.0% of accuracy lost: keep 0.0" in found.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give one of --parameters"),
        ("--parameters 3M --bytes 8GB", "got --parameters and --bytes"),
        ("--parameters many", "--parameters takes a number such as 3M"),
        ("--bytes 8XB", "--bytes takes a size such as 8GB"),
        ("--latency-ms 0", "must be above 0"),
        ("--max-loss 1X", "--max-loss takes a share"),
        ("--max-loss 1% --metric kl", "takes nats"),
        ("--parameters 3M --allocator best", "allocator must be one of"),
    ],
)
def test_the_command_refuses_in_one_line(application: typer.Typer, words: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        CliRunner().invoke(application, [MODEL, *words.split()], catch_exceptions=False)
    assert "\n" not in str(error.value)
