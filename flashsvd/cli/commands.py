"""The table of commands; each is a file of its own."""

from __future__ import annotations

import typer

from flashsvd.cli.app import app
from flashsvd.cli.bench import bench
from flashsvd.cli.bench_decoders import decode, prefill
from flashsvd.cli.bench_decompose import decompose
from flashsvd.cli.budget import budget
from flashsvd.cli.compare import compare
from flashsvd.cli.compress import compress
from flashsvd.cli.curve import curve
from flashsvd.cli.evaluate import evaluate
from flashsvd.cli.export import export
from flashsvd.cli.finetune import finetune
from flashsvd.cli.generate import generate
from flashsvd.cli.import_ import import_
from flashsvd.cli.models import models
from flashsvd.cli.record import record
from flashsvd.cli.report import report
from flashsvd.cli.runs import runs
from flashsvd.cli.train_demo import train_demo
from flashsvd.cli.tune import tune

application = typer.Typer(
    name="flashsvd",
    help="SVD-compressed transformers: compress, run the streaming kernels beside dense, see what it costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
application.command("models")(models)
application.command("compare")(compare)
application.command("curve")(curve)
application.command("generate")(generate)
application.command("compress")(compress)
application.command("budget")(budget)
application.command("evaluate")(evaluate)
application.command("finetune")(finetune)
application.command("import")(import_)
application.command("export")(export)
application.command("record")(record)
application.command("runs")(runs)
bench.command("decode")(decode)
bench.command("prefill")(prefill)
bench.command("decompose")(decompose)
application.add_typer(bench, name="bench")
application.command("report")(report)
application.command("tune")(tune)
application.command("train-demo")(train_demo)
application.command("app")(app)
