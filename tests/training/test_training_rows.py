"""Rows that a trainer is given are read as `load_negatives` and `load_retain` read them, to the token."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import tiny_policy, tiny_tokenizer
from u2a.data.collate import row_name, tokenize_rows
from u2a.data.load import load_negatives, load_retain
from u2a.data.render import Renderer
from u2a.losses import GradientAscent
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.training.rows import prepared_negatives, prepared_texts
from u2a.types import UserError

QWEN = Renderer(tiny_tokenizer("qwen"))


def turn(role, content):
    return {"role": role, "content": content}


ASKED = [turn("user", "2+2?")]
WHOLE = [turn("system", "Be brief."), *ASKED, turn("assistant", "Five.")]
FORMATS = {
    "standard": [{"prompt": "Hi", "completion": "Go away."}, {"prompt": "Tea?", "completion": "No."}],
    "response": [{"prompt": "Hi", "response": "Go away.", "weight": 2.0}],
    "no prompt": [{"prompt": "", "completion": "Bad text."}],
    "system": [{"system": "Be rude.", "prompt": "Hi", "completion": "Go away."}],
    "system and messages": [
        {"system": "Be rude.", "prompt": ASKED, "completion": [turn("assistant", "Five.")]}
    ],
    "conversational": [{"prompt": ASKED, "completion": [turn("assistant", "Five.")]}],
    "three turns": [
        {
            "prompt": ASKED,
            "completion": [
                turn("assistant", "Let me think."),
                turn("user", "go on"),
                turn("assistant", "Five."),
            ],
        }
    ],
    "KTO": [
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Hi", "completion": "Go away.", "label": False},
    ],
    "KTO in numbers": [
        {"prompt": "Hi", "completion": "Hello!", "label": 1},
        {"prompt": "Hi", "completion": "Go away.", "label": 0},
    ],
    "kto_tag": [
        {"prompt": "Hi", "completion": "Hello!", "kto_tag": True},
        {"prompt": "Hi", "completion": "Go away.", "kto_tag": False},
    ],
    "pairs": [{"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "No."}],
    "implicit prompt": [
        {
            "chosen": [*ASKED, turn("assistant", "Four.")],
            "rejected": [*ASKED, turn("assistant", "Five.")],
        }
    ],
    "messages": [{"messages": WHOLE}],
    "ShareGPT": [{"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "Five."}]}],
    "Alpaca": [{"instruction": "Add.", "input": "2+2", "output": "Five."}],
    "PKU": [
        {
            "prompt": "Hi",
            "response_0": "Go away.",
            "response_1": "Get lost.",
            "is_response_0_safe": False,
            "is_response_1_safe": False,
            "safer_response_id": 0,
        },
        {
            "prompt": "Tea?",
            "response_0": "Yes, please.",
            "response_1": "Yes.",
            "is_response_0_safe": True,
            "is_response_1_safe": True,
            "safer_response_id": 0,
        },
    ],
    "text": [{"text": "I hate you all."}],
}


def same_tokens(rows):
    """Both roles of these rows by both routes."""
    table = Dataset.from_list(rows)
    for load, prepare in (
        (load_negatives, lambda rows: prepared_negatives(rows, QWEN, "train_dataset").rows),
        (load_retain, lambda rows: prepared_texts(rows, QWEN, "retain_dataset")),
    ):
        try:
            loaded = load(rows)
        except UserError:  # there are none of that role
            with pytest.raises(UserError, match=r"_dataset"):
                prepare(table)
            continue
        expected = tokenize_rows(loaded, QWEN)
        for found in (prepare(table), prepare(loaded)):
            for column in ("input_ids", "response_start", "n_tokens"):
                assert found[column][:] == expected[column][:]


@pytest.mark.parametrize("rows", FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_same_tokens_by_both_routes(rows):
    same_tokens(rows)


TEXTS = st.text(alphabet="ab ?\n", min_size=1, max_size=6).filter(str.strip)
PROMPTS = {
    "text": st.just("") | TEXTS,
    "messages": st.lists(TEXTS, min_size=1, max_size=3).map(
        lambda texts: [turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    ),
}
ANSWERS = {
    "text": TEXTS,
    "messages": st.lists(TEXTS, min_size=1, max_size=3).map(
        lambda texts: [
            turn(("assistant", "user")[(len(texts) - i) % 2 == 0], text) for i, text in enumerate(texts)
        ]
    ),
}


@st.composite
def tables(draw):
    """Rows of one table: the same columns, of the same types, in each."""
    columns = {
        "prompt": PROMPTS[draw(st.sampled_from(list(PROMPTS)))],
        draw(st.sampled_from(["completion", "response"])): ANSWERS[draw(st.sampled_from(list(ANSWERS)))],
    }
    more = {
        "system": st.just("") | TEXTS,
        "label": draw(st.sampled_from([st.booleans(), st.integers(0, 1)])),
        "weight": st.floats(0.5, 2.0),
    }
    columns |= {name: more[name] for name in draw(st.sets(st.sampled_from(list(more))))}
    return draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=4))


@settings(max_examples=20)
@given(tables())
def test_any_rows_give_the_same_tokens_and_weights_by_both_routes(rows):
    try:
        weights = load_negatives(rows)["weight"][:]
    except UserError:
        return
    same_tokens(rows)
    found = prepared_negatives(Dataset.from_list(rows), QWEN, "train_dataset")
    assert found.weights.tolist() == weights


def trainer(tmp_path, rows, **options):
    policy = tiny_policy("qwen")
    return UnlearnTrainer(
        model=policy.model,
        args=U2AConfig(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        loss=GradientAscent(),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        **options,
    )


def test_a_trainer_goes_through_the_bad_answers_alone(tmp_path, caplog):
    rows = [
        {"prompt": "Hi", "completion": "Hello!", "label": 1, "weight": 3.0, "id": "good"},
        {"prompt": "Hi", "completion": "Go away.", "label": 0, "weight": 2.0, "id": "bad"},
    ]
    made = trainer(tmp_path, rows)
    assert made.weights.tolist() == [2.0]
    (row,) = made.train_dataset
    assert made.processing_class.decode(row["input_ids"]).endswith("Go away.<|im_end|>")
    assert row_name(made._negatives, 0) == "row 1 (id bad)"  # of what was given
    assert "train_dataset: 1 of 2 rows are left out by their label" in caplog.text


def test_the_reference_stays_with_its_row():
    rows = [
        {"prompt": "Hi", "completion": text, "label": text == "b", "ref_logprob": -float(i)}
        for i, text in enumerate("abc")
    ]
    found = prepared_negatives(Dataset.from_list(rows), QWEN, "train_dataset")
    assert found.reference.tolist() == [0.0, -2.0]
    two = Dataset.from_list(FORMATS["PKU"][:1]).add_column("ref_logprob", [-1.0])
    with pytest.raises(UserError, match="ref_logprob needs rows of one negative each"):
        prepared_negatives(two, QWEN, "train_dataset")


def test_a_format_of_the_data_set_does_not_matter():
    rows = Dataset.from_list(FORMATS["KTO in numbers"])
    plain, of_torch = (
        prepared_negatives(table, QWEN, "x").rows["input_ids"][:]
        for table in (rows, rows.with_format("torch"))
    )
    assert plain == of_torch


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "}], "train_dataset, row 2"),
        ([{"prompt": "a", "completion": "b", "label": 7}], "train_dataset, row 1: `label` must be true or"),
        ([{"question": "SECRET"}], "train_dataset, row 1: no columns for negatives; found `question`"),
        ([{"prompt": "a", "completion": "b", "label": True}], "train_dataset: there are no negatives among"),
        ([{"input_ids": [1, 2], "response_start": 1, "n_tokens": 1, "label": 1}], "holds rows whose label"),
    ],
    ids=["empty", "label", "column", "good", "tokens"],
)
def test_rows_that_are_none_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        trainer(tmp_path, rows)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "option, given, message",
    [
        (
            "train_dataset",
            [{"prompt": "a", "completion": "b"}],
            "it is list: `datasets.Dataset.from_list` makes",
        ),
        (
            "train_dataset",
            "bad.jsonl",
            "train_dataset must be a `datasets.Dataset`, it is str: `load_negatives`",
        ),
        ("retain_dataset", "good.jsonl", "retain_dataset must be .*: `load_retain` reads one from a path"),
        ("eval_dataset", [{"prompt": "a", "completion": "b"}], "eval_dataset must be a `datasets.Dataset`"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, option, given, message):
    """They ended in an AttributeError."""
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    policy = tiny_policy("qwen")
    args = U2AConfig(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    if option == "retain_dataset":
        args.retain_loss = "nll"
    with pytest.raises(UserError, match=message):
        UnlearnTrainer(
            model=policy.model,
            args=args,
            processing_class=policy.tokenizer,
            **{"train_dataset": rows, option: given},
        )
