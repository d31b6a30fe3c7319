"""Rows of a parquet file, one at a time, so that a few kilobytes cannot expand into gigabytes.

Columns of text are read as dictionaries: a text that a million rows share is held once. What the rows hold is
counted while they are read, and what the file says of itself is looked at before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from u2a.data import limits
from u2a.data.limits import VALUE_BYTES, Expansion, size_of, too_long
from u2a.types import UserError

BATCH = 256
"""Rows decoded at once."""


def parquet_rows(path: Path, name: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Position, place and values of each row.

    Raises:
        UserError: it is no parquet file, a row is too long, or the file expands too far.
    """
    position, expansion = 0, Expansion(name, path.stat().st_size)
    try:
        with pq.ParquetFile(path) as shape:
            texts, plain = _text_columns(shape), shape.schema_arrow
            _refuse_bomb(shape.metadata, name, path.stat().st_size)
        with pq.ParquetFile(path, read_dictionary=texts) as parquet:
            for batch in parquet.iter_batches(batch_size=BATCH):
                for values in batch_rows(batch, plain, position, expansion):
                    yield position, f"{name}, row {position + 1}", values
                    position += 1
    except (ValueError, pa.ArrowNotImplementedError) as fault:  # ArrowInvalid is a ValueError
        reason = str(fault).splitlines()[0][:120]
        raise UserError(f"{name}: not a readable parquet file ({reason})") from fault


def batch_rows(
    batch: pa.RecordBatch, plain: pa.Schema, start: int, expansion: Expansion
) -> Iterator[dict[str, Any]]:
    """The batch's rows at once where they are small together, else one by one; `start` rows went before.

    `plain` is the schema without dictionaries, which turns into Python's values four times as fast.
    """
    size = VALUE_BYTES * batch.num_rows + sum(map(_expanded, batch.columns))
    if size <= limits.LONGEST_ROW:
        expansion.add(size, f"{expansion.name}, row {start + 1}")
        table = pa.Table.from_batches([batch])
        with suppress(pa.ArrowNotImplementedError):
            table = table.cast(plain)
        yield from table.to_pylist()
        return
    for place in range(batch.num_rows):
        where = f"{expansion.name}, row {start + place + 1}"
        values = batch.slice(place, 1).to_pylist()[0]
        if (size := size_of(values)) > limits.LONGEST_ROW:
            raise too_long(f"{where}: the row")
        expansion.add(size, where)
        yield values


def _expanded(column: Any) -> int:
    """Bytes of a column with every shared text counted as often as it is used."""
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary)
        return pc.sum(pc.take(lengths, column.indices)).as_py() or 0
    if pa.types.is_struct(column.type):
        return sum(map(_expanded, column.flatten()))
    if pa.types.is_map(column.type):
        return _expanded(column.keys) + _expanded(column.items)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_kind(column.type) for is_kind in kinds):
        return _expanded(column.flatten())
    return int(column.nbytes)


def _text_columns(parquet: pq.ParquetFile) -> list[str]:
    schema = parquet.schema
    columns = [schema.column(place) for place in range(len(schema.names))]
    return [column.path for column in columns if column.logical_type.type == "STRING"]


def _refuse_bomb(metadata: Any, name: str, size: int) -> None:
    """By what the file says of itself; where it lies, `parquet_rows` counts."""
    groups = [metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups)]
    Expansion(name, size).add(max(sum(groups), VALUE_BYTES * metadata.num_rows), name)
