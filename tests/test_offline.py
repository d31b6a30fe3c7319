"""No network outside commands that say so: what is named on disk is enough for every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS
from u2a.models.demo_model import NAME

HERE = Path(__file__).parent
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE")
COMMANDS = ("check", "split", "impact", "align", "verify", "evaluate", "compare", "report", "chat")


def commands(folder):
    """Command lines by name, each with what the ones before it wrote."""
    pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    held_out = [{**pair, "prompt": f"{pair['prompt']} Really?"} for pair in pairs]
    model = str(save_tiny(folder / "model", "qwen"))
    rows = {
        "--negatives": jsonl(folder / "bad.jsonl", [{"prompt": p, "completion": r} for p, r in BAD]),
        "--preferences": jsonl(folder / "pairs.jsonl", pairs),
        "--test": jsonl(folder / "test.jsonl", held_out),
        "--retain": jsonl(folder / "good.jsonl", [{"prompt": p, "completion": r} for p, r in GOOD]),
    }
    split = jsonl(folder / "all.jsonl", [{**pair, "prompt": f"{k}?"} for k in range(6) for pair in pairs[:1]])
    config = folder / "compare.yaml"
    config.write_text("methods: [u2a, {method: dpo, pairs: validation}]\n")
    data = [word for item in rows.items() for word in item]
    unseen = [word for item in rows.items() if item[0] != "--preferences" for word in item]
    own = [word for item in rows.items() if item[0] != "--test" for word in item]
    shared = [*data, "--model", model, "--lora-rank", "2"]
    run = str(folder / "align")
    lines = {
        "check": f"--model {model}",
        "split": f"--output {folder / 'parts'} --validation 1 --test 1",
        "impact": f"--model {model} --output {folder / 'impact'}",
        "align": f"--output {run} --outer-steps 1 --min-gain -1 --merge",
        "verify": f"--output {folder / 'verify'} --subsets 4 --repeats 0 --embedding-model=",
        "evaluate": f"--output {folder / 'evaluate'} --max-new-tokens 4 "
        "--metrics preference,perplexity,kl,forgetting,fluency",
        "compare": f"--config {config} --output {folder / 'compare'} --steps 1 --seeds 1 "
        "--rates 1e-3 --looks 1",
        "report": "",
        "chat": "--max-new-tokens 4",
    }
    given = dict.fromkeys(lines, shared)
    given |= {"check": data, "split": [split], "impact": own, "evaluate": [run, *unseen], "report": [run]}
    given["chat"] = [run]
    hub = ["impact", *own, "--model", "u2a-nobody/nothing", "--output", str(folder / "hub")]
    return {**{name: [name, *given[name], *line.split()] for name, line in lines.items()}, "a Hub id": hub}


def without_switches():
    """The environment of a user who has turned nothing off."""
    kept = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(HERE), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline")
    (folder / "commands.json").write_text(json.dumps(commands(folder)))
    command = [sys.executable, str(HERE / "offline_session.py"), str(folder)]
    done = subprocess.run(command, env=without_switches(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "outcome.json").read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_has_its_files_asks_nobody(outcome, command):
    found = outcome[command]
    # 1 = done, with findings: so few rows tell `verify` nothing
    assert found["status"] in ((0, 1) if command == "verify" else (0,)), found["output"]
    assert found["attempts"] == []


def test_a_hub_id_does_ask_and_says_that_it_could_not(outcome):
    """Also shows that attempts are seen."""
    found = outcome["a Hub id"]
    assert found["status"] == 2, found["output"]
    assert "u2a-nobody/nothing" in found["output"]
    assert "Traceback" not in found["output"]
    assert any("huggingface.co" in attempt for attempt in found["attempts"])


@pytest.mark.slow
@pytest.mark.realmodel
def test_the_demo_runs_from_the_cache(tmp_path):
    """`make demo`'s main job without network; about ten minutes on two cores."""
    if not (Path(platformdirs.user_cache_dir("u2a")) / NAME).is_dir():
        pytest.skip("the demo model is not in the cache")
    code = (
        "import sys, offline_session; sys.addaudithook(offline_session.refuse); from u2a.cli import app; "
        f"app(['demo', '--output', {str(tmp_path / 'run')!r}], standalone_mode=False); "
        "sys.exit(len(offline_session.attempts))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=without_switches(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Whole demo" in done.stdout
    assert (tmp_path / "run").is_dir()
