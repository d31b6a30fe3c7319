"""What `prepare` makes of the names it is given."""

import pytest

from problems import tiny_problem
from u2a.losses import NPO, GradientAscent, loss_class
from u2a.types import UserError


@pytest.mark.parametrize("loss, term", [("graddiff", "nll"), ("ga+kl", "kl")])
@pytest.mark.parametrize("named", [False, True])
def test_a_name_of_the_literature_means_a_loss_and_its_retain_term(loss, term, named):
    """As for the command; naming the same term beside it contradicts nothing."""
    problem = tiny_problem(loss=loss, retain_loss=term if named else None)
    assert isinstance(problem.loss, GradientAscent)
    assert problem.retain_loss == term
    assert len(problem.retain_texts) == 1  # every other of three


def test_without_one_there_is_no_retain_term():
    assert tiny_problem().retain_loss == "none"
    assert tiny_problem(loss=NPO(beta=0.5)).retain_loss == "none"
    assert tiny_problem(loss=NPO(), retain_loss="l2").retain_loss == "l2"


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"loss": "graddiff", "retain_loss": "kl"},
            "means --retain-loss nll; for another, use --loss ga",
        ),
        ({"loss": "graddiff", "retain_loss": "none"}, "graddiff means --retain-loss nll"),
        ({"retain_loss": "ridge"}, "--retain-loss ridge: take one of none, nll, kl, l2"),
        ({"loss": NPO(), "retain_loss": "ridge"}, "--retain-loss ridge: take one of"),
        ({"loss": NPO(), "loss_options": {"beta": 0.5}}, "loss_options are for a loss by name"),
        ({"loss": "dpo"}, "--loss dpo: not a loss; take one of ga"),
    ],
    ids=["another term", "none", "no term", "no term for an object", "options for an object", "no loss"],
)
def test_what_contradicts_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        tiny_problem(**options)


def test_a_composed_name_is_not_said_to_be_a_choice_and_none():
    with pytest.raises(UserError, match="graddiff is ga with a retain term: take --loss ga --ret"):
        loss_class("graddiff")
