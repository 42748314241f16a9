"""Runs a sweep and saves each point as it is done; needs nothing of the command line.

>>> from flashsvd.bench.record import record_encoder
>>> record_encoder(
...     "bert-base.parquet", "bert-base", ranks=[(40, 240, 240)], batch=[32], seq=[128, 512], dtype=["bf16"]
... )  # doctest: +SKIP
>>> from flashsvd.bench.record import record_decode
>>> record_decode(
...     "llama.parquet", "llama-2-7b", keep=[0.5, 0.8], batch=[1, 16], context=[512], per_head=False
... )  # doctest: +SKIP
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flashsvd.bench.decode import DecodeRequest, bench_decode
from flashsvd.bench.encoder import EncoderRequest, bench_encoder
from flashsvd.bench.prefill import PrefillRequest, bench_prefill
from flashsvd.bench.random_factors import RANDOM
from flashsvd.bench.request import Bench, ModelBench, ModelRequest, check_fits_model
from flashsvd.bench.rows import Point, Row
from flashsvd.bench.saved import Place, SavedPoint, add_point, check_target
from flashsvd.bench.sweep import R, product, run_points
from flashsvd.bench.table import ceiling_line, machine_line, point_lines
from flashsvd.errors import InputError
from flashsvd.measure.ceilings import Ceilings, measure_ceilings
from flashsvd.measure.machine import describe_machine
from flashsvd.models.load import pick_device
from flashsvd.progress import Progress
from flashsvd.results import PlanChoice
from flashsvd.session import Session

Plan = tuple[PlanChoice, tuple[str, str]]
"""A plan, and the option and value by which the command line names it."""

M = TypeVar("M", bound=ModelRequest)

Measure = Callable[[R, Ceilings, Progress], tuple[str, tuple[Row, ...]]]


def record_encoder(
    path: Path | str,
    model: str,
    *,
    ranks: Sequence[tuple[int, int, int]] = (),
    keep: Sequence[float] = (),
    batch: Sequence[int],
    seq: Sequence[int],
    dtype: Sequence[str] = ("bf16",),
    append: bool = False,
    **options: Any,
) -> None:
    """`bench encoder MODEL ... --save PATH` as a function: every combination is measured, printed and saved.

    Args:
        path: the Parquet file; each point is in it as soon as it is done.
        ranks: head, feed-forward, output each. keep: shares of parameters to keep.
        append: add to a file that is there; equal points are replaced.
        options: other fields of `EncoderRequest`, such as engines, repeats, budget. method is "random" by default:
            factors are drawn, nothing is decomposed.

    Raises:
        InputError: the file cannot be written or is there already, or a setting that cannot run.
        Whatever `flashsvd.bench.encoder.bench_encoder` raises but for a point out of memory, which is saved as one.
    """
    sizes = {"dtype": dtype, "batch": batch, "seq": seq}
    requests = model_requests(EncoderRequest, plans(ranks, keep), sizes, model=model, **_drawn(options))
    _record(Path(path), requests, bench_encoder, append=append)


def record_decode(
    path: Path | str,
    model: str,
    *,
    ranks: Sequence[tuple[int, int, int]] = (),
    keep: Sequence[float] = (),
    batch: Sequence[int] = (1,),
    context: Sequence[int] = (512,),
    dtype: Sequence[str] = ("bf16",),
    append: bool = False,
    **options: Any,
) -> None:
    """`bench decode MODEL ... --save PATH` as a function, as `record_encoder` is for encoders; options are other fields
    of `flashsvd.bench.decode.DecodeRequest`, such as new_tokens, per_head, engines."""
    sizes = {"dtype": dtype, "batch": batch, "context": context}
    requests = model_requests(DecodeRequest, plans(ranks, keep), sizes, model=model, **_drawn(options))
    _record(Path(path), requests, bench_decode, append=append)


def record_prefill(
    path: Path | str,
    model: str,
    *,
    ranks: Sequence[tuple[int, int, int]] = (),
    keep: Sequence[float] = (),
    batch: Sequence[int] = (1,),
    seq: Sequence[int] = (2048,),
    dtype: Sequence[str] = ("bf16",),
    append: bool = False,
    **options: Any,
) -> None:
    """`bench prefill MODEL ... --save PATH` as a function, as `record_encoder` is for encoders; options are other
    fields of `flashsvd.bench.prefill.PrefillRequest`, such as per_head, engines."""
    sizes = {"dtype": dtype, "batch": batch, "seq": seq}
    requests = model_requests(PrefillRequest, plans(ranks, keep), sizes, model=model, **_drawn(options))
    _record(Path(path), requests, bench_prefill, append=append)


def plans(ranks: Sequence[tuple[int, int, int]], keep: Sequence[float]) -> list[Plan]:
    """Plans by ranks, then by shares to keep, each with how the command line names it."""
    found = [(PlanChoice(ranks=triple), ("ranks", ",".join(map(str, triple)))) for triple in ranks]
    return found + [(PlanChoice(keep=share), ("keep", str(share))) for share in keep]


def _drawn(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": RANDOM, **options}


def _record(path: Path, requests: Sequence[M], bench: Bench[M], *, append: bool) -> None:
    session, tell = Session(), line_per_stage()
    check_all(requests, path, append=append)
    for request in requests:
        check_fits_model(request, session)
    place = measure_place(requests[0].device, tell)
    print(f"{machine_line(place.machine)}\n{ceiling_line(place.ceilings)}", flush=True)
    for point in measure_points(requests, ModelBench(session, bench), place, tell, save=path):
        print("\n".join(["", *point_lines(point)]), flush=True)


def line_per_stage() -> Progress:
    """A progress that prints each new stage as one line on stderr: torch.compile may take minutes."""
    last = ""

    def tell(stage: str, _: float) -> None:
        nonlocal last
        if stage != last:
            print(stage, file=sys.stderr, flush=True)
        last = stage

    return tell


def model_requests(
    kind: type[M], plans: Sequence[Plan], sizes: Mapping[str, Sequence[Any]], **fixed: Any
) -> list[M]:
    """Every combination of sizes, the plans of one shape next to each other: they share what is compiled.

    Raises:
        InputError: nothing to combine, or too many points.
    """
    points = product({**sizes, "plan": plans})
    if not points:
        raise InputError(f"a sweep needs at least one plan, {', '.join(sizes)}")
    return [
        kind(choice=point["plan"][0], plan_option=point["plan"][1], **fixed, **_without_plan(point))
        for point in points
    ]


def check_all(requests: Sequence[R], save: Path | None, *, append: bool) -> None:
    """Raises InputError for a request that cannot run and for a file that cannot be written."""
    for request in requests:
        request.check()
    if save is not None:
        check_target(save, append=append)


def measure_place(device: str, progress: Progress) -> Place:
    """The machine as `device` names it, its ceilings measured now.

    Raises:
        InputError, DeviceError: no such device.
    """
    chosen = pick_device(device)
    progress("Measuring the machine's ceilings", 0.0)
    return Place.of(describe_machine(chosen), measure_ceilings(chosen))


def measure_points(
    requests: Sequence[R], measure: Measure[R], place: Place, progress: Progress, *, save: Path | None = None
) -> Iterator[Point]:
    """Measures one request after another; a point is given, and saved, as soon as it is done.

    Raises what `measure` raises, except for running out of memory, which is that point's failure, and InputError
    where the file cannot be written.
    """
    count = 0

    def one(request: R) -> tuple[str, tuple[Row, ...]]:
        words = f"[{count + 1}/{len(requests)}] "
        return measure(request, place.ceilings, lambda stage, share: progress(words + stage, share))

    for point in run_points(requests, one):
        count += 1
        if save is not None:
            add_point(save, SavedPoint(point, place))
        yield point


def _without_plan(point: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name != "plan"}
