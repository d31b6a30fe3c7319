"""`evaluate`: the figures of the command, from Python."""

import pytest
import torch

from cases import save_tiny
from u2a import evaluate, load_negatives, load_policy, load_preferences, load_retain
from u2a.data.render import Renderer
from u2a.evaluation.preference import PreferenceMetric
from u2a.models import policy as models
from u2a.models.options import DTYPES
from u2a.passes.dataset import dataset_logprobs
from u2a.types import UserError
from u2a.validation import pair_texts

PAIRS = [{"prompt": f"Q {i}?", "chosen": f"Yes {i}, with care.", "rejected": "Go away."} for i in range(4)]
BAD = [{"prompt": f"Bad {i}?", "completion": f"No {i}."} for i in range(3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [str(save_tiny(folder / str(seed), "llama", seed=seed)) for seed in (0, 1)]


def test_figures_by_hand_and_changes_against_the_original(folders):
    test = load_preferences(PAIRS)
    found = evaluate(folders[0], {"b": folders[1]}, metrics=["preference"], test=test)
    margins = {}
    for name, folder in (("original", folders[0]), ("b", folders[1])):
        policy = load_policy(folder, lora_rank=0)
        texts, _ = pair_texts(test, Renderer(policy.tokenizer, max_length=512))
        s = dataset_logprobs(policy.model, texts, max_tokens=512, pad_token_id=0)
        margins[name] = float((s[:4] - s[4:]).mean())
        assert found.readings[name]["margin"].estimate.value == pytest.approx(margins[name], rel=1e-4)
    assert found.readings["original"]["margin"].change is None
    assert found.readings["b"]["margin"].change.value == pytest.approx(
        margins["b"] - margins["original"], rel=1e-4
    )


def test_answers_to_empty_prompts_without_a_bos_token(tmp_path):
    """Qwen's tokenizer has none: generation began from no token at all, and failed in torch's words."""
    pairs = load_preferences([{**pair, "prompt": ""} for pair in PAIRS])
    found = evaluate(save_tiny(tmp_path, "qwen"), {}, metrics=["preference", "fluency"], test=pairs)
    assert {"accuracy", "answer_repetition"} <= set(found.readings["original"])


def test_a_policy_is_measured_as_it_is(folders):
    policy = load_policy(folders[0], lora_rank=2)
    retain = load_retain(BAD)
    same = evaluate(folders[0], {"p": policy}, metrics=["kl"], retain=retain)
    assert same.readings["p"]["kl"].estimate.value == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    moved = evaluate(folders[0], {"p": policy}, metrics=["kl"], retain=retain)
    assert moved.readings["p"]["kl"].estimate.value > 1e-3


def test_all_metrics_that_have_data_and_why_the_others_are_left_out(folders):
    found = evaluate(folders[0], {}, negatives=load_negatives(BAD), retain=load_retain(BAD))
    assert {"negative_extracted", "perplexity_retain"} <= set(found.readings["original"])
    assert "--test" in found.left_out["preference"]
    assert "--judge-url" in found.left_out["judge"]
    assert list(found.readings) == ["original"]


def test_options_of_a_metric(folders):
    test = load_preferences(PAIRS)
    other = {"b": folders[1]}
    gains = [
        evaluate(folders[0], other, metrics=[PreferenceMetric(reward_beta=beta)], test=test)
        .readings["b"]["implicit_reward_margin"]
        .estimate.value
        for beta in (0.1, 0.2)
    ]
    assert gains[1] == pytest.approx(2 * gains[0])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"metrics": ["nothing"]}, "metrics: nothing: take some of"),
        ({"metrics": ["preference"]}, "preference: it needs --test"),
        ({}, "nothing to measure"),
        ({"models": {"original": "x"}}, "is the name of the original model"),
    ],
)
def test_what_cannot_be_measured_is_said_before_a_model_is_loaded(options, words):
    with pytest.raises(UserError, match=words):
        evaluate("no/such/model", **{"models": {}, **options})


def test_models_are_loaded_in_float32_or_as_asked(folders, monkeypatch):
    """Also where the device computes in bfloat16: what an adapter adds is rounded there."""
    monkeypatch.setattr(models, "dtype_of", lambda dtype, _: DTYPES.get(dtype, torch.float16))
    seen = []
    kept = models.load_source
    monkeypatch.setattr(
        models, "load_source", lambda *a, **options: (seen.append(options["dtype"]), kept(*a, **options))[1]
    )
    test = load_preferences(PAIRS)
    evaluate(folders[0], {}, metrics=["preference"], test=test)
    evaluate(folders[0], {}, metrics=["preference"], test=test, dtype="bfloat16", device="cpu")
    assert seen == [torch.float32, torch.bfloat16]
