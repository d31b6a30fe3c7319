"""Rows of an Arrow file (`.arrow`: the format of files, or of streams as `datasets` writes them), one at a
time from a memory map: what is not compressed is never all in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from u2a.data.limits import Expansion
from u2a.data.parquet import BATCH, batch_rows
from u2a.types import UserError


def arrow_rows(path: Path, name: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Position, place and values of each row.

    Raises:
        UserError: it is no Arrow file, a row is too long, or the file expands too far.
    """
    position, expansion = 0, Expansion(name, path.stat().st_size)
    try:
        with pa.memory_map(str(path)) as file:
            for batch in _batches(file):
                for begin in range(0, batch.num_rows, BATCH):
                    piece = batch.slice(begin, BATCH)
                    # a file may say of itself what is not so: offsets out of range would read other memory
                    piece.validate(full=True)
                    for values in batch_rows(piece, batch.schema, position, expansion):
                        yield position, f"{name}, row {position + 1}", values
                        position += 1
    # a broken length asks for petabytes; texts that are none and columns of one name are found in Python
    except (pa.ArrowException, ValueError, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno is not None:  # the disk's fault, not the file's
            raise
        reason = str(fault).splitlines()[0][:120]
        raise UserError(f"{name}: not a readable Arrow file ({reason})") from fault


def _batches(file: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    """The record batches of either format, which the first bytes tell apart."""
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
        return
    file.seek(0)
    yield from pa.ipc.open_stream(file)
