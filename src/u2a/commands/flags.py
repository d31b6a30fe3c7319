"""Flags and arguments of commands, as parameters that typer reads."""

from __future__ import annotations

import inspect
from typing import Annotated, Optional

import typer

from u2a.schema import OptionSpec


def flag(spec: OptionSpec) -> inspect.Parameter:
    """The option as a flag that is None unless given, so that a YAML file can tell."""
    default = "off" if spec.default is False else spec.default
    if isinstance(default, float):
        default = f"{default:g}"  # 4e+14, not 400000000000000.0
    shown = f" [default: {default}]" if default != "" else ""
    choices = f" One of: {', '.join(spec.choices)}." if spec.choices else ""
    names = (f"{spec.flag}/--no-{spec.flag[2:]}",) if spec.type is bool else (spec.flag,)
    option = typer.Option(*names, help=spec.help + choices + shown, show_default=False)
    kind = Annotated[Optional[spec.type], option]  # type: ignore[name-defined]  # noqa: UP045 - typer reads it
    return inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Optional[str],  # noqa: UP045 - typer reads it
        typer.Option(
            "--config", help="YAML file with the same options; flags override it.", show_default=False
        ),
    ],
)


def _switch(name: str, help: str) -> inspect.Parameter:
    """A flag of every command; no configuration file can set it."""
    kind = Annotated[bool, typer.Option(f"--{name}", help=help)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)


QUIET = _switch("quiet", "Say only what sums up, and errors; no progress.")
JSON = _switch("json", "Print one JSON object; words for people go to standard error.")
FILE = inspect.Parameter(
    "file", _POSITIONAL, annotation=Annotated[str, typer.Argument(help="Preference pairs to split.")]
)
MODELS = inspect.Parameter(
    "models",
    _POSITIONAL,
    annotation=Annotated[
        list[str],
        typer.Argument(help="Run folders of `u2a align`, model or adapter folders, or Hub ids."),
    ],
)
RUN = inspect.Parameter("run", _POSITIONAL, annotation=Annotated[str, typer.Argument(help="Run folder.")])
RUNS = inspect.Parameter(
    "runs",
    _POSITIONAL,
    annotation=Annotated[list[str], typer.Argument(help="Run folders, shown side by side.")],
)
