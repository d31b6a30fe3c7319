"""Code that the machines of a Ray cluster need beside u2a: that of a loss of the user's own.

A loss whose package is installed must be installed on every machine, as u2a must. One that is not, a file in
the working folder, say, goes along with the job: its code by value, and that of modules beside it.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from u2a.types import UserError

_INSTALLED = {"site-packages", "dist-packages"}


@contextmanager
def going_along(loss: Any) -> Iterator[None]:
    """Within, Ray pickles the code of a loss that is not installed, instead of its module's name.

    Raises:
        UserError: that code cannot be pickled.
    """
    from ray import cloudpickle

    modules = _own_modules(type(loss))
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    except (TypeError, pickle.PicklingError) as error:
        if not modules:
            raise
        raise UserError(
            f"--engine ray: the code of the loss {type(loss).__name__} cannot be sent to the cluster "
            f"({error}): install it as a package on every machine"
        ) from error
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _own_modules(part: type) -> list[ModuleType]:
    """The module of a class, or its package, and what was loaded from beside it; none if it is installed."""
    top = part.__module__.partition(".")[0]
    folder = _folder(sys.modules.get(top))
    if folder is None or _INSTALLED & set(folder.parts) or top == "u2a":
        return []
    tops = {name: module for name, module in sys.modules.items() if "." not in name}
    return [
        module
        for name, module in tops.items()
        if name not in ("u2a", "__main__") and _folder(module) == folder
    ]


def _folder(module: ModuleType | None) -> Path | None:
    """Where the module's file, or its package, is."""
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return None
    path = Path(file).resolve()
    return path.parent.parent if hasattr(module, "__path__") else path.parent


def lacking_code(error: BaseException) -> UserError | None:
    """What to tell the user where a machine of the cluster could not import something; None for other errors.

    An actor's constructor does nothing, so one that fails did not find its own code or the job's.
    """
    if not (getattr(error, "actor_init_failed", False) or isinstance(error, ImportError)):
        return None
    last = (str(error).splitlines() or [type(error).__name__])[-1]
    return UserError(
        f"--engine ray: a machine of the cluster lacks code that this one has ({last}): "
        "install there what is installed here: u2a, its extras, and the package of a --loss of your own"
    )
