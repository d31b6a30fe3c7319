"""Every command that `--resume` goes on with, killed with SIGKILL at seeded random moments: what the resumed
run leaves is what one that was left alone leaves, bit for bit."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

COMMANDS = ("impact", "align", "align, reward", "verify", "evaluate", "compare", "impact, pool")
EACH = 11
"""Kills of each command; some of a resumed run, and of one that was resumed twice."""


def test_killed_anywhere_and_resumed_equals_uninterrupted(tmp_path):
    killing = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, str(killing), str(tmp_path), "0", str(EACH)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    kills = found["kills"]  # only those where the process really died of the signal
    by_command = Counter(kill["command"] for kill in kills)
    assert set(by_command) == set(COMMANDS)
    assert min(by_command.values()) >= 10
    assert len(kills) >= 50
    assert {kill["kind"] for kill in kills} >= {"file", "forward", "clock"}
    phases = {f"{kill['command']}: {kill['phase']}" for kill in kills}
    assert phases >= set(found["phases"])  # every phase in which something happens
    assert phases >= {"align: scoring", "align: unlearning", "verify: unlearning", "impact, pool: scoring"}
    assert sum(kill["phase"].startswith("after") for kill in kills) >= 5  # results are being written
