"""Makes the site's page of every command from the command itself, while the site is built: it cannot drift.

A hook of MkDocs (mkdocs.yml). A page has the command's usage and, by the part that they belong to, all its
options with type, default and bounds.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.testing import CliRunner

from u2a.cli import app
from u2a.commands import schemas
from u2a.commands.grouped_help import grouped
from u2a.schema import OptionSpec, Schema

FOLDER = "reference/cli"
WORDS = {str: "text", int: "whole number", float: "number", bool: "on or off"}


def on_config(config: Any) -> Any:
    """Adds the pages to the navigation, under Reference."""
    reference = next(part["Reference"] for part in config["nav"] if "Reference" in part)
    pages = [{f"u2a {name}": f"{FOLDER}/{name}.md"} for name in commands()]
    if not any("Commands" in part for part in reference if isinstance(part, dict)):
        reference.append({"Commands": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages themselves."""
    for name in commands():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=page(name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of docs/, to an example say, become the path within the repository."""

    def within(match: re.Match[str]) -> str:
        words, target = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        if not path.startswith("../"):
            return match[0]
        path = path.removeprefix("../")
        return f"`{path}`" if words.strip("`") == path else f"{words} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\((\.\./[^)\s#]+)\)", within, markdown)


def commands() -> dict[str, Any]:
    """Every command by its name, in the order of `u2a --help`."""
    return typer.main.get_command(app).commands


def page(name: str) -> str:
    """Markdown of one command's page."""
    command = commands()[name]
    parts = [f"# u2a {name}", str(command.help), f"```\n{_usage(name)}\n```"]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    parts += [f"`{p.name.upper()}`: {_help(p)}" for p in arguments]
    schema: Schema = getattr(schemas, name.upper(), Schema(()))
    if any(p.name == "config" for p in command.params):
        parts.append("An option's key in a `--config` file is its flag without `--` and with `_` for `-`.")
    groups = grouped(schema)
    options = {p.name: p for p in command.params if p.param_type_name == "option"}
    for title, names in groups:
        parts += [f"## {title}", _table([(options.pop(n), schema.specs[n]) for n in names])]
    if options:
        parts += ["## Besides" if groups else "## Options", _table([(p, None) for p in options.values()])]
    if command.epilog:
        parts += ["## More", command.epilog]
    return "\n\n".join(parts) + "\n"


def _usage(name: str) -> str:
    """`u2a report [OPTIONS] RUN`, as the command's `--help` says it."""
    printed = CliRunner().invoke(app, [name, "--help"], prog_name="u2a").output
    return printed.split("\n\n")[0].strip().removeprefix("Usage: ")


def _table(rows: list[tuple[Any, OptionSpec | None]]) -> str:
    lines = ["| option | value | default | what it does |", "|---|---|---|---|"]
    for parameter, spec in rows:
        flags = "/".join([*parameter.opts, *parameter.secondary_opts])
        cells = (f"`{flags}`", _value(parameter, spec), _default(parameter, spec), _help(parameter, spec))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _value(parameter: Any, spec: OptionSpec | None) -> str:
    if spec is None:
        return "on or off" if parameter.is_flag else "text"
    if spec.choices:
        return ", ".join(f"`{choice}`" for choice in spec.choices)
    bounds = ((spec.above, "> {:g}"), (spec.least, "≥ {:g}"), (spec.most, "≤ {:g}"))
    limits = [words.format(bound) for bound, words in bounds if bound is not None]
    return ", ".join([WORDS[spec.type], *limits])


def _default(parameter: Any, spec: OptionSpec | None) -> str:
    default = parameter.default if spec is None else spec.default
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return f"`{default:g}`"
    return "" if default in (None, "") else f"`{default}`"


def _help(parameter: Any, spec: OptionSpec | None = None) -> str:
    words = spec.help if spec else getattr(parameter, "help", "") or ""
    more = " Only as a flag: a file alone cannot set it." if spec and spec.flag_only else ""
    return _text(words + more)


def _text(words: str) -> str:
    """Markdown that shows these words as they are, code in backticks apart."""
    return words.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_") if "`" not in words else words
