"""Commands under a launcher: the example configurations, end to end, and what several processes cannot do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from typer.testing import CliRunner

import u2a
from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS
from u2a.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples" / "accelerate"


@pytest.fixture
def flags(tmp_path):
    """A small `u2a align` whose every outer step counts."""
    bad = [{"prompt": prompt, "completion": answer} for prompt, answer in BAD]
    good = [{"prompt": prompt, "completion": answer} for prompt, answer in GOOD]
    pairs = [{"prompt": prompt, "chosen": chosen, "rejected": bad} for prompt, chosen, bad in PAIRS]
    return {
        "--model": str(save_tiny(tmp_path / "model", "llama")),
        "--negatives": jsonl(tmp_path / "bad.jsonl", bad),
        "--preferences": jsonl(tmp_path / "pairs.jsonl", pairs),
        "--retain": jsonl(tmp_path / "good.jsonl", good),
        "--retain-loss": "nll",
        "--batch-size": "4",
        "--epochs": "3",
        "--learning-rate": "3e-3",
        "--min-gain": "-100",
        "--max-nll-rise": "100",
        "--kl-budget": "0",
        "--scoring": "fd",
        "--max-repetition": "1",
    }


def line(flags, **more):
    given = {**flags, **{f"--{name.replace('_', '-')}": value for name, value in more.items()}}
    return [word for pair in given.items() for word in pair]


def test_align_of_a_model_in_two_halves_is_that_of_one_process(tmp_path, flags):
    """Through `accelerate launch` with the example configuration of FSDP2, on the CPU."""
    alone = CliRunner().invoke(app, ["align", *line(flags, output=str(tmp_path / "alone"))])
    assert alone.exit_code == 0, alone.output
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    settings = ["--config_file", str(EXAMPLES / "fsdp2.yaml"), "-m", "u2a.cli", "align"]
    done = subprocess.run(
        [*launcher, *settings, *line(flags, output=str(tmp_path / "two"))],
        env={**os.environ, "PYTHONPATH": str(Path(u2a.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder:") == 1  # one of the two speaks
    found = {name: tmp_path / name for name in ("alone", "two")}
    impact, weights = (
        {n: pq.read_table(path / f"{table}.parquet").to_pandas() for n, path in found.items()}
        for table in ("impact", "weights")
    )
    np.testing.assert_allclose(impact["two"].impact, impact["alone"].impact, rtol=0.02)
    assert impact["two"].response.tolist() == impact["alone"].response.tolist()
    assert weights["two"].selected.tolist() == weights["alone"].selected.tolist()
    adapters = {n: load_file(path / "adapter" / "adapter_model.safetensors") for n, path in found.items()}
    assert adapters["two"].keys() == adapters["alone"].keys()
    moved = sum(float(p.square().sum()) for n, p in adapters["alone"].items() if "lora_B" in n) ** 0.5
    apart = sum(float((adapters["two"][n] - p).square().sum()) for n, p in adapters["alone"].items()) ** 0.5
    assert moved > 1e-3
    assert apart < 0.02 * moved
    assert json.loads((found["two"] / "summary.json").read_text())["command"] == "align"
    assert sorted(p.name for p in found["two"].iterdir()) == sorted(p.name for p in found["alone"].iterdir())


@pytest.mark.parametrize(
    "name, kind", [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("deepspeed_zero2", "DEEPSPEED")]
)
def test_accelerate_reads_the_example_configurations(name, kind):
    found = load_config_from_file(str(EXAMPLES / f"{name}.yaml"))
    assert found.distributed_type.value == kind
    assert found.num_processes == 2


SHARDED = {"ACCELERATE_USE_FSDP": "true"}


@pytest.mark.parametrize(
    "command, environment, changes, words",
    [
        ("align", {}, {"batch_size": "3"}, "take a multiple of 2"),
        ("impact", {}, {"negatives": "-"}, "only one process can read standard input"),
        ("verify", {}, {}, "runs in one process"),
        ("align", SHARDED, {"scoring": "jvp"}, "--scoring jvp does not go with sharded"),
        ("align", SHARDED, {"curvature": "ggn"}, "--curvature ggn does not go with sharded"),
        ("align", SHARDED, {"retain_loss": "l2"}, "--retain-loss l2 does not go with sharded"),
        ("align", SHARDED, {"lora_rank": "0", "kl_budget": "0.1"}, "frozen copy"),
        ("align", {"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed needs accelerators"),
        (
            "align",
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            {},
            "take FSDP2",
        ),
    ],
)
def test_what_several_processes_cannot_do_is_refused_before_anything_is_loaded(
    tmp_path, flags, monkeypatch, command, environment, changes, words
):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    known = {name: value for name, value in flags.items() if command == "align" or name in COMMON}
    done = CliRunner().invoke(app, [command, *line(known, output=str(tmp_path / "run"), **changes)])
    assert done.exit_code == 2
    assert words in done.output
    assert not (tmp_path / "run").exists()


COMMON = ("--model", "--negatives", "--preferences", "--retain")
