"""A run, or two side by side, as one HTML file that opens offline: tables, and figures with plotly.js inside."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from flashsvd.errors import InputError
from flashsvd.figures import theme
from flashsvd.figures.curve import curve as curve_figure
from flashsvd.figures.grid import rank_grid
from flashsvd.figures.runs_curves import runs_curves
from flashsvd.figures.runs_latency import runs_latency
from flashsvd.figures.runs_memory import runs_memory
from flashsvd.figures.runs_ranks import runs_ranks
from flashsvd.figures.timeline import timeline
from flashsvd.results import Comparison, Curve, EngineRun, Metric
from flashsvd.runs.export import Kept
from flashsvd.runs.facts import engines_of, main_engine
from flashsvd.side_by_side import (
    ALIGNED_COLUMNS,
    NumberRow,
    by_layer_and_op,
    incomparable,
    numbers,
    rank_cells,
    shared_engines,
    shown,
)

_MOST_OPS = 40
# What the page may do: its own scripts and styles, pictures that it makes itself, and nothing from anywhere else.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_STYLE = """
body{font:14px/1.5 Inter,'Segoe UI','Helvetica Neue',Arial,'Liberation Sans',sans-serif;color:#16181d;
background:#fbfbf9;max-width:1080px;margin:32px auto;padding:0 20px}
h1{font-size:22px;letter-spacing:-.012em;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:15px;margin:26px 0 8px}
section{background:#fff;border:1px solid #e3e3df;border-radius:12px;padding:12px 16px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:4px 10px 4px 0;text-align:right;
border-bottom:1px solid #eeeeea;font-variant-numeric:tabular-nums}th{color:#6a6f7d;font-weight:500}
td:first-child,th:first-child{text-align:left}code{font-size:12px;overflow-wrap:anywhere}
.badge{font-size:11px;font-weight:700;letter-spacing:.05em;border-radius:4px;padding:1px 7px;color:#a65a00;
background:#f8e8cf}.muted{color:#6a6f7d;font-size:12.5px}.good{color:#0a7d4f}.bad{color:#b4480f}
.note{border:1px solid #e3e3df;border-radius:10px;padding:8px 12px;background:#fff;margin:12px 0}
"""


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], tones: Sequence[str] = ()) -> str:
    """A table of texts, all escaped. tones: "good", "bad" or "plain" of each row's last cell."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = []
    for number, row in enumerate(rows):
        tone = tones[number] if number < len(tones) else "plain"
        cells = [f"<td>{escape(text)}</td>" for text in row[:-1]]
        cells.append(f'<td class="{escape(tone)} fs-{escape(tone)}">{escape(row[-1])}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def number_table(rows: Sequence[NumberRow], titles: tuple[str, str] = ("A", "B")) -> str:
    """The numbers of two runs with their differences."""
    return html_table(
        ("", *titles, "B − A"), [(row.label, *row.words()) for row in rows], [row.tone for row in rows]
    )


def page(kept: Sequence[Kept]) -> bytes:
    """One run, or two of one kind side by side.

    Raises:
        InputError: none, more than two, or two of different kinds.
    """
    results = [item.result for item in kept]
    if len(kept) == 1:
        body = _one(kept[0])
    elif len(results) == 2 and type(results[0]) is type(results[1]):
        body = _two(kept[0], kept[1])
    else:
        raise InputError("one HTML file holds one run or two of one kind: select those")
    title = " and ".join(item.row.title for item in kept)
    from plotly.offline import get_plotlyjs

    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · FlashSVD</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>{body}</body></html>"
    ).encode()


def _one(item: Kept) -> str:
    result = item.result
    parts = [_head(item.row.title, item), _settings((item,))]
    if isinstance(result, Curve):
        figure = curve_figure(result, machine=escape(result.machine.label), height=360)
        return "".join([*parts, _section("What the rank costs", _figure(figure)), _points(result)])
    engine = main_engine(engines_of(result))
    rows = [
        (
            run.engine,
            shown(run.peak_activation_bytes, "bytes"),
            shown(run.weight_bytes, "bytes"),
            *(shown(getattr(run.latency_ms, name), "ms") for name in ("p20", "p50", "p80")),
            _metric(run.metric),
            _gate(run.gate.passed if run.gate else None),
        )
        for run in result.runs
    ]
    head = ("Engine", "Peak activations", "Weights", "p20", "Median", "p80", "Score", "Check")
    parts.append(_section("Every engine", html_table(head, rows)))
    layers = len(result.model.shape.layers)
    run = result.run(engine)
    if run is not None and not run.timeline.empty:
        figure = timeline(_plain(run), layers, ghost=_ghost(result), height=320)
        parts.append(_section("Memory while the model runs, MiB beyond the weights", _figure(figure)))
    parts.append(_section("Ranks over break-even", _figure(rank_grid(result.plan))))
    parts.append(
        _section(
            "The plan, and the command that runs it again",
            f"<p><code>{escape(result.plan.to_text())}</code></p><p><code>{escape(command(result))}</code></p>",
        )
    )
    return "".join(parts)


def _two(a: Kept, b: Kept) -> str:
    one, other = a.result, b.result
    parts = [_head(f"A {a.row.title}", a), _head(f"B {b.row.title}", b)]
    if isinstance(one, Curve) and isinstance(other, Curve):
        parts.append(_settings((a, b)))
        if one.dense.name == other.dense.name:
            parts.append(_section("What the rank costs", _figure(runs_curves(one, other, height=360))))
        else:
            parts.append(f"<p class=note>{escape(other_scores(one, other))}</p>")
        return "".join([*parts, _points(one, "A: "), _points(other, "B: ")])
    assert isinstance(one, Comparison) and isinstance(other, Comparison)
    warning = incomparable(one, other)
    if warning:
        parts.append(f"<p class=note>{escape(warning)}</p>")
    parts.append(_settings((a, b)))
    engines = shared_engines(one, other)
    for engine in engines:
        parts.append(_section(f"Numbers of {engine}", number_table(numbers(one, other, engine))))
    layers = (len(one.model.shape.layers), len(other.model.shape.layers))
    for engine in engines:
        mine, theirs = one.run(engine), other.run(engine)
        if mine is None or theirs is None or mine.timeline.empty or theirs.timeline.empty:
            continue
        figure = runs_memory(_plain(mine), _plain(theirs), layers, height=280)
        parts.append(_section(f"Memory of {engine}, MiB beyond the weights", _figure(figure)))
    if engines:
        figure = runs_latency(one, other, engines, height=80 + 60 * len(engines))
        parts.append(_section("Latency: median, 20 % and 80 % quantiles", _figure(figure)))
    cells = rank_cells(one.plan, other.plan)
    if cells:
        slots = one.plan.shape.slot_names
        figure = runs_ranks(cells, layers[0], slots, height=70 + 24 * len(slots))
        rows = [
            (f"L{cell.layer + 1}.{cell.slot}", cell.a, cell.b, f"{100 * cell.difference:+.1f} points")
            for cell in cells
        ]
        table = html_table(("Layer and projection", "A", "B", "Kept share"), rows)
        parts.append(_section("Ranks that differ", _figure(figure) + table))
    elif cells is not None:
        parts.append(_section("Ranks", "<p>The two plans are the same.</p>"))
    engine = main_engine(engines)
    mine, theirs = one.run(engine), other.run(engine)
    if mine is not None and theirs is not None:
        parts.append(_ops(mine, theirs, engine))
    return "".join(parts)


def other_scores(a: Curve, b: Curve) -> str:
    """Says that two curves cannot share an axis."""
    return f"Not comparable: A is scored by {a.dense.name}, B by {b.dense.name}."


def _ops(mine: EngineRun, theirs: EngineRun, engine: str) -> str:
    table = by_layer_and_op(mine, theirs)
    if table.empty:
        return ""
    columns = [table[name].tolist()[:_MOST_OPS] for name in ALIGNED_COLUMNS]
    rows = [
        (f"L{layer}" if layer else "outside", op, _bytes(a), _bytes(b), _signed(difference))
        for layer, op, a, b, difference in zip(*columns, strict=True)
    ]
    note = f"the {len(rows)} largest differences of {len(table)}" if len(table) > len(rows) else "all ops"
    head = ("Layer", "Op", "A", "B", "B − A")
    return _section(f"Highest memory by layer and op, {engine}: {note}", html_table(head, rows))


def _bytes(value: float) -> str:
    return "—" if math.isnan(value) else shown(value, "bytes")


def _signed(value: float) -> str:
    if math.isnan(value):
        return "—"
    return "same" if value == 0 else ("+" if value > 0 else "−") + shown(abs(value), "bytes")


def command(result: Comparison) -> str:
    """What to type to run it again."""
    words = ["python", "-m", "flashsvd", "compare", result.model.name, "--method", result.method]
    words += ["--rules", result.plan.to_text(), "--batch", str(result.batch), "--seq", str(result.seq)]
    words += ["--dtype", result.dtype, "--engines", ",".join(engines_of(result)), "--seed", str(result.seed)]
    if not result.plan.shape.per_head:
        words.append("--whole")
    return shlex.join(words)


def _head(title: str, item: Kept) -> str:
    result = item.result
    badge = f"REPLAY · {result.machine.label} · {result.created[:10]}"
    return (
        f"<h1>{escape(title)}</h1><p class=muted><span class=badge>{escape(badge)}</span> "
        f"{escape(result.machine.cpu)}, torch {escape(result.machine.torch)}, seed {result.seed}</p>"
    )


def _settings(items: Sequence[Kept]) -> str:
    rows = [
        (label, *(texts[label] for texts in map(_setting, items)))
        for label in ("Model", "Method", "Parameters", "Batch x tokens", "Precision", "Run", "Machine")
    ]
    head = ("Setting",) + (("",) if len(items) == 1 else ("A", "B"))
    return _section("Settings", html_table(head, rows))


def _setting(item: Kept) -> dict[str, str]:
    result = item.result
    if isinstance(result, Comparison):
        kept = shown(result.kept_model_parameters, "parameters")
        size, batch = (
            f"{kept} of {shown(result.model.parameters, 'parameters')}",
            f"{result.batch} x {result.seq}",
        )
        method = f"{result.method}, keep {100 * result.keep:.1f} %"
    else:
        size, batch, method = shown(result.model.parameters, "parameters"), "—", result.method
    return {
        "Model": result.model.name,
        "Method": method,
        "Parameters": size,
        "Batch x tokens": batch,
        "Precision": result.dtype,
        "Run": f"{result.created[:16].replace('T', ' ')} UTC",
        "Machine": result.machine.label,
    }


def _points(result: Curve, prefix: str = "") -> str:
    rows = [
        (f"{100 * point.keep:.1f} %", shown(point.kept_parameters, "parameters"), _metric(point.metric))
        for point in result.points
    ]
    return _section(
        f"{prefix}{result.dense.name}, dense {_metric(result.dense)}",
        html_table(("Keep", "Kept parameters", "Score"), rows),
    )


def _metric(metric: Metric | None) -> str:
    if metric is None:
        return "—"
    if metric.unit == "%":
        return f"{100 * metric.value:.1f} % ({100 * metric.low:.1f} to {100 * metric.high:.1f}), n = {metric.n:,}"
    return f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f}), n = {metric.n:,}"


def _gate(passed: bool | None) -> str:
    return "—" if passed is None else "agrees" if passed else "differs"


def _plain(run: EngineRun) -> EngineRun:
    """A run whose ops and modules plotly reads no markup in: they may come from a file."""
    rows = run.timeline
    texts = {name: rows[name].map(lambda text: escape(str(text))) for name in ("op", "module")}
    return dataclasses.replace(run, timeline=rows.assign(**texts))


def _ghost(result: Comparison) -> EngineRun | None:
    dense = result.run("dense")
    return None if dense is None or dense.timeline.empty else _plain(dense)


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2><section>{body}</section>"


def _figure(figure: go.Figure) -> str:
    figure.update_layout(paper_bgcolor=theme.palette("light").surface)
    options = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config=options, default_width="100%")
    return html
