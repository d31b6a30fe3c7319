"""The command line: flags made from the options, errors for people, exit statuses. Nothing heavy here.

Exit status: 0 done; 1 done, with findings; 2 bad usage or bad input, nothing run; 3 stopped by a guard or
interrupted or by the machine (disk, memory), resumable; 70 a fault of ours.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, Optional

import typer

from u2a import interruption
from u2a.commands import schemas
from u2a.config import OptionSpec, Schema
from u2a.evaluate import METRICS
from u2a.types import GuardStop, UserError

DONE, FINDINGS, BAD_INPUT, STOPPED, FAULT = 0, 1, 2, 3, 70

app = typer.Typer(
    name="u2a",
    help="Unlearning to Align: measure which bad answers are worth unlearning, and unlearn them so weighted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"u2a {version('u2a')}")
        raise typer.Exit()


@app.callback()
def _every_command(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass  # options that stand before the command's name


def _flag(spec: OptionSpec) -> inspect.Parameter:
    """The option as a flag that is None unless given, so that a YAML file can tell."""
    default = "off" if spec.default is False else spec.default
    shown = f" [default: {default}]" if default != "" else ""
    choices = f" One of: {', '.join(spec.choices)}." if spec.choices else ""
    names = (f"{spec.flag}/--no-{spec.flag[2:]}",) if spec.type is bool else (spec.flag,)
    option = typer.Option(*names, help=spec.help + choices + shown, show_default=False)
    kind = Annotated[Optional[spec.type], option]  # type: ignore[name-defined]  # noqa: UP045 - typer reads it
    return inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _register(
    name: str,
    about: str,
    schema: Schema,
    *arguments: inspect.Parameter,
    takes_config: bool = True,
    epilog: str | None = None,
) -> None:
    """Adds a command: flags are the schema's options, the work is `run` in `u2a.commands.<name>`."""

    def body(**given: Any) -> None:
        config = given.pop("config", None)
        positional = {p.name: given.pop(p.name) for p in arguments}

        output = ""

        def work() -> int:
            nonlocal output
            values = schema.resolve(config, given)
            output = values.get("output") or ""
            return importlib.import_module(f"u2a.commands.{name}").run(values, **positional)

        fault_of = partial(_machine_fault, name=name, output=lambda: output)
        raise typer.Exit(_guarded(work, fault_of, resumable=name in _RESUMABLE))

    parameters = [*arguments, *([_CONFIG] if takes_config else []), *map(_flag, schema.specs.values())]
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name, help=about, epilog=epilog)(body)


def _machine_fault(error: Exception, name: str, output: Callable[[], str]) -> tuple[str, int] | None:
    from u2a.commands.machine_faults import machine_fault

    return machine_fault(error, output(), name in _RESUMABLE, BAD_INPUT, STOPPED)


def _guarded(
    work: Callable[[], int],
    fault_of: Callable[[Exception], tuple[str, int] | None] = lambda _error: None,
    *,
    resumable: bool = False,
) -> int:
    """Runs a command; turns what people can mend into one message and an exit status."""
    # TRL's trainers would tell huggingface.co that they are used; read when huggingface_hub is first imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # libraries' notes to their own developers
    warnings.filterwarnings("ignore", category=FutureWarning)
    from u2a.commands.terminal import shown_log
    from u2a.printable import printable_lines

    try:
        with shown_log(), interruption.listening() if resumable else nullcontext():
            return work()
    except UserError as error:
        print(printable_lines(f"u2a: {error}"), file=sys.stderr)
        return BAD_INPUT
    except GuardStop as stop:
        print(printable_lines(f"u2a: stopped by a guard: {stop}"), file=sys.stderr)
        return STOPPED
    except interruption.Interrupted:
        print(f"u2a: interrupted; all that is done is kept. Go on with: {_again()}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        how = f"go on with: {_again()}" if resumable else f"{', '.join(_RESUMABLE)} go on with --resume"
        print(f"u2a: interrupted; {how}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        known = fault_of(error)
        if known is not None:
            print(printable_lines(f"u2a: {known[0]}"), file=sys.stderr)
            return known[1]
        print(printable_lines(traceback.format_exc()), end="", file=sys.stderr)
        print("u2a: this is a fault of u2a's own, or of the machine: please report it", file=sys.stderr)
        return FAULT


def _again() -> str:
    """The command that goes on with this one."""
    given = sys.argv[1:]
    return shlex.join(["u2a", *given, *(() if "--resume" in given else ("--resume",))])


_RESUMABLE = ("impact", "align", "verify", "evaluate", "compare")
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_CONFIG = inspect.Parameter(
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
_FILE = inspect.Parameter(
    "file", _POSITIONAL, annotation=Annotated[str, typer.Argument(help="Preference pairs to split.")]
)
_MODELS = inspect.Parameter(
    "models",
    _POSITIONAL,
    annotation=Annotated[
        list[str],
        typer.Argument(help="Run folders of `u2a align`, model or adapter folders, or Hub ids."),
    ],
)
_RUN = inspect.Parameter("run", _POSITIONAL, annotation=Annotated[str, typer.Argument(help="Run folder.")])
_TEXT = inspect.Parameter(
    "text",
    inspect.Parameter.KEYWORD_ONLY,
    default=True,
    annotation=Annotated[bool, typer.Option("--text/--no-text", help="Show the rows' text.")],
)

_register("check", "Is my data usable? Problems by file and row.", schemas.CHECK)
_register(
    "split", "Cut preference pairs into original, forget, retain, validation, test.", schemas.SPLIT, _FILE
)
_register("impact", "Which negatives matter, and what would they cost?", schemas.IMPACT)
_register("align", "The main job: score, select, weight and unlearn negatives.", schemas.ALIGN)
_register("verify", "May I trust the impact scores? Unlearns subsets for real and compares.", schemas.VERIFY)
_register(
    "evaluate",
    "Did it work, what did it break? The original model beside the others.",
    schemas.EVALUATE,
    _MODELS,
    epilog="\n\n".join(f"{name}: {inspect.cleandoc(cls.__doc__ or '')}" for name, cls in METRICS.items()),
)
_register(
    "compare",
    "Was it better than what I would have done? Methods at one budget, over several seeds.",
    schemas.COMPARE,
)
_register(
    "plan", "What would it cost? Operations, hours, bytes and money, before there is a run.", schemas.PLAN
)
_register("report", "Write a run's report.html again.", Schema(()), _RUN, _TEXT, takes_config=False)
_register("demo", "Everything on a small real model, with nothing of your own.", schemas.DEMO)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
