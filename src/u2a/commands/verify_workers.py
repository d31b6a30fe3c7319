"""Workers of `u2a verify`: processes that each load the model and take their share of the cells.

A worker is `python -m u2a.commands.verify_workers NUMBER COUNT` with the command's options as JSON on its
standard input: a new process, since a forked one can use neither torch's threads nor a GPU.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, cast

from u2a import interruption
from u2a.commands.machine_faults import machine_fault
from u2a.printable import printable_lines
from u2a.types import GuardStop, UserError

POLL = 0.2
"""Seconds between two looks at the workers."""

Worker = subprocess.Popen[str]


def run_workers(
    values: Mapping[str, Any],
    finished: Callable[[], int],
    advance: Callable[[int], None] | None,
    under_way: Callable[[int, int], str] = lambda _number, _count: "",
) -> None:
    """Runs `--processes` workers until all cells are there.

    Args:
        values: the command's resolved options.
        finished: how many cells there are. advance: called with the number of new ones.
        under_way: what worker NUMBER of COUNT has to make next, for the message when it dies.

    Raises:
        GuardStop: a worker died; the others are ended, and their finished cells stay.
    """
    import torch

    count = values["processes"]
    # torch in the workers takes as many threads as this says
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
    workers: list[Worker] = []
    try:
        for number in range(count):
            command = [sys.executable, "-m", "u2a.commands.verify_workers", str(number), str(count)]
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, text=True, env={**os.environ, **threads}
            )
            workers.append(worker)
            # one that is dead already breaks the pipe; `watch` tells why
            with suppress(BrokenPipeError), cast("IO[str]", worker.stdin) as pipe:
                pipe.write(json.dumps(dict(values)))
        watch(workers, finished, advance, under_way)
    finally:
        _end(workers)


def watch(
    workers: Sequence[Worker],
    finished: Callable[[], int],
    advance: Callable[[int], None] | None,
    under_way: Callable[[int, int], str] = lambda _number, _count: "",
) -> None:
    """Waits until all workers have ended.

    Raises:
        GuardStop: one ended with another exit status than 0. Interrupted: a signal asked for a stop.
    """
    seen = finished()
    while True:
        statuses = [worker.poll() for worker in workers]
        now = finished()
        if advance and now > seen:
            advance(now - seen)
        seen = now
        interruption.check()
        for number, status in enumerate(statuses):
            if status:
                raise GuardStop(
                    f"worker {number} of {len(workers)} {_end_of(status)}{under_way(number, len(workers))}; "
                    "finished cells are kept, and --resume goes on (with fewer --processes if memory ran out)"
                )
        if None not in statuses:
            return
        time.sleep(POLL)


def _end_of(status: int) -> str:
    """`ended with status 7`, or the signal that ended it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    killer = ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
    return f"was ended by {name}{killer}"


def _end(workers: Sequence[Worker]) -> None:
    """Asks what is still running to stop: each finishes its cell first."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        worker.wait()


def work(values: dict[str, Any], number: int, count: int) -> None:
    """One worker: every `count`-th run of the plan, from the `number`-th on, unless its cell is there."""
    from u2a.commands.schemas import VERIFY
    from u2a.commands.terminal import Bars
    from u2a.commands.verify import ground_truth, read_data

    command = os.getppid()
    VERIFY.load_parts(values)  # the command has loaded them, with leave
    truth = ground_truth(values, read_data(values), Bars())  # never started: they show nothing
    for run in truth.cells.plan.runs[number::count]:
        if os.getppid() != command:  # it was killed, and another one may be at these cells by now
            return
        interruption.check()
        if truth.cells.read(run, truth.start.utility) is None:
            truth.run(run)


def main(number: int, count: int) -> int:
    """Reads the options and works; exit status 3 with a message when a guard or the user's input stops it."""
    # the command itself has already shown what there is to know
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("u2a").addHandler(logging.NullHandler())
    values = json.load(sys.stdin)
    try:
        with interruption.listening(quiet=True):
            work(values, number, count)
    except (GuardStop, UserError) as error:
        print(printable_lines(f"u2a: worker {number}: {error}"), file=sys.stderr)
        return 3
    except (KeyboardInterrupt, interruption.Interrupted):
        return 3
    except Exception as error:
        known = machine_fault(error, values["output"], True, 3, 3)
        if known is None:
            raise
        print(f"u2a: worker {number}: {known[0]}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
