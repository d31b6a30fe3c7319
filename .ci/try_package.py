"""Installs the wheel of a folder into an empty environment and runs it from elsewhere, as a user would.

    python .ci/try_package.py dist                    # `make package`
    python .ci/try_package.py dist --keep ENVIRONMENT # leaves the environment there, to go on in it

Outside the repository, so that nothing is found that is not in the wheel. Exit status 0: `u2a --version`,
`--help` and `check` did what they should; else what went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Installs, then tries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path)
    parser.add_argument("--keep", type=Path, help="where the environment is made and left")
    given = parser.parse_args()
    wheels = list(given.dist.glob("u2a-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"{given.dist}: {len(wheels)} wheels of u2a where there should be one")
    with tempfile.TemporaryDirectory() as scratch:
        environment = given.keep or Path(scratch, "environment")
        venv.create(environment, with_pip=True)
        install = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
        constraint = ["--constraint", ROOT / "constraints.txt"]
        subprocess.run([*install, *constraint, wheels[0].resolve()], check=True)
        try_commands(environment / "bin" / "u2a", Path(scratch), wheels[0].name.split("-")[1])


def try_commands(u2a: Path, folder: Path, version: str) -> None:
    """Ends the process with a message unless every command does what it should."""
    good, empty = folder / "good.jsonl", folder / "empty.jsonl"
    good.write_text(json.dumps({"prompt": "Hi!", "completion": "Go away."}) + "\n")
    empty.write_text(json.dumps({"prompt": "Hi!", "completion": ""}) + "\n")
    expected = [
        (["--version"], 0, f"u2a {version}"),
        (["--help"], 0, "Unlearning to Align"),
        (["check", "--negatives", str(good)], 0, "negatives: 1 rows"),
        (["check", "--negatives", str(empty)], 1, "empty-response"),
    ]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for arguments, status, words in expected:
        done = subprocess.run(
            [u2a, *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=False
        )
        shown = " ".join(["u2a", *arguments])
        if done.returncode != status or words not in done.stdout:
            sys.exit(f"{shown}: status {done.returncode}\n{done.stdout}{done.stderr}")
        print(f"{shown}: as it should")


if __name__ == "__main__":
    main()
