"""What one process keeps between runs: models and their spectra, the latest used, bounded by bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from flashsvd.calibration import statistics_for
from flashsvd.engines.build import weight_bytes
from flashsvd.evaluation.held_out import HeldOut
from flashsvd.kept import keep, kept
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, load, pick_device, pick_dtype
from flashsvd.progress import Progress
from flashsvd.results import OWN_TEXT, Calibration, Metric, from_json, to_json
from flashsvd.spectra import Spectra, compute

_SCORES = "scores"


@dataclass
class Session:
    """Loads each model and decomposes it once. Not for use by two threads at once."""

    limit_bytes: int = 4 * 2**30
    _kept: OrderedDict[tuple[str, ...], tuple[Any, int]] = field(default_factory=OrderedDict)

    def model(self, name: str, dtype: str, device: str, per_head: bool) -> LoadedModel:
        """The dense model, in eval mode. Raises what `flashsvd.models.load.load` raises."""
        place = pick_device(device)
        key = ("model", name, dtype, str(place), str(per_head))
        return self._get(
            key,
            lambda: load(name, dtype=pick_dtype(dtype), device=place, per_head=per_head),
            lambda loaded: weight_bytes(loaded.model),
        )

    def longer(self, loaded: LoadedModel, positions: int) -> LoadedModel:
        """A preset with room for `positions` tokens; see `flashsvd.models.positions.with_positions`."""
        from flashsvd.models.positions import with_positions

        if loaded.trained or positions <= loaded.shape.max_positions:
            return loaded
        key = ("model", *_key(loaded), str(positions))
        return self._get(
            key, lambda: with_positions(loaded, positions), lambda longer: weight_bytes(longer.model)
        )

    def spectra(
        self,
        loaded: LoadedModel,
        method: str,
        progress: Progress | None,
        calibration: Calibration = OWN_TEXT,
    ) -> tuple[Spectra, int]:
        """Spectra of a model, and how many decompositions this call had to compute.

        Raises what `flashsvd.calibration.statistics_for` raises where the method looks at data.
        """
        computed = 0
        chosen = method_named(method)

        def make() -> Spectra:
            nonlocal computed
            statistics = None
            if chosen.needs:
                statistics = statistics_for(loaded, chosen.needs, calibration, progress)
            spectra = compute(loaded, chosen, statistics, progress=progress)
            computed = spectra.computed
            return spectra

        looked_at = (str(calibration),) if chosen.needs else ()
        return self._get(("spectra", *_key(loaded), chosen.spec, *looked_at), make, _spectra_bytes), computed

    def score(self, model: Any, engine: str, held: HeldOut, make: Callable[[], Metric]) -> Metric:
        """A model's score on a held-out set, made once on this machine for the same weights and engine: the batch that
        is timed does not change it, nor does a plan that of the dense model.
        """
        key = _score_key(model, engine, held)

        def score() -> Metric:
            found = kept(_SCORES, key)
            if found is not None:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    return from_json(Metric, found)
            made = make()
            keep(_SCORES, key, to_json(made))
            return made

        return self._get(("score", key), score, lambda _: 0)

    def _get(self, key: tuple[str, ...], make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        value = make()
        self._kept[key] = (value, size(value))
        while len(self._kept) > 2 and sum(count for _, count in self._kept.values()) > self.limit_bytes:
            self._kept.popitem(last=False)
        return value


def _score_key(model: Any, engine: str, held: HeldOut) -> str:
    """Of what a score is made of: the weights, the text, and what computes."""
    digest = hashlib.sha256(f"{held.digest()} {engine} {model.device.type} {torch.__version__}".encode())
    digest.update(str(model.config.to_dict()).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _key(loaded: LoadedModel) -> tuple[str, ...]:
    return loaded.name, str(loaded.model.dtype), str(loaded.device), str(loaded.shape.per_head)


def _spectra_bytes(spectra: Spectra) -> int:
    return sum(s.u.nbytes + s.sigma.nbytes + s.v.nbytes for s in spectra.by_slot.values())
