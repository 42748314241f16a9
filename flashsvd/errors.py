"""What goes wrong, in one line each: what was expected, what came, what to do."""

from __future__ import annotations


class FlashSVDError(Exception):
    """Base of every error this library raises on purpose. `str(error)` is one line fit for a user."""


class InputError(FlashSVDError, ValueError):
    """An argument is outside what the call accepts."""


class ModelError(FlashSVDError):
    """A model could not be found, reached, read or supported."""


class CheckpointError(FlashSVDError):
    """A file of weights is missing, truncated, corrupt or does not fit its model."""


class PlanError(FlashSVDError, ValueError):
    """A rank plan is malformed, out of range, or made for another model."""


class DeviceError(FlashSVDError):
    """The device asked for is not there."""


class NonFiniteError(FlashSVDError, FloatingPointError):
    """NaN or infinity turned up while a model ran."""


class OutOfMemoryError(FlashSVDError, MemoryError):
    """A run needs more memory than there is."""

    def __init__(self, what: str, needed_bytes: int | None, available_bytes: int | None) -> None:
        needed = "an unknown amount" if needed_bytes is None else format_bytes(needed_bytes)
        available = "an unknown amount" if available_bytes is None else format_bytes(available_bytes)
        super().__init__(
            f"{what} needs {needed} but {available} is free; use a smaller batch, a shorter sequence or lower ranks"
        )
        self.what = what
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes

    def __reduce__(self) -> tuple[type[OutOfMemoryError], tuple[str, int | None, int | None]]:
        return type(self), (self.what, self.needed_bytes, self.available_bytes)


class Cancelled(FlashSVDError):
    """The person who started the work stopped it."""


def format_bytes(count: float) -> str:
    """Bytes in the largest binary unit that keeps the number at 1 or more.

    >>> format_bytes(240 * 2**20)
    '240 MiB'
    >>> format_bytes(1536)
    '1.5 KiB'
    """
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    digits = 0 if size >= 100 or size == int(size) else 1
    return f"{size:.{digits}f} {unit}"
