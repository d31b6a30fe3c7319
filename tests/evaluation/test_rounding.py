"""Rounded weights by hand, and figures against a copy whose weights were rounded one by one."""

import numpy as np
import pytest
import torch
from torch import nn

import cases
from problems import BAD, GOOD, answers, pairs
from u2a.data.collate import tokenize_rows
from u2a.data.render import Renderer
from u2a.evaluation.forgetting import Forgetting
from u2a.evaluation.material import Material
from u2a.evaluation.perplexity import Perplexity
from u2a.evaluation.preference import PreferenceMetric
from u2a.evaluation.rounded_weights import linear_weights, round_to_nearest, rounded
from u2a.evaluation.rounding import Rounding
from u2a.evaluation.subject import Subject
from u2a.types import UserError
from u2a.validation import pair_texts


def subject_of(family, **options):
    policy = cases.tiny_policy(family, lora_rank=0)
    return Subject("tiny", policy, Renderer(policy.tokenizer), **options)


def material_of(subject):
    return Material(
        test=pair_texts(pairs(), subject.renderer)[0],
        negatives=tokenize_rows(answers(BAD), subject.renderer),
        retain=tokenize_rows(answers(GOOD), subject.renderer),
    )


def by_name(figures):
    return {figure.name: figure for figure in figures}


def state(model):
    """Every tensor with where it lies and what it holds."""
    return {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict(keep_vars=False).items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name][0] == other[name][0] and torch.equal(one[name][1], other[name][1]) for name in one
    )


# -- weights ------------------------------------------------------------------------------------------------


def test_two_by_two_by_hand():
    """8 bits: scales 1/127 and 0.5/127, so 0.3 is 38.1 of them and 0.2 is 50.8; 4 bits: 1/7 and 0.5/7, so
    2.1 and 2.8; the largest of each row stays."""
    weight = torch.tensor([[1.0, 0.3], [-0.5, 0.2]], dtype=torch.float64)
    eight = [[1.0, 38 / 127], [-0.5, 51 * 0.5 / 127]]
    four = [[1.0, 2 / 7], [-0.5, 3 * 0.5 / 7]]
    np.testing.assert_allclose(round_to_nearest(weight, 8, None), eight, rtol=1e-12)
    np.testing.assert_allclose(round_to_nearest(weight, 4, None), four, rtol=1e-12)


def test_a_group_has_a_scale_of_its_own_and_the_last_may_be_short():
    """Two weights a scale: (7, 1.4) has scale 1, (0.07, 0.024) has 0.01, and −0.3 alone stays. One scale for
    the whole row, 1, would leave 7 and 1 and nothing else."""
    weight = torch.tensor([[7.0, 1.4, 0.07, 0.024, -0.3]])
    np.testing.assert_allclose(round_to_nearest(weight, 4, 2), [[7.0, 1.0, 0.07, 0.02, -0.3]], rtol=1e-6)
    assert round_to_nearest(weight, 4, None).tolist() == [[7.0, 1.0, 0.0, 0.0, 0.0]]


def test_zeros_stay_zeros_and_the_format_stays():
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.3]], dtype=torch.bfloat16)
    found = round_to_nearest(weight, 8, None)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[0.0, 0.0], [1.0, torch.tensor(38 / 127).bfloat16().item()]]


def by_hand(weight, bits, group):
    """The definition, weight by weight: (out, in) float64 -> (out, in)."""
    found = weight.clone()
    most = 2 ** (bits - 1) - 1
    for row in found:
        for begin in range(0, len(row), group or len(row)):
            part = row[begin : begin + (group or len(row))]
            scale = max(abs(float(w)) for w in part) / most
            for place, w in enumerate(part.tolist()):
                part[place] = scale * round(w / scale)
    return found


def test_sixteen_bit_weights_are_rounded_in_full_precision():
    weight = torch.randn((8, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = by_hand(weight.double(), 8, None).bfloat16()
    assert torch.equal(round_to_nearest(weight, 8, None), expected)


LAYERS = {"llama": 14, "qwen": 14, "gemma": 14, "gpt2": 8, "mistral": 14}
"""Linear layers in two blocks: q, k, v, o, gate, up, down; GPT-2: qkv, out, up, down."""


@pytest.mark.parametrize("bits, group", [(8, None), (4, 64)])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_the_linear_layers_are_rounded_and_nothing_else(family, bits, group):
    """GPT-2 keeps its weights as (in, out): scales belong to columns; its layer of 128 inputs has two."""
    model = cases.tiny_model(family).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    held = state(model)
    with rounded(model, bits):
        changed = {n: p for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert len(changed) == len(linear_weights(model)) == LAYERS[family]
        assert not any("embed" in n or "wte" in n or "lm_head" in n for n in changed)
        for name, parameter in changed.items():
            weight = before[name].T if family == "gpt2" else before[name]
            expected = by_hand(weight, bits, group)
            expected = expected.T if family == "gpt2" else expected
            np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-12)
    assert same(state(model), held)


def test_what_is_tied_to_the_embeddings_is_left_and_what_is_shared_is_rounded_once():
    model = nn.Module()
    model.embeddings, model.tied, model.head = nn.Embedding(5, 3), nn.Linear(3, 5), nn.Linear(3, 5)
    model.one, model.other = nn.Linear(3, 2), nn.Linear(3, 2)
    model.tied.weight = model.embeddings.weight
    model.other.weight = model.one.weight
    model.get_output_embeddings = lambda: model.head
    model.get_input_embeddings = lambda: model.embeddings
    assert linear_weights(model) == {model.one.weight: False}
    held = state(model)
    with rounded(model, 4):
        assert model.other.weight is model.one.weight
        np.testing.assert_allclose(
            model.other.weight.detach(), by_hand(held["one.weight"][1].double(), 4, 64), rtol=1e-6
        )
    assert same(state(model), held)


def test_the_weights_come_back_when_something_fails():
    model = cases.tiny_model("llama")
    held = state(model)
    with pytest.raises(RuntimeError, match="boom"), rounded(model, 4):
        raise RuntimeError("boom")
    assert same(state(model), held)


# -- figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen", "gpt2"])
def test_figures_are_those_of_the_rounded_model(family):
    """Against the metrics without rounding, on a copy whose weights were rounded by hand; what the subject
    remembers is of its own weights."""
    subject = subject_of(family)
    material = material_of(subject)
    held = state(subject.policy.model)
    first = subject.logprobs("negatives", material.negatives)
    found = by_name(Rounding("8, 4").measure(subject, material))
    assert same(state(subject.policy.model), held)
    np.testing.assert_array_equal(first, subject.logprobs_now("again", material.negatives))
    expected = {}
    for bits, group in ((8, None), (4, 64)):
        other = subject_of(family)
        for weight, by_input in linear_weights(other.policy.model).items():
            matrix = weight.data.T if by_input else weight.data
            nearest = by_hand(matrix.double(), bits, group).float()
            weight.data = nearest.T if by_input else nearest
        plain = by_name(
            figure
            for metric in (Forgetting(), PreferenceMetric(), Perplexity())
            for figure in metric.measure(other, material)
        )
        for name in ("negative_logprob", "margin", "perplexity_retain"):
            expected[f"{name}_{bits}bit"] = plain[name]
    assert found.keys() == expected.keys()
    for name, figure in expected.items():
        np.testing.assert_allclose(found[name].values, figure.values, rtol=1e-4, atol=1e-4)
        assert found[name].value == pytest.approx(figure.value, rel=1e-4), name
        assert (found[name].better, found[name].unit) == (figure.better, figure.unit), name
    assert found["margin_4bit"].value != pytest.approx(found["margin_8bit"].value, rel=1e-3)


def test_only_what_has_texts_is_measured():
    subject = subject_of("llama")
    negatives = material_of(subject).negatives
    found = Rounding("8").measure(subject, Material(negatives=negatives))
    assert [figure.name for figure in found] == ["negative_logprob_8bit"]
    assert Rounding("8").measure(subject, Material()) == []
    assert Rounding().measure(subject, Material(negatives=negatives)) == []


@pytest.mark.parametrize("bits", ["16", "8,3", ",", "four"])
def test_other_bits_are_refused(bits):
    with pytest.raises(UserError, match=r"--round-bits .*: take some of 8, 4"):
        Rounding(bits).check()


def test_bits_are_read_in_order_and_once():
    assert Rounding("4, 8,4").widths == [4, 8]


def test_a_model_with_an_adapter_is_refused():
    policy = cases.tiny_policy("llama")
    subject = Subject("mine", policy, Renderer(policy.tokenizer))
    negatives = tokenize_rows(answers(BAD), subject.renderer)
    with pytest.raises(UserError, match="rounding changes weights, and mine has an adapter"):
        Rounding("8").measure(subject, Material(negatives=negatives))
