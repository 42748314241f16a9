"""transformers' Trainer with our losses, our scores and our progress. Needs accelerate: import it late."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset
from transformers.trainer_callback import PrinterCallback

from flashsvd.errors import FlashSVDError
from flashsvd.finetune.losses import distillation_loss, hidden_loss, label_loss
from flashsvd.finetune.request import EvaluationPoint, LossPoint, Settings
from flashsvd.progress import Progress
from flashsvd.results import Metric, from_json, to_json

_SCORE = "eval_metric"


class OneDeviceArguments(transformers.TrainingArguments):
    """Training arguments that never spread a batch over several GPUs: the teacher is on one."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class FactorTrainer(transformers.Trainer):
    """Trains a student on labels, on a teacher's answers, or both; evaluates by a function of the model."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        *,
        settings: Settings,
        teacher: transformers.PreTrainedModel | None,
        train: Dataset[dict[str, Any]],
        collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
        score: Callable[[Any], Metric],
        checkpoints: Path,
        progress: Progress,
    ) -> None:
        super().__init__(
            model=model,
            args=_arguments(settings, checkpoints, model.device),
            train_dataset=train,
            # Trainer asks for one wherever it is to evaluate; `evaluate` knows its own.
            eval_dataset=train,
            data_collator=collate,
            callbacks=[_Watch(progress)],
        )
        self.remove_callback(PrinterCallback)
        self.settings = settings
        self.teacher = teacher
        self.score = score

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted sum of `flashsvd.finetune.losses`.

        Raises:
            FlashSVDError: the loss is not finite; no batch is skipped.
        """
        settings = self.settings
        if not settings.dropout:
            model.eval()
        labels = inputs.pop("labels")
        states = settings.hidden > 0
        with _half_size(self.args.device):
            outputs = model(**inputs, output_hidden_states=states)
        loss = torch.zeros((), device=outputs.logits.device)
        if settings.labels:
            loss = loss + settings.labels * label_loss(outputs.logits, labels)
        if self.teacher is not None and (settings.distill or states):
            with torch.no_grad(), _half_size(self.args.device):
                target = self.teacher(**inputs, output_hidden_states=states)
            if settings.distill:
                loss = loss + settings.distill * distillation_loss(
                    outputs.logits, target.logits, settings.temperature
                )
            if states:
                loss = loss + settings.hidden * hidden_loss(
                    outputs.hidden_states, target.hidden_states, inputs["attention_mask"]
                )
        if not torch.isfinite(loss):
            raise FlashSVDError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: "
                "lower the learning rate and start again"
            )
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Scores the model and puts the score into the log, which checkpoints carry."""
        metrics: dict[str, Any] = {_SCORE: to_json(self.score(self.model))}
        self.log(metrics)
        return metrics

    def evaluations(self) -> tuple[EvaluationPoint, ...]:
        """Every score of this run, those before an interruption too."""
        return tuple(
            EvaluationPoint(int(entry["step"]), from_json(Metric, entry[_SCORE]))
            for entry in self.state.log_history
            if _SCORE in entry
        )

    def losses(self) -> tuple[LossPoint, ...]:
        """Every logged loss of this run, those before an interruption too."""
        return tuple(
            LossPoint(int(entry["step"]), entry["loss"])
            for entry in self.state.log_history
            if "loss" in entry
        )


def _half_size(device: torch.device) -> AbstractContextManager[object]:
    """bf16 forwards where a GPU has them. Not Trainer's own, which would last into the scores: those are in fp32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def _arguments(settings: Settings, checkpoints: Path, device: torch.device) -> OneDeviceArguments:
    return OneDeviceArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        train_sampling_strategy="sequential",
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        use_cpu=device.type == "cpu",
        eval_strategy="steps",
        eval_steps=settings.eval_every,
        save_strategy="steps",
        save_steps=settings.eval_every,
        save_total_limit=2,
        logging_steps=max(1, min(settings.eval_every, math.ceil(settings.steps / 20))),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        log_level="error",
        seed=settings.seed,
    )


class _Watch(transformers.TrainerCallback):
    """Tells how far a run is, and keeps pickles that nothing reads out of the checkpoints."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        words = "Training" if loss is None else f"Training (loss {loss:.3f})"
        self._progress(words, state.global_step / state.max_steps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The whole run is one epoch to Trainer, which would score and save again what its last step left.
        control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink(missing_ok=True)
