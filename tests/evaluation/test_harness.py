"""Local tasks of the LM Evaluation Harness against our own log-probs; figures of results by hand."""

import copy
import logging
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch

import cases
from cases import jsonl
from u2a.data.collate import token_rows
from u2a.data.render import Renderer
from u2a.evaluation.harness import Harness, task_figures
from u2a.evaluation.material import Material
from u2a.evaluation.subject import Sampling, Subject
from u2a.passes.dataset import dataset_logprobs
from u2a.types import UserError

CHOICES = ["tea", "the park", "a locksmith", "an hour of rest"]
DOCS = [
    {"question": "Who opens a locked door?", "choices": CHOICES, "label": 2},
    {"question": "How long must dough rest? It takes", "choices": CHOICES, "label": 3},
    {"question": "Where can we walk?", "choices": CHOICES, "label": 1},
    {"question": "What do some people like?", "choices": CHOICES[:2], "label": 0},
    {"question": "Is the weather nice?", "choices": ["yes", "no", "some people like coffee"], "label": 0},
    {"question": "What is the capital of France?", "choices": ["Paris", "flour and water"], "label": 1},
]


@pytest.fixture(scope="module")
def harness():
    """lm-eval without its 14,000 own tasks and its look at the machine, which take seconds each."""
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        from lm_eval.tasks import TaskManager

        patch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
        yield


@pytest.fixture(scope="module")
def tasks(harness, tmp_path_factory):
    """A folder with two local tasks, a group of both, one that runs code and one without data."""
    del harness
    folder = tmp_path_factory.mktemp("tasks")
    data = jsonl(folder / "docs.jsonl", DOCS)

    def task(name, lines):
        given = {"data_files": {"test": data}, "cache_dir": str(folder / "cache")}
        rows = [f"task: {name}", "dataset_path: json", f"dataset_kwargs: {given}", "test_split: test", *lines]
        (folder / f"{name}.yaml").write_text("\n".join(rows) + "\n")

    choice = [
        "output_type: multiple_choice",
        'doc_to_text: "{{question}}"',
        'doc_to_choice: "{{choices}}"',
        'doc_to_target: "{{label}}"',
        "metric_list:",
        "  - {metric: acc, aggregation: mean, higher_is_better: true}",
        "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}",
    ]
    task("kindness", choice)
    task("coded", [*choice, "unsafe_code: true"])
    rolling = ["output_type: loglikelihood_rolling", 'doc_to_text: ""', 'doc_to_target: "{{question}}"']
    task("words", [*rolling, "metric_list:", "  - {metric: word_perplexity}"])
    task("lost", ["output_type: multiple_choice", "dataset_name: nothing"])
    (folder / "both.yaml").write_text("group: both\ntask: [kindness, words]\n")
    return str(folder)


def subject_of(family):
    policy = cases.tiny_policy(family, lora_rank=0)
    return Subject("tiny", policy, Renderer(policy.tokenizer), Sampling(batch_size=3))


def by_name(figures):
    return {figure.name: figure for figure in figures}


def logprobs(subject, prompts, responses):
    rows = token_rows(range(len(prompts)), prompts, responses)
    return dataset_logprobs(subject.policy.model, rows, max_tokens=512, pad_token_id=0).double().numpy()


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_accuracy_is_that_of_our_own_log_probs(family, tasks):
    """A choice stands behind its question and a blank; `acc` takes the likeliest, `acc_norm` the likeliest a
    character."""
    subject = subject_of(family)
    held = {name: tensor.clone() for name, tensor in subject.policy.model.state_dict().items()}
    tokenizer = copy.deepcopy(subject.policy.tokenizer)
    expected, normalised = [], []
    for doc in DOCS:
        prompt = tokenizer.encode(doc["question"])
        whole = [tokenizer.encode(f"{doc['question']} {choice}") for choice in doc["choices"]]
        s = logprobs(subject, [prompt] * len(whole), [ids[len(prompt) :] for ids in whole])
        expected.append(float(s.argmax() == doc["label"]))
        lengths = np.array([len(choice) for choice in doc["choices"]])
        normalised.append(float((s / lengths).argmax() == doc["label"]))
    found = by_name(Harness("kindness", tasks).measure(subject, Material()))
    assert list(found) == ["harness_kindness_acc", "harness_kindness_acc_norm"]
    assert found["harness_kindness_acc"].values[:, 0].tolist() == expected
    assert found["harness_kindness_acc_norm"].values[:, 0].tolist() == normalised
    assert found["harness_kindness_acc"].value == pytest.approx(sum(expected) / 6)
    assert len({*expected, *normalised}) == 2  # right and wrong ones among them
    assert (found["harness_kindness_acc"].better, found["harness_kindness_acc"].unit) == ("higher", "share")
    for name, tensor in subject.policy.model.state_dict().items():
        assert torch.equal(tensor, held[name])


def test_a_group_gives_its_tasks_and_a_figure_that_is_no_mean_has_no_interval(tasks):
    """Word perplexity: exp of −Σ log-prob over Σ words, the text behind one token; here of the first four."""
    subject = subject_of("qwen")
    tokenizer = subject.policy.tokenizer
    questions = [doc["question"] for doc in DOCS[:4]]
    texts = [tokenizer.encode(question) for question in questions]
    s = logprobs(subject, [[tokenizer.eos_token_id]] * 4, texts)
    expected = math.exp(-s.sum() / sum(len(question.split()) for question in questions))
    found = by_name(Harness("both", tasks, 4).measure(subject, Material()))
    assert set(found) == {
        "harness_kindness_acc",
        "harness_kindness_acc_norm",
        "harness_words_word_perplexity",
    }
    assert len(found["harness_kindness_acc"].values) == 4
    words = found["harness_words_word_perplexity"]
    assert words.value == pytest.approx(expected, rel=1e-4)
    assert (words.better, words.unit, words.estimate().n) == ("lower", "the task's own", 4)
    assert math.isnan(words.estimate().low)


def test_a_second_model_gets_the_same_tasks_anew(tasks, monkeypatch, caplog):
    """In batches of the answers' size, and without the harness's advice for its own command line."""
    from lm_eval.models import huggingface

    made = []

    class Spy(huggingface.HFLM):
        def __init__(self, **options):
            made.append(options["batch_size"])
            super().__init__(**options)

    monkeypatch.setattr(huggingface, "HFLM", Spy)
    logging.getLogger("lm_eval").setLevel(logging.INFO)
    metric = Harness("kindness", tasks)
    first, other, again = (
        metric.measure(subject_of(family), Material())[0].values.tolist()
        for family in ("llama", "qwen", "llama")
    )
    assert first == again
    assert len(first) == len(other) == 6
    assert made == [3, 3, 3]
    assert not caplog.text
    assert logging.getLogger("lm_eval").level == logging.INFO


@pytest.mark.parametrize(
    "named, words",
    [
        ("kindnes", "--harness-tasks kindnes: lm-eval has no such task; did you mean kindness"),
        (
            "kindness,zzzqqq",
            "--harness-tasks zzzqqq: lm-eval has no such task; `lm-eval ls tasks` lists them",
        ),
        (",", "--harness-tasks ,: there is no task in that"),
        ("coded", "--harness-tasks coded: it runs code that models write, which u2a does not do"),
        ("lost", "--harness-tasks lost: "),
    ],
)
def test_bad_tasks_are_refused(tasks, named, words):
    with pytest.raises(UserError) as caught:
        Harness(named, tasks).check()
    assert str(caught.value).startswith(words)


def test_a_missing_folder_and_a_missing_package_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"--harness-tasks needs lm-eval: pip install 'u2a\[harness\]'"):
        Harness("arc_easy", str(tmp_path)).check()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", type(sys)("lm_eval.tasks"))
    sys.modules["lm_eval.tasks"].TaskManager = None
    with pytest.raises(UserError, match=r"--harness-include .*nothing: no such folder"):
        Harness("arc_easy", str(tmp_path / "nothing")).check()


def test_it_is_left_out_without_tasks():
    assert Harness().measure(subject_of("llama"), Material()) == []


def test_figures_of_results_by_hand():
    """Filters end the name, but for `none`; values go by the example's place; a mean that the task did not
    take is not taken for it; what some examples lack, and what is no number, has the task's figure alone."""
    samples = [
        {"doc_id": 1, "filter": "none", "exact_match": 1.0, "bleu": ("a", "b"), "f1": 0.5, "rare": 1.0},
        {"doc_id": 0, "filter": "none", "exact_match": 0.0, "bleu": ("c", "d"), "f1": 0.3},
        {"doc_id": 0, "filter": "strict", "exact_match": 1.0},
        {"doc_id": 1, "filter": "strict", "exact_match": 1.0},
    ]
    numbers = {
        "name": "t", "sample_len": 2, "exact_match,none": 0.5, "exact_match_stderr,none": "N/A",
        "exact_match,strict": 1.0, "bleu,none": 7.0, "f1,none": 0.9, "rare,none": 1.0,
    }  # fmt: skip
    ways = {"exact_match": True, "bleu": True, "f1": False}
    results = {"results": {"t": numbers}, "samples": {"t": samples}, "higher_is_better": {"t": ways}}
    found = by_name(task_figures("t", results))
    assert {name: (f.value, f.better, f.unit, f.resampled) for name, f in found.items()} == {
        "harness_t_exact_match": (0.5, "higher", "share", True),
        "harness_t_exact_match_strict": (1.0, "higher", "share", True),
        "harness_t_bleu": (7.0, "higher", "the task's own", False),
        "harness_t_f1": (0.9, "lower", "the task's own", False),
        "harness_t_rare": (1.0, "neither", "the task's own", False),
    }
    assert found["harness_t_exact_match"].values[:, 0].tolist() == [0.0, 1.0]
    assert len(found["harness_t_bleu"].values) == 2
