"""What was measured, for the roofline: ceilings of machines and whole models, from bench recordings. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flashsvd.errors import FlashSVDError
from flashsvd.gpus import GPUS
from flashsvd.models.shape import ModelShape
from flashsvd.paths import assets
from flashsvd.ranks import RankPlan
from flashsvd.results import PlanChoice
from flashsvd.roofline import Ceiling
from flashsvd.tables import Kind, read_table

# The tag of `flashsvd.bench.saved`, which lives beside torch.
_KIND = Kind("bench recording", "flashsvd-bench-recording/1")

Mode = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Measured:
    """One way of running a whole model, measured and checked: FLOPs and bytes are counted for its own algorithm.

    seq: tokens of a forward, or those behind the one token of a step. settings: ranks, keep, rules and per_head of the
    point's plan.
    """

    name: str
    what: str
    model: str
    mode: Mode
    batch: int
    seq: int
    dtype: str
    settings: dict[str, Any]
    milliseconds: float
    flops: int
    bytes: int
    machine: str
    created: str

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes

    @property
    def flops_s(self) -> float:
        return self.flops / self.milliseconds * 1e3

    @property
    def dense(self) -> bool:
        return self.name.startswith("dense")

    @property
    def shape(self) -> tuple[str, int, int, str]:
        """Mode, batch, tokens and dtype."""
        return self.mode, self.batch, self.seq, self.dtype

    def plan(self, shape: ModelShape) -> RankPlan:
        """Its plan for a model's shape. Raises FlashSVDError where the recording says none that fits."""
        whole = shape.with_per_head(bool(self.settings.get("per_head", True)))
        return self.choice().resolve(whole)

    def choice(self) -> PlanChoice:
        """How its plan was asked for."""
        if self.settings.get("ranks"):
            head, wide, output = (int(rank) for rank in str(self.settings["ranks"]).split(","))
            return PlanChoice(ranks=(head, wide, output))
        if self.settings.get("keep") is not None:
            return PlanChoice(keep=float(self.settings["keep"]))
        return PlanChoice(text=self.settings.get("rules"))


@dataclass(frozen=True)
class Bench:
    """All points and ceilings of some recordings, ceilings by machine and dtype."""

    points: tuple[Measured, ...]
    ceilings: dict[tuple[str, str], Ceiling]

    def of_model(self, model: str) -> tuple[Measured, ...]:
        return tuple(point for point in self.points if point.model == model)


def bundled() -> list[Path]:
    """The bench recordings that ship."""
    return sorted((assets() / "recordings" / "bench").glob("*.parquet"))


def read_bench(paths: Iterable[Path]) -> Bench:
    """Measured rows that are correct, and ceilings; of several ceilings of one machine the highest.

    Raises:
        InputError: a file that is no bench recording.
    """
    points: list[Measured] = []
    ceilings: dict[tuple[str, str], Ceiling] = {}
    for path in paths:
        header, table = read_table(path, _KIND)
        rows = table.to_pylist()
        for index, head in enumerate(header["points"]):
            machine = _label(head["place"]["machine"])
            for name, rate in _rates(head["place"]["ceilings"]).items():
                made = Ceiling(
                    machine, rate, head["place"]["ceilings"]["copy_tbps"] * 1e12, "MEASURED", head["created"]
                )
                before = ceilings.get((machine, name))
                if before is None or made.flops_s > before.flops_s:
                    ceilings[machine, name] = made
            points += [_point(head, row, machine) for row in rows if row["point"] == index and _counts(row)]
    return Bench(tuple(points), ceilings)


def data_sheets(dtype: str) -> list[Ceiling]:
    """Ceilings of every GPU of `flashsvd.gpus` that has the dtype's instructions."""
    return [
        Ceiling(one.name, rate, one.memory_bytes_s, "DATA SHEET", f"{one.architecture}, {one.sm_count} SMs")
        for one in GPUS
        if (rate := one.flops(dtype)) is not None
    ]


def matches(point: Measured, shape: ModelShape, plan: RankPlan) -> bool:
    """Whether a compressed point ran this plan; a dense one runs every plan."""
    if point.dense:
        return True
    try:
        return point.plan(shape) == plan
    except FlashSVDError:
        return False


def _counts(row: dict[str, Any]) -> bool:
    whole = row["status"] == "measured" and row["p50_ms"] and row["flops"] and row["bytes"]
    return bool(whole and row["gate_passed"] is not False)


def _point(head: dict[str, Any], row: dict[str, Any], machine: str) -> Measured:
    config = head["config"]
    step = head["bench"] == "decode"
    return Measured(
        name=row["name"],
        what=row["what"],
        model=config["model"],
        mode="decode" if step else "prefill",
        batch=int(config["batch"]),
        seq=int(config["context" if step else "seq"]),
        dtype=config["dtype"],
        settings={
            name: config[name]
            for name in ("ranks", "keep", "rules", "per_head")
            if config.get(name) is not None
        },
        milliseconds=float(row["p50_ms"]),
        flops=int(row["flops"]),
        bytes=int(row["bytes"]),
        machine=machine,
        created=head["created"],
    )


def _label(machine: dict[str, Any]) -> str:
    accelerator = machine.get("accelerator")
    return accelerator.removeprefix("NVIDIA ") if accelerator else f"CPU, {machine['cores']} cores"


def _rates(ceilings: dict[str, Any]) -> dict[str, float]:
    """FLOP/s by dtype, of those that were measured."""
    found = {name: ceilings.get(f"{name}_tflops") for name in ("fp32", "fp16", "bf16")}
    return {name: rate * 1e12 for name, rate in found.items() if rate}
