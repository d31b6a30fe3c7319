"""One process of libFuzzer on one target; started by run.py, which reads what it prints.

    python benchmarks/fuzz/worker.py TARGET FINDINGS [libFuzzer's own flags and folders]

An input whose outcome is neither rows nor a `UserError`, or that takes more than SLOW seconds, is written
to the folder FINDINGS, once for each place in the code, and fuzzing goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import traceback
import warnings
from pathlib import Path

import atheris

SLOW = 5.0
"""CPU seconds after which an input counts as a hang; libFuzzer ends the process after 30 by the clock."""

warnings.simplefilter("ignore")


def main() -> None:
    """Command line."""
    import targets

    from u2a.types import UserError

    name, findings, *flags = sys.argv[1:]
    target, folder = targets.TARGETS[name], Path(findings)
    folder.mkdir(parents=True, exist_ok=True)

    def one(data: bytes) -> None:
        begin = time.process_time()
        try:
            target(data)
        except UserError:
            pass
        except Exception as fault:
            _keep(folder, name, data, _place(fault), f"{type(fault).__name__}: {str(fault)[:200]}")
        seconds = time.process_time() - begin
        if seconds > SLOW:
            _keep(folder, name, data, "slow", f"took {seconds:.1f} s")

    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()


def _place(fault: BaseException) -> str:
    """The innermost line of u2a's own that the fault came through, and the fault's type."""
    frames = traceback.extract_tb(fault.__traceback__)
    own = [frame for frame in frames if "/u2a/" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].name}:{type(fault).__name__}"


def _keep(folder: Path, target: str, data: bytes, place: str, what: str) -> None:
    stem = hashlib.sha256(f"{target} {place}".encode()).hexdigest()[:12]
    facts = folder / f"{stem}.json"
    shortest = folder / f"{stem}.bin"
    if not shortest.is_file() or len(data) < shortest.stat().st_size:
        shortest.write_bytes(data)
        facts.write_text(json.dumps({"target": target, "place": place, "what": what, "bytes": len(data)}))


if __name__ == "__main__":
    main()
