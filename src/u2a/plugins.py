"""Parts of the user's own: classes that an installed package offers, or that a dotted path names.

A part is loaded when it is named, and not before. An entry point's package was installed by the user; a path
`module:Class` is code of whoever wrote it down, so it counts from the command line alone: in a YAML file only
with `--allow-code`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

from u2a.types import UserError

MUST_HAVE = {
    "u2a.losses": ("__call__", "derivative", "needs_reference"),
    "u2a.objectives": ("terms", "texts", "reference"),
    "u2a.metrics": ("measure", "needs"),
    "u2a.judges": ("__call__",),
}
"""Group of entry points -> what a class in it must have; docs/plugins.md says what each does."""


class Named(NamedTuple):
    """A part that was named: its name, by which choice, and its class."""

    choice: Any
    name: str
    part: type


_LOADED: dict[tuple[str, str], type] = {}
"""(group, name) -> class: parts that were put into registries."""


def named_parts(
    choices: Iterable[Any], content: Mapping[str, Any], flags: Mapping[str, Any], file: str
) -> list[Named]:
    """Loads every part of the user's own that options name, and puts it into its registry.

    Args:
        choices: `u2a.schema.Registry`s. content: options from the YAML file `file`. flags: those of the
            command line; None = not given.

    Raises:
        UserError: a dotted path from the file alone; a name that two packages have; a part that cannot be
            loaded, or is not what its group must be.
    """
    allowed = bool(flags.get("allow_code"))
    found = []
    for choice in choices:
        by_flag = flags.get(choice.name) is not None
        value = flags[choice.name] if by_flag else content.get(choice.name)
        for name in _names(choice, value):
            if ":" in name and not by_flag and not allowed:
                raise UserError(
                    f"{choice.name} in {file} names code by its path, {name[:80]}: give it by the flag "
                    f"--{choice.name}, or add --allow-code if you trust the file"
                )
            part = find(choice.group, name, choice.classes, choice.aliases, flag=f"--{choice.name}")
            if part is not None:
                found.append(Named(choice, name, part))
    return found


def _names(choice: Any, value: Any) -> Iterator[str]:
    if choice.group and isinstance(value, str):
        for name in value.split(",") if choice.several else [value]:
            if name.strip():
                yield name.strip() if choice.several else name


def find(
    group: str,
    name: str,
    classes: MutableMapping[str, Any],
    aliases: Collection[str] = (),
    *,
    flag: str,
) -> type | None:
    """The part of that name, which is in `classes` from then on; None for u2a's own, and where there is none.

    Raises:
        UserError: as `named_parts`.
    """
    if (group, name) in _LOADED:
        classes[name] = _LOADED[group, name]
        return _LOADED[group, name]
    points = [] if ":" in name else [point for point in entry_points(group=group) if point.name == name]
    owners = sorted({_owner(point) for point in points})
    if name in classes or name in aliases:
        owners.insert(0, "u2a")
    if len(owners) > 1:
        raise UserError(
            f"{flag} {name}: {' and '.join(owners)} each bring one of that name; uninstall one of them, or "
            "name the class by its path, module:Class"
        )
    if "u2a" in owners:
        return None
    if points:
        part = _of_entry_point(points[0], flag)
    elif ":" in name:
        part = import_path(name, flag)
    else:
        return None
    _refuse_other_kinds(part, group, f"{flag} {name[:80]}")
    _LOADED[group, name] = classes[name] = part
    return part


def installed(group: str) -> list[str]:
    """Names that installed packages offer, for messages; loads nothing."""
    return sorted({point.name for point in entry_points(group=group)})


def import_path(path: str, flag: str) -> Any:
    """What `module:name` names. Its code runs. Modules are looked for where Python looks, then in the current
    folder.

    Raises:
        UserError: there is no such thing, or its module fails.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise UserError(f"{flag} {path[:80]}: write it as module:function or module:Class")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: nothing in the folder may stand in for an installed module
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{flag} {path[:80]}: {error}") from None
    except Exception as error:  # whatever the module's own code raises is for its user to mend
        raise UserError(f"{flag} {path[:80]}: {type(error).__name__}: {error}") from error


def _of_entry_point(point: EntryPoint, flag: str) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever a package's import raises is for its user to mend
        raise UserError(
            f"{flag} {point.name}: {point.value} of {_owner(point)} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"


def _refuse_other_kinds(part: Any, group: str, what: str) -> None:
    if not (isinstance(part, type) and dataclasses.is_dataclass(part)):
        raise UserError(f"{what}: must be a dataclass, whose fields are its options (docs/plugins.md)")
    has = {name for base in part.__mro__ for name in vars(base)} | {f.name for f in dataclasses.fields(part)}
    if missing := [name for name in MUST_HAVE[group] if name not in has]:
        raise UserError(f"{what}: {part.__name__} has no {', '.join(missing)} (docs/plugins.md)")
