"""Predicts memory timelines: the engines themselves, run once on tensors that have shapes and no memory."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from torch import nn

from flashsvd.data import check_input_size
from flashsvd.engines.build import build, check_engine, checked_between_layers, weight_bytes
from flashsvd.errors import InputError, ModelError
from flashsvd.factors import LowRank, layout_ranks
from flashsvd.measure.memory import peak_activation_bytes, record_timeline
from flashsvd.measure.perplexity import is_causal
from flashsvd.measure.predicted import PredictedRun, Prediction, PredictRequest
from flashsvd.measure.predicted_tensors import fake_tensors
from flashsvd.measure.predicted_tiles import tiles_told
from flashsvd.methods import method_named
from flashsvd.models.family import Family, family_of
from flashsvd.models.load import LoadedModel, pick_dtype, preset_class, quiet
from flashsvd.models.positions import MOST_POSITIONS
from flashsvd.models.sources import Source, model_type_of, resolve
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import TIMELINE_COLUMNS, ModelInfo

_SAMPLE = 3
"""Layers of a row of equal ones that are run: the first, one that stands for all in the middle, and the last."""


def predict(
    request: PredictRequest, progress: Progress | None = None, *, every_layer: bool = False
) -> Prediction:
    """See `flashsvd.measure.predicted.predict`. Of layers in a row that are alike three are run, and the middle one
    stands for all between the first and the last; `every_layer` runs all, and gives the same.
    """
    report = progress or _silent
    started = time.perf_counter()
    for engine in request.engines:
        check_engine(engine)
    given = request.choice.plan
    per_head = request.per_head if given is None else given.shape.per_head
    method = method_named(request.method)
    report("Describing the model", 0.0)
    with fake_tensors(), tiles_told(), quiet():
        family, config, make = described(request.model, request.seq)
        shape = family.shape(config).with_per_head(per_head)
        plan = request.choice.resolve(method.shape(shape))
        stretches = alike(config, family, plan)
        if every_layer:
            stretches = [Stretch(layer, layer + 1) for layer in range(len(plan.shape.layers))]
        chosen = [layer for stretch in stretches for layer in stretch.run_layers]
        loaded, few = _of_layers(request, family, config, make, plan, chosen)
        check_input_size(loaded, request.batch, request.seq)
        factors = empty_factors(loaded, few, shifted="mean" in method.needs)
        dense = loaded.parameters + sum(
            stretch.left_out * _numel(_block(family, loaded.model, chosen, stretch)) for stretch in stretches
        )
        runs, missing = [], {}
        for index, engine in enumerate(request.engines):
            start, span = 0.1 + 0.9 * index / len(request.engines), 0.9 / len(request.engines)
            report(f"Building {engine}", start)
            try:
                model = build(loaded, engine, factors, few, method=request.method)
            except InputError as error:
                missing[engine] = str(error)
                continue
            tick = _ticker(report, f"Running {engine} without memory", start + 0.3 * span, 0.7 * span)
            runs.append(_run(engine, model, family, stretches, request, tick))
    report("Done", 1.0)
    info = ModelInfo(loaded.name, loaded.source.kind, loaded.trained, dense, shape)
    return Prediction(request, info, plan, tuple(runs), missing, time.perf_counter() - started)


def _of_layers(
    request: PredictRequest,
    family: Family,
    config: Any,
    make: Callable[[Any, torch.dtype], Any],
    plan: RankPlan,
    chosen: list[int],
) -> tuple[LoadedModel, RankPlan]:
    """The model and the plan with these layers alone."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in chosen]
    with _no_init():
        model = make(config, pick_dtype(request.dtype))
    model.tie_weights()
    model.eval().requires_grad_(False)
    shape = family.shape(model.config).with_per_head(plan.shape.per_head)
    loaded = LoadedModel(resolve(request.model), family, shape, model, None, None)
    layers = tuple(plan.shape.layers[layer] for layer in chosen)
    few = RankPlan(replace(plan.shape, layers=layers), tuple(plan.ranks[layer] for layer in chosen))
    return loaded, few


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _block(family: Family, model: Any, chosen: list[int], stretch: Stretch) -> nn.Module:
    """The layer of a stretch that stands for those that are left out."""
    return family.layers(model.base_model)[chosen.index(stretch.run_layers[len(stretch.run_layers) // 2])]


def described(name: str, positions: int) -> tuple[Family, Any, Callable[[Any, torch.dtype], Any]]:
    """A model's family, its configuration, and what makes the model of one; a preset has room for `positions`.

    Raises:
        ModelError: unknown, or its configuration is not on this machine.
    """
    source = resolve(name)
    if source.kind == "hub":
        raise ModelError(
            f"the configuration of {name} is not on this machine, and a prediction needs it: give a folder or a preset"
        )
    family = family_of(model_type_of(source))
    make, config = _configured(source, family)
    if source.kind == "preset":
        # As in flashsvd.models.positions; some rows of the table, such as RoBERTa's first two, are no token's.
        spare = int(config.max_position_embeddings - family.shape(config).max_positions)
        wanted = min(positions, MOST_POSITIONS) + spare
        config.max_position_embeddings = max(config.max_position_embeddings, wanted)
    return family, config, make


def _configured(source: Source, family: Family) -> tuple[Callable[[Any, torch.dtype], Any], Any]:
    if source.folder is None:
        config = transformers.AutoConfig.for_model(family.model_type, **family.presets[source.name].config)
        auto = preset_class(family)
        return lambda config, dtype: auto.from_config(config, dtype=dtype), config
    config = transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    named = (getattr(transformers, name, None) for name in config.architectures or [])
    own: Any = next((found for found in named if found is not None), None)
    if own is None:
        return lambda config, dtype: transformers.AutoModel.from_config(config, dtype=dtype), config
    return lambda config, dtype: own._from_config(config, dtype=dtype), config


@contextlib.contextmanager
def _no_init() -> Iterator[None]:
    """Weights without memory need no values."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


def empty_factors(
    loaded: LoadedModel, plan: RankPlan, *, shifted: bool = False
) -> dict[tuple[int, str], LowRank]:
    """Factors of the shapes that `flashsvd.factors.factorise` would give, of whatever memory `torch.empty` gives.

    Raises PlanError where the plan is for another model.
    """
    plan.check_fits(loaded.shape)
    dtype = loaded.model.dtype
    factors: dict[tuple[int, str], LowRank] = {}
    for layer, slot in plan.shape:
        ranks = layout_ranks(slot, plan.get(layer, slot.name))
        if ranks is None:
            continue
        shift = torch.empty(slot.out_features, dtype=dtype) if shifted else None
        shared = bool(slot.heads) and not slot.per_head
        rows = sum(ranks) if slot.heads and not shared else ranks[0]
        first = plan.shape.group(layer, slot.name)[0]
        v = torch.empty(rows, slot.in_features, dtype=dtype)
        if first != layer:
            v = factors[first, slot.name].v
        size = (sum(ranks), slot.out_features // slot.heads) if slot.heads else (slot.out_features, ranks[0])
        factors[layer, slot.name] = LowRank(torch.empty(size, dtype=dtype), v, ranks, shared, shift)
    return factors


def _run(
    engine: str,
    model: Any,
    family: Family,
    stretches: list[Stretch],
    request: PredictRequest,
    tick: Callable[[float], None],
) -> PredictedRun:
    """One engine's timeline."""
    blocks = family.layers(model.base_model)
    chosen = [layer for stretch in stretches for layer in stretch.run_layers]
    weights = weight_bytes(model) + sum(
        stretch.left_out * weight_bytes(_block(family, model, chosen, stretch)) for stretch in stretches
    )
    forward = _forward(model, torch.empty((request.batch, request.seq), dtype=torch.int64), request.cached)
    done = 0

    def between() -> None:
        nonlocal done
        done += 1
        tick(done / ((2 if engine == "flash" else 1) * len(blocks)))

    with checked_between_layers(model, family, between):
        if engine == "flash":
            # As measured runs have it: what a first call prepares is there before the recording.
            forward()
        rows = record_timeline(model, blocks, forward, _cache_tensors if request.cached else None)
    first = next(path for path, module in model.named_modules() if module is blocks[0])
    timeline = repeated(rows, stretches, first.removesuffix("0"))
    timeline.loc[0, "bytes"] = weights
    timeline["live_bytes"] = timeline["bytes"].cumsum()
    layers = stretches[-1].stop
    peak = peak_activation_bytes(timeline)
    return PredictedRun(engine, weights, peak, layers, len(blocks), module_sources(model), timeline)


@dataclass(frozen=True)
class Stretch:
    """Layers `start` to `stop` that are alike."""

    start: int
    stop: int

    @property
    def run_layers(self) -> list[int]:
        """Which of them are run."""
        if self.stop - self.start <= _SAMPLE:
            return list(range(self.start, self.stop))
        return [self.start, self.start + 1, self.stop - 1]

    @property
    def left_out(self) -> int:
        """How many are not run."""
        return self.stop - self.start - len(self.run_layers)


def alike(config: Any, family: Family, plan: RankPlan) -> list[Stretch]:
    """The layers of a model, cut where one differs from the one before: in its shapes, its ranks or its window."""

    layers = range(len(plan.shape.layers))
    shares = any(slot.sharing > 1 for _, slot in plan.shape)
    if shares or (family.window and len({family.window(config, layer) for layer in layers}) > 1):
        # A layer's mask is looked up by its place, and what layers share has to be there.
        return [Stretch(layer, layer + 1) for layer in layers]

    def looks(layer: int) -> Any:
        slots = plan.shape.layers[layer]
        return slots, tuple(plan.get(layer, slot.name) for slot in slots)

    stretches: list[Stretch] = []
    for layer in layers:
        if stretches and looks(stretches[-1].start) == looks(layer):
            stretches[-1] = replace(stretches[-1], stop=layer + 1)
        else:
            stretches.append(Stretch(layer, layer + 1))
    return stretches


def repeated(rows: pd.DataFrame, stretches: list[Stretch], path: str) -> pd.DataFrame:
    """A timeline of the layers that were run as one of all: every middle layer's rows stand once for each like it.

    path: of the list of layers, with a dot at the end. What happens from a layer's first op to the next one's is
    repeated with it. Memory of a middle layer that dies in the next layer dies in the one after each repeat; what lives
    longer, as keys and values that are kept, dies once for every repeat.
    """
    names = [layer for stretch in stretches for layer in stretch.run_layers]
    module, layer = rows["module"].tolist(), rows["layer"].tolist()
    event, moved = rows["event"].tolist(), rows["bytes"].tolist()
    keys = list(zip(rows["op"], rows["category"], moved, strict=True))
    begins: dict[int, int] = {}
    for index, (own, count) in enumerate(zip(layer, moved, strict=True)):
        if own >= 0 and count > 0:
            begins.setdefault(own, index)
    # Row, the layer that it is of, and how much later it happens.
    out: list[tuple[int, int, int]] = []
    repeats: dict[int, int] = {}
    soon: dict[int, Counter[Any]] = {}
    shift = 0

    def late(index: int) -> bool:
        """Whether a row is the death of a repeated layer's memory that every repeat has its own of."""
        own = layer[index]
        return own in repeats and moved[index] < 0 and soon[own][keys[index]] <= 0

    def once(first: int, last: int) -> None:
        index = first
        while index < last:
            own = layer[index]
            if late(index):
                stop = index + 1
                while stop < last and layer[stop] == own and event[stop] == event[index] and late(stop):
                    stop += 1
                for turn in range(repeats[own]):
                    out.extend((row, names[own] + turn, shift) for row in range(index, stop))
                index = stop
                continue
            if own in repeats:
                soon[own][keys[index]] -= 1
                own = names[own] + repeats[own] - 1
            else:
                own = names[own] if own >= 0 else own
            out.append((index, own, shift))
            index += 1

    at = place = 0
    for stretch in stretches:
        if stretch.left_out:
            middle = place + 1
            first, last = begins[middle], begins[middle + 1]
            once(at, first)
            for turn in range(stretch.left_out + 1):
                for index in range(first, last):
                    own = layer[index]
                    out.append((index, names[own] + turn if own >= 0 else own, shift))
                shift += event[last] - event[first]
            shift -= event[last] - event[first]
            repeats[middle] = stretch.left_out + 1
            soon[middle] = Counter(
                keys[index] for index in range(first, last) if layer[index] == middle - 1 and moved[index] < 0
            )
            at = last
        place += len(stretch.run_layers)
    once(at, len(rows))
    number = re.compile(re.escape(path) + r"\d+")
    whole = rows.iloc[[index for index, _, _ in out]].reset_index(drop=True)
    whole["event"] += np.array([later for _, _, later in out], dtype=np.int64)
    whole["layer"] = np.array([own for _, own, _ in out], dtype=np.int64)
    whole["module"] = [
        module[index] if own < 0 else number.sub(f"{path}{own}", module[index]) for index, own, _ in out
    ]
    # Tens of thousands of rows say a few hundred names.
    whole = whole.astype({"op": "category", "module": "category", "category": "category"})
    return whole[list(TIMELINE_COLUMNS)]


def _forward(model: Any, ids: torch.Tensor, cached: bool) -> Callable[[], Any]:
    """The call that `flashsvd.compare` times; with `cached`, keys and values are kept."""
    extra = {"use_cache": cached, "logits_to_keep": 1} if is_causal(model) else {}

    @torch.inference_mode()
    def forward() -> Any:
        return model(input_ids=ids, **extra)

    return forward


def _cache_tensors(out: Any) -> Iterable[torch.Tensor]:
    for layer in getattr(getattr(out, "past_key_values", None), "layers", ()):
        for tensor in (layer.keys, layer.values):
            if isinstance(tensor, torch.Tensor):
                yield tensor


def module_sources(model: nn.Module) -> dict[str, str]:
    """File and line of the class of every module, by its path with layer numbers as *."""
    found: dict[str, str] = {}
    lines: dict[type, str] = {}
    for path, module in model.named_modules():
        kind = type(module)
        if kind not in lines:
            lines[kind] = _source_of(kind)
        found.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", path), lines[kind])
    return found


def _source_of(kind: type) -> str:
    for base in kind.__mro__:
        try:
            file, line = Path(inspect.getsourcefile(base) or ""), inspect.getsourcelines(base)[1]
        except (OSError, TypeError):
            # Made while it runs, as a streamed module is of transformers' own.
            continue
        root = base.__module__.partition(".")[0]
        inside = file.parts[file.parts.index(root) :] if root in file.parts else (file.name,)
        return f"{base.__name__} · {'/'.join(inside)}:{line}"
    return kind.__name__


def _ticker(report: Progress, words: str, start: float, span: float) -> Callable[[float], None]:
    return lambda share: report(words, start + span * min(share, 1.0))


def _silent(stage: str, share: float) -> None:
    """No progress wanted."""
