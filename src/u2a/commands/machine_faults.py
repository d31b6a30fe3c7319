"""When the machine fails a command: one message that says how to go on, and the exit status for it."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from u2a.storage.disk_faults import storage_message
from u2a.types import OutOfMemory


def machine_fault(
    error: BaseException, output: str, resumable: bool, bad_input: int, stopped: int
) -> tuple[str, int] | None:
    """The message and the exit status: `stopped` once a run has begun, else `bad_input`; None = it was not
    the machine.

    Args:
        output: --output of the command, empty if it has none.
        resumable: whether the command takes --resume.
    """
    folder = Path(output).expanduser() if output else None
    what = _memory_message(error) or storage_message(error, folder)
    if what is None:
        return None
    try:
        begun = folder is not None and (folder / "config.yaml").is_file()
    except OSError:
        begun = False
    if not begun:
        return f"{what}. Mend that and begin again: nothing is kept", bad_input
    if resumable:
        return f"{what}. What is finished is kept in {folder}: mend that and go on with --resume", stopped
    return f"{what}. Mend that and begin again with a new --output: {folder} is not finished", stopped


def _memory_message(error: BaseException) -> str | None:
    if isinstance(error, OutOfMemory):
        return str(error).rstrip(".")
    chain: Sequence[BaseException | None] = (error, error.__cause__, error.__context__)
    if any(isinstance(e, OSError) and e.errno == errno.ENOMEM for e in chain):
        return "out of memory: the system gave no more"
    from u2a.passes.memory import WHAT_TO_DO, is_out_of_memory

    if any(is_out_of_memory(e) for e in chain):
        return f"out of memory ({str(error).splitlines()[0][:200] if str(error) else 'Python'}). {WHAT_TO_DO}"
    return None
