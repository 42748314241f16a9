"""One comparison end to end on a small trained-looking model, and everything that can be wrong with a request."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashsvd.compare import compare
from flashsvd.curve import score_curve
from flashsvd.errors import Cancelled, FlashSVDError, InputError, ModelError, OutOfMemoryError, PlanError
from flashsvd.evaluation.held_out import Pieces
from flashsvd.jobs.kinds.compare import KIND
from flashsvd.models.load import load
from flashsvd.ranks import RankPlan
from flashsvd.results import CompareRequest, Comparison, CurveRequest, PlanChoice, to_json
from flashsvd.session import Session


@pytest.fixture(scope="module")
def request_(scored_folder: Path) -> CompareRequest:
    return CompareRequest(str(scored_folder), PlanChoice(keep=0.5), batch=3, seq=20, samples=40, repeats=3)


@pytest.fixture(scope="module")
def result(request_: CompareRequest) -> Comparison:
    return compare(request_)


def test_every_engine_is_measured_and_flash_agrees_with_lowrank(result: Comparison) -> None:
    assert [run.engine for run in result.runs] == ["dense", "lowrank", "flash"]
    dense, lowrank, flash = result.runs
    assert dense.metric and dense.metric.value == 1.0 and dense.metric.n == 40
    assert lowrank.metric is None and flash.metric and flash.metric.value < 1
    assert lowrank.error_vs_lowrank == 0 and 0 < (flash.error_vs_lowrank or 1) < 1e-5
    assert flash.gate and flash.gate.passed and dense.gate is None
    # What flash folds of its factors stays beside them, at ranks padded to multiples of 8.
    assert lowrank.weight_bytes < flash.weight_bytes < 1.5 * lowrank.weight_bytes
    for run in result.runs:
        weights = run.timeline.loc[run.timeline["category"] == "weight", "bytes"].sum()
        assert run.timeline["live_bytes"].max() - weights == run.peak_activation_bytes > 0


def test_the_json_has_the_documented_keys(result: Comparison) -> None:
    data = json.loads(json.dumps(to_json(result)))
    assert {"machine", "model", "plan", "keep", "runs"} <= data.keys()
    for run in data["runs"]:
        assert {
            "engine",
            "latency_ms",
            "peak_activation_bytes",
            "weight_bytes",
            "metric",
            "error_vs_lowrank",
        } <= set(run)
        assert set(run["latency_ms"]) == {"p20", "p50", "p80"}
    for run in data["runs"][::2]:
        assert {"name", "value", "n", "low", "high"} <= set(run["metric"])


def test_all_but_the_scores_comes_first_and_goes_through_plain_data(
    request_: CompareRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    session, seen, parts, stages = Session(), [], [], [""]
    ahead: list[str] = []

    def early(found: Comparison) -> None:
        seen.append(found)
        ahead.append(next(stage for stage in reversed(stages) if stage.startswith(("Timing", "Scoring"))))

    result = compare(request_, session, lambda stage, _: stages.append(stage), early)
    # Each is heard before the next score is begun, not after it.
    assert [words.split(" on ")[0] for words in ahead] == ["Timing", "Scoring dense"]
    scored = [[run.engine for run in first.runs if run.metric is not None] for first in seen]
    assert scored == [[], ["dense"]]
    for first in seen:
        whole = zip(first.runs, result.runs, strict=True)
        with_scores = [replace(one, metric=two.metric) for one, two in whole]
        assert replace(first, runs=tuple(with_scores)) == result
    KIND.run(request_, session, lambda *_: None, lambda part: parts.append(json.loads(json.dumps(part))))
    read = KIND.part(parts[-1])
    assert [run.engine for run in read.runs] == ["dense", "lowrank", "flash"] and read.plan == result.plan
    for run, other in zip(read.runs, result.runs, strict=True):
        assert run.timeline["bytes"].tolist() == other.timeline["bytes"].tolist()
        assert run.timeline["category"].tolist() == other.timeline["category"].tolist()


def test_the_same_weights_are_scored_once(
    request_: CompareRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    scored: list[object] = []
    whole = Pieces.score
    monkeypatch.setattr(
        Pieces, "score", lambda self, model, tell=None: (scored.append(model), whole(self, model, tell))[1]
    )

    def scores(session: Session, **changed: object) -> tuple[int, Comparison]:
        before = len(scored)
        found = compare(replace(request_, **changed), session)
        return len(scored) - before, found

    session = Session()
    # Dense and flash: low-rank, which the gate found alike, is not scored for itself.
    count, first = scores(session)
    assert count == 2
    count, second = scores(session, choice=PlanChoice(keep=0.3))
    assert count == 1
    assert first.runs[0].metric == second.runs[0].metric and first.runs[2].metric != second.runs[2].metric
    assert scores(session, engines=("dense", "lowrank"))[0] == 1
    # A batch of another size is no other model.
    count, third = scores(session, batch=request_.batch + 1)
    assert count == 0 and third.runs[2].metric == first.runs[2].metric
    # Another draw of pieces is another score, and so are other weights.
    assert scores(session, seed=5)[0] == 2

    count, again = scores(Session())
    assert count == 0 and again.runs[0].metric == first.runs[0].metric
    other = Session()
    next(other.model(request_.model, "fp32", "auto", True).model.parameters()).data.mul_(1.5)
    assert scores(other)[0] == 2
    for file in (tmp_path / "scores").iterdir():
        file.write_text('{"name": ')
    assert scores(Session())[0] == 2


def test_one_engine_alone_is_still_checked_against_lowrank(request_: CompareRequest) -> None:
    only = compare(replace(request_, engines=("flash",), samples=4))
    assert [run.engine for run in only.runs] == ["flash"]
    assert only.runs[0].gate and only.runs[0].gate.passed


def test_a_session_loads_and_decomposes_once(request_: CompareRequest) -> None:
    session = Session()
    compare(replace(request_, engines=("lowrank",), samples=4), session)
    loaded = session.model(request_.model, "fp32", "auto", True)
    again = compare(replace(request_, engines=("lowrank",), samples=4, choice=PlanChoice(keep=0.2)), session)
    assert session.model(request_.model, "fp32", "auto", True) is loaded
    assert again.decompositions == 0


def test_a_session_forgets_the_oldest_past_its_limit(scored_folder: Path) -> None:
    session = Session(limit_bytes=1)
    models = [session.model(str(scored_folder), "fp32", "cpu", per_head) for per_head in (True, False)]
    session.model(str(scored_folder), "fp16", "cpu", True)
    assert session.model(str(scored_folder), "fp32", "cpu", True) is not models[0]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_passes_the_gate(request_: CompareRequest, dtype: str) -> None:
    found = compare(replace(request_, dtype=dtype, samples=8))
    flash = found.run("flash")
    assert flash and flash.gate and flash.gate.passed, flash


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"batch": 0}, InputError, "batch must be at least 1"),
        ({"seq": 65}, InputError, "seq must be from 1 to 64"),
        ({"seq": 0}, InputError, "seq must be from 1 to 64"),
        ({"samples": 0}, InputError, "samples must be at least 1"),
        ({"engines": ()}, InputError, "at least one of"),
        ({"engines": ("warp",)}, InputError, "engine must be one of"),
        ({"method": "magic"}, InputError, "method must be one of"),
        ({"dtype": "int4"}, InputError, "dtype must be one of"),
        ({"model": "nothing-here"}, ModelError, "hub cannot be reached"),
        ({"choice": PlanChoice(ranks=(9, 0, 10))}, PlanError, "rank for up must be from 1 to 64"),
        ({"choice": PlanChoice(ranks=(40, 10, 10))}, PlanError, "rank for q must be from 1 to 32"),
        ({"choice": PlanChoice(keep=0)}, PlanError, "keep must be above 0"),
        ({"batch": 10**9}, OutOfMemoryError, "is free"),
    ],
)
def test_a_bad_request_is_one_line(
    request_: CompareRequest, change: dict[str, object], kind: type[FlashSVDError], words: str
) -> None:
    with pytest.raises(kind, match=words) as error:
        compare(replace(request_, **change))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_memory_that_is_missing_is_counted_before_it_is_taken(
    request_: CompareRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashsvd.compare.available_bytes", lambda device: 50_000)
    with pytest.raises(OutOfMemoryError) as error:
        compare(request_)
    assert error.value.available_bytes == 50_000
    assert error.value.needed_bytes and error.value.needed_bytes > 50_000


def test_running_out_during_a_run_says_what_was_needed(
    request_: CompareRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("flashsvd.compare.time_engines", full)
    with pytest.raises(OutOfMemoryError, match="use a smaller batch") as error:
        compare(request_)
    assert error.value.needed_bytes


def test_a_whole_plan_says_itself_whether_it_is_per_head(request_: CompareRequest) -> None:
    shape = load(request_.model, per_head=False).shape
    plan = RankPlan.from_text(shape, "*.qkv: 20 *.up: 20")
    found = compare(replace(request_, choice=PlanChoice(plan=plan), samples=4))
    flash = found.run("flash")
    assert found.plan == plan and flash and flash.gate and flash.gate.passed


def test_plan_choice_takes_exactly_one() -> None:
    with pytest.raises(InputError, match="exactly one"):
        PlanChoice()
    with pytest.raises(InputError, match="exactly one"):
        PlanChoice(keep=0.5, text="*.q: 3")


def test_cancel_is_heard_between_layers(request_: CompareRequest) -> None:
    stages: list[str] = []

    def cancel_while_timing(stage: str, share: float) -> None:
        assert 0 <= share <= 1
        stages.append(stage)
        if stages.count("Timing") > 4:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        compare(request_, progress=cancel_while_timing)
    assert not any(stage.startswith("Scoring") for stage in stages)


def test_the_curve_scores_every_keep_from_one_decomposition(scored_folder: Path, tmp_path: Path) -> None:
    seen = []
    keeps = (1.0, 0.1, 0.5)
    curve = score_curve(CurveRequest(str(scored_folder), keeps, samples=40), on_point=seen.append)
    assert [point.asked_keep for point in curve.points] == sorted(keeps)
    assert seen == list(curve.points)
    assert curve.decompositions in (0, 18)
    assert curve.dense.value == 1.0 == curve.points[-1].metric.value
    assert curve.points[0].metric.value < curve.points[-1].metric.value
    assert curve.points[0].keep < 0.12


@pytest.mark.parametrize("keeps", [(), (0.0,), (1.2,)])
def test_a_curve_over_nothing_is_refused(scored_folder: Path, keeps: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="keep"):
        score_curve(CurveRequest(str(scored_folder), keeps))


def test_random_weights_have_no_curve() -> None:
    with pytest.raises(ModelError, match="accuracy does not apply"):
        score_curve(CurveRequest("electra-small", (0.5,)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_gpu_run_takes_the_triton_kernels_and_agrees(dtype: str) -> None:
    found = compare(
        CompareRequest(
            "bert-base",
            PlanChoice(ranks=(40, 240, 240)),
            batch=8,
            seq=256,
            dtype=dtype,
            device="cuda",
            repeats=3,
        )
    )
    flash = found.run("flash")
    assert flash and flash.backend == "triton" and flash.gate and flash.gate.passed, flash
    for run in found.runs:
        weights = run.timeline.loc[run.timeline["category"] == "weight", "bytes"].sum()
        assert run.timeline["live_bytes"].max() - weights == pytest.approx(
            run.peak_activation_bytes, rel=0.01
        )


@pytest.mark.gpu
def test_a_gpu_that_runs_out_fails_the_run_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    small = CompareRequest("bert-base", PlanChoice(keep=0.5), batch=2, seq=64, device="cuda", repeats=3)
    session = Session()
    with monkeypatch.context() as patch:
        patch.setattr("flashsvd.compare._check_fits", lambda *_: None)
        with pytest.raises(OutOfMemoryError, match="is free"):
            compare(replace(small, batch=60_000, seq=512), session)
    _, total = torch.cuda.mem_get_info()
    assert torch.cuda.memory_allocated() < 0.1 * total
    assert compare(small, session).run("flash") is not None
