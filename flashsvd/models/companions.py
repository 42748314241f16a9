"""What a model folder holds beside its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from flashsvd.models.load import LoadedModel, quiet

OWN_TEXTS = ("calibration.parquet", "evaluation.parquet")


def save_companions(loaded: LoadedModel, folder: Path) -> None:
    """Writes the tokenizer, and the text that the model is calibrated and scored on, where there are any."""
    if loaded.tokenizer is not None:
        with quiet():
            loaded.tokenizer.save_pretrained(folder)
    if loaded.source.folder is not None:
        for name in OWN_TEXTS:
            if (loaded.source.folder / name).is_file():
                shutil.copyfile(loaded.source.folder / name, folder / name)
