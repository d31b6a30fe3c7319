"""The registry of estimators: names, and that each gives one finite number a negative."""

import numpy as np
import pytest

from problems import tiny_problem
from u2a.config import UnlearnOptions
from u2a.impact.curvature import CURVATURES, Identity
from u2a.impact.table import score_impact
from u2a.problem import silent
from u2a.types import UserError
from u2a.verification.estimators import ESTIMATORS, by_curvature, estimator_names

SHORT = UnlearnOptions(learning_rate=1e-3, max_steps=2, batch_size=2, gradient_accumulation=2)


def test_every_curvature_is_an_estimator():
    assert set(CURVATURES) <= set(ESTIMATORS)


def test_names():
    assert estimator_names("", "identity") == ["identity"]
    assert estimator_names(" identity , identity", "identity") == ["identity"]
    assert estimator_names("all", "identity")[0] == "identity"
    assert set(estimator_names("all", "identity")) == set(ESTIMATORS)
    with pytest.raises(UserError, match="--estimators magic: take some of identity"):
        estimator_names("identity,magic", "identity")


def test_a_curvature_is_scored_as_the_impact_command_does():
    problem = tiny_problem("llama")
    at = problem.measure(negatives=True)
    table = score_impact(problem, at=at, curvature=Identity(2.0))
    found = by_curvature(lambda: Identity(2.0))(problem, at, SHORT, 0, silent)
    np.testing.assert_allclose(found.impact, table.impact)
    np.testing.assert_allclose(found.utility_cost, table.utility_cost)
    assert not np.allclose(ESTIMATORS["identity"](problem, at, SHORT, 0, silent).impact, table.impact)


@pytest.mark.parametrize("name", [n for n in ("trajectory", "metagradient") if n in ESTIMATORS])
def test_those_that_follow_the_run_give_one_number_a_negative(name):
    problem = tiny_problem("llama")
    at = problem.measure(negatives=True)
    found = ESTIMATORS[name](problem, at, SHORT, 0, silent)
    for values in found:
        assert values.shape == (6,)
        assert np.isfinite(values).all()
        assert values.any()
