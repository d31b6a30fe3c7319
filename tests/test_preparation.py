"""What `prepare` makes of the names it is given."""

import pytest
from datasets import Dataset

from cases import jsonl, tiny_policy
from problems import BAD, answers, pairs, tiny_problem
from u2a import prepare
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


ROWS = {
    "negatives": [{"prompt": "Hi", "completion": "Go away."}],
    "preferences": [{"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}],
    "retain": [{"text": "Water boils at 100 degrees."}],
}


def test_rows_are_read_as_the_loaders_read_them(tmp_path):
    """A list of rows ended in an AttributeError."""
    problem = prepare(tiny_policy("qwen"), **ROWS)
    assert problem.negatives["response"][:] == ["Go away."]
    assert len(problem.objective.texts) == 2
    by_path = {name: jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in ROWS.items()}
    other = prepare(tiny_policy("qwen"), **by_path)
    assert other.negative_texts["input_ids"][:] == problem.negative_texts["input_ids"][:]
    nll = prepare(tiny_policy("qwen"), **{**ROWS, "preferences": ROWS["retain"]}, objective="nll")
    assert len(nll.objective.texts) == 1


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"policy": "my-model"}, "prepare takes a policy, not str: `load_policy` makes one"),
        (
            {"negatives": pairs()},
            "negatives: the rows have no column `response`; read them with `load_negativ",
        ),
        (
            {"preferences": answers(BAD)},
            "preferences: the rows have no column `chosen`; .* `load_preferences`",
        ),
        ({"preferences": pairs(), "objective": "nll"}, "preferences: the rows have no .*`load_retain`"),
        (
            {"negatives": Dataset.from_list([{"prompt": "a", "response": "b"}])},
            "negatives: the rows have text as `prompt`, not messages; read them with `load_negatives`",
        ),
        ({"retain": {"text": ["a"]}}, "mapping of columns; give `datasets.Dataset.from_dict"),
    ],
    ids=["policy", "negatives", "preferences", "nll", "raw", "columns"],
)
def test_arguments_of_another_kind_are_refused(changed, message):
    given = {"negatives": answers(BAD), "preferences": pairs(), **changed}
    with pytest.raises(UserError, match=message):
        prepare(given.pop("policy", None) or tiny_policy("qwen"), **given)
