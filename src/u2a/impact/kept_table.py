"""The impact table kept when it is there, so that `--resume` does not score again."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from u2a import processes
from u2a.impact.blocks import Blocks
from u2a.impact.curvature import Solution
from u2a.impact.scores import SelfCheck
from u2a.impact.table import ImpactTable
from u2a.storage.kept_state import Damaged, read_state, write_state


def _file(blocks: Blocks) -> Path | None:
    """Beside the folder of the blocks."""
    return blocks.folder.with_name(f"{blocks.folder.name}.safetensors") if blocks.folder else None


def keep_table(table: ImpactTable, blocks: Blocks) -> None:
    """Writes the table; its blocks are not needed any more. Solutions are kept without their directions.
    Of several processes the first writes."""
    path = _file(blocks)
    if path is None or blocks.folder is None or not processes.is_main():
        return
    arrays = {f.name: getattr(table, f.name) for f in fields(table)}
    tensors = {name: torch.from_numpy(a) for name, a in arrays.items() if isinstance(a, np.ndarray)}
    content = {
        "mark": blocks.mark,
        "method": table.method,
        "self_checks": [asdict(check) for check in table.self_checks],
        "solutions": [
            {f.name: getattr(solution, f.name) for f in fields(solution) if f.name != "direction"}
            for solution in table.solutions
        ],
    }
    write_state(path, tensors, content)
    blocks.remove()


def kept_table(blocks: Blocks) -> ImpactTable | None:
    """The table that was kept, None if there is none of this mark; the first process's, everywhere."""
    return processes.from_main(_read(blocks) if processes.is_main() else None)


def _read(blocks: Blocks) -> ImpactTable | None:
    path = _file(blocks)
    if path is None or not path.is_file():
        return None
    try:
        tensors, content = read_state(path)
    except Damaged:
        return None
    if content["mark"] != blocks.mark:
        return None
    # copies, since numpy must not see a file's memory
    arrays = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    return ImpactTable(
        **arrays,
        method=content["method"],
        self_checks=tuple(SelfCheck(**check) for check in content["self_checks"]),
        solutions=tuple(Solution({}, **solution) for solution in content["solutions"]),
    )
