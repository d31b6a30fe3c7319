"""From cells to figures: constructed cells whose agreement is known, the verdict, the files and the plots."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from u2a.config import UnlearnOptions
from u2a.report.verify_plot import verify_plots
from u2a.runs.run_folder import write_json
from u2a.types import UserError
from u2a.verification.cells import Cell
from u2a.verification.comparison import Comparison, verdict
from u2a.verification.estimators import Estimate
from u2a.verification.plan import make_plan

IMPACT = np.random.default_rng(0).normal(size=12)
COST = np.random.default_rng(1).normal(size=12)
PLAN = make_plan(12, 4, UnlearnOptions(), subsets=10, singles=4, seeds=2, repeats=1, seed=10)
NOISE = {10: -0.01, 11: 0.01, 12: 0.03}
"""What each seed adds to J."""


def cell(run, held_out=True):
    """J changes by 0.5·Σ a + 1 and the seed's noise, U by −2·Σ c, held-out J by −Σ a."""
    members = PLAN.rows(run)
    gain = 0.5 * IMPACT[members].sum() + 1 + NOISE[run.seed]
    start = {"objective": -0.7, "utility": -3.0, "kl": 0.0, "held_out": -0.6 if held_out else None}
    end = {
        "objective": -0.7 + gain,
        "utility": -3.0 - 2 * COST[members].sum(),
        "kl": 0.1,
        "held_out": -0.6 - IMPACT[members].sum() if held_out else None,
    }
    return Cell(run.subset, run.seed, members, start, end, 1.5)


def comparison(held_out=True, **controls):
    estimates = {"identity": Estimate(IMPACT, COST), "second": Estimate(-IMPACT, None)}
    cells = [cell(run, held_out) for run in PLAN.runs]
    return Comparison(PLAN, cells, estimates, controls or {"flat": np.ones(12), "cost": COST})


def test_figures_are_those_of_the_construction():
    found = comparison().figures()
    identity = found["estimators"]["identity"]
    j = identity["validation"]["J"]
    assert j["lds"] == pytest.approx(1)
    assert j["interval"] == pytest.approx([1, 1])
    assert (j["slope"], j["intercept"], j["n"]) == pytest.approx((0.5, 1.0, 10))
    assert identity["validation"]["U"]["lds"] == pytest.approx(1)
    assert identity["validation"]["U"]["slope"] == pytest.approx(2)
    assert identity["held_out"]["J"]["lds"] == pytest.approx(-1)
    second = found["estimators"]["second"]
    assert second["validation"]["J"]["lds"] == pytest.approx(-1)
    assert "U" not in second["validation"]
    assert found["controls"]["flat"]["validation"]["J"]["lds"] is None
    assert "U" not in found["controls"]["cost"]["validation"]
    assert found["chosen"] == "identity"
    assert (found["subsets"], found["singles"], found["subset_size"], found["runs"]) == (10, 4, 4, 29)
    assert found["seeds"] == [10, 11]
    assert found["repeats"] == [12]


def test_repeats_count_for_the_ceiling_alone():
    """Subset 0 has changes −0.01, 0.01, 0.03 from its mean 0.01 (sum of squares 8e-4, 2 degrees of freedom),
    each of the other nine −0.01 and 0.01 from 0 (2e-4, 1): pooled variance (8e-4 + 9·2e-4)/11."""
    found = comparison().figures()["noise_ceiling"]["validation"]["J"]
    assert found["noise"] == pytest.approx(((0.0008 + 9 * 0.0002) / 11) ** 0.5)
    assert found["runs"] == 21
    changes = comparison().changes("objective")
    assert changes.shape == (14, 2)
    np.testing.assert_allclose(changes[:, 1] - changes[:, 0], 0.02)


def test_single_negatives_stand_apart():
    found = comparison().figures()["single_negatives"]
    assert found["estimators"]["identity"]["validation"]["J"]["n"] == 4
    assert found["estimators"]["identity"]["validation"]["J"]["slope"] == pytest.approx(0.5)
    few = replace(PLAN, members=PLAN.members[:12])
    cells = list(map(cell, few.runs))
    assert "single_negatives" not in Comparison(few, cells, comparison().estimates, {}).figures()


def test_without_held_out_pairs_there_is_no_held_out_figure():
    found = comparison(held_out=False).figures()
    assert "held_out" not in found["estimators"]["identity"]
    assert "held_out" not in found["noise_ceiling"]


def test_the_json_is_numbers_and_names_only(tmp_path):
    write_json(tmp_path / "verify.json", comparison().figures())  # refuses NaN

    def leaves(value):
        if isinstance(value, dict):
            return [leaf for each in value.values() for leaf in leaves(each)]
        if isinstance(value, list):
            return [leaf for each in value for leaf in leaves(each)]
        return [value]

    found = json.loads((tmp_path / "verify.json").read_text())
    assert [leaf for leaf in leaves(found) if isinstance(leaf, str)] == ["identity"]


@pytest.mark.parametrize(
    "controls, trusted, words",
    [
        ({"weak": COST}, True, ["identity has LDS 1.00 [1.00, 1.00]", "above every control (best: weak"]),
        ({"same": 2 * IMPACT}, False, ["Finding", "the control same reaches 1.00"]),
        ({"flat": np.ones(12)}, True, ["identity has LDS 1.00"]),
    ],
)
def test_the_verdict(controls, trusted, words):
    found = verdict(comparison(**controls).figures())
    assert found.trusted is trusted
    for word in words:
        assert word in found.sentence


def test_an_interval_that_includes_0_is_a_finding():
    figures = comparison(weak=COST).figures()
    figures["estimators"]["identity"]["validation"]["J"]["interval"] = [-0.1, 1.0]
    found = verdict(figures)
    assert not found.trusted
    assert "not above 0" in found.sentence
    figures["estimators"]["identity"]["validation"]["J"]["lds"] = None
    assert "undefined" in verdict(figures).sentence


def test_few_subsets_cannot_tell():
    """With 4 that happened to be in order it was `LDS 1.00 [1.00, 1.00], above every control`."""
    few = replace(PLAN, subsets=4, members=np.delete(PLAN.members, range(4, 10), axis=0))
    made = Comparison(few, list(map(cell, few.runs)), comparison().estimates, {"weak": COST})
    found = verdict(made.figures())
    assert not found.trusted
    assert "identity has LDS 1.00 on validation pairs over 4 subsets" in found.sentence
    assert "so few cannot tell: take 10 or more --subsets" in found.sentence


def test_the_table_of_subsets(tmp_path):
    comparison(held_out=False).write_table(tmp_path / "subsets.parquet")
    table = pq.read_table(tmp_path / "subsets.parquet")
    assert str(table.schema.field("members").type) == "list<element: int64>"
    rows = table.to_pylist()
    assert len(rows) == 29
    for row in rows:
        assert row["predicted_identity"] == pytest.approx(IMPACT[row["members"]].sum())
        assert row["predicted_utility_identity"] == pytest.approx(-COST[row["members"]].sum())
        assert row["control_cost"] == pytest.approx(COST[row["members"]].sum())
        measured = 0.5 * IMPACT[row["members"]].sum() + 1 + NOISE[row["seed"]]
        assert row["objective_change"] == pytest.approx(measured)
        assert row["single"] == (len(row["members"]) == 1)
        assert row["held_out_change"] is None


@pytest.fixture
def run(tmp_path):
    """The two files that the plots read."""
    made = comparison(**{"<b>bold</b>": COST})
    write_json(tmp_path / "verify.json", made.figures())
    made.write_table(tmp_path / "subsets.parquet")
    return tmp_path


def test_the_scatter_shows_every_subset_at_its_mean(run):
    scatter = verify_plots(run)[0]
    validation, held_out = scatter.figure["data"]
    sums = PLAN.members[:10].astype(float) @ IMPACT
    np.testing.assert_allclose(validation["x"], sums, rtol=1e-5)
    np.testing.assert_allclose(validation["y"], 0.5 * sums + 1, rtol=1e-4, atol=1e-5)  # no repeats in it
    np.testing.assert_allclose(held_out["y"], -sums, rtol=1e-4, atol=1e-5)
    assert len(scatter.rows) == 10


def test_the_bars_show_estimators_beside_controls(run):
    bars = verify_plots(run)[1]
    assert [row[:2] for row in bars.rows] == [
        ["identity", "estimator"],
        ["second", "estimator"],
        ["<b>bold</b>", "control"],
    ]
    assert bars.rows[0][2] == pytest.approx(1)
    drawn = bars.figure["data"][0]
    assert drawn["y"] == ["&lt;b&gt;bold&lt;/b&gt;", "second", "identity"]
    assert drawn["x"][-1] == pytest.approx(1)
    assert "what noise allows" in bars.caption


def test_other_runs_have_no_such_plots_and_broken_ones_are_named(run, tmp_path):
    assert verify_plots(tmp_path / "elsewhere") == []
    (run / "subsets.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"subsets\.parquet: not readable"):
        verify_plots(run)
    (run / "verify.json").write_text('{"chosen": 3}')
    with pytest.raises(UserError):
        verify_plots(run)
    (run / "verify.json").write_text("{")
    with pytest.raises(UserError, match=r"verify\.json: not what a run writes"):
        verify_plots(run)
