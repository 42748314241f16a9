"""What the benchmarks of whole models are asked: the same of each but for the sizes of its input and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from flashsvd.bench.ops import check_seed, check_sizes
from flashsvd.bench.random_factors import RANDOM, spectra_of
from flashsvd.bench.rows import Baselines, Row, command_of
from flashsvd.data import check_input_size
from flashsvd.errors import InputError
from flashsvd.factors import Factors, factorise
from flashsvd.measure.ceilings import Ceilings
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, pick_dtype
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import PlanChoice
from flashsvd.session import Session

PLAN_OPTIONS = ("keep", "ranks", "plan", "rules")
"""How the command line may name a plan."""

# torch runs a function uncompiled, without a word, once it holds eight versions of it: dense and seven plans.
MOST_COMPILED = 6


@dataclass(frozen=True)
class ModelRequest:
    """One point.

    plan_option: how the command line names `choice`. method: as in `flashsvd.methods`, or "random" for factors that
    are drawn. budget: seconds of timing after which fewer repeats will do; the benchmark's own if None. engines: the
    rows to run. compile_backend: torch.compile's.

    A benchmark names itself (`bench`), its rows (`known`), the fields that say how large its input is (`sizes`), which
    of them the command line sweeps (`swept`), and what its rows are held against (`baselines`).
    """

    model: str
    choice: PlanChoice
    plan_option: tuple[str, str]
    method: str = "svd"
    per_head: bool = True
    batch: int = 8
    dtype: str = "fp32"
    device: str = "auto"
    engines: tuple[str, ...] = ()
    repeats: int = 20
    budget: float | None = None
    seed: int = 0
    compile_backend: str = "inductor"

    bench: ClassVar[str]
    baselines: ClassVar[Baselines]
    known: ClassVar[tuple[str, ...]]
    sizes: ClassVar[tuple[str, ...]]
    swept: ClassVar[tuple[str, ...]]

    @property
    def positions(self) -> int:
        """Positions that the model must have."""
        raise NotImplementedError

    def check_model(self, loaded: LoadedModel) -> None:
        """Raises InputError where the model cannot take the input."""
        check_input_size(loaded, self.batch, self.positions)

    def check(self) -> None:
        """Raises InputError for what no model could run."""
        pick_dtype(self.dtype)
        if self.method != RANDOM:
            method_named(self.method)
        unknown = [name for name in self.engines if name not in self.known]
        if unknown or not self.engines:
            got = repr(unknown[0]) if unknown else "none"
            raise InputError(f"engines must be some of {', '.join(self.known)}, got {got}")
        check_sizes(**{name: getattr(self, name) for name in (*self.sizes, "repeats")})
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise InputError(f"budget must be a number of seconds above 0, got {self.budget}")
        check_seed(self.seed)

    def config(self) -> dict[str, Any]:
        """The setting as plain values."""
        before, after = ("model", "method", "per_head"), ("dtype", "device", *_HOW)
        found = {name: getattr(self, name) for name in (*before, *self.sizes, *after)}
        option, value = self.plan_option
        return found | {option: float(value) if option == "keep" else value, "engines": list(self.engines)}

    def command(self) -> str:
        """The command that measures this point again."""
        return self.command_of(self.config())

    @classmethod
    def command_of(cls, config: Mapping[str, Any]) -> str:
        """The command line of a `config`. Sweepable values may be lists in the command line's own form."""
        engines, backend = tuple(config["engines"]), config["compile_backend"]
        plan = next((option for option in PLAN_OPTIONS if option in config), "keep")
        options = {
            plan: config.get(plan),
            "whole": not config["per_head"],
            "engines": None if engines == cls.known else ",".join(engines),
            "compile-backend": None if backend == "inductor" else backend,
        }
        plain = ("method", *cls.sizes, "dtype", "device", "repeats", "budget", "seed")
        named = {name.replace("_", "-"): config[name] for name in plain}
        return command_of(cls.bench, (config["model"],), options | named)

    def same_input(self, other: Self) -> bool:
        """Whether the dense model sees the same tensors, so that what was compiled for one serves the other."""
        names = ("model", *self.sizes, "dtype", "device", "compile_backend")
        return all(getattr(self, name) == getattr(other, name) for name in names)


_HOW = ("repeats", "budget", "seed", "compile_backend")


def load_for(request: ModelRequest, session: Session) -> tuple[LoadedModel, RankPlan]:
    """The model, with positions enough where it is a preset, and the plan resolved for it.

    Raises:
        PlanError: the plan does not fit.
        ModelError, CheckpointError, DeviceError: as in `flashsvd.session.Session.model`.
    """
    given = request.choice.plan
    per_head = request.per_head if given is None else given.shape.per_head
    loaded = session.model(request.model, request.dtype, request.device, per_head)
    plan = request.choice.resolve(loaded.shape)
    longer = session.longer(loaded, request.positions)
    return longer, replace(plan, shape=longer.shape.with_per_head(plan.shape.per_head))


def check_fits_model(request: ModelRequest, session: Session) -> None:
    """Loads the model and raises InputError or PlanError where the input or the plan does not fit it."""
    loaded, _ = load_for(request, session)
    request.check_model(loaded)


def make_factors(
    request: ModelRequest, session: Session, loaded: LoadedModel, plan: RankPlan, progress: Progress
) -> Factors:
    """The factors that a request asks for, decomposed or drawn. Raises what `Session.spectra` raises."""
    progress("Making the factors", 0.0)
    spectra = spectra_of(session, loaded, request.method, request.seed, progress)
    return factorise(loaded, spectra, plan)


def in_words(loaded: LoadedModel, plan: RankPlan) -> str:
    """What is measured."""
    return f"{loaded.name}, {len(loaded.shape.layers)} layers, {plan.summary()}"


R = TypeVar("R", bound=ModelRequest, contravariant=True)


class Bench(Protocol[R]):
    """What measures one point of a model; returns it in words and a row for every engine asked for.

    keep_compiled: use what an earlier call compiled.
    """

    def __call__(
        self,
        request: R,
        ceilings: Ceilings,
        session: Session,
        progress: Progress,
        *,
        keep_compiled: bool = False,
    ) -> tuple[str, tuple[Row, ...]]: ...


class ModelBench(Generic[R]):
    """Measures one request after another; requests with the same input next to each other share the compiled dense
    model, which does not depend on the plan."""

    def __init__(self, session: Session, measure: Bench[R]) -> None:
        self._session = session
        self._measure = measure
        self._compiled: list[R] = []

    def __call__(self, request: R, ceilings: Ceilings, progress: Progress) -> tuple[str, tuple[Row, ...]]:
        kept = self._compiled
        if kept and (len(kept) == MOST_COMPILED or not kept[0].same_input(request)):
            kept.clear()
        keep = bool(kept)
        kept.append(request)
        return self._measure(request, ceilings, self._session, progress, keep_compiled=keep)
