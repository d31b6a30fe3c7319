"""`--help` of a command: its options under the headings of the parts that they belong to."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand

from u2a.commands.repeated_flags import refuse_repeated_flags
from u2a.schema import Schema

WIDTH = 110
"""Most characters of a line of help; a narrower terminal has its own."""
SUMMARY = 66
"""Most characters of a command's summary in `u2a --help`, so that 80 columns show it whole."""


def command_class(schema: Schema) -> type[TyperCommand]:
    """A command whose help is grouped as its options are."""

    class GroupedHelp(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """Refuses what comes twice before the last of it is taken."""
            refuse_repeated_flags(self, ctx, args)
            return super().parse_args(ctx, args)

        def format_options(self, ctx: Any, formatter: Any) -> None:
            """Arguments, then every group, then what all commands have."""
            titles = {name: title for title, names in grouped(schema) for name in names}
            usual = "General" if titles else "Options"
            sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{t: [] for t in titles.values()}}
            for parameter in self.get_params(ctx):
                record = parameter.get_help_record(ctx)
                if record is not None:
                    is_argument = parameter.param_type_name == "argument"
                    title = "Arguments" if is_argument else titles.get(parameter.name or "", usual)
                    sections.setdefault(title, []).append(record)
            for title, records in sections.items():
                if records:
                    with formatter.section(title):
                        formatter.write_dl(records)

    return GroupedHelp


def grouped(schema: Schema) -> list[tuple[str, list[str]]]:
    """Titles and the names of the options under them; every option once."""
    by_owner: dict[str, list[str]] = {}
    for spec in schema.specs.values():
        by_owner.setdefault(spec.owner, []).append(spec.name)
    titles = {part.__name__: _title(part) for part in schema.parts}
    for registry in schema.registries:
        for name, cls in registry.classes.items():
            which = f" {name}" if registry.several else ""
            titles[registry.owner(cls)] = f"Options of --{registry.name.replace('_', '-')}{which}"
    return [(titles[owner], names) for owner, names in by_owner.items()]


def summary(about: str) -> str:
    """What `u2a --help` says of a command: all, or, where that is long, the question alone."""
    return about if len(about) <= SUMMARY else about.partition("? ")[0] + "?"


def _title(part: type) -> str:
    """The first line of its docstring, up to a colon."""
    return (inspect.getdoc(part) or part.__name__).splitlines()[0].partition(":")[0].rstrip(".")
