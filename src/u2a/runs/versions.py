"""Which versions of the software a run was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def versions() -> dict[str, Any]:
    """Versions of what shapes a result, the machine, and the commit of a checkout (no path, no user name)."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("u2a", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(git, capture_output=True, text=True, timeout=5, check=False)
        found["git_commit"] = answer.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        found["git_commit"] = None
    return found
