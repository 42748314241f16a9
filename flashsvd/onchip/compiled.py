"""What compiling a call gave, as plain data; the table that ships, and the cache of this machine. No torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from flashsvd.errors import CheckpointError
from flashsvd.gpus import gpu
from flashsvd.onchip.calls import KernelCall, tops
from flashsvd.onchip.occupancy import Footprint, Occupancy, Waves, occupancy, waves
from flashsvd.paths import assets

_FORMAT = "flashsvd-compiled/1"


@dataclass(frozen=True)
class Compiled:
    """A call compiled for one GPU.

    `tiles`: the sizes that the launch chose, by name. `grid`: programs along each axis. `refusal`: in one line why it
    does not run there; then the numbers are 0. `spill_bytes` per thread.
    """

    call: KernelCall
    gpu: str
    tiles: Mapping[str, Any]
    grid: tuple[int, ...]
    warps: int = 0
    registers: int = 0
    shared_bytes: int = 0
    spill_bytes: int = 0
    tensor_columns: int = 0
    triton: str = ""
    refusal: str = ""

    @property
    def footprint(self) -> Footprint:
        return Footprint(self.warps, self.registers, self.shared_bytes, self.tensor_columns)

    @property
    def occupancy(self) -> Occupancy | None:
        """None where the kernel does not run."""
        return None if self.refusal else occupancy(self.footprint, gpu(self.gpu).processor)

    def waves(self, programs: int) -> Waves | None:
        """Of a grid of `programs`; None where the kernel does not run."""
        found = self.occupancy
        return None if found is None or not found.blocks else waves(programs, found.blocks, gpu(self.gpu))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Compiled:
        """Reads `to_json`."""
        call = KernelCall(**data["call"])
        return cls(**{**data, "call": call, "grid": tuple(data["grid"]), "tiles": dict(data["tiles"])})


@dataclass(frozen=True)
class Manifest:
    """Where the table that ships comes from."""

    triton: str
    date: str
    command: str
    rows: int


class Table:
    """Compiled calls, found by what they were compiled for."""

    def __init__(self, rows: Iterable[Compiled], manifest: Manifest) -> None:
        self.manifest = manifest
        self._rows: dict[tuple[object, ...], list[Compiled]] = {}
        for row in rows:
            self._rows.setdefault((row.gpu, row.call.form), []).append(row)

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def __iter__(self) -> Iterator[Compiled]:
        for rows in self._rows.values():
            yield from rows

    def find(self, call: KernelCall, gpu_name: str) -> Compiled | None:
        """The row of just these ranks, else that whose tiles hold them; of several the one with the nearest number of
        tokens. None where there is none."""
        rows = self._rows.get((gpu_name, call.form), [])
        fitting = [row for row in rows if _ranks(row.call) == _ranks(call)]
        if not fitting:
            tops_of = {_top(rank, call) for rank in _ranks(call) if rank}
            top = tops_of.pop() if len(tops_of) == 1 else None
            wanted = tuple(top if rank else 0 for rank in _ranks(call))
            fitting = [row for row in rows if _ranks(row.call) == wanted]
        return min(fitting, key=lambda row: _distance(row.call, call), default=None)


def exact(row: Compiled, call: KernelCall) -> bool:
    """Whether a row was compiled for just these ranks and this many tokens."""
    return _ranks(row.call) == _ranks(call) and _distance(row.call, call) == 0


def _ranks(call: KernelCall) -> tuple[int, int, int]:
    return call.rank, call.rank_out, call.rank_up


def _top(rank: int, call: KernelCall) -> int | None:
    return next((top for top in tops(call) if rank <= top), None)


def _distance(row: KernelCall, call: KernelCall) -> int:
    """In tokens of a sequence for attention, of the batch for others."""
    attends = row.kernel in ("attention", "rank_space", "rank_space_hopper")
    return abs(row.seq - call.seq) if attends else abs(row.rows - call.rows)


def shipped_path() -> Path:
    return assets() / "compiled" / "kernels.parquet"


@functools.cache
def shipped() -> Table:
    """The table that ships. Raises CheckpointError where it is missing or not what it should be."""
    return read(shipped_path())


def read(path: Path) -> Table:
    """A table of `write`. Raises CheckpointError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        header = json.loads((table.schema.metadata or {})[b"flashsvd"])
        if header.pop("format") != _FORMAT:
            raise ValueError("another format")
        return Table(_unpacked(table.to_pandas()), Manifest(**header))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CheckpointError(
            f"{path.name} is no table of compiled kernels ({type(error).__name__}): make it again with "
            "python -m flashsvd.onchip.build"
        ) from None


def write(path: Path, rows: Sequence[Compiled], manifest: Manifest) -> None:
    """Writes a table as Parquet: one row per call and GPU, the manifest beside the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = pd.DataFrame(
        [
            {
                "call": json.dumps(row.call.to_json()),
                "tiles": json.dumps(row.tiles),
                "grid": json.dumps(row.grid),
                **{name: getattr(row, name) for name in _PLAIN},
            }
            for row in rows
        ]
    )
    header = json.dumps({"format": _FORMAT, **dataclasses.asdict(manifest)})
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata({"flashsvd": header})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)  # noqa: PTH105  (Path.replace is the same call)


_PLAIN = (
    "gpu",
    "warps",
    "registers",
    "shared_bytes",
    "spill_bytes",
    "tensor_columns",
    "triton",
    "refusal",
)


def _unpacked(frame: pd.DataFrame) -> list[Compiled]:
    calls = {text: KernelCall(**json.loads(text)) for text in frame["call"].unique()}
    tiles = {text: json.loads(text) for text in frame["tiles"].unique()}
    return [
        Compiled(
            call=calls[row["call"]],
            tiles=tiles[row["tiles"]],
            grid=tuple(json.loads(row["grid"])),
            **{name: row[name] for name in _PLAIN},
        )
        for row in frame.to_dict("records")
    ]
