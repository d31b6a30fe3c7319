"""The Ray cluster that a command works on: one that is named, or one of its own on this machine.

Ray sends no usage statistics from here (RAY_USAGE_STATS_ENABLED=0).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from u2a.types import UserError

ANSWER = 10.0
"""Seconds to wait for a cluster's answer."""


def check_address() -> None:
    """Looks whether anybody listens where RAY_ADDRESS says, as Ray itself would ask for minutes.

    Raises:
        UserError: nobody does.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--engine ray: nobody answers at RAY_ADDRESS {address[:80]} ({error}): start the cluster, or "
            "unset RAY_ADDRESS for one on this machine"
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps what SIGTERM does: `ray.init` has it end the process at once, with no word of how to go on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """Within, Ray is there: the cluster that this process is in already, the one that RAY_ADDRESS names, or a
    new one on this machine, which ends with the block. No other is looked for: rows go where the user said.

    Raises:
        UserError: the cluster that is named cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by what ray.init starts
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with _own_signals():
        if address := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(**quiet)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise UserError(
                    f"--engine ray: cannot join the cluster at RAY_ADDRESS {address[:80]}: {error}. It must "
                    "run, with the same Ray and Python, and ask for a token that this machine has, or none"
                ) from error
        else:
            ray.init(address="local", num_cpus=workers or None, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
