"""Rows with impacts and weights for other trainers: what they hold, how they are drawn, and TRL on them."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset

from cases import jsonl, save_tiny
from u2a import drawn_by_weight, load_preferences, weighted_negatives
from u2a.commands.align import write_weights
from u2a.data.load import load_negatives, load_prompts, load_retain
from u2a.impact.table import ImpactTable
from u2a.types import UserError

SCRIPT = Path(__file__).parents[2] / "examples" / "trl_weights.py"
ROWS = [
    {"prompt": f"Question {i}?", "chosen": f"Answer {i}, with care.", "rejected": "Go away. " * (1 + i % 2)}
    for i in range(6)
]
WEIGHTS = np.array([1.5, 0.0, 0.75, 0.0, 1.0, 0.75])


@pytest.fixture
def run(tmp_path):
    """What `u2a align` leaves of a run, as its own functions write it."""
    folder = tmp_path / "run"
    folder.mkdir()
    source = jsonl(tmp_path / "pairs.jsonl", ROWS)
    negatives = load_negatives(source)
    (folder / "config.yaml").write_text(yaml.safe_dump({"negatives": source}))
    values = np.arange(6.0)
    ImpactTable(values, -values, values, np.arange(6)).write(folder / "impact.parquet", negatives)
    write_weights(folder / "weights.parquet", negatives, WEIGHTS, [WEIGHTS])
    return folder


def test_rows_of_a_run(run):
    rows = weighted_negatives(run)
    assert rows["weight"][:] == WEIGHTS.tolist()
    assert rows["selected"][:] == [True, False, True, False, True, True]
    assert rows["impact"][:] == list(range(6))
    assert rows["utility_cost"][3] == -3.0
    assert rows["impact_se"][:] == [None] * 6
    assert rows[1]["prompt"] == [{"role": "user", "content": "Question 1?"}]
    assert rows[1]["completion"] == [{"role": "assistant", "content": "Go away. Go away. "}]
    assert rows["label"][:] == [False] * 6


def test_a_run_of_impact_has_no_weights(run):
    (run / "weights.parquet").unlink()
    rows = weighted_negatives(run)
    assert "weight" not in rows.column_names
    with pytest.raises(UserError, match="no column weight: take them from a run of `u2a align`"):
        drawn_by_weight(rows)


def test_rows_that_are_no_longer_those_that_were_scored_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="there are 5 negatives now and 6 in"):
        weighted_negatives(run, ROWS[:5])
    swapped = [ROWS[1], ROWS[0], *ROWS[2:]]
    with pytest.raises(UserError, match="negative 1 is not the one that was scored"):
        weighted_negatives(run, swapped)
    moved = [{**ROWS[0], "prompt": "another question"}, *ROWS[1:]]  # the answer is the same
    with pytest.raises(UserError, match="negative 1 is not the one that was scored"):
        weighted_negatives(run, moved)
    assert len(weighted_negatives(run, ROWS)) == 6
    (run / "config.yaml").write_text("negatives: '-'\n")
    with pytest.raises(UserError, match="names no file of negatives"):
        weighted_negatives(run)
    (run / "impact.parquet").unlink()
    with pytest.raises(UserError, match="no finished run"):
        weighted_negatives(run)
    with pytest.raises(UserError, match="no such run folder"):
        weighted_negatives(tmp_path / "nothing")


def test_each_draw_has_every_row_as_often_as_its_weight_says_rounded_up_or_down():
    weights = np.random.default_rng(0).exponential(size=50) * (np.arange(50) % 3 > 0)
    rows = Dataset.from_dict({"at": list(range(50)), "weight": weights})
    mean = np.zeros(50)
    for seed in range(200):
        counts = Counter(drawn_by_weight(rows, size=80, seed=seed)["at"])
        found = np.array([counts[i] for i in range(50)], float)
        expected = 80 * weights / weights.sum()
        assert found.sum() == 80
        assert (np.abs(found - expected) < 1).all()
        mean += found / 200
    # a mean over drawn rows is the weighted mean: its error is that of 200 draws of a variable of spread ≤ ½
    np.testing.assert_allclose(mean, expected, atol=5 * 0.5 / 200**0.5)


def test_draws_are_seeded_and_shuffled():
    rows = Dataset.from_dict({"at": list(range(20)), "weight": [1.0] * 20})
    first = drawn_by_weight(rows, seed=1)["at"][:]
    assert first == drawn_by_weight(rows, seed=1)["at"][:]
    assert first != drawn_by_weight(rows, seed=2)["at"][:]
    assert sorted(first) == list(range(20))
    assert first != list(range(20))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf"), 1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(UserError, match="weight"):
        drawn_by_weight(Dataset.from_dict({"weight": weights}))


# -- the recipe ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe():
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location("trl_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pairs_are_drawn_by_the_weight_of_their_rejected_answer(recipe, run):
    drawn = recipe.pairs_by_weight(weighted_negatives(run), load_preferences(ROWS), seed=0)
    found = Counter(row["prompt"][0]["content"] for row in drawn)
    assert sum(found.values()) == 4  # as many as have a weight
    assert not {"Question 1?", "Question 3?"} & set(found)
    assert found["Question 0?"] in (1, 2)


@pytest.mark.parametrize("method", ["dpo", "kto", "sft"])
def test_trl_trains_on_them(recipe, run, tmp_path, method):
    model = str(save_tiny(tmp_path / "model", "qwen"))
    rows = recipe.rows_for(method, weighted_negatives(run), load_preferences(ROWS), 0)
    options = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
    trainer = recipe.trainer_for(
        method, model, rows, str(tmp_path / "out"), save_strategy="no", disable_tqdm=True, **options
    )
    assert trainer.train().global_step == 1
    trainer.save_model(str(tmp_path / "out"))
    kept = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == model


def test_the_script_from_end_to_end(recipe, run, tmp_path, monkeypatch):
    model, out = str(save_tiny(tmp_path / "model", "qwen")), tmp_path / "out"
    options = {"--model": model, "--pairs": str(tmp_path / "pairs.jsonl"), "--max-steps": "1"}
    words = [word for pair in options.items() for word in pair]
    monkeypatch.setattr("sys.argv", ["trl_weights.py", str(run), *words, "--output", str(out)])
    recipe.main()
    assert (out / "adapter_model.safetensors").is_file()
    with pytest.raises(SystemExit):  # nothing is overwritten
        recipe.main()


@pytest.mark.parametrize("load", [load_negatives, load_retain, load_prompts])
def test_the_impact_table_is_no_file_of_rows(run, load):
    """Its conversations are one text each: they were unlearned as one user turn that names its roles."""
    with pytest.raises(UserError, match=r"impact\.parquet, row 1: this is the impact table .*weighted_negat"):
        load(run / "impact.parquet")


def test_rows_of_a_run_are_filtered_written_and_loaded_again(tmp_path):
    """As docs/how-to/usefulness.md does it; the turns of a conversation stay turns."""
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tea?"}]
    source = jsonl(tmp_path / "bad.jsonl", [{"prompt": prompt, "completion": f"No {i}."} for i in range(3)])
    negatives, values = load_negatives(source), np.arange(3.0)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"negatives": source}))
    ImpactTable(values, -values, values, np.arange(3)).write(tmp_path / "impact.parquet", negatives)
    rows = weighted_negatives(tmp_path).filter(lambda row: row["impact"] > 0 and row["utility_cost"] < 0)
    rows.to_json(tmp_path / "bargain.jsonl")
    again = load_negatives(tmp_path / "bargain.jsonl")
    assert again["response"][:] == ["No 1.", "No 2."]
    assert again["prompt"][:] == [prompt] * 2
    assert again["id"][:] == ["1", "2"]
