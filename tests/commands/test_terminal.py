"""What commands print cannot act on the terminal, whoever wrote it."""

import io
import logging
import os
import sys

import pytest
from rich.console import Console

from test_printable import ATTACKS
from u2a import cli
from u2a.commands import terminal
from u2a.commands.terminal import Bars, manners, print_json, print_table, say, shown_log
from u2a.types import GuardStop, UserError

HOSTILE = "".join(ATTACKS.values()) + "[bold]:smile:[/]\\"


def harmless(text):
    return all(c.isprintable() or c == "\n" for c in text)


def test_words_and_tables(capsys):
    say(HOSTILE)
    with Bars():
        print_table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, "1")])
    shown = capsys.readouterr().out
    assert harmless(shown)
    assert "\\x1b]0;owned\\x07" in shown
    assert "[bold]:smile:[/]\\" in shown  # markup of rich is no markup here


def test_names_beside_bars(monkeypatch):
    """A model's folder may be called `[/]`, which as markup is an error, or hold what acts on a terminal."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, color_system=None, width=400)
    monkeypatch.setattr(terminal, "errors", console)
    with Bars() as bars, bars.task(HOSTILE, 1):
        bars.progress.refresh()
    assert "[bold]:smile:[/]" in shown.getvalue()
    assert "\x1b]" not in shown.getvalue()
    assert "\\x1b]0;owned\\x07" in shown.getvalue()


def test_the_log(capsys):
    with shown_log():
        logging.getLogger("u2a").warning("met %s", HOSTILE)
    shown = capsys.readouterr().err
    assert harmless(shown)
    assert shown.startswith("Warning: met \\x1b")


@pytest.mark.parametrize("kind, status", [(UserError, 2), (GuardStop, 3), (RuntimeError, 70)])
def test_errors(capsys, kind, status):
    def work():
        raise kind(HOSTILE)

    assert cli._guarded(work) == status
    shown = capsys.readouterr().err
    assert harmless(shown)
    assert "\\x1b]52;c;" in shown


def test_lines_of_a_message_stay_lines(capsys):
    say("one\n  two [3]")
    assert capsys.readouterr().out == "one\n  two [3]\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_a_terminal_does_not_have(monkeypatch, encoding):
    """An arrow in a table ended `align` before its summary was written."""
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding=encoding))
    with manners():
        say("J ↑")
        print_table("Figures", ("metric", "value"), [("J ↑", "−1")])
    assert kept.getvalue().decode(encoding).startswith("J ?\n")


def test_a_pipe_that_nobody_reads(monkeypatch):
    """`u2a align | head -1` ended with status 1 before its summary was written."""
    for print_ in (lambda: say("one"), lambda: print_table("a", ("b",), [("c",)]), lambda: print_json({})):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as pipe, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", pipe)
            with manners():
                print_()
                print_()
