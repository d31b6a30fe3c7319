"""What the user names to the files that are read: a path, a folder, standard input or a Hub data set."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset

from u2a.data.reading import READERS, DataFile
from u2a.data.scratch import new_folder, no_progress_bars
from u2a.printable import printable
from u2a.storage.links import refuse_links_out
from u2a.types import UserError

log = logging.getLogger("u2a")

Given: TypeAlias = str | Path | Dataset | Iterable[Mapping[str, Any]]
"""What a source may be: a path or Hub id, or, from Python, the rows themselves; of pandas a table of them."""

GIVEN = "the rows given"
"""The name of rows that are given, for messages."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PERHAPS_ROWS = frozenset({"txt", "gz", "zst", "bz2", "xz", "zip"})
"""Endings of what lies in a folder and may hold rows, but is not read."""
_KINDS = ", ".join(f".{kind}" for kind in READERS)


@dataclass(frozen=True)
class Source:
    """The files of a source in reading order, or the Hub data set `hub` in their place."""

    name: str
    files: tuple[DataFile, ...] = ()
    hub: Dataset | None = None


def find_source(source: Given, split: str) -> Source:
    """Resolve what the user named or gave; `split` is that of a Hub data set.

    Raises:
        UserError: nothing of that name, an unknown kind of file, a folder without data files or with a link
            that leads out of it, a Hub data set that cannot be loaded, rows whose columns mix types.
    """
    if isinstance(source, Dataset):
        return Source(GIVEN, hub=source)
    if not isinstance(source, str | Path):
        return Source(GIVEN, hub=_rows_given(source))
    name = str(source)
    if name == "-":
        return Source("standard input", (_spool_stdin(),))
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, _folder_files(path, name))
    if path.is_file():
        if _kind(path) not in READERS:
            raise UserError(f"{name}: unknown kind of file {path.suffix!r}; accepted are {_KINDS}")
        return Source(name, (DataFile(path, name, _kind(path)),))
    if path.exists():
        raise UserError(f"{name}: not a regular file; pass `-` to read standard input")
    if _HUB_ID.fullmatch(name) and _kind(path) not in READERS:
        return Source(name, hub=_load_hub(name, split))
    several = "; of several files give the folder that holds them" if set(name) & set(",*?") else ""
    raise UserError(f"{name}: no such file or folder; give a path, `-` or a Hub id `org/name`{several}")


def _rows_given(given: Any) -> Dataset:
    """The rows of what Python code gave: mappings in any iterable, or a table of pandas."""
    if isinstance(given, Mapping):
        raise UserError(f"{GIVEN}: {_of_mapping(given)}")
    if type(given).__module__.partition(".")[0] == "pandas" and hasattr(given, "columns"):
        return _made(lambda: Dataset.from_pandas(given, preserve_index=False), given.columns, given.get)
    if not isinstance(given, Iterable):
        raise UserError(f"{GIVEN}: {type(given).__name__} is no source; {_TAKEN}")
    rows = list(given)
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(
                f"{GIVEN}, row {position + 1}: it is {type(row).__name__}, not a mapping of columns"
            )
    # `Dataset.from_list` takes the columns of the first row alone, so a `label` of later rows would be lost
    columns = {
        name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)
    }
    return _made(lambda: Dataset.from_dict(columns), columns, columns.get)


def _made(make: Callable[[], Dataset], names: Iterable[Any], column: Callable[[Any], Any]) -> Dataset:
    try:
        return make()
    except (ValueError, TypeError, OverflowError):  # pyarrow's errors, whose words show the value
        mixed = [
            name for name in names if len({type(value) for value in column(name) if value is not None}) > 1
        ]
        which = f"the column {mixed[0]!r}" if mixed else "a column"
        raise UserError(f"{GIVEN}: {which} must hold one type of value in every row") from None


_TAKEN = "give a path, a list of rows (mappings of columns), a `datasets.Dataset` or a table of pandas"


def _of_mapping(given: Mapping[Any, Any]) -> str:
    """What to give in place of a mapping: of splits one of them, of columns a data set made of them."""
    names = [printable(str(name)[:40]) for name in given]
    if given and all(hasattr(value, "column_names") for value in given.values()):
        return (
            f"these are several splits; give one of them, such as [{names[0]!r}] (of {', '.join(names[:10])})"
        )
    if given and all(isinstance(value, list | tuple) for value in given.values()):
        return "this is a mapping of columns; give `datasets.Dataset.from_dict(...)` of it"
    return f"this is one mapping; {_TAKEN}"


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _folder_files(folder: Path, name: str) -> tuple[DataFile, ...]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as fault:
        raise UserError(f"{name}: the folder cannot be read ({fault.strerror})") from fault
    refuse_links_out(folder)
    kinds = set(READERS)
    if {"dataset_info.json", "state.json"} <= {path.name for path in paths}:  # by `Dataset.save_to_disk`
        kinds = {"arrow"}
    wanted = [path for path in paths if path.is_file() and path.name[0] != "." and _kind(path) in kinds]
    if (folder / "dataset_dict.json").is_file() or not wanted:  # by `DatasetDict.save_to_disk`
        raise UserError(f"{name}: {_deeper(folder, name)}")
    if len({_kind(path) for path in wanted}) > 1:  # README.txt, LICENSE.txt: their lines are no rows
        wanted = [path for path in wanted if _kind(path) != "txt"]
    skipped = [path for path in paths if path.name[0] != "." and path.is_file() and path not in wanted]
    if odd := [path.name for path in skipped if _kind(path) in _PERHAPS_ROWS]:
        log.warning("%s: left out of the folder: %s", name, ", ".join(map(printable, odd[:10])))
    _refuse_several_parts(wanted, name)
    return tuple(DataFile(path, str(path), _kind(path)) for path in wanted)


def _deeper(folder: Path, name: str) -> str:
    """Where the rows are that a folder has not itself: in sub-folders, as splits and snapshots of the Hub."""
    kinds = set(READERS) - {"txt"}
    # two levels, as the Hub's snapshots have them: the folder may be a whole disk
    paths = sorted(path for depth in ("*/*", "*/*/*") for path in folder.glob(depth) if _kind(path) in kinds)
    # hidden folders hold no data: .cache is made by the Hub's own client
    shown = [path for path in paths if not any(p[0] == "." for p in path.relative_to(folder).parts)]
    found = list(dict.fromkeys(str(Path(name) / path.parent.relative_to(folder)) for path in shown))
    if not found:
        return f"the folder holds no data files ({_KINDS})"
    does = "sub-folder does: name" if len(found) == 1 else "sub-folders do: name one of"
    return f"the folder holds no rows itself, its {does} {', '.join(map(printable, found[:6]))}"


_PART = re.compile(r"(?:^|.*?[-_.])(train|test|validation|valid|val|dev|eval)(?![^-_.])", re.I)
_SPLIT = re.compile(r"(original|forget|retain)\.", re.I)
"""Names of files that are parts of a data set: as on the hub, and as `u2a split` writes them."""
_SAME = dict.fromkeys(("valid", "val", "dev", "eval"), "validation")


def _refuse_several_parts(paths: Sequence[Path], name: str) -> None:
    """Rows to be kept apart are no one set: held-out ones would be validation, good ones negatives."""
    parts = {}
    for path in paths:
        if match := _PART.match(path.name) or _SPLIT.match(path.name):
            part = match[1].lower()
            parts[_SAME.get(part, part)] = path.name
    if len(parts) > 1:
        files = ", ".join(map(printable, sorted(parts.values())))
        raise UserError(
            f"{name}: the folder holds parts of a data set ({files}), which are not one set of rows: name "
            "the file that is meant"
        )


def _spool_stdin() -> DataFile:
    path = new_folder() / "stdin.jsonl"
    with path.open("wb") as stream:
        shutil.copyfileobj(sys.stdin.buffer, stream)
    return DataFile(path, "standard input", "jsonl")


def _load_hub(name: str, split: str) -> Dataset:
    try:
        with no_progress_bars():
            return datasets.load_dataset(name, split=split)
    except Exception as fault:  # network, gated, missing split, unreadable files: all the user's to mend
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0][:300]
        raise UserError(
            f"{name}: no such file or folder, and split {split!r} of that name cannot be loaded from the Hub "
            f"({reason})"
        ) from fault
