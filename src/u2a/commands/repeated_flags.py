"""A flag that is given twice: the last one would count, and the first be dropped without a word."""

from __future__ import annotations

from typing import Any

import typer

ROWS = frozenset({"negatives", "preferences", "test", "retain", "pool", "pairs", "mixture", "text"}) | {
    *("held_out_negatives", "safe_prompts", "unsafe_prompts")
}
"""Options that name a file or a folder of rows."""


def refuse_repeated_flags(command: Any, context: Any, words: list[str]) -> None:
    """Refuses a flag with a value that comes twice; a switch may, since it says the same again.

    Raises:
        typer.BadParameter: usage, exit status 2; names the flag.
    """
    _, _, order = command.make_parser(context).parse_args(args=list(words))
    given = [p for p in order if p.param_type_name == "option" and not p.is_flag]
    for parameter in given:
        if given.count(parameter) > 1:
            what = "give it once"
            if parameter.name in ROWS:
                what = "it names one source: put the files into one folder and give the folder"
            raise typer.BadParameter(
                f"it is given {given.count(parameter)} times; {what}", ctx=context, param=parameter
            )
