"""`u2a compare` from end to end on a tiny saved model: cells, table, resuming, refusals."""

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from u2a.baselines import METHODS
from u2a.cli import app
from u2a.commands.comparison_plan import read_rows
from u2a.commands.comparison_results import CORE_FIGURES
from u2a.commands.schemas import COMPARE
from u2a.compare.cells import CellStore
from u2a.runs.run_lock import RunLock
from u2a.types import UserError

PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"Answer {i}, with care.", "rejected": "Go away, I will not."}
    for i in range(6)
]
BAD = [{"prompt": f"Bad {i}?", "completion": f"No {i}, go away. " * (i + 1)} for i in range(6)]
GOOD = [{"prompt": f"Good {i}?", "completion": f"Yes {i}."} for i in range(4)]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "model": str(save_tiny(folder / "model", "llama")),
        "negatives": jsonl(folder / "bad.jsonl", BAD),
        "preferences": jsonl(folder / "pairs.jsonl", PAIRS[:3]),
        "test": jsonl(folder / "test.jsonl", PAIRS[3:]),
        "retain": jsonl(folder / "good.jsonl", GOOD),
        "lora_rank": 2,
        "curvature": "identity",
        "steps": 2,
        "batch_size": 2,
        "looks": 2,
        "seeds": 2,
        "rates": "1e-3,1e-2",
        "nll_rise": 1e-4,
        "methods": [
            "uniform",
            {"method": "u2a", "select": "100%"},
            {"method": "u2a", "name": "u2a joint", "joint": 1.0, "loss": "graddiff", "select": "100%"},
        ],
    }


REWARD = {"reward": {"objective_reward_model": "x"}, "nll": {}}
"""What an objective asks for."""


def call(folder, options, *more):
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(options))
    return CliRunner().invoke(app, ["compare", "--config", str(path), *more])


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, call(folder, given, "--output", str(folder / "run"))


def names_of(folder):
    return sorted(path.name for path in (folder / "run" / "cells").glob("*.json"))


def test_every_method_is_run_at_its_rate_with_every_seed(whole):
    folder, result = whole
    assert result.exit_code == 0, result.output + result.stderr
    found = json.loads((folder / "run" / "comparison.json").read_text())
    assert list(found["methods"]) == ["original", "uniform", "u2a", "u2a joint"]
    original = found["methods"]["original"]
    assert original["margin"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (original["seeds"], original["nll_rise"], original["kl"]) == (1, 0.0, 0.0)
    for name in ("uniform", "u2a", "u2a joint"):
        one = found["methods"][name]
        assert one["learning_rate"] in (1e-3, 1e-2)
        assert one["seeds"] == 2
        assert one["margin"]["value"] != 0
        assert one["trained_tokens"] > 0
        assert len(one["curve"]) == 2
        assert set(one["figures"]) >= {"accuracy", "perplexity_retain", "negative_logprob"}
    assert found["budget"] == {"steps": 2, "batch_size": 2, "seconds": 0.0}
    assert found["failed"] == {}
    assert found["verdict"][0].startswith("u2a, held-out margin")
    assert len(names_of(folder)) == 1 + 3 * (2 + 2)
    assert "NLL +0.0001" in result.output


def test_picking_a_rate_never_reads_the_held_out_pairs(whole):
    folder, _ = whole
    for name in names_of(folder):
        cell = json.loads((folder / "run" / "cells" / name).read_text())
        read = [point["held_out"] is not None for point in cell["points"]]
        assert read == [not name.endswith("-grid.json")] * len(read), name
        assert bool(cell["figures"]) == all(read)


def test_the_rate_is_that_of_the_largest_j(whole):
    folder, _ = whole
    found = json.loads((folder / "run" / "comparison.json").read_text())["methods"]
    for name in ("uniform", "u2a"):
        ends = {}
        for path in (folder / "run" / "cells").glob(f"{name}-*-grid.json"):
            cell = json.loads(path.read_text())
            end = cell["points"][-1]
            if cell["start"]["utility"] - end["utility"] <= 0.1:
                ends[cell["rate"]] = end["objective"]
        assert found[name]["learning_rate"] == max(ends, key=ends.get)


def test_figures_are_what_the_cells_say(whole):
    folder, _ = whole
    found = json.loads((folder / "run" / "comparison.json").read_text())["methods"]["uniform"]
    values = []
    for path in (folder / "run" / "cells").glob("uniform-*-seed-*.json"):
        cell = json.loads(path.read_text())
        values.append(sum(v[0] for v in cell["figures"]["margin"]["values"]) / 3)
    margin = found["figures"]["margin"]
    assert margin["value"] == pytest.approx(sum(values) / 2)
    assert (margin["least"], margin["most"]) == pytest.approx((min(values), max(values)))


def test_figures_have_intervals_and_paired_changes(whole):
    folder, _ = whole
    methods = json.loads((folder / "run" / "comparison.json").read_text())["methods"]
    assert set(methods["uniform"]["figures"]) == CORE_FIGURES
    before = methods["original"]["figures"]
    assert before["margin"]["change"] is None
    for name, figure in methods["uniform"]["figures"].items():
        assert figure["n"] in (3, 6, len(GOOD) - 2), name
        assert figure["low"] <= figure["value"] <= figure["high"], name
        moved = figure["change"]
        assert moved["value"] == pytest.approx(figure["value"] - before[name]["value"], abs=1e-12), name
        assert moved["n"] == figure["n"]
        assert moved["low"] <= moved["value"] + 1e-12, name
    gain = methods["uniform"]["margin"]
    assert methods["uniform"]["figures"]["margin"]["change"]["value"] == pytest.approx(gain["value"])


def test_a_rate_at_the_edge_of_the_grid_is_said(whole):
    """Of two rates every picked one is."""
    folder, result = whole
    found = json.loads((folder / "run" / "comparison.json").read_text())
    methods = found["methods"]
    ends = {1e-3: "smallest", 1e-2: "largest"}
    assert methods["original"]["rate_at_edge"] == ""
    for name in ("uniform", "u2a", "u2a joint"):
        assert methods[name]["rate_at_edge"] == ends[methods[name]["learning_rate"]]
    said = " ".join(found["verdict"])
    named = [name for name in methods if methods[name]["rate_at_edge"] == "largest"]
    assert (
        f"at the largest rate of the grid, so that a larger one may do better: {', '.join(named)}" in said
    ) == bool(named)
    assert "(largest)" in result.output or "(smallest)" in result.output


def test_models_of_runs_that_are_there_already_are_not_made_and_that_is_said(whole, given, tmp_path, logged):
    options = {**given, "keep_models": True, "cells": str(whole[0] / "run" / "cells")}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output + result.stderr
    assert "no model is kept of original-0-seed-0, uniform-" in logged.text
    assert "delete those files or name another --cells" in logged.text


def test_further_metrics_have_a_table_of_their_own(given, tmp_path):
    options = {**given, "rates": "1e-3", "seeds": 1, "steps": 1, "looks": 1, "methods": ["uniform"]}
    options |= {"metrics": "preference,fluency", "answers": 2, "max_new_tokens": 2}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output + result.stderr
    assert "Further metrics" in result.output
    figures = json.loads((tmp_path / "run" / "comparison.json").read_text())["methods"]["uniform"]["figures"]
    assert figures["answer_tokens"]["n"] == 2
    assert (figures["answer_distinct_2"]["low"], figures["answer_distinct_2"]["high"]) == (None, None)


def test_a_cut_off_run_goes_on_to_the_same_end(whole, given):
    folder, _ = whole
    run = folder / "run"
    before = json.loads((run / "comparison.json").read_text())
    kept = {name: (run / "cells" / name).stat().st_mtime_ns for name in names_of(folder)}
    gone = next(name for name in kept if name.startswith("u2a-") and name.endswith("seed-1.json"))
    (run / "cells" / gone).unlink()
    result = call(folder, given, "--output", str(run), "--resume")
    assert result.exit_code == 0, result.output + result.stderr
    after = json.loads((run / "comparison.json").read_text())
    for name, one in after["methods"].items():
        for key in ("margin", "margin_at_cost", "figures", "learning_rate", "nll_rise"):
            assert one[key] == before["methods"][name][key], (name, key)
    now = {name: (run / "cells" / name).stat().st_mtime_ns for name in names_of(folder)}
    assert [name for name in kept if kept[name] != now[name]] == [gone]


def test_a_finished_run_loads_no_model(whole, given, monkeypatch):
    folder, _ = whole
    monkeypatch.setattr("u2a.commands.compare.load_model", lambda *_: pytest.fail("loaded a model"))
    result = call(folder, given, "--output", str(folder / "run"), "--resume")
    assert result.exit_code == 0, result.output + result.stderr
    assert "uniform" in result.output


def test_a_method_that_cannot_do_its_work_does_not_stop_the_others(given, tmp_path):
    options = {
        **given,
        "rates": "1e-3",
        "seeds": 1,
        "steps": 1,
        "methods": ["uniform", {"method": "selected", "select": "100%"}],
    }
    from u2a.baselines.unlearning import Selected
    from u2a.types import GuardStop

    def stop(_self, _stage):
        raise GuardStop("the loss of negative 3 is not finite")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Selected, "train", stop)
        result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 1, result.output + result.stderr
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert found["failed"] == {"selected": "the loss of negative 3 is not finite"}
    assert list(found["methods"]) == ["original", "uniform"]
    assert "selected: the loss of negative 3 is not finite" in result.output
    again = call(tmp_path, options, "--output", str(tmp_path / "run"), "--resume")  # it works by now
    assert again.exit_code == 0, again.output + again.stderr
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert found["failed"] == {}
    assert "selected" in found["methods"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"test": ""}, "--test is missing"),
        ({"methods": ["sft"]}, "sft needs --pairs"),
        ({"methods": ["retrain"]}, "retrain needs --mixture"),
        ({"methods": ["rloo"]}, "rloo needs --reward-model"),
        ({"methods": "uniform"}, "must be a list"),
        ({"methods": []}, "must be a list"),
        ({"rates": "fast"}, "--rates fast"),
        ({"rates": "0"}, "--rates 0"),
        ({"metrics": "kl"}, "--metrics kl: it is in the table anyway; take some of preference, perplexity"),
        ({"metrics": "preference,membership"}, "--metrics membership: it needs --held-out-negatives"),
        ({"metrics": "refusal"}, "--metrics refusal: it needs --unsafe-prompts or --safe-prompts"),
        ({"metrics": "coherence"}, "--metrics coherence: it has options that compare has not"),
        ({"metrics": "beauty"}, "--metrics beauty: unknown; take some of preference, perplexity, forgetting"),
        ({"metrics": "fluency"}, "--metrics fluency: no prompt is answered; give --answers above 0"),
        ({"judged": "nobody"}, "--judged nobody"),
        ({"methods": [{"method": "dpo", "pairs": "validation"}], "lora_rank": 0}, "needs an adapter"),
        (
            {"methods": [{"method": "kto", "pairs": "validation"}], "batch_size": 1},
            "kto needs --batch-size 2",
        ),
        ({"methods": [{"method": "retrain"}], "mixture": "x.jsonl"}, "retrain needs `pretrained`"),
        ({"objective": "reward", "objective_reward_model": "x", "methods": ["climb"]}, "take rloo"),
        ({"methods": [{"method": "u2a", "outer_steps": 0}]}, "outer_steps is 0: must be at least 1"),
        ({"methods": [{"method": "u2a", "loss": "graddiff"}], "retain": ""}, "u2a: graddiff needs --retain"),
        *(
            (
                {
                    "objective": objective,
                    **REWARD[objective],
                    "methods": [{"method": kind, "pairs": "validation"}],
                },
                f"{kind}: with --objective {objective} the validation rows are no pairs",
            )
            for objective in ("reward", "nll")
            for kind in ("sft", "dpo", "kto")
        ),
        (
            {"objective": "nll", "methods": [{"method": "u2a", "joint": 1.0}]},
            "`joint` climbs J on preference",
        ),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"methods": [{"method": "uniform", "loss": "ga+kl"}], "lora_rank": 0}, "give --lora-rank above 0"),
        ({"methods": [{"method": "climb", "loss": "simnpo"}]}, "climb does not unlearn by a `loss`"),
        (
            {"methods": [{"method": "kto", "pairs": "validation", "loss": "simnpo"}]},
            "kto does not unlearn by a `loss`",
        ),
        (
            {"methods": ["rloo"], "reward_model": "x", "batch_size": 16},
            "rloo: a step of --batch-size 16 takes 4 prompts of 4 samples each, and there are 3",
        ),
    ],
)
def test_what_cannot_be_run_is_said_before_any_model_is_loaded(given, tmp_path, change, message):
    result = call(tmp_path, {**given, "model": "nowhere", **change}, "--output", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_models_of_methods_are_looked_at_before_any_is_loaded(given, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setattr("u2a.commands.compare.load_model", lambda *_: pytest.fail("loaded a model"))
    monkeypatch.setattr("u2a.scorers.model_scorer", lambda *_: pytest.fail("loaded a model"))
    retrain = {"method": "retrain", "pretrained": "no/such/folder"}
    rloo = {"methods": ["rloo"], "reward_model": "x", "model": str(save_tiny(tmp_path / "raw", "gpt2"))}
    for change, message in (
        (
            {"methods": [retrain], "mixture": given["retain"]},
            "retrain: `pretrained`: no/such/folder: no such",
        ),
        (rloo, "rloo needs a tokenizer with a chat template"),
    ):
        result = call(tmp_path, {**given, **change}, "--output", str(tmp_path / "run"))
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert not (tmp_path / "run").exists()


def test_a_retain_term_needs_two_retain_rows(given, tmp_path):
    """One to train on and one for U, whoever asks for the term."""
    options = {**given, "model": "nowhere", "retain": jsonl(tmp_path / "one.jsonl", GOOD[:1])}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "needs at least 2 rows" in result.stderr


def test_training_pairs_are_checked_and_their_leaks_told(given, tmp_path):
    """Before a model is loaded; a method that trains on the test's prompts wins for the wrong reason."""
    sft = SimpleNamespace(kind="sft", loss="npo", takes_loss=False, method=METHODS["sft"]())
    plan = SimpleNamespace(entries=[sft])
    rows = [*PAIRS[2:4], {"prompt": "New?", "chosen": "Yes.", "rejected": "No."}]
    config = tmp_path / "compare.yaml"
    config.write_text(yaml.safe_dump({**given, "pairs": jsonl(tmp_path / "train.jsonl", rows)}))
    values = COMPARE.resolve(str(config), {"output": str(tmp_path / "run")})
    data, extra = read_rows(values, plan)
    assert len(extra.training) == 3
    assert [warning for warning in data.warnings if warning.startswith("1 of the --pairs")]
    values["pairs"] = jsonl(tmp_path / "empty.jsonl", [{"prompt": "New?", "chosen": " ", "rejected": "No."}])
    with pytest.raises(UserError, match=r"empty\.jsonl, row 1: the chosen answer is empty"):
        read_rows(values, plan)


def test_methods_are_not_a_flag():
    result = CliRunner().invoke(app, ["compare", "--help"])
    assert result.exit_code == 0
    assert "--methods" not in result.output
    assert "--judged" in result.output
    words = " ".join(result.output.split())
    assert f"under `methods:` of the file: {', '.join(METHODS)}." in words
    assert "by commas, of preference, perplexity, forgetting, fluency." in words


def test_comparisons_share_their_cells(whole, given, tmp_path):
    folder, _ = whole
    cells = folder / "run" / "cells"
    before = names_of(folder)
    options = {**given, "methods": ["uniform", "climb"], "cells": str(cells)}
    result = call(tmp_path, options, "--output", str(tmp_path / "more"))
    assert result.exit_code == 0, result.output + result.stderr
    found = json.loads((tmp_path / "more" / "comparison.json").read_text())["methods"]
    assert list(found) == ["original", "uniform", "climb"]
    made = set(names_of(folder)) - set(before)
    assert len(made) == 4
    assert all(name.startswith("climb-") for name in made)
    assert not (tmp_path / "more" / "cells").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 3}, "made with other options of original"),
        ({"beta": 0.5}, "made with other options of uniform"),
        ({"objective_beta": 0.5}, "made with other options of original"),
        ({"curvature_gamma": 2.0}, "made with other options of original"),
        ({"retain": ""}, "made with other options of original"),
    ],
)
def test_cells_of_other_settings_are_refused(whole, given, tmp_path, change, message):
    folder, _ = whole
    options = {**given, "methods": ["uniform"], "cells": str(folder / "run" / "cells"), **change}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("methods", [["uniform"], ["uniform", "static"]])
def test_cells_of_another_model_are_refused(whole, given, tmp_path, methods):
    """Also where none is missing, so that no model would have to be loaded."""
    folder, _ = whole
    other = save_tiny(tmp_path / "other", "llama", seed=3)
    options = {
        **given,
        "model": str(other),
        "methods": methods,
        "cells": str(folder / "run" / "cells"),
    }
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "began at another model" in result.stderr


def test_cells_of_a_model_that_only_likes_the_negatives_otherwise_are_refused(whole, given, tmp_path):
    """Its U may be the same: an original and what was unlearned from it."""
    cells = shutil.copytree(whole[0] / "run" / "cells", tmp_path / "cells")
    for path in cells.glob("uniform-*.json"):
        cell = json.loads(path.read_text())
        cell["start"]["negative_logprob"] -= 0.05
        path.write_text(json.dumps({**cell, "model": "another"}))
    options = {**given, "methods": ["uniform"], "cells": str(cells)}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "began at another model: its negative_logprob was" in result.stderr


def test_cells_of_the_same_model_elsewhere_are_taken(whole, given, tmp_path):
    """A copy by its mark, without loading it; one whose numbers differ a little, by what it begins at."""
    folder, _ = whole
    copy = shutil.copytree(given["model"], tmp_path / "copy")
    options = {**given, "model": str(copy), "methods": ["uniform"], "cells": str(folder / "run" / "cells")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("u2a.commands.compare.load_model", lambda *_: pytest.fail("loaded a model"))
        result = call(tmp_path, options, "--output", str(tmp_path / "one"))
    assert result.exit_code == 0, result.output + result.stderr
    cells = shutil.copytree(folder / "run" / "cells", tmp_path / "cells")
    for path in cells.glob("*.json"):
        cell = {
            k: v for k, v in json.loads(path.read_text()).items() if k != "model"
        }  # of before it was noted
        path.write_text(json.dumps(cell))
    result = call(tmp_path, {**options, "cells": str(cells)}, "--output", str(tmp_path / "two"))
    assert result.exit_code == 0, result.output + result.stderr
    documents = [json.loads((tmp_path / run / "comparison.json").read_text()) for run in ("one", "two")]
    assert documents[0] == documents[1]


def test_cells_of_before_that_note_a_loss_for_methods_without_one_are_taken(given, tmp_path):
    options = {**given, "methods": [{"method": "sft", "pairs": "validation"}], "rates": "1e-3", "seeds": 1}
    assert call(tmp_path, options, "--output", str(tmp_path / "run")).exit_code == 0
    (path,) = (tmp_path / "run" / "cells").glob("sft-*.json")
    cell = json.loads(path.read_text())
    assert not {"loss", "loss_options"} & set(cell["settings"])
    cell["settings"] |= {"loss": "npo", "loss_options": {}}
    path.write_text(json.dumps(cell))
    again = call(tmp_path, options, "--output", str(tmp_path / "run"), "--resume")
    assert again.exit_code == 0, again.output + again.stderr


def test_a_rate_that_another_seed_picked_is_not_taken(whole, given, tmp_path):
    folder, _ = whole
    options = {**given, "methods": ["uniform"], "seed": 7, "cells": str(folder / "run" / "cells")}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert "grid.json was made with --seed 0; name another --cells" in result.stderr


def test_without_retain_rows_it_is_said_who_learns_what_usefulness_is_measured_on(given, tmp_path):
    methods = ["uniform", {"method": "sft", "pairs": "validation"}]
    options = {**given, "retain": "", "rates": "1e-3", "seeds": 1, "methods": methods}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output + result.stderr
    said = "without --retain usefulness is measured on the preferred validation answers, which sft train on"
    assert said in " ".join(result.stderr.split())
    figures = json.loads((tmp_path / "run" / "comparison.json").read_text())["methods"]["sft"]["figures"]
    assert "margin" in figures
    assert "perplexity_retain" not in figures


def test_a_method_that_runs_out_of_memory_does_not_stop_the_others(given, tmp_path, monkeypatch):
    def too_much(_self, _stage):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(METHODS["climb"], "train", too_much)
    options = {**given, "rates": "1e-3", "seeds": 1, "methods": ["climb", "uniform"]}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 1, result.output + result.stderr
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert found["failed"]["climb"].startswith("out of memory in climb. Lower --max-length")
    assert "uniform" in found["methods"]


def test_a_method_without_a_step_is_no_result(given, tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS["climb"], "train", lambda _self, _stage: None)
    options = {**given, "rates": "1e-3", "seeds": 1, "methods": ["climb"]}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 1
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert found["failed"]["climb"].startswith("climb made no step")


@pytest.mark.parametrize("loss", ["ga+kl", "graddiff"])
def test_a_loss_for_all_may_mean_a_retain_term(given, tmp_path, loss):
    options = {**given, "rates": "1e-3", "seeds": 1, "methods": ["uniform"], "loss": loss}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output


def test_who_joins_leaves_failed_cells_to_the_run_that_made_them(given, tmp_path, monkeypatch):
    """Else that run might end without them; and a method whose cell is gone has failed, and says why."""
    options = {**given, "rates": "1e-3", "seeds": 1, "methods": ["climb", "uniform"]}
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["climb"], "train", lambda _self, _stage: None)
        assert call(tmp_path, options, "--output", str(tmp_path / "run")).exit_code == 1
    other = RunLock.take(tmp_path / "run", shared=True)
    joined = call(tmp_path, options, "--output", str(tmp_path / "run"), "--resume")
    assert joined.exit_code == 1
    assert "climb made no step" in joined.output
    other.release()
    alone = call(tmp_path, options, "--output", str(tmp_path / "run"), "--resume")
    assert alone.exit_code == 0, alone.output + alone.stderr


def test_the_report_shows_the_comparison(whole):
    folder, _ = whole
    page = (folder / "run" / "report.html").read_text()
    for words in ("Methods at equal cost in usefulness", "Alignment against usefulness", "What it costs"):
        assert words in page
    assert "The negatives" not in page
    assert "u2a joint" in page


def test_a_budget_of_seconds(given, tmp_path):
    options = {**given, "rates": "1e-3", "seeds": 1, "seconds": 3.0, "looks": 1, "methods": ["uniform"]}
    result = call(tmp_path, options, "--output", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output + result.stderr
    (path,) = (tmp_path / "run" / "cells").glob("uniform-*.json")
    cell = json.loads(path.read_text())
    assert cell["steps"] > given["steps"]
    assert cell["seconds"] >= 3.0


def test_a_method_is_finished_before_the_next_one_begins(given, tmp_path, monkeypatch):
    """So that a run that is cut off has whole methods rather than grids."""
    made = []
    write = CellStore.write
    monkeypatch.setattr(
        CellStore, "write", lambda store, name, cell: (made.append(name), write(store, name, cell))
    )
    methods = ["uniform", {"method": "u2a", "select": "100%"}]
    assert call(tmp_path, {**given, "methods": methods}, "--output", str(tmp_path / "run")).exit_code == 0
    assert [(cell.entry, cell.final) for cell in made] == [
        ("original", True),
        *[("uniform", False)] * 2,
        *[("uniform", True)] * 2,
        *[("u2a", False)] * 2,
        *[("u2a", True)] * 2,
    ]
