"""Records: the schema of a measurement and its JSONL file, to which lines are only appended. Judges nothing.

Read and written with the standard library alone, since they are written where pandas is not installed.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from irnet import files
from irnet.errors import InputError

SCHEMA = 1
STATUSES = OK, OOM, ERROR, SKIPPED = ("ok", "oom", "error", "skipped")


@dataclass
class Record:
    """One implementation of one case in one mode. Whatever was not measured is None, never zero.

    Times are seconds, sizes bytes, rates per second. A line of the file is one record as a JSON object.
    """

    # which run, and what was run
    run: str  # the same for all records of one run
    time: str  # when it was measured, UTC, ISO 8601
    suite: str
    case: str
    implementation: str  # the implementation's name: an `impl` of irnet, or a peer
    peer: bool  # somebody else's program, or plain PyTorch
    mode: str  # forward (no gradients), backward (the gradients alone), step (both)
    dtype: str
    shape: dict[str, int]
    seed: int
    plan: str  # a digest of what the run was to measure, and how: a run goes on only where that is the same
    swept: bool  # whether a sweep chose the shape; else it is the case's own for the device
    # what came of it
    status: str  # ok, oom, error, skipped; only ok has times
    reason: str | None = None  # why it is not ok
    # speed
    samples: list[float] | None = None  # seconds of a call, one entry per sample
    percentiles: dict[str, float] | None = None  # {"20": s, "50": s, "80": s} of the samples
    clock: str | None = None  # wall (host), events or graph (GPU events around calls, around replays of a CUDA graph)
    first_call_seconds: float | None = None  # with all that happens once; the reference was called before
    compile_seconds: float | None = None  # how much of it was compilation, where something compiles
    items: int | None = None  # what a call processes ...
    unit: str | None = None  # ... and what that is: regions, images
    # memory and launches
    peak_allocated_bytes: int | None = None  # above what was allocated before the call
    peak_reserved_bytes: int | None = None  # of the GPU's caching allocator; a CPU has none
    allocated_bytes: int | None = None  # the sum of all allocations of a call
    saved_bytes: int | None = None  # kept for the backward pass beyond the inputs
    operators: int | None = None  # PyTorch operators that a call runs, also those inside others
    launches: int | None = None  # GPU kernels, copies and fills that a call starts
    # limits, measured in the same run
    fewest_bytes: float | None = None
    fewest_flops: float | None = None
    copy_rate: float | None = None  # bytes read and written by a large copy
    matmul_rate: float | None = None  # floating-point operations of a large matrix product in this dtype
    limit: str | None = None  # what bounds the case: copy or matmul
    limit_fraction: float | None = None  # the time at that limit over the median time; cached data can exceed 1
    # correctness, in the same run
    error: float | None = None  # largest absolute error against float64 of the result (forward) or the worst gradient
    budget: float | None = None  # what it may be: see irnet_kernels.testing
    scale: float | None = None  # largest absolute value of what the error is of
    # where
    machine: dict = field(default_factory=dict)  # machine.facts()
    schema: int = SCHEMA

    @property
    def key(self) -> tuple:
        """What makes two records comparable."""
        shape = tuple(sorted(self.shape.items()))
        return self.suite, self.case, self.implementation, self.mode, self.dtype, shape, self.seed

    @property
    def label(self) -> str:
        """The key for people."""
        shape = " ".join(f"{name}={value}" for name, value in self.shape.items())
        return f"{self.case} {self.implementation} {self.mode} {self.dtype} {shape}"

    @property
    def median(self) -> float | None:
        return self.percentiles["50"] if self.percentiles else None


def append(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Add records at the end of a file and flush them to the disk. An earlier line is never touched."""
    path = Path(path)
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        with open(path, "a", encoding="utf-8") as file:
            text = "".join(json.dumps(dataclasses.asdict(r), allow_nan=False) + "\n" for r in records)
            file.write("\n" + text if torn else text)
            file.flush()
            os.fsync(file.fileno())


def read(path: str | os.PathLike) -> list[Record]:
    """All records of a file, in its order. A line that a kill has torn off counts as not written.

    Raises InputError, naming the line, for one that is whole and no record of this schema.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read ({error})", "name a file that `irnet bench` wrote") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            if line.startswith('{"run"'):
                continue  # torn: append() writes whole lines
            raise InputError(path, f"line {number} is no record ({error})", "name a file of `irnet bench`") from error
        if values is None:
            continue
        where = f"{path}, line {number}"
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            schema = values.get("schema") if isinstance(values, dict) else None
            raise InputError(where, f"has schema {schema}, this irnet reads {SCHEMA}", "measure again")
        try:
            records.append(Record(**values))
        except TypeError as error:  # it names the field that is missing or unknown
            raise InputError(where, f"is no record: {error}", "remove the line or measure again") from error
        if records[-1].status not in STATUSES:
            raise InputError(where, f"is no record: status {values['status']!r}", "remove the line or measure again")
    return records


def last_run(records: list[Record]) -> list[Record]:
    """The records of the latest run."""
    return [r for r in records if r.run == records[-1].run]
