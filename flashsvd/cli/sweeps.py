"""Options that may hold several values, and running every combination of them."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar
from flashsvd.errors import InputError
from flashsvd.results import PlanChoice

if TYPE_CHECKING:
    from flashsvd.bench.record import M, Measure
    from flashsvd.bench.request import Bench
    from flashsvd.bench.rows import Point
    from flashsvd.bench.sweep import R
    from flashsvd.progress import Progress


def sweepable(flag: str, default: str, words: str) -> Any:
    """An option that may be repeated, and hold a comma-separated list each time."""
    return typer.Option(
        flag, default_factory=lambda: [default], show_default=default, help=f"{words} Sweepable."
    )


DTYPES = "fp32, fp16 or bf16."

Method = Annotated[
    str,
    typer.Option(
        help="Compression method, or random: factors are drawn, nothing is decomposed. "
        "For speed and memory it makes no difference."
    ),
]
Keeps = Annotated[
    list[str] | None,
    typer.Option("--keep", help="Share of parameters to keep; 0.5 if no plan is named. Sweepable."),
]
RankTriples = Annotated[
    list[str] | None,
    typer.Option("--ranks", help="HEAD,FF,OUT, several separated by ':'. Sweepable."),
]
Engines = Annotated[str | None, typer.Option(help="Comma-separated rows to run; all if left out.")]
Budget = Annotated[
    float | None,
    typer.Option(help="Seconds of timing per point after which fewer repeats will do.", show_default=False),
]
CompileBackend = Annotated[
    str, typer.Option(help="Backend of torch.compile; inductor needs a C++ or Triton toolchain.")
]
Save = Annotated[
    Path | None, typer.Option(help="A Parquet file that gets each point as it is done; see `report`.")
]
Append = Annotated[
    bool, typer.Option("--append", help="Add to the file of --save; equal points are replaced.")
]


def run_models(
    kind: type[M],
    bench: Bench[M],
    sizes: Mapping[str, Sequence[Any]],
    *,
    plans: tuple[list[str] | None, list[str] | None, Path | None, str | None],
    engines: str | None,
    device: str,
    save: Path | None,
    append: bool,
    as_json: bool,
    **fixed: Any,
) -> None:
    """Runs every combination of plans (keep, ranks, a file, rules) and sizes of a benchmark of whole models."""
    from flashsvd.bench.record import model_requests
    from flashsvd.bench.request import ModelBench, check_fits_model
    from flashsvd.session import Session

    if append and save is None:
        raise InputError("--append adds to the file of --save: name one")
    named = {} if engines is None else {"engines": words("--engines", [engines])}
    keep, ranks, plan, rules = plans
    chosen = [(_choice(option, plan, rules), option) for option in _plan_options(keep, ranks, plan, rules)]
    requests = model_requests(kind, chosen, sizes, device=device, **fixed, **named)
    session = Session()

    def ready() -> None:
        for request in requests:
            check_fits_model(request, session)

    run_sweep(requests, ModelBench(session, bench), device, as_json, ready, save=save, append=append)


def run_sweep(
    requests: Sequence[R],
    measure: Measure[R],
    device: str,
    as_json: bool,
    ready: Callable[[], None] = lambda: None,
    *,
    save: Path | None = None,
    append: bool = False,
) -> None:
    """Measures and prints every point as it is done; what is done survives an interrupt or an error."""
    from flashsvd.bench.record import check_all, measure_place, measure_points
    from flashsvd.bench.rows import document
    from flashsvd.bench.table import ceiling_line, machine_line, point_lines

    check_all(requests, save, append=append)
    ready()
    done: list[Point] = []
    complete = False
    with _reporter() as progress, terminated_like_interrupted():
        place = measure_place(device, progress)
        if not as_json:
            print(f"{machine_line(place.machine)}\n{ceiling_line(place.ceilings)}", flush=True)
        try:
            for point in measure_points(requests, measure, place, progress, save=save):
                done.append(point)
                if not as_json:
                    print("\n".join(["", *point_lines(point)]), flush=True)
            complete = True
        finally:
            if as_json:
                found = document(tuple(done), place.machine, place.ceilings, interrupted=not complete)
                print(json.dumps(found))


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """What ends a job that ran past its limit is a SIGTERM: it must not cost what was measured."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _reporter() -> Iterator[Progress]:
    """A bar on a terminal; in a pipe one line on stderr per stage."""
    if sys.stderr.isatty():
        with progress_bar() as bar:
            yield bar
        return
    from flashsvd.bench.record import line_per_stage

    yield line_per_stage()


def _plan_options(
    keep: list[str] | None, ranks: list[str] | None, plan: Path | None, rules: str | None
) -> list[tuple[str, str]]:
    """(option, value) of every plan to run."""
    given = {
        "keep": [str(share) for share in _shares(keep)] if keep else [],
        "ranks": [triple for text in ranks or [] for triple in text.split(":")],
        "plan": [] if plan is None else [str(plan)],
        "rules": [] if rules is None else [rules],
    }
    found = [(name, value) for name, values in given.items() for value in values]
    names = list(dict.fromkeys(name for name, _ in found))
    if len(names) > 1:
        raise InputError(f"give one of --keep, --ranks, --plan and --rules, got {' and '.join(names)}")
    return found or [("keep", "0.5")]


def _choice(option: tuple[str, str], plan: Path | None, rules: str | None) -> PlanChoice:
    """The plan that one (option, value) names."""
    name, value = option
    return options.plan_choice(
        float(value) if name == "keep" else None, value if name == "ranks" else None, plan, rules
    )


def _shares(texts: list[str]) -> list[float]:
    return [value for text in texts for value in options.parse_grid(text)]


def words(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Comma-separated words of all repeats, each once."""
    found = tuple(dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip()))
    if not found:
        raise InputError(f"{name} names nothing")
    return found


def numbers(name: str, texts: Sequence[str]) -> tuple[int, ...]:
    found = words(name, texts)
    try:
        return tuple(int(word) for word in found)
    except ValueError:
        raise InputError(
            f"{name} takes whole numbers, several separated by commas, got {','.join(texts)!r}"
        ) from None
