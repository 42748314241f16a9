"""`bench decode` and `bench prefill`: a language model beside fair baselines, in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from flashsvd.cli import options, sweeps
from flashsvd.cli.sweeps import numbers, run_models, sweepable, words


def decode(
    model: options.Model,
    *,
    method: sweeps.Method = "svd",
    keep: sweeps.Keeps = None,
    ranks: sweeps.RankTriples = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    batch: Annotated[list[str], sweepable("--batch", "1", "Sequences.")],
    context: Annotated[list[str], sweepable("--context", "512", "Tokens that are in the cache.")],
    new_tokens: Annotated[int, typer.Option(help="Tokens that are timed as one block.")] = 32,
    dtype: Annotated[list[str], sweepable("--dtype", "fp32", sweeps.DTYPES)],
    device: options.Device = "auto",
    engines: sweeps.Engines = None,
    repeats: options.Repeats = 10,
    budget: sweeps.Budget = None,
    seed: options.Seed = 0,
    compile_backend: sweeps.CompileBackend = "inductor",
    save: sweeps.Save = None,
    append: sweeps.Append = False,
    as_json: options.Json = False,
) -> None:
    """One token after another: dense and low-rank (eager, static cache compiled), our runtime, also as one graph."""
    from flashsvd.bench.decode import DecodeRequest, bench_decode

    run_models(
        DecodeRequest,
        bench_decode,
        {
            "dtype": words("--dtype", dtype),
            "batch": numbers("--batch", batch),
            "context": numbers("--context", context),
        },
        plans=(keep, ranks, plan, rules),
        engines=engines,
        device=device,
        save=save,
        append=append,
        as_json=as_json,
        model=model,
        method=method,
        per_head=per_head,
        new_tokens=new_tokens,
        repeats=repeats,
        budget=budget,
        seed=seed,
        compile_backend=compile_backend,
    )


def prefill(
    model: options.Model,
    *,
    method: sweeps.Method = "svd",
    keep: sweeps.Keeps = None,
    ranks: sweeps.RankTriples = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    batch: Annotated[list[str], sweepable("--batch", "1", "Prompts.")],
    seq: Annotated[list[str], sweepable("--seq", "512", "Tokens in each.")],
    dtype: Annotated[list[str], sweepable("--dtype", "fp32", sweeps.DTYPES)],
    device: options.Device = "auto",
    engines: sweeps.Engines = None,
    repeats: options.Repeats = 20,
    budget: sweeps.Budget = None,
    seed: options.Seed = 0,
    compile_backend: sweeps.CompileBackend = "inductor",
    save: sweeps.Save = None,
    append: sweeps.Append = False,
    as_json: options.Json = False,
) -> None:
    """Reading prompts into a cache: dense (eager, compiled, one at a time), low-rank (eager, compiled), our runtime."""
    from flashsvd.bench.prefill import PrefillRequest, bench_prefill

    run_models(
        PrefillRequest,
        bench_prefill,
        {
            "dtype": words("--dtype", dtype),
            "batch": numbers("--batch", batch),
            "seq": numbers("--seq", seq),
        },
        plans=(keep, ranks, plan, rules),
        engines=engines,
        device=device,
        save=save,
        append=append,
        as_json=as_json,
        model=model,
        method=method,
        per_head=per_head,
        repeats=repeats,
        budget=budget,
        seed=seed,
        compile_backend=compile_backend,
    )
