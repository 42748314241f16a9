"""`bench`: measures an encoder, an attention sublayer or a feed-forward op beside fair baselines, in one run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flashsvd.cli import options, sweeps
from flashsvd.cli.sweeps import numbers, run_models, run_sweep, sweepable, words

bench = typer.Typer(
    help="Measure beside fair baselines, in one run, each checked before it may claim a ratio. Options marked as "
    "sweepable may be repeated, and numbers and dtypes also given as a comma-separated list: every combination runs.",
    no_args_is_help=True,
)


@bench.command("encoder")
def encoder(
    model: options.Model,
    *,
    method: sweeps.Method = "svd",
    keep: sweeps.Keeps = None,
    ranks: sweeps.RankTriples = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    batch: Annotated[list[str], sweepable("--batch", "8", "Sequences.")],
    seq: Annotated[list[str], sweepable("--seq", "256", "Tokens in each.")],
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
    """A whole encoder: dense (eager, compiled, micro-batched, chunked), low-rank (eager, compiled) and flash."""
    from flashsvd.bench.encoder import EncoderRequest, bench_encoder

    run_models(
        EncoderRequest,
        bench_encoder,
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


@bench.command("ffn")
def ffn(
    *,
    rows: Annotated[list[str], sweepable("--rows", "16384", "Tokens.")],
    width: Annotated[list[str], sweepable("--width", "3072", "Feed-forward width.")],
    rank: Annotated[list[str], sweepable("--rank", "240", "Rank of the input, R1.")],
    rank_out: Annotated[
        int | None, typer.Option(help="Rank of the output, R2; that of the input if left out.")
    ] = None,
    activation: Annotated[str, typer.Option(help="gelu, gelu_tanh, relu or silu.")] = "gelu",
    dtype: Annotated[list[str], sweepable("--dtype", "bf16", sweeps.DTYPES)],
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
            "dtype": words("--dtype", dtype),
            "width": numbers("--width", width),
            "rank": numbers("--rank", rank),
            "rows": numbers("--rows", rows),
        }
    )
    fixed: dict[str, Any] = {"rank_out": rank_out, "activation": activation, "device": device}
    requests = [FfnRequest(**fixed, repeats=repeats, seed=seed, **point) for point in points]
    run_sweep(requests, bench_ffn, device, as_json)


@bench.command("attention")
def attention(
    *,
    batch: Annotated[list[str], sweepable("--batch", "32", "Sequences.")],
    seq: Annotated[list[str], sweepable("--seq", "512", "Tokens in each.")],
    heads: Annotated[int, typer.Option(help="Heads; the hidden size is heads x head dim.")] = 12,
    kv_heads: Annotated[
        int | None, typer.Option(help="Heads of k and v, each read by as many query heads; all if left out.")
    ] = None,
    head_dim: Annotated[int, typer.Option(help="Dimension of a head.")] = 64,
    causal: Annotated[bool, typer.Option("--causal", help="No token sees a later one.")] = False,
    rotary: Annotated[bool, typer.Option("--rotary", help="q and k are turned by their places.")] = False,
    rank: Annotated[list[str], sweepable("--rank", "32", "Rank of q, k and v per head.")],
    rank_out: Annotated[
        int | None,
        typer.Option(help="Rank of the output projection; the same share of parameters if left out."),
    ] = None,
    dtype: Annotated[list[str], sweepable("--dtype", "bf16", sweeps.DTYPES)],
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
            "dtype": words("--dtype", dtype),
            "rank": numbers("--rank", rank),
            "batch": numbers("--batch", batch),
            "seq": numbers("--seq", seq),
        }
    )
    fixed: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "rank_out": rank_out}
    fixed |= {"causal": causal, "rotary": rotary, "device": device}
    requests = [AttentionRequest(**fixed, repeats=repeats, seed=seed, **point) for point in points]
    run_sweep(requests, bench_attention, device, as_json)
