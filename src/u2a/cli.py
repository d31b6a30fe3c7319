"""The command line: flags made from the options, errors for people, exit statuses. Nothing heavy here.

Exit status: 0 done; 1 done, with findings; 2 bad usage or bad input, nothing run; 3 stopped by a guard or
interrupted or by the machine (disk, memory), resumable; 70 a fault of ours.

Every command takes `--quiet` and `--json` (docs/review.md). With `--json` standard output holds one object,
also where the command failed; the same words for people stand on standard error as without it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from u2a import interruption, processes
from u2a.commands.catalogue import COMMANDS, Command, options_elsewhere
from u2a.commands.flags import CONFIG, JSON, QUIET, flag
from u2a.commands.grouped_help import WIDTH, command_class, summary
from u2a.printable import printable_lines
from u2a.schema import Schema
from u2a.types import GuardStop, UserError

DONE, FINDINGS, BAD_INPUT, STOPPED, FAULT = 0, 1, 2, 3, 70


class _Commands(TyperGroup):
    """The commands; what is wrong with a command line's own words is said in JSON too, if they ask for it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Notes the words before they are taken apart."""
        ctx.meta["u2a.words"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Reads the command's own words, and runs it."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            words, message = ctx.meta["u2a.words"], getattr(error, "format_message", None)
            if "--json" in words and message is not None:  # click's, or typer's own copy of it
                _print_refusal(words[0], "usage", message())
            raise


def _print_refusal(command: str, kind: str, message: str) -> None:
    """For `--json`: why nothing was run."""
    from u2a.commands.terminal import print_json

    print_json({"command": command, "status": BAD_INPUT, "error": {"kind": kind, "message": message}})


def _empty() -> typer.Typer:
    return typer.Typer(
        name="u2a",
        cls=_Commands,
        help="Unlearning to Align: measure which bad answers are worth unlearning, and unlearn them so "
        "weighted.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


app = _empty()
_COMMANDS: dict[str, tuple[Schema, Callable[[typer.Typer, Schema], None]]] = {}
"""Name -> its options, and what adds it with other ones."""


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


def _register(command: Command) -> None:
    """Adds a command: flags are the schema's options, the work is `run` in `u2a.commands.<name>`."""

    def add(to: typer.Typer, schema: Schema) -> None:
        body, parameters = _body(command.name, schema, command.arguments, command.takes_config)
        body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        body.__annotations__ = {p.name: p.annotation for p in parameters}
        look: dict[str, Any] = {
            "cls": command_class(schema),
            "context_settings": {"max_content_width": WIDTH},
            "short_help": summary(command.about),
            "epilog": command.epilog,
        }
        to.command(command.name, help=command.about, **look)(body)

    _COMMANDS[command.name] = command.schema, add
    add(app, command.schema)


def _body(
    name: str, schema: Schema, arguments: Sequence[inspect.Parameter], takes_config: bool
) -> tuple[Callable[..., None], list[inspect.Parameter]]:
    """What a command does, and what it takes."""

    def body(**given: Any) -> None:
        from u2a.commands.terminal import manners, print_json

        config, quiet, as_json = (given.pop(name, None) for name in ("config", "quiet", "json"))
        positional = {p.name: given.pop(p.name) for p in arguments}
        output = ""

        def work() -> int:
            nonlocal output
            if processes.launched() and name not in _SHARED:
                raise UserError(f"u2a {name} runs in one process: start it without a launcher")
            values = schema.resolve(config, given, partial(options_elsewhere, name))
            output = values.get("output") or ""
            return importlib.import_module(f"u2a.commands.{name}").run(values, **positional)

        fault_of = partial(_machine_fault, name=name, output=lambda: output)
        with manners(quiet=quiet, json=as_json) as results:
            status = _guarded(work, fault_of, resumable=name in _RESUMABLE)
        if as_json and processes.is_first():
            written = {} if status == BAD_INPUT else _written(output)
            print_json({"command": name, "status": status, "error": None, **written, **results})
        raise typer.Exit(status)

    config_flag = [CONFIG] if takes_config else []
    return body, [*arguments, *config_flag, *map(flag, schema.specs.values()), QUIET, JSON]


def app_for(args: Sequence[str]) -> typer.Typer:
    """The commands; that of `args` with flags for the options of the user's own parts that `args` name.

    Raises:
        UserError: such a part, or the YAML file that names it, is unusable.
    """
    schema, _ = _COMMANDS.get(args[0] if args else "", (None, None))
    named = [f"--{registry.name}" for registry in schema.registries if registry.group] if schema else []
    given = _values_of(args, [*named, "--config"])
    if schema is None or not given:
        return app
    flags = {name: value for name, value in given.items() if name != "config"}
    flags["allow_code"] = "--allow-code" in args
    extended = schema.with_parts(given.get("config"), flags)
    if extended is schema:
        return app
    again = _empty()
    for name, (usual, add) in _COMMANDS.items():
        add(again, extended if name == args[0] else usual)
    return again


def _values_of(args: Sequence[str], flags: Sequence[str]) -> dict[str, Any]:
    """What those flags are given in a command line, by the options' names."""
    found = {}
    for place, argument in enumerate(args):
        flag, equals, value = argument.partition("=")
        if flag in flags and (equals or place + 1 < len(args)):
            found[flag[2:].replace("-", "_")] = value if equals else args[place + 1]
    return found


def _written(output: str) -> dict[str, Any]:
    """The folder that --output names, and what is in it."""
    folder = Path(output).expanduser()
    if not output or not folder.is_dir():
        return {}
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return {"output": str(folder), "files": names}


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

    try:
        with shown_log(), interruption.listening() if resumable else nullcontext():
            return work()
    except UserError as error:
        return _failed("input", str(error), BAD_INPUT, error)
    except GuardStop as stop:
        return _failed("guard", f"stopped by a guard: {stop}", STOPPED, stop)
    except interruption.Interrupted:
        how = f"all that is done is kept. Go on with: {_again()}"
        return _failed("interrupted", f"interrupted; {how}", STOPPED)
    except KeyboardInterrupt:
        how = f"go on with: {_again()}" if resumable else f"{', '.join(_RESUMABLE)} go on with --resume"
        return _failed("interrupted", f"interrupted; {how}", STOPPED)
    except Exception as error:
        known = fault_of(error)
        if known is not None:
            return _failed("machine", *known, error)
        _tell(traceback.format_exc().rstrip("\n"), error)
        why = "this is a fault of u2a's own, or of the machine: please report it"
        return _failed("fault", why, FAULT, error)


def _failed(kind: str, message: str, status: int, error: BaseException | None = None) -> int:
    """Says why a command failed, to people and to `--json`; gives the exit status back."""
    from u2a.commands.terminal import give

    _tell(f"u2a: {message}", error)
    give(error={"kind": kind, "message": message})
    return status


def _tell(message: str, error: BaseException | None = None) -> None:
    """To standard error; of several processes one says it."""
    if processes.speaks(error):
        print(printable_lines(message), file=sys.stderr)
    elif processes.launched() and processes.count() == 1:
        time.sleep(_HEAD_START)  # the launcher ends all as soon as one ends, and that one has said nothing


_HEAD_START = 10.0
"""Seconds at most that a silent process waits for the one that speaks, which may still be importing."""


def _again() -> str:
    """The command that goes on with this one."""
    given = sys.argv[1:]
    return shlex.join(["u2a", *given, *(() if "--resume" in given else ("--resume",))])


_SHARED = ("impact", "align")
"""Commands that several processes do together."""
_RESUMABLE = ("impact", "align", "verify", "evaluate", "compare")

for _command in COMMANDS:
    _register(_command)


def main() -> None:
    """Entry point."""
    try:
        commands = app_for(sys.argv[1:])
    except UserError as error:
        _tell(f"u2a: {error}")
        if "--json" in sys.argv and processes.is_first():
            _print_refusal(sys.argv[1], "input", str(error))
        sys.exit(BAD_INPUT)
    commands()


if __name__ == "__main__":
    main()
