"""`record`: a comparison, its curve and its spectra in one file that the app replays."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar


def record(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="The file to write, such as run.parquet.")],
    method: options.Method = "svd",
    keep: options.Keep = None,
    ranks: options.Ranks = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    calibration: options.CalibrationText = None,
    calibration_samples: options.CalibrationSamples = 256,
    batch: options.Batch = 8,
    seq: options.Seq = 256,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    samples: options.Samples = None,
    repeats: options.Repeats = 30,
    seed: options.Seed = 0,
    grid: Annotated[str, typer.Option(help="Keeps of the curve: FIRST:LAST:STEP or a list.")] = "0.1:1.0:0.1",
) -> None:
    """Run a comparison and, where the model can be scored, its curve of scores, and save both as one recording."""
    from flashsvd.results import Calibration, CompareRequest, CurveRequest

    request = CompareRequest(
        model=model,
        choice=options.plan_choice(keep, ranks, plan, rules),
        method=method,
        per_head=per_head,
        batch=batch,
        seq=seq,
        dtype=dtype,
        device=device,
        samples=samples,
        repeats=repeats,
        seed=seed,
        calibration=Calibration(calibration, calibration_samples, seed),
    )
    keeps = options.parse_grid(grid)
    from flashsvd.compare import compare
    from flashsvd.curve import score_curve
    from flashsvd.recording import Recording, write
    from flashsvd.session import Session

    session = Session()
    with progress_bar() as progress:
        comparison = compare(request, session, progress)
        curve = None
        if any(run.metric for run in comparison.runs):
            asked = CurveRequest(
                model, keeps, method, per_head, dtype, device, samples, seed, request.calibration
            )
            curve = score_curve(asked, session, progress)
        loaded = session.model(model, dtype, device, per_head)
        spectra, _ = session.spectra(loaded, method, progress, request.calibration)
    command = "python -m flashsvd " + shlex.join(sys.argv[1:])
    write(out, Recording(comparison, curve, spectra.sigmas(), command))
    print(f"wrote {out}")
