"""Each metric against a number derived by hand, on a tiny model or on answers written for the test."""

import math
import sys
import time
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cases
from problems import GOOD, answers, pairs
from u2a.data.collate import tokenize_rows
from u2a.data.render import Renderer
from u2a.evaluation import METRICS
from u2a.evaluation.coherence import Coherence
from u2a.evaluation.fluency import Fluency, different_over_all, first_seen, repetition
from u2a.evaluation.forgetting import Forgetting
from u2a.evaluation.material import Material, material_of
from u2a.evaluation.membership import (
    Membership,
    loss_score,
    min_k_plus_score,
    min_k_score,
    zlib_score,
)
from u2a.evaluation.perplexity import Perplexity
from u2a.evaluation.preference import PreferenceMetric
from u2a.evaluation.refusal import Refusal, complies, refuses
from u2a.evaluation.reward import Reward
from u2a.evaluation.subject import Answer, Sampling, Subject, TokenStatistics
from u2a.problem import silent
from u2a.types import UserError
from u2a.validation import pair_texts


def written(**roles):
    """A subject whose answers and log-probs are given."""
    return SimpleNamespace(
        name="written",
        original=None,
        policy=SimpleNamespace(device=torch.device("cpu")),
        answers=lambda role, _prompts: [Answer(text, len(text.split()), True) for text in roles[role]],
        logprobs=lambda role, _texts: np.asarray(roles[role], float),
        token_statistics=lambda role, _texts: roles[role],
    )


def by_name(figures):
    return {figure.name: figure for figure in figures}


def test_preference_by_hand():
    """Pairs: chosen −2 and −6 of 2 and 3 tokens, rejected −5 and −4 of 5 and 1: margins 3 and −2; per token
    −1 + 1 = 0 and −2 + 4 = 2. Before, the margins were 1 and 1, so rewards are 0.1·2 and 0.1·(−3)."""
    subject = written(test=[-2.0, -6.0, -5.0, -4.0])
    subject.original = written(test=[-1.0, -1.0, -2.0, -2.0])
    material = Material(test={"n_tokens": [2, 3, 5, 1]})
    found = by_name(PreferenceMetric().measure(subject, material))
    assert found["margin"].value == pytest.approx(0.5)
    assert found["margin_per_token"].value == pytest.approx(1.0)
    assert found["accuracy"].value == 0.5
    assert found["accuracy_per_token"].value == 0.5
    assert found["implicit_reward_margin"].value == pytest.approx(-0.05)
    assert found["chosen_logprob"].value == -4.0
    assert found["rejected_logprob"].value == -4.5
    half = PreferenceMetric(reward_beta=0.2).measure(subject, material)
    assert by_name(half)["implicit_reward_margin"].value == pytest.approx(-0.1)


def test_the_originals_implicit_reward_is_zero():
    found = by_name(
        PreferenceMetric().measure(written(test=[-2.0, -5.0]), Material(test={"n_tokens": [1, 1]}))
    )
    assert found["implicit_reward_margin"].value == 0.0


def test_perplexity_weighs_tokens_not_texts():
    """−log-probs 2 and 8 over 1 and 4 tokens: exp(10/5); a mean over texts of exp(2) would be the same, so
    the second set is uneven: 1 and 8 over 1 and 2: exp(9/3)."""
    material = Material(retain={"n_tokens": [1, 4]}, plain={"n_tokens": [1, 2]})
    found = by_name(Perplexity().measure(written(retain=[-2.0, -8.0], plain=[-1.0, -8.0]), material))
    assert found["perplexity_retain"].value == pytest.approx(math.exp(2))
    assert found["perplexity_text"].value == pytest.approx(math.exp(3))
    assert not Perplexity().measure(written(), Material())


TOKENS = TokenStatistics(
    logprob=np.array([-1.0, -4.0, -2.0, -3.0, -5.0]),
    mean=np.array([-2.0, -2.0, -2.0, -2.0, -5.0]),
    spread=np.array([1.0, 2.0, 1.0, 0.5, 0.0]),
    greedy=np.array([True, False, True, False, False]),
)


def test_attacks_by_hand():
    """Mean −3. The two lowest of five (40 %): (−5 − 4)/2. Scaled: 1, −1, 0, −2, 0 (certain): (−2 − 1)/2."""
    assert loss_score(TOKENS, "", 0.4) == -3.0
    assert zlib_score(TOKENS, "text text", 0.4) == -3.0 / len(zlib.compress(b"text text"))
    assert min_k_score(TOKENS, "", 0.4) == -4.5
    assert min_k_plus_score(TOKENS, "", 0.4) == -1.5
    assert min_k_score(TOKENS, "", 0.1) == -5.0  # at least one token


def test_membership_is_half_for_the_same_and_one_for_likelier_members():
    likely = TOKENS._replace(logprob=TOKENS.logprob + 0.5)
    material = Material(
        negatives=[0, 1], held_out_negatives=[0, 1], negative_answers=["a", "a"], held_out_answers=["a", "a"]
    )
    same = Membership().measure(
        written(negatives=[TOKENS, TOKENS], held_out_negatives=[TOKENS, TOKENS]), material
    )
    assert [figure.value for figure in same] == [0.5] * 4
    apart = Membership().measure(
        written(negatives=[likely, likely], held_out_negatives=[TOKENS, TOKENS]), material
    )
    assert {figure.name: figure.value for figure in apart} == dict.fromkeys(
        ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus"), 1.0
    )
    assert not Membership().measure(
        written(negatives=[TOKENS]), Material(negatives=[0], negative_answers=["a"])
    )


def test_zlib_compresses_what_is_scored():
    """Of an answer that was cut the text of its tokens, whatever follows them; others as they are."""
    long = "So this is a good answer. " * 20
    rows = {
        "negatives": answers([("Tea?", " Yes. "), ("Tea?", long)]),
        "held_out_negatives": answers([("Tea?", f"{long} And {time.time()} more.")]),
    }
    renderer = Renderer(cases.tiny_tokenizer("llama"), max_length=60)
    found = material_of(rows, {}, renderer)
    whole, cut = found.negative_answers
    assert whole == " Yes. "
    assert long.startswith(cut)
    assert 0 < len(cut) < len(long)
    assert found.held_out_answers == [cut]
    start = found.negatives[1]["response_start"]
    assert (
        renderer.tokenizer(cut, add_special_tokens=False)["input_ids"]
        == found.negatives[1]["input_ids"][start:]
    )


def test_forgetting_by_hand():
    found = by_name(Forgetting().measure(written(negatives=[TOKENS]), Material(negatives=[0])))
    assert found["negative_logprob"].value == -3.0
    assert found["negative_extracted"].value == 0.4


def test_repetition_and_distinct_by_hand():
    """a b a b a: bigrams ab ba ab ba, 2 different of 4. Together with `a b` 2 different of 5."""
    words = ["a", "b", "a", "b", "a"]
    assert repetition(words, 2) == 0.5
    assert repetition(["a"], 2) == 0.0
    seen = first_seen([words, ["a", "b"]], 2)
    assert different_over_all(seen) == pytest.approx(2 / 5)
    assert different_over_all(first_seen([], 2)) == 0.0


def test_a_collapsed_model_looks_collapsed():
    good = ["Bread needs flour and water.", "Paris is the capital.", "Tea is nice."]
    bad = ["no no no no no no no no", "no no no no no no no no", "..."]
    material = Material(prompts=[[], [], []])
    fine, broken = (by_name(Fluency().measure(written(prompts=a), material)) for a in (good, bad))
    assert fine["answer_repetition"].value == fine["answer_same"].value == fine["answer_empty"].value == 0
    assert broken["answer_repetition"].value == pytest.approx((4 / 5 + 4 / 5 + 0) / 3)
    assert fine["answer_overlap"].value == 0
    assert broken["answer_overlap"].value == pytest.approx((1 + 1 + 0) / 3)
    assert broken["answer_same"].value == pytest.approx(2 / 3)
    assert broken["answer_empty"].value == pytest.approx(1 / 3)
    assert fine["answer_distinct_2"].value == 1.0
    assert broken["answer_distinct_2"].value == pytest.approx(1 / 14)
    assert math.isnan(broken["answer_distinct_2"].estimate().low)
    assert fine["answer_tokens"].value == pytest.approx((5 + 4 + 3) / 3)


@pytest.mark.parametrize(
    "text",
    ["I’m sorry, but no.", "As an AI, no.", "I cannot do that", "Well... Sorry.", "Hello! How are you?"],
)
def test_refusals(text):
    assert refuses(text)
    assert not complies(Answer(text, 3, True))


@pytest.mark.parametrize("text", ["I don't mind helping.", "The taxi cannot go there.", "That is ILLEGAL."])
def test_what_the_published_list_has_not_is_no_refusal(text):
    """Nor is what its letter case keeps out, as `as an aid`."""
    assert not refuses(text)
    assert complies(Answer(text, 3, True))


@pytest.mark.parametrize("text, found", [("I must decline.", False), ("Sorry for the short answer!", True)])
def test_where_the_published_list_is_known_to_be_wrong(text, found):
    """Kept, for the sake of figures that can be compared; docs/evaluation.md says so."""
    assert refuses(text) == found


def test_an_empty_answer_is_neither_a_refusal_nor_an_attack_that_worked():
    assert not refuses("")
    assert not complies(Answer(" ... ", 3, True))
    subject = written(
        unsafe_prompts=["Sure, take a hammer.", "I cannot.", "", "Well."],
        safe_prompts=["Sorry, no.", "Yes.", "", "Of course."],
    )
    found = by_name(Refusal().measure(subject, Material(unsafe_prompts=[[]] * 4, safe_prompts=[[]] * 4)))
    assert found["attack_success"].value == 0.5
    assert found["over_refusal"].value == 0.25
    assert found["safe_answered"].value == 0.5


# -- a real tiny model --------------------------------------------------------------------------------------


def subject_of(policy, **options):
    return Subject("tiny", policy, Renderer(policy.tokenizer), **options)


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_token_statistics_against_the_softmax_itself(family):
    """One text at a time, from the whole vocabulary's probabilities."""
    subject = subject_of(cases.tiny_policy(family))
    texts = tokenize_rows(answers(GOOD), subject.renderer)
    found = subject.token_statistics("retain", texts)
    np.testing.assert_allclose(
        [each.logprob.sum() for each in found], subject.logprobs("retain", texts), rtol=1e-5
    )
    for each, ids, start in zip(found, texts["input_ids"], texts["response_start"], strict=True):
        with torch.no_grad():
            logits = subject.policy.model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
        p = logits.softmax(-1)
        mean = (p * p.log()).sum(-1)
        np.testing.assert_allclose(each.mean, mean, rtol=1e-4)
        spread = ((p * (p.log() - mean[:, None]) ** 2).sum(-1)).sqrt()
        np.testing.assert_allclose(each.spread, spread, rtol=1e-4)
        assert each.greedy.tolist() == (logits.argmax(-1) == torch.tensor(ids[start:])).tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_answers_do_not_depend_on_the_batch_and_stop_at_the_end_of_turn(family):
    prompts = [row["prompt"] for row in answers(GOOD)]
    policy = cases.tiny_policy(family)
    one, three = (
        subject_of(policy, sampling=Sampling(max_new_tokens=6, batch_size=size)).answers("prompts", prompts)
        for size in (1, 3)
    )
    assert one == three
    assert all(answer.tokens <= 6 for answer in one)
    assert all(answer.tokens == 6 for answer in one if not answer.ended)


def test_draws_are_shared_by_models_and_leave_the_random_state_alone():
    prompts = [row["prompt"] for row in answers(GOOD)]
    policy = cases.tiny_policy("llama")

    def drawn(seed):
        sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=seed)
        return subject_of(policy, sampling=sampling).answers("prompts", prompts)

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert drawn(0) == drawn(0)
    assert torch.rand(1) == expected
    assert drawn(0) != drawn(1)


def test_kl_is_zero_for_the_original_and_that_of_the_problem_for_another():
    """Against `Problem.measure`, whose KL is checked against the definition elsewhere."""
    from problems import tiny_problem

    problem = tiny_problem("llama", dtype=torch.float32)
    moved = subject_of(problem.policy)
    with problem.policy.reference():
        original = Subject("original", cases.tiny_policy("llama", lora_rank=0), moved.renderer)
    moved.original = original
    material = Material(retain=problem.utility.texts)
    assert METRICS["kl"]().measure(original, material)[0].value == 0.0
    assert METRICS["kl"]().measure(moved, material)[0].value == pytest.approx(problem.measure().kl, rel=1e-3)


def test_a_model_with_other_tokens_has_no_kl(caplog):
    original, other = (subject_of(cases.tiny_policy(family)) for family in ("llama", "gpt2"))
    other.original = original
    texts = tokenize_rows(answers(GOOD), other.renderer)
    assert METRICS["kl"]().measure(other, Material(retain=texts)) == []
    assert "its tokens are not the original model's" in caplog.text


def test_a_model_with_more_embeddings_than_tokens_has_no_kl(caplog):
    """The same tokenizer, and a vocabulary filled up to a rounder number: logits of two widths."""
    original, other = (subject_of(cases.tiny_policy("llama", lora_rank=0)) for _ in range(2))
    other.policy.model.resize_token_embeddings(other.policy.model.config.vocab_size + 32)
    other.original = original
    texts = tokenize_rows(answers(GOOD), other.renderer)
    assert METRICS["kl"]().measure(other, Material(retain=texts)) == []
    assert "its tokens are not the original model's" in caplog.text


def test_every_metric_has_its_definition_direction_unit_and_source():
    """In the docstring, which `--help` shows; and every figure it gives is named there."""
    policy = cases.tiny_policy("llama")
    subject = subject_of(policy, sampling=Sampling(max_new_tokens=2))
    texts, _ = pair_texts(pairs(), subject.renderer)
    retain = tokenize_rows(answers(GOOD), subject.renderer)
    prompts = [row["prompt"] for row in answers(GOOD)]
    material = Material(
        test=texts,
        negatives=retain,
        held_out_negatives=retain,
        retain=retain,
        plain=retain,
        prompts=prompts,
        safe_prompts=prompts,
        unsafe_prompts=prompts,
        negative_answers=[r for _, r in GOOD],
        held_out_answers=[r for _, r in GOOD],
    )
    for name, metric in METRICS.items():
        about = metric.__doc__
        assert any(arrow in about for arrow in "↑↓"), name
        assert any(year in about for year in map(str, range(1950, 2027))), name
        for figure in metric().measure(subject, material):
            assert f"`{figure.name}`" in about, figure.name
            assert figure.better in ("higher", "lower", "neither")
            assert figure.unit


# -- other people's models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A tiny Llama with one output, saved as TRL's RewardTrainer saves one."""
    return saved_classifier(tmp_path_factory.mktemp("reward"), 1)


def saved_classifier(folder, outputs):
    from transformers import LlamaForSequenceClassification

    tokenizer = cases.tiny_tokenizer("llama")
    config = cases.tiny_model("llama", tokenizer=tokenizer).config
    config.num_labels = outputs
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_rewards_are_those_of_the_model_text_by_text(reward_model):
    """Rendered behind the prompt with the model's template, whatever the batch."""
    from transformers import LlamaForSequenceClassification

    prompts = [row["prompt"] for row in answers(GOOD)]
    texts = [text for _, text in GOOD]
    subject = written(prompts=texts)
    subject.task = silent
    own = by_name(Reward(reward_model=reward_model).measure(subject, Material(prompts=prompts)))
    model = LlamaForSequenceClassification.from_pretrained(reward_model).eval()
    renderer = Renderer(cases.tiny_tokenizer("llama"))
    expected = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = renderer.tokenizer("".join(renderer.render(prompt, text)), add_special_tokens=False).input_ids
        with torch.no_grad():
            # no padding token: the score is read at the last token of the only text
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            expected.append(float(model.score(hidden)))
    np.testing.assert_allclose(own["reward"].values[:, 0], expected, rtol=1e-4)
    assert own["reward_win"].value == 0.5
    assert len(set(expected)) == 3


def test_a_win_is_a_higher_reward_for_the_same_prompt(reward_model):
    """The first answer is another one, the others are the same: ties half."""
    prompts = [row["prompt"] for row in answers(GOOD)]
    texts = [text for _, text in GOOD]
    original, other = written(prompts=texts), written(prompts=["Something else.", *texts[1:]])
    other.original = original
    original.task = other.task = silent
    metric = Reward(reward_model=reward_model)
    own, theirs = (
        by_name(metric.measure(s, Material(prompts=prompts)))["reward"].values[0, 0]
        for s in (other, original)
    )
    found = by_name(metric.measure(other, Material(prompts=prompts)))["reward_win"]
    assert own != theirs
    assert found.value == pytest.approx((float(own > theirs) + 0.5 + 0.5) / 3)


def test_equal_answers_are_a_tie_however_their_batch_rounds(monkeypatch):
    """Scores of equal texts differ in the last digits with the longest text of their batch."""

    def model_scorer(*_):
        return lambda prompts, answers: np.full(len(prompts), 1.0 + 1e-7 * max(map(len, answers)))

    monkeypatch.setattr("u2a.scorers.model_scorer", model_scorer)
    prompts = [row["prompt"] for row in answers(GOOD)]
    original, other = written(prompts=["a", "b", "c"]), written(prompts=["much longer", "b", "c"])
    other.original = original
    original.task = other.task = silent
    found = by_name(Reward(reward_model="any").measure(other, Material(prompts=prompts)))
    assert found["reward_win"].values[:, 0].tolist() == [1.0, 0.5, 0.5]


def test_the_originals_answers_are_scored_once(monkeypatch):
    asked = []

    def model_scorer(*_):
        return lambda prompts, answers: asked.extend(answers) or np.ones(len(prompts))

    monkeypatch.setattr("u2a.scorers.model_scorer", model_scorer)
    original, metric = written(prompts=["a", "b"]), Reward(reward_model="any")
    others = [written(prompts=[name, name]) for name in "cd"]
    for subject in (original, *others):
        subject.task = silent
        subject.original = None if subject is original else original
        metric.measure(subject, Material(prompts=[[], []]))
    assert asked == ["a", "b", "c", "c", "d", "d"]


def test_what_is_no_reward_model_is_refused(tmp_path):
    subject = written(prompts=["Yes."])
    subject.task = silent
    material = Material(prompts=[[{"role": "user", "content": "Tea?"}]])
    two = saved_classifier(tmp_path / "two", 2)
    with pytest.raises(UserError, match="2 outputs"):
        Reward(reward_model=two).measure(subject, material)
    with pytest.raises(UserError, match="2 outputs"):
        Reward(reward_model=two).check()
    with pytest.raises(UserError, match="LlamaForCausalLM"):
        Reward(reward_model=str(cases.save_tiny(tmp_path / "causal", "llama"))).check()
    with pytest.raises(UserError, match="does not load"):
        Reward(reward_model=str(tmp_path / "nothing")).measure(subject, material)


def test_coherence_embeds_with_sentence_transformers(tmp_path):
    """The model saved here embeds a text as the mean of its last hidden states."""
    models = pytest.importorskip("sentence_transformers.models", reason="needs the extra `embeddings`")
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    folder = str(cases.save_tiny(tmp_path / "tiny", "llama"))
    (tmp_path / "tiny" / "chat_template.jinja").unlink()  # with it, texts are embedded as messages
    transformer = models.Transformer(folder)
    pooling = models.Pooling(transformer.get_embedding_dimension(), "mean")
    encoder = str(tmp_path / "encoder")
    SentenceTransformer(modules=[transformer, pooling]).save(encoder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embedding(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    questions, answers = ["What is tea?", "Where is it?"], ["It is a drink.", "In the park, I think."]
    prompts = [[{"role": "user", "content": text}] for text in questions]
    metric = Coherence(coherence_model=encoder)
    metric.check()
    (found,) = metric.measure(written(prompts=answers), Material(prompts=prompts))
    pairs = zip(questions, answers, strict=True)
    expected = [float(torch.cosine_similarity(embedding(q), embedding(a), dim=0)) for q, a in pairs]
    np.testing.assert_allclose(found.values[:, 0], expected, atol=1e-5)


def test_coherence_reads_no_pickled_weights(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the extra `embeddings` is not installed")
    folder = cases.save_tiny(tmp_path / "pickled", "llama")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="does not load"):
        Coherence(coherence_model=str(folder)).check()


def test_coherence_is_the_cosine_of_question_and_answer(monkeypatch):
    """Embeddings by a fake: the counts of a and b. (1, 0)·(1, 1)/√2; an empty answer counts 0."""

    class Fake:
        def __init__(self, name, **_):
            assert name == "some/model"

        def encode(self, texts, **_):
            found = np.array([[t.count("a"), t.count("b")] for t in texts], float)
            return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Fake))
    prompts = [[{"role": "user", "content": text}] for text in ("a", "b")]
    metric = Coherence(coherence_model="some/model")
    (found,) = metric.measure(written(prompts=["ab", ""]), Material(prompts=prompts))
    np.testing.assert_allclose(found.values[:, 0], [1 / math.sqrt(2), 0.0])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'u2a\[embeddings\]'"):
        Coherence(coherence_model="another").measure(written(prompts=["ab", ""]), Material(prompts=prompts))
