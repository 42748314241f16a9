"""`bench`: measures an encoder, an attention sublayer or a feed-forward op beside fair baselines, in one run."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar
from flashsvd.errors import InputError
from flashsvd.results import PlanChoice

if TYPE_CHECKING:
    from flashsvd.bench.record import Measure
    from flashsvd.bench.rows import Point
    from flashsvd.bench.sweep import R
    from flashsvd.progress import Progress

bench = typer.Typer(
    help="Measure beside fair baselines, in one run, each checked before it may claim a ratio. Options marked as "
    "sweepable may be repeated, and numbers and dtypes also given as a comma-separated list: every combination runs.",
    no_args_is_help=True,
)


def _sweep(flag: str, default: str, words: str) -> Any:
    """An option that may be repeated, and hold a comma-separated list each time."""
    return typer.Option(
        flag, default_factory=lambda: [default], show_default=default, help=f"{words} Sweepable."
    )


_DTYPES = "fp32, fp16 or bf16."


@bench.command("encoder")
def encoder(
    model: options.Model,
    *,
    method: Annotated[
        str,
        typer.Option(
            help="Compression method, or random: factors are drawn, nothing is decomposed. "
            "For speed and memory it makes no difference."
        ),
    ] = "svd",
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Share of parameters to keep; 0.5 if no plan is named. Sweepable."),
    ] = None,
    ranks: Annotated[
        list[str] | None,
        typer.Option(help="HEAD,FF,OUT, several separated by ':'. Sweepable."),
    ] = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    batch: Annotated[list[str], _sweep("--batch", "8", "Sequences.")],
    seq: Annotated[list[str], _sweep("--seq", "256", "Tokens in each.")],
    dtype: Annotated[list[str], _sweep("--dtype", "fp32", _DTYPES)],
    device: options.Device = "auto",
    engines: Annotated[str | None, typer.Option(help="Comma-separated rows to run; all if left out.")] = None,
    repeats: options.Repeats = 20,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Seconds of timing per point after which fewer repeats will do.", show_default=False
        ),
    ] = None,
    seed: options.Seed = 0,
    compile_backend: Annotated[
        str, typer.Option(help="Backend of torch.compile; inductor needs a C++ or Triton toolchain.")
    ] = "inductor",
    save: Annotated[
        Path | None, typer.Option(help="A Parquet file that gets each point as it is done; see `report`.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add to the file of --save; equal points are replaced.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """A whole encoder: dense (eager, compiled, micro-batched, chunked), low-rank (eager, compiled) and flash."""
    from flashsvd.bench.encoder import EncoderBench, check_fits_model
    from flashsvd.bench.record import encoder_requests
    from flashsvd.session import Session

    if append and save is None:
        raise InputError("--append adds to the file of --save: name one")
    named = {} if engines is None else {"engines": _words("--engines", [engines])}
    requests = encoder_requests(
        [(_choice(option, plan, rules), option) for option in _plan_options(keep, ranks, plan, rules)],
        batch=_numbers("--batch", batch),
        seq=_numbers("--seq", seq),
        dtype=_words("--dtype", dtype),
        model=model,
        method=method,
        per_head=per_head,
        device=device,
        repeats=repeats,
        budget=budget,
        seed=seed,
        compile_backend=compile_backend,
        **named,
    )
    session = Session()

    def ready() -> None:
        for request in requests:
            check_fits_model(request, session)

    _run(requests, EncoderBench(session), device, as_json, ready, save=save, append=append)


@bench.command("ffn")
def ffn(
    *,
    rows: Annotated[list[str], _sweep("--rows", "16384", "Tokens.")],
    width: Annotated[list[str], _sweep("--width", "3072", "Feed-forward width.")],
    rank: Annotated[list[str], _sweep("--rank", "240", "Rank of the input, R1.")],
    rank_out: Annotated[
        int | None, typer.Option(help="Rank of the output, R2; that of the input if left out.")
    ] = None,
    activation: Annotated[str, typer.Option(help="gelu, gelu_tanh, relu or silu.")] = "gelu",
    dtype: Annotated[list[str], _sweep("--dtype", "bf16", _DTYPES)],
    device: options.Device = "auto",
    repeats: options.Repeats = 50,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """The feed-forward op between its outer factors, beside cuBLAS products: plain, in chunks, and fused."""
    from flashsvd.bench.ffn import FfnRequest, bench_ffn
    from flashsvd.bench.sweep import product

    points = product(
        {
            "dtype": _words("--dtype", dtype),
            "width": _numbers("--width", width),
            "rank": _numbers("--rank", rank),
            "rows": _numbers("--rows", rows),
        }
    )
    fixed: dict[str, Any] = {"rank_out": rank_out, "activation": activation, "device": device}
    requests = [FfnRequest(**fixed, repeats=repeats, seed=seed, **point) for point in points]
    _run(requests, bench_ffn, device, as_json)


@bench.command("attention")
def attention(
    *,
    batch: Annotated[list[str], _sweep("--batch", "32", "Sequences.")],
    seq: Annotated[list[str], _sweep("--seq", "512", "Tokens in each.")],
    heads: Annotated[int, typer.Option(help="Heads; the hidden size is heads x head dim.")] = 12,
    head_dim: Annotated[int, typer.Option(help="Dimension of a head.")] = 64,
    rank: Annotated[list[str], _sweep("--rank", "32", "Rank of q, k and v per head.")],
    rank_out: Annotated[
        int | None,
        typer.Option(help="Rank of the output projection; the same share of parameters if left out."),
    ] = None,
    dtype: Annotated[list[str], _sweep("--dtype", "bf16", _DTYPES)],
    device: options.Device = "auto",
    repeats: options.Repeats = 50,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """An attention sublayer with all four projections: dense with SDPA, low-rank, and FlashSVD."""
    from flashsvd.bench.attention import AttentionRequest, bench_attention
    from flashsvd.bench.sweep import product

    points = product(
        {
            "dtype": _words("--dtype", dtype),
            "rank": _numbers("--rank", rank),
            "batch": _numbers("--batch", batch),
            "seq": _numbers("--seq", seq),
        }
    )
    fixed: dict[str, Any] = {"heads": heads, "head_dim": head_dim, "rank_out": rank_out, "device": device}
    requests = [AttentionRequest(**fixed, repeats=repeats, seed=seed, **point) for point in points]
    _run(requests, bench_attention, device, as_json)


def _run(
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
    with _reporter() as progress, _terminated_like_interrupted():
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
def _terminated_like_interrupted() -> Iterator[None]:
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


def _words(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Comma-separated words of all repeats, each once."""
    found = tuple(dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip()))
    if not found:
        raise InputError(f"{name} names nothing")
    return found


def _numbers(name: str, texts: Sequence[str]) -> tuple[int, ...]:
    words = _words(name, texts)
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise InputError(
            f"{name} takes whole numbers, several separated by commas, got {','.join(texts)!r}"
        ) from None
