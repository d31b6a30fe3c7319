"""Commands under a launcher: the example configurations, end to end, and what several processes cannot do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from typer.testing import CliRunner

import u2a
from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS
from several import by_processes
from u2a import cli
from u2a.cli import app
from u2a.commands import impact
from u2a.commands.schemas import IMPACT

COMMON = ("--model", "--negatives", "--preferences", "--retain")
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
        "--epochs": "2",
        "--outer-steps": "1",
        "--learning-rate": "3e-3",
        "--min-gain": "-100",
        "--max-nll-rise": "100",
        "--kl-budget": "0",
        "--scoring": "fd",
        "--max-repetition-rise": "0.99",
    }


def line(flags, **more):
    given = {**flags, **{f"--{name.replace('_', '-')}": value for name, value in more.items()}}
    return [word for pair in given.items() for word in pair]


def launch(name, command):
    """What `accelerate launch` with an example configuration says."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, "--config_file", str(EXAMPLES / f"{name}.yaml"), "-m", "u2a.cli", *command],
        env={**os.environ, "PYTHONPATH": str(Path(u2a.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_align_of_a_model_in_two_halves_is_that_of_one_process(tmp_path, flags):
    """Through `accelerate launch` with the example configuration of FSDP2, on the CPU."""
    alone = CliRunner().invoke(app, ["align", *line(flags, output=str(tmp_path / "alone"))])
    assert alone.exit_code == 0, alone.output
    said = launch("fsdp2", ["align", *line(flags, output=str(tmp_path / "two"))])
    assert said.count("Run folder:") == 1  # one of the two speaks
    found = {name: tmp_path / name for name in ("alone", "two")}
    scores, weights = (
        {n: pq.read_table(path / f"{table}.parquet").to_pandas() for n, path in found.items()}
        for table in ("impact", "weights")
    )
    scale = scores["alone"].impact.abs().max()  # of the rounding of fd, whichever the negative
    np.testing.assert_allclose(scores["two"].impact, scores["alone"].impact, rtol=0, atol=5e-3 * scale)
    assert scores["two"].response.tolist() == scores["alone"].response.tolist()
    assert weights["two"].selected.tolist() == weights["alone"].selected.tolist()
    adapters = {n: load_file(path / "adapter" / "adapter_model.safetensors") for n, path in found.items()}
    assert adapters["two"].keys() == adapters["alone"].keys()
    moved = sum(float(p.square().sum()) for n, p in adapters["alone"].items() if "lora_B" in n) ** 0.5
    apart = sum(float((adapters["two"][n] - p).square().sum()) for n, p in adapters["alone"].items()) ** 0.5
    assert moved > 1e-3
    assert apart < 0.02 * moved
    assert json.loads((found["two"] / "summary.json").read_text())["command"] == "align"
    assert sorted(p.name for p in found["two"].iterdir()) == sorted(p.name for p in found["alone"].iterdir())


def test_impact_of_two_processes_is_one_table_of_the_whole(tmp_path, flags):
    known = {name: value for name, value in flags.items() if name in (*COMMON, "--scoring")}

    def scored(folder):
        values = {name[2:].replace("-", "_"): value for name, value in known.items()}
        return impact.run(IMPACT.resolve(None, {**values, "output": str(folder)}))

    assert scored(tmp_path / "alone") == 0
    assert by_processes(2, tmp_path / "several", scored, tmp_path / "two") == [0, 0]
    tables = [pq.read_table(tmp_path / name / "impact.parquet").to_pandas() for name in ("two", "alone")]
    np.testing.assert_allclose(tables[0].impact, tables[1].impact, rtol=1e-3)
    assert tables[0].id.tolist() == tables[1].id.tolist()
    assert (tmp_path / "two" / "run.log").read_text().count("prepared in") == 1


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


@pytest.mark.parametrize("command", sorted(set(cli._COMMANDS) - set(cli._SHARED)))
def test_other_commands_refuse_a_launcher_before_they_do_anything(monkeypatch, command):
    def imported(_name):
        raise AssertionError("the command's work has begun")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(cli.importlib, "import_module", imported)
    words = {"split": ["rows.jsonl"], "report": ["runs/a"], "review": ["runs/a"]}
    words |= {"evaluate": ["runs/a"], "chat": ["runs/a"]}
    done = CliRunner().invoke(app, [command, *words.get(command, [])])
    assert done.exit_code == 2, done.output
    assert f"u2a {command} runs in one process: start it without a launcher" in done.output


@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_two_launched_processes_refuse_with_one_voice(tmp_path, command):
    """torchrun, for real; the model that is named is not looked for."""
    given = ["no-such-model"] if command == "evaluate" else ["--model", "no-such-model"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "u2a.cli", command, *given, "--output", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(Path(u2a.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert done.stderr.count(f"u2a {command} runs in one process: start it without a launcher") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two accelerators")
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero2"])
def test_two_accelerators_score_and_unlearn_as_one_process_on_the_cpu(tmp_path, flags, name):
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    alone = {**flags, "--device": "cpu", "--dtype": "float32"}
    found = CliRunner().invoke(app, ["align", *line(alone, output=str(tmp_path / "alone"))])
    assert found.exit_code == 0, found.output
    launch(name, ["align", *line({**flags, "--dtype": "float32"}, output=str(tmp_path / "two"))])
    impact = [pq.read_table(tmp_path / n / "impact.parquet").to_pandas().impact for n in ("two", "alone")]
    np.testing.assert_allclose(*impact, rtol=0.05)
    adapters = [load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("two", "alone")]
    for key, value in adapters[1].items():
        torch.testing.assert_close(adapters[0][key], value, rtol=0.05, atol=1e-3)
