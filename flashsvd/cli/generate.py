"""`generate`: a model writes on after a prompt, as it is or compressed, and says how fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar
from flashsvd.cli.sweeps import terminated_like_interrupted
from flashsvd.errors import InputError, format_bytes

if TYPE_CHECKING:
    from flashsvd.generation.generate import Generation

_PROMPT_LIMIT_BYTES = 16 * 2**20


def generate(
    model: options.Model,
    *,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to go on from; several are written on side by side.")
    ] = None,
    prompt_file: Annotated[
        list[Path] | None, typer.Option(help="A file that holds a prompt; may be repeated.")
    ] = None,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option(help="So many random tokens in a prompt's place, for models without a tokenizer."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="New tokens at most; 128, or what the context has room for, if left out."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token always.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among so many most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the most likely that have this probability together.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends the writing; may be repeated.")
    ] = None,
    engine: Annotated[str, typer.Option(help="dense, lowrank or flash.")] = "flash",
    cache: Annotated[str, typer.Option(help="dense, or rank: keys and values in rank space.")] = "dense",
    method: Annotated[
        str, typer.Option(help="Compression method, or random: factors are drawn, nothing is decomposed.")
    ] = "svd",
    keep: options.Keep = None,
    ranks: options.Ranks = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    calibration: options.CalibrationText = None,
    calibration_samples: options.CalibrationSamples = 256,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Write on after a prompt, as the tokens come, through the runtime that decodes; then say how fast it was."""
    named = any(value is not None for value in (keep, ranks, plan, rules))
    choice = options.plan_choice(keep, ranks, plan, rules) if named else None
    texts = (*(prompt or ()), *(_read(path) for path in prompt_file or ()))
    from flashsvd.generation.generate import generate as run
    from flashsvd.generation.request import GenerateRequest
    from flashsvd.results import Calibration, to_json

    request = GenerateRequest(
        model=model,
        prompts=texts,
        prompt_tokens=tuple(prompt_tokens or ()),
        choice=choice,
        method=method,
        per_head=per_head,
        engine=engine,
        cache=cache,  # type: ignore[arg-type]
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        dtype=dtype,
        device=device,
        calibration=Calibration(calibration, calibration_samples, seed),
    )
    request.check()
    streams = len(texts) == 1 and not as_json
    with terminated_like_interrupted():
        if streams:
            result = run(request, on_text=_show)
        else:
            with progress_bar() as progress:
                result = run(request, progress=progress)
    if as_json:
        rates = {
            "cold_tokens_per_second": result.cold_rate,
            "steady_tokens_per_second": result.steady_rate,
        }
        print(json.dumps({**to_json(result), **rates}))
    else:
        _print_texts(result, shown=streams)
    for line in summary(result):
        print(line, file=sys.stderr)
    if any(written.ended == "interrupt" for written in result.written):
        raise typer.Exit(130)


def _show(_: int, piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _print_texts(result: Generation, *, shown: bool) -> None:
    if shown:
        print(flush=True)
        return
    for place, written in enumerate(result.written, 1):
        if len(result.written) > 1:
            print(f"--- {place}: after {written.prompt_tokens} tokens, {written.ended}")
        print(" ".join(map(str, written.tokens)) if written.text is None else written.text, flush=True)


def summary(result: Generation) -> list[str]:
    """What a generation took, in lines."""
    count = len(result.written)
    times = f" x {count} prompts" if count > 1 else ""
    tokens = sum(len(written.tokens) for written in result.written)
    ended = ", ".join(dict.fromkeys(written.ended for written in result.written))
    rate = result.steady_rate
    steady = "" if rate is None else f", then {rate:.3g} tokens/s{times}"
    median = "" if result.step_ms is None else f" (median {result.step_ms.p50:.3g} ms a token)"
    what = result.plan if result.plan is not None else "no factors"
    return [
        f"{tokens} tokens, ended by {ended}",
        f"first after {result.first_seconds:.3g} s ({result.cold_rate:.3g} tokens/s cold){steady}{median}",
        f"cache {format_bytes(result.cache_bytes)} for {result.context} tokens{times}, weights "
        f"{format_bytes(result.weight_bytes)}",
        f"engine {result.engine}, {what}",
        f"prefill: {result.prefill}",
    ]


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _PROMPT_LIMIT_BYTES:
            raise InputError(f"{path} is larger than a prompt may be ({_PROMPT_LIMIT_BYTES // 2**20} MiB)")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompt {path}: {error}") from None
