"""The rows that the verb predict writes: kept beside the output as they come, then in the output's own format.

While a run is under way its rows are lines of JSON in `.NAME.unfinished`, each written as soon as it is known; the
first line tells what run it is. So a run that was killed is gone on with, whatever the format, and nothing half-written
ever stands under the final name.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

from space.errors import InputError
from training.outputs import new_file, writing

FORMATS = (".csv", ".parquet", ".jsonl")
ROWS_A_GROUP = 10_000  # of a Parquet file


class Predictions:
    """The rows of an output, some of them perhaps from a run that was stopped.

    columns: their names, in order. done: how many there are.
    """

    def __init__(self, output: Path, run: dict, columns: list[str], resume: bool = False, overwrite: bool = False):
        """Open the file of rows beside `output`, or go on with it.

        run: all that must be the same for the rest of the rows to belong to those that are there. Raises InputError
        when the output is there already, or of another run, unless it may be overwritten; when another process is
        writing it; and when it cannot be written.
        """
        self.output, self.columns, self.done = output, columns, 0
        if output.suffix.lower() not in FORMATS:
            raise InputError(f"--output {output}: expected a name that ends in {', '.join(FORMATS)}")
        self.file = _unfinished(output)
        with writing(output), ExitStack() as opened:
            began = self.file.exists()
            if not began:
                self._refuse_existing(resume, overwrite)
            self._lines = opened.enter_context(open(self.file, "ab"))
            self._lock()
            if began:
                self._refuse_existing(resume, overwrite)
            told = {"run": run, "columns": columns}
            whole = 0
            if resume:
                lines = _whole_lines(self.file)
                if head := next(lines, None):
                    self._require_same(head[0], told)
                    whole = head[1]
                for _, length in lines:
                    whole += length
                    self.done += 1
            self._lines.truncate(whole)  # what was cut short is predicted again
            if not whole:
                self._write(json.dumps(told))
            opened.pop_all()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError):  # it tries again to write what could not be, which `add` has told of
            self._lines.close()

    def add(self, row: dict) -> None:
        """Append a row, which survives a kill from here on."""
        with writing(self.output):
            self._write(json.dumps([row[name] for name in self.columns]))
        self.done += 1

    def __iter__(self) -> Iterator[dict]:
        """The rows that there are, as they were added. Raises InputError when one can no longer be read."""
        number = 0
        for number, (row, _) in enumerate(islice(_whole_lines(self.file), 1, None), 1):  # noqa: B007
            yield dict(zip(self.columns, row, strict=True))
        if number < self.done:
            raise InputError(
                f"{self.output}: row {number + 1} of {self.done} in {self.file.name} cannot be read; the same command "
                "with --resume goes on from there"
            )

    def finish(self, head: bool = True) -> None:
        """Write the output, which is a whole file of its format; head: a CSV file begins with the names of columns."""
        kind = self.output.suffix.lower()
        with new_file(self.output) as work:
            if kind == ".parquet":
                self._write_parquet(work)
            else:
                with open(work, "w", newline="", encoding="utf-8") as target:
                    self._write_csv(target, head) if kind == ".csv" else self._write_jsonl(target)

    def forget(self) -> None:
        """Remove the file of rows: the output is whole."""
        self.file.unlink()

    def _write(self, line: str) -> None:
        self._lines.write(line.encode() + b"\n")
        self._lines.flush()

    def _lock(self) -> None:
        try:
            flock(self._lines, LOCK_EX | LOCK_NB)  # until the file is closed, or the process ends
        except BlockingIOError:
            raise InputError(
                f"{self.output}: another process is writing it; wait for it, or choose another --output"
            ) from None
        except OSError:  # a file system that knows no locks
            pass

    def _refuse_existing(self, resume: bool, overwrite: bool) -> None:
        if self.output.is_dir():
            raise InputError(f"{self.output} is a folder; choose another --output")
        if resume or overwrite:
            return
        if self.file.exists():
            raise InputError(
                f"{self.output}: a stopped run is there; go on with it by --resume, or give it up with --overwrite"
            )
        if self.output.exists():
            raise InputError(f"{self.output} exists; choose another --output, or replace it with --overwrite")

    def _require_same(self, before: dict, now: dict) -> None:
        for key, value in (now["run"] | {"columns": now["columns"]}).items():
            was = (before["run"] | {"columns": before["columns"]}).get(key)
            if was != value:
                raise InputError(
                    f"{self.output}: the stopped run has {key} {was} where this one has {value}; give the same command "
                    "with --resume, or give the run up with --overwrite"
                )

    def _write_csv(self, target, head: bool) -> None:
        lines = SimpleNamespace(write=lambda line: target.write(f"{line[:-2]}\n"))
        writer = csv.writer(lines, lineterminator="\r\n")  # a name is quoted for what ends lines, so also for a lone \r
        if head:
            writer.writerow(self.columns)
        for row in self:
            writer.writerow(
                f"{value:.6f}" if name.startswith("probability_") and value is not None else value
                for name, value in row.items()
            )

    def _write_jsonl(self, target) -> None:
        for row in self:
            target.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _write_parquet(self, work: Path) -> None:
        kinds = {"threshold": pa.float64(), "abstained": pa.bool_()}
        schema = pa.schema(
            (name, pa.float64() if name.startswith("probability_") else kinds.get(name, pa.string()))
            for name in self.columns
        )
        rows = iter(self)
        with pq.ParquetWriter(work, schema) as writer:
            while some := list(islice(rows, ROWS_A_GROUP)):
                writer.write_table(pa.Table.from_pylist(some, schema))


def is_complete(output: Path) -> bool:
    """Whether an output is there and no run that would go on with it."""
    return os.path.isfile(output) and not _unfinished(output).exists()


def _unfinished(output: Path) -> Path:
    return output.with_name(f".{output.name}.unfinished")


def _whole_lines(file: Path) -> Iterator[tuple[dict | list, int]]:
    """What each line of JSON tells, and its bytes, up to the first that is cut short or was lost with the power."""
    with open(file, "rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line), len(line)
            except ValueError:
                return
