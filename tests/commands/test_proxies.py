"""`u2a impact --proxy-model`, `--proxy-layers`: something cheaper scores, and what that loses is measured."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from scipy.stats import spearmanr
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS
from u2a.cli import app
from u2a.commands.proxies import Loss, SampledRows

ROWS = [{"prompt": f"{p} {k}", "completion": f"{r} {'No. ' * k}"} for k in range(2) for p, r in BAD]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxies")
    return {
        "--model": str(save_tiny(folder / "model", "qwen")),
        "--preferences": jsonl(
            folder / "pairs.jsonl", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
        ),
        "--retain": jsonl(folder / "good.jsonl", [{"prompt": p, "completion": r} for p, r in GOOD]),
        "--lora-rank": "2",
        "other": str(save_tiny(folder / "other", "qwen", seed=1)),
        "rows": jsonl(folder / "bad.jsonl", ROWS),
    }


def impact(files, output, *more):
    words = [word for flag, value in files.items() if flag.startswith("--") for word in (flag, value)]
    return CliRunner().invoke(app, ["impact", *words, "--output", str(output), *more])


def scores(run):
    return pq.read_table(run / "impact.parquet").to_pandas().set_index("row")["impact"].sort_index()


@pytest.mark.parametrize("given", [["--proxy-model", "other"], ["--proxy-layers", "50%"]])
def test_a_proxy_scores_and_its_loss_is_measured(files, tmp_path, given):
    """The impacts are the proxy's, and the correlation is that with an ordinary run, here and for a pool."""
    given = [files.get(word, word) for word in given]
    whole = impact(files, tmp_path / "whole", "--negatives", files["rows"])
    assert whole.exit_code == 0, whole.output
    done = impact(files, tmp_path / "run", "--negatives", files["rows"], *given)
    assert done.exit_code == 0, done.output
    expected, found = scores(tmp_path / "whole"), scores(tmp_path / "run")
    assert not np.allclose(expected, found, rtol=0.05)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["proxy"]["rows"] == len(ROWS)
    np.testing.assert_allclose(summary["proxy"]["spearman"], spearmanr(expected, found).statistic, atol=1e-6)
    assert "All figures here are a proxy's" in summary["findings"][0]
    assert f"with its own is {summary['proxy']['spearman']:.2f}," in summary["findings"][1]

    more = ["--shard-rows", "7", "--keep", "99", "--proxy-check", "10"]
    done = impact(files, tmp_path / "pool", "--pool", files["rows"], *given, *more)
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(scores(tmp_path / "pool"), found, rtol=1e-3)
    pooled = json.loads((tmp_path / "pool" / "summary.json").read_text())
    assert pooled["proxy"]["rows"] == 10
    assert "All figures here are a proxy's" in pooled["findings"][0]


def test_a_proxy_model_scores_what_it_scores_by_itself(files, tmp_path):
    given = ["--negatives", files["rows"], "--proxy-model", files["other"], "--proxy-check", "0"]
    assert impact(files, tmp_path / "run", *given).exit_code == 0
    model = {**files, "--model": files["other"]}
    assert impact(model, tmp_path / "own", "--negatives", files["rows"]).exit_code == 0
    np.testing.assert_allclose(scores(tmp_path / "run"), scores(tmp_path / "own"))


def test_the_check_can_be_left_out_and_is_left_out_for_a_few_rows(files, tmp_path):
    given = ["--negatives", files["rows"], "--proxy-layers", "50%", "--proxy-check"]
    done = impact(files, tmp_path / "none", *given, "0")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "none" / "summary.json").read_text())["proxy"] is None
    done = impact(files, tmp_path / "few", *given, "3")
    assert "3 rows are too few to say what the proxy loses" in done.output


@pytest.mark.parametrize(
    "given, words",
    [
        (["--proxy-layers", "0%"], "--proxy-layers 0%: take a percentage"),
        (["--proxy-layers", "0.25"], "--proxy-layers 0.25: take a percentage"),
        (["--proxy-layers", "nan%"], "--proxy-layers nan%: take a percentage"),
        (["--proxy-layers", "101%"], "--proxy-layers 101%: take a percentage"),
        (["--proxy-check", "5"], "--proxy-check means something only with --proxy-model or --proxy-layers"),
        (["--proxy-model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_bad_options(files, tmp_path, given, words):
    done = impact(files, tmp_path / "run", "--negatives", files["rows"], *given)
    assert done.exit_code == 2
    assert words in done.output
    assert not (tmp_path / "run").exists()


def _rows(first, count):
    return Dataset.from_dict({"row": list(range(first, first + count))})


def test_the_sample_is_drawn_by_its_seed_and_not_by_the_order_of_shards():
    def drawn(order, seed=0, count=20):
        sample = SampledRows(count, seed)
        for first in order:
            sample.add(_rows(first, 50), np.arange(first, first + 50) * 2.0)
        rows = sample.rows(_rows(0, 1).features)["row"][:]
        np.testing.assert_array_equal(sample.impact, np.array(rows) * 2.0)
        return rows

    shards = list(range(0, 1000, 50))
    first = drawn(shards)
    assert len(set(first)) == 20
    assert drawn(shards[::-1]) == first
    assert drawn(shards, seed=1) != first
    assert len(drawn([0], count=99)) == 50
    none = SampledRows(0, seed=0)
    none.add(_rows(0, 50), np.zeros(50))
    assert len(none.impact) == 0
    # spread over all rows: the mean of 400 of 0..999 is 499.5, give or take 11
    assert abs(np.mean(drawn(shards, count=400)) - 499.5) < 45


def test_what_is_lost_by_hand():
    """Ranks 1..8 against themselves with the two best exchanged for the two worst: Σd² = 4·6² = 144, so
    1 − 6·144/(8·63) = −0.714; none of the best quarter is found."""
    whole = np.arange(8.0)
    other = np.array([6.0, 7.0, 2.0, 3.0, 4.0, 5.0, 0.0, 1.0])
    found = Loss.between(other, whole)
    assert (found.rows, found.best_quarter) == (8, 0.0)
    np.testing.assert_allclose(found.spearman, 1 - 6 * 144 / (8 * 63))
    assert Loss.between(whole, whole).best_quarter == 1.0
