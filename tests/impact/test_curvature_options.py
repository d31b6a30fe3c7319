"""Curvatures through the public API: options count, are refused, and give the same scores twice."""

import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from curvatures import MEASURED, WEIGHT, gradient_of, shared_problem, tight_curvature
from oracle import small_problem
from problems import tiny_problem
from u2a.commands.schemas import IMPACT
from u2a.impact.context import inner_product
from u2a.impact.curvature import CURVATURES, EKFAC, KFAC, Adam, Diagonal, GaussNewton, Hessian, Identity
from u2a.impact.curvature.kept_texts import drawn_rows
from u2a.impact.table import score_impact
from u2a.losses import NPO
from u2a.problem import silent
from u2a.types import GuardStop, UserError


@pytest.mark.parametrize("name", CURVATURES)
def test_the_same_input_gives_the_same_scores(name):
    problem, _ = shared_problem()
    options = {"tolerance": 1e-2, "max_iterations": 5} if name in ("ggn", "hessian") else {}
    tables = [score_impact(problem, curvature=CURVATURES[name](**options)) for _ in range(2)]
    np.testing.assert_array_equal(tables[0].impact, tables[1].impact)
    assert np.isfinite(tables[0].impact).all()
    assert tables[0].impact.any()


@pytest.mark.parametrize(
    "curvature",
    [
        Diagonal(),
        Adam(),
        GaussNewton(damping=1.0, tolerance=1e-5),
        KFAC(),
        EKFAC(),
        Hessian(damping=50.0, tolerance=1e-5),
    ],
    ids=["diagonal", "adam", "ggn", "kfac", "ekfac", "hessian"],
)
def test_solutions_do_not_depend_on_how_texts_are_batched(curvature):
    """Labels and minibatches are drawn by row, not by batch; the model's own float32 is what differs."""
    problem, _ = shared_problem()
    small, large = (
        curvature.prepare(replace(problem, max_tokens=size), silent).solve(gradient_of(problem)).direction
        for size in (1, 4096)
    )
    difference = {key: small[key] - large[key] for key in small}
    assert inner_product(difference, difference) <= 1e-8 * inner_product(large, large)


def test_under_an_l2_term_scores_are_those_of_the_identity():
    problem, _ = shared_problem("l2")
    expected = score_impact(problem, curvature=Identity(WEIGHT), scoring="exact")
    for name in MEASURED:
        table = score_impact(problem, curvature=tight_curvature(name), scoring="exact")
        np.testing.assert_allclose(table.impact, expected.impact, rtol=1e-9)


@pytest.mark.parametrize("name", [*MEASURED, "hessian"])
def test_options_count(name):
    problem, _ = shared_problem()
    loose = {"tolerance": 1e-3, "max_iterations": 30} if name in ("ggn", "hessian") else {}
    base = tight_curvature(name, damping=50.0, rows=1, **loose)
    changes = {"retain_weight": 90.0, "damping": 80.0, "rows": 0, "seed": 3}
    before = base.prepare(problem, silent).solve(gradient_of(problem)).direction
    for option, value in changes.items():
        after = (
            replace(base, **{option: value}).prepare(problem, silent).solve(gradient_of(problem)).direction
        )
        assert any(not torch.allclose(after[key], before[key], rtol=1e-3) for key in before), option


def test_few_rows_are_drawn_by_the_seed():
    assert drawn_rows(5, 0, 0) == drawn_rows(5, 5, 0) == [0, 1, 2, 3, 4]
    assert drawn_rows(100, 10, 1) == drawn_rows(100, 10, 1) != drawn_rows(100, 10, 2)
    assert len(set(drawn_rows(100, 10, 1))) == 10


@pytest.mark.parametrize("name", [*MEASURED, "adam", "hessian"])
def test_non_finite_values_stop_the_run(name):
    problem = small_problem(loss=NPO(0.1), retain_loss="nll")
    gradient = gradient_of(problem)
    with torch.no_grad():
        next(iter(problem.policy.trainable().values()))[0, 0] = float("nan")
    with pytest.raises(GuardStop, match="not finite"):
        tight_curvature(name).prepare(problem, silent).solve(gradient)


def _in_two_formats(curvature, act):
    """The cosine between what `act(solver, gradient)` gives for a base in float32 and one in bfloat16.

    Adapters stay in float32, as `load_policy` leaves them.
    """
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        problem = tiny_problem("llama", dtype=dtype, retain_loss="nll", loss=NPO(0.1))
        assert all(p.dtype == torch.float32 for p in problem.policy.trainable().values())
        found.append(act(curvature.prepare(problem, silent), gradient_of(problem)))
    a, b = found
    return inner_product(a, b) / (inner_product(a, a) * inner_product(b, b)) ** 0.5


@pytest.mark.parametrize("name, cosine", [("diagonal", 0.98), ("kfac", 0.95), ("ekfac", 0.88)])
def test_a_base_in_bfloat16_gives_nearly_the_same_direction(name, cosine):
    """Adam is left out: docs/lab-notes.md."""
    assert _in_two_formats(tight_curvature(name), lambda solver, g: solver.solve(g).direction) > cosine


@pytest.mark.parametrize("name", ["ggn", "hessian"])
def test_a_base_in_bfloat16_gives_nearly_the_same_products(name):
    """Damped by next to nothing, so that it is the curvature that is compared."""
    assert _in_two_formats(tight_curvature(name, damping=1e-6), lambda solver, g: solver.product(g)) > 0.98


@pytest.mark.parametrize(
    "curvature, options, words",
    [
        (Diagonal, {"damping": -1.0}, r"Diagonal\(damping=-1.0\): must be at least 0"),
        (GaussNewton, {"retain_weight": -1.0}, r"GaussNewton\(retain_weight=-1.0\): must be at least 0"),
        (GaussNewton, {"preconditioner": "x"}, "take one of none, kfac"),
        (Hessian, {"tolerance": float("nan")}, "must be finite"),
        (Hessian, {"max_iterations": 0}, "must be at least 1"),
        (KFAC, {"rows": -1}, "must be at least 0"),
        (Adam, {"batch_size": 0}, "must be at least 1"),
    ],
)
def test_bad_options_are_refused(curvature, options, words):
    with pytest.raises(UserError, match=words):
        curvature(**options)


def test_options_of_one_name_mean_and_default_to_the_same():
    """The flags of all curvatures share one list: the first one's help and default are taken."""
    known = {}
    for cls in CURVATURES.values():
        for f in fields(cls):
            found = known.setdefault(f.name, (f.type, f.default, dict(f.metadata)))
            assert found == (f.type, f.default, dict(f.metadata)), f"{cls.__name__}.{f.name}"


def test_the_registry_is_free_of_torch():
    """`u2a --help` reads the options of every curvature."""
    code = "import sys, u2a.impact.curvature; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [*MEASURED, "adam", "hessian"])
def test_lambda_is_that_of_the_run_unless_given(name):
    """A problem of retain weight 3 and no option, against an option of 3 on a problem of weight 1."""
    problem, _ = shared_problem()
    loose = {"tolerance": 1e-3, "max_iterations": 30} if name in ("ggn", "hessian") else {}
    gradient = gradient_of(problem)
    given = tight_curvature(name, retain_weight=3.0, **loose).prepare(problem, silent).solve(gradient)
    of_the_run = tight_curvature(name, retain_weight=0.0, **loose)
    derived = of_the_run.prepare(replace(problem, retain_weight=3.0), silent).solve(gradient)
    other = of_the_run.prepare(problem, silent).solve(gradient)
    for key, value in given.direction.items():
        torch.testing.assert_close(derived.direction[key], value)
    assert any(not torch.allclose(other.direction[key], given.direction[key], rtol=1e-3) for key in gradient)


def test_the_default_curvature_suits_a_run_without_retain_term():
    """λ = 0: the texts stand for the term with λ = 1, and the order of scores is that of any λ."""
    problem, _ = shared_problem()
    none = replace(problem, retain_weight=0.0)
    gradient = gradient_of(problem)
    found, one, three = (
        Diagonal(retain_weight=own).prepare(p, silent).solve(gradient).direction
        for own, p in ((0.0, none), (1.0, problem), (3.0, problem))
    )
    for key, value in found.items():
        torch.testing.assert_close(value, one[key])
        torch.testing.assert_close(value, 3 * three[key])
    assert IMPACT.specs["curvature"].default == "diagonal"


@pytest.mark.parametrize("name", [n for n in MEASURED if n != "diagonal"])
def test_nothing_is_left_of_a_curvature_without_its_retain_term(name):
    problem, _ = shared_problem()
    with pytest.raises(UserError, match="--retain-weight 0"):
        tight_curvature(name, retain_weight=0.0).prepare(replace(problem, retain_weight=0.0), silent)
