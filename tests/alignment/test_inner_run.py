"""Options of an inner run beside what its problem was prepared with: none does silently nothing."""

from dataclasses import replace

import numpy as np
import pytest

from problems import tiny_problem
from u2a import align, metagradient_impact
from u2a.alignment.inner_run import even_joint, unlearning_trainer
from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.types import UserError


@pytest.mark.parametrize(
    "prepared, options, message",
    [
        ({}, {"retain_loss": "nll"}, r"prepared with the retain term none.*prepare\(retain_loss="),
        ({"retain_loss": "nll"}, {"retain_loss": "none"}, "prepared with the retain term nll"),
        (
            {"retain_loss": "nll", "retain_weight": 0.1},
            {"retain_weight": 0.5},
            r"prepared with 0.1.*prepare\(retain_weight=",
        ),
        ({}, {"joint": 1.0}, r"needs pairs to train on: prepare\(joint_share="),
        ({"joint_share": 0.5}, {"joint": 1.0, "joint_share": 0.25}, "prepared with 0.5"),
    ],
    ids=["term", "no term", "weight", "no pairs", "share"],
)
def test_what_was_settled_by_prepare_is_not_settled_again(prepared, options, message):
    problem, options = tiny_problem(**prepared), UnlearnOptions(max_steps=1, **options)
    for run in (align, metagradient_impact):
        with pytest.raises(UserError, match=message):
            run(problem, unlearn=options)


@pytest.mark.parametrize(
    "prepared, options",
    [
        ({"retain_loss": "nll"}, {"retain_loss": "nll"}),
        ({"loss": "graddiff"}, {"retain_loss": "nll"}),
        ({"joint_share": 0.25}, {"joint": 1.0}),
        ({"joint_share": 0.25}, {"joint": 1.0, "joint_share": 0.25}),
        ({}, {"joint_share": 0.25}),  # as of the command without --joint
    ],
    ids=str,
)
def test_what_agrees_is_taken(prepared, options):
    options = UnlearnOptions(max_steps=1, learning_rate=1e-5, **options)
    outer = OuterOptions(outer_steps=1, measurements=1)
    assert align(tiny_problem(**prepared), unlearn=options, outer=outer).points


def test_where_a_nat_of_a_pair_pulls_as_hard_as_one_of_a_negative(caplog):
    """At the reference J's slope is β·σ(0) = 0.05 and npo's 2·σ(0) = 1; ga's is 1/|y|. So 20, and 20/|y|."""
    npo = tiny_problem(joint_share=0.5)
    assert even_joint(npo) == pytest.approx(20.0)
    ga = tiny_problem(loss="ga", joint_share=0.5)
    mean = np.average(1 / ga.lengths.numpy(), weights=ga.prior)
    assert even_joint(ga) == pytest.approx(20.0 * mean)
    assert even_joint(replace(npo, joint=replace(npo.joint, beta=0.5))) == pytest.approx(4.0)
    with caplog.at_level("INFO", logger="u2a"):
        options = {"outer": OuterOptions(outer_steps=1, measurements=1)}
        align(npo, unlearn=UnlearnOptions(max_steps=1, joint=1.0), **options)
    assert "joint 1: pairs and negatives would pull alike with 20" in caplog.text
    with pytest.raises(ValueError, match="no pairs"):
        even_joint(tiny_problem())


def test_what_the_problem_has_beside_its_terms_is_left_alone(tmp_path):
    """`u2a compare` measures all its methods on one problem, whatever they train on."""
    problem = replace(tiny_problem(retain_loss="nll", joint_share=0.5), retain_loss="none")
    made = unlearning_trainer(
        problem, np.ones(6), UnlearnOptions(), learning_rate=1e-4, seed=0, folder=str(tmp_path)
    )
    assert list(made._beside.texts()) == []


def test_the_weight_of_the_retain_term_is_that_of_the_problem(tmp_path):
    problem = tiny_problem(retain_loss="nll", retain_weight=0.1)
    made = unlearning_trainer(
        problem, np.ones(6), UnlearnOptions(), learning_rate=1e-4, seed=0, folder=str(tmp_path)
    )
    assert made.args.retain_weight == 0.1


@pytest.mark.parametrize(
    "options, name, value, bound",
    [
        (OuterOptions, "kl_budget", float("nan"), "finite"),
        (OuterOptions, "min_gain", float("nan"), "finite"),
        (UnlearnOptions, "learning_rate", float("inf"), "finite"),
        (UnlearnOptions, "max_steps", None, "a whole number"),
        (OuterOptions, "outer_steps", 1.5, "a whole number"),
        (OuterOptions, "restart", 1, "true or false"),
        (WeightOptions, "select", 0.5, "text"),
        (OuterOptions, "measurements", 0, "at least 1"),
        (OuterOptions, "outer_steps", 0, "at least 1"),
        (OuterOptions, "max_repetition_rise", 1.5, "at most 1"),
        (UnlearnOptions, "learning_rate", 0.0, "above 0"),
        (UnlearnOptions, "joint", -1.0, "at least 0"),
        (WeightOptions, "eta", -1.0, "at least 0"),
    ],
)
def test_options_out_of_their_range_are_refused_in_python_too(options, name, value, bound):
    with pytest.raises(UserError, match=rf"{options.__name__}\({name}={value}\): must be {bound}"):
        options(**{name: value})
