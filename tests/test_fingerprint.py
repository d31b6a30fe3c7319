"""What kept work belongs to: other rows, another objective or other pairs to train on make it another's."""

from dataclasses import replace

from problems import tiny_problem
from u2a.fingerprint import described, fingerprint


def with_start(texts, start):
    """The same tokens, with the first response beginning there."""
    starts = texts["response_start"][:]
    return texts.remove_columns("response_start").add_column("response_start", [start, *starts[1:]])


def test_it_is_that_of_the_texts_the_objective_and_its_options():
    tiny = tiny_problem(joint_share=0.5)
    joint = replace(tiny.joint, texts=tiny.joint.texts.select([1, 0, *range(2, len(tiny.joint.texts))]))
    others = [
        replace(tiny, objective=replace(tiny.objective, beta=1.0)),
        replace(tiny, negative_texts=with_start(tiny.negative_texts, 1)),
        replace(tiny, negative_texts=tiny.negative_texts.select([1, 0, *range(2, len(tiny.negatives))])),
        replace(tiny, retain_texts=tiny.utility.texts),
        replace(tiny, joint=joint),
        replace(tiny, joint=None),
    ]
    assert len({fingerprint(each) for each in (tiny, *others)}) == 1 + len(others)
    assert fingerprint(tiny) == fingerprint(tiny_problem(joint_share=0.5))


def test_an_objective_is_described_by_its_class_and_what_was_chosen_of_it():
    class Own:
        beta = 3

    assert described(tiny_problem().objective) == "Preference 0.1"
    assert described(Own()) == "Own"
