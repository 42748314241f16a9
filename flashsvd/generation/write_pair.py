"""Writes on with the dense model and the compressed one, then compares what both expect over the dense text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from flashsvd.bench.random_factors import RANDOM
from flashsvd.engines.build import checked_between_layers
from flashsvd.errors import OutOfMemoryError
from flashsvd.generation.agreement import NextToken, next_tokens
from flashsvd.generation.generate import Generation, write_on
from flashsvd.generation.pair import PairRequest, Place, Side, TextPair
from flashsvd.generation.prompts import encode, room_for
from flashsvd.generation.request import GenerateRequest
from flashsvd.generation.subject import open_subject
from flashsvd.generation.text_stream import TextStream
from flashsvd.measure.divergence import Divergence
from flashsvd.measure.scores import agreement_metric, kl_metric
from flashsvd.methods import method_named
from flashsvd.models.causal import check_causal
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress, Stage
from flashsvd.session import Session

OnPiece = Callable[[str, str], None]
"""Called with an engine and a piece of what it writes; an empty piece ends its text."""


def write_pair(
    request: PairRequest,
    session: Session | None = None,
    progress: Progress | None = None,
    on_piece: OnPiece | None = None,
) -> TextPair:
    """Dense first, then the compressed model: each has the machine to itself while it is timed.

    progress: called with every token and between layers; may raise Cancelled.

    Raises:
        InputError: an empty prompt, one longer than the context, or a model that does not write text.
        ModelError, CheckpointError, PlanError, DeviceError: see where each is made.
        OutOfMemoryError: the keys and values, or the logits of the text, do not fit.
    """
    request.check()
    stage = Stage(progress or (lambda words, share: None))
    stage.begin("Loading the model", 0.0)
    session = session or Session()
    loaded = session.model(request.model, request.dtype, request.device, _per_head(request))
    check_causal(loaded)
    method = request.method
    if not loaded.trained and method_named(method).group == 1:
        # Speed follows from the ranks alone; to decompose random weights would take minutes and say nothing.
        method = RANDOM
    request_of = {
        "dense": _request(request, "dense", method),
        "flash": _request(request, "flash", method),
    }
    subjects = {engine: open_subject(one, session) for engine, one in request_of.items()}
    prompts = encode(request_of["dense"], loaded)
    room_for(request_of["dense"], loaded, prompts)
    shape = loaded.shape if method == RANDOM else method_named(method).shape(loaded.shape)
    request.choice.resolve(shape)
    tell = on_piece or (lambda engine, piece: None)

    def write(engine: str, model: Any, plan: Any, first: float, last: float) -> Generation:
        found = write_on(
            request_of[engine],
            subjects[engine],
            prompts,
            model,
            plan,
            stage.part(_WRITES[engine], first, last),
            lambda _, piece: tell(engine, piece),
        )
        tell(engine, "")
        return found

    with ExitStack() as hooks:
        hooks.enter_context(checked_between_layers(loaded.model, loaded.family, stage.tick))
        stage.begin("Warming up", 0.05)
        _warm(loaded, prompts)
        dense = write("dense", loaded.model, None, 0.1, 0.4)
        model, plan = subjects["flash"].engine(stage.part(None, 0.4, 0.65))
        assert plan is not None
        hooks.enter_context(checked_between_layers(model, loaded.family, stage.tick))
        compressed = write("flash", model, plan, 0.65, 0.9)
        places: tuple[NextToken, ...] = ()
        if loaded.trained:
            stage.begin("Comparing over the dense text", 0.9)
            places = _compare(loaded, model, prompts[0], dense.written[0].tokens)
    stage.begin("Done", 1.0)
    apart = Divergence(
        torch.tensor([place.kl for place in places], dtype=torch.float64),
        torch.tensor([place.agrees for place in places]),
    )
    dense_side, compressed_side = (_side(found, loaded) for found in (dense, compressed))
    words = _Words(loaded)
    return TextPair(
        created=dense.created,
        machine=dense.machine,
        model=loaded.name,
        trained=loaded.trained,
        method=request.method,
        plan=plan,
        prompt=request.prompt,
        prompt_tokens=len(prompts[0]),
        dense=dense_side,
        compressed=compressed_side,
        places=tuple(
            Place(
                words.of(token), place.kl, place.agrees, words.all(place.dense), words.all(place.compressed)
            )
            for token, place in zip(dense.written[0].tokens, places, strict=False)
        ),
        agreement=agreement_metric(apart, request.seed, "tokens") if places else None,
        kl=kl_metric(apart, request.seed, "tokens") if places else None,
        seed=request.seed,
        dtype=request.dtype,
        prefill=compressed.prefill,
    )


_WRITES = {"dense": "The dense model writes", "flash": "The compressed model writes"}


def _per_head(request: PairRequest) -> bool:
    plan = request.choice.plan
    return request.per_head if plan is None else plan.shape.per_head


def _request(request: PairRequest, engine: str, method: str) -> GenerateRequest:
    made = GenerateRequest(
        model=request.model,
        prompts=() if request.prompt_tokens else (request.prompt,),
        prompt_tokens=(request.prompt_tokens,) if request.prompt_tokens else (),
        choice=None if engine == "dense" else request.choice,
        method=method,
        per_head=_per_head(request),
        engine=engine,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        dtype=request.dtype,
        device=request.device,
    )
    made.check()
    return made


@torch.inference_mode()
def _warm(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> None:
    """The process's first products are slow, and the dense model alone would pay for them."""
    loaded.model(input_ids=torch.tensor([list(prompts[0][:8])], device=loaded.device), use_cache=False)


@torch.inference_mode()
def _compare(
    loaded: LoadedModel, compressed: Any, prompt: Sequence[int], written: Sequence[int]
) -> tuple[NextToken, ...]:
    """Both models over the prompt and the dense text: the logits at each place before a written token."""
    ids = torch.tensor([[*prompt, *written[:-1]]], device=loaded.device)
    extra = {"use_cache": False, "logits_to_keep": len(written)}
    try:
        dense, mine = (
            model(input_ids=ids, **extra).logits[0].float().cpu().numpy()
            for model in (loaded.model, compressed)
        )
        return next_tokens(dense, mine)
    except torch.OutOfMemoryError:
        pass
    raise OutOfMemoryError(f"the logits of {len(written)} tokens of {loaded.name}", None, None)


class _Words:
    """Single tokens as text: what the tokenizer shows, or its own name for a token that is no text by itself."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer: Any = loaded.tokenizer

    def of(self, token: int) -> str:
        if self._tokenizer is None:
            return str(token)
        found: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        if found and "\ufffd" not in found:
            return found
        return str(self._tokenizer.convert_ids_to_tokens(token))

    def all(self, ranked: Sequence[tuple[int, float]]) -> tuple[tuple[str, float], ...]:
        return tuple((self.of(token), share) for token, share in ranked)


def _side(found: Generation, loaded: LoadedModel) -> Side:
    written = found.written[0]
    return Side(
        engine=found.engine,
        tokens=written.tokens,
        pieces=() if written.text is None else pieces(loaded.tokenizer, written.tokens),
        ended=written.ended,
        cold_rate=found.cold_rate,
        steady_rate=found.steady_rate,
        first_seconds=found.first_seconds,
        step_ms=found.step_ms,
        weight_bytes=found.weight_bytes,
        cache_bytes=found.cache_bytes,
    )


def pieces(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, ...]:
    """The text of every token, which together are the whole text; a character of several tokens is in the last."""

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    stream = TextStream(decode)
    found = [stream.add(token) for token in tokens]
    rest = stream.finish()
    return (*found[:-1], found[-1] + rest) if found else ()
