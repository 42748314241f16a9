"""Which models write text token after token."""

from __future__ import annotations

from flashsvd.errors import InputError
from flashsvd.models.family import families
from flashsvd.models.load import LoadedModel


def check_causal(loaded: LoadedModel) -> None:
    """Raises InputError for a model that is no causal language model with its head."""
    if loaded.family.task == "language" and loaded.model.get_output_embeddings() is not None:
        return
    known = ", ".join(sorted(name for name, family in families().items() if family.task == "language"))
    raise InputError(
        f"{loaded.name} ({type(loaded.model).__name__}) does not write text: expected a causal language model of one "
        f"of {known}; another is one file in flashsvd/models/families that says what its decoder is"
    )
