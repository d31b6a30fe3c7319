"""Conversations that a file holds as text, and a prompt beside whole conversations."""

import csv
import io
import json
import logging

import pytest

from u2a import load_negatives, load_preferences, load_retain
from u2a.data import written_messages
from u2a.data.formats import negatives_of, preferences_of, prompts_of
from u2a.data.load import load_prompts
from u2a.types import UserError


def turns(*texts):
    """user, assistant, user, …"""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


SYSTEM = {"role": "system", "content": "Be brief."}
PROMPT = turns("Q1", "A1", "Q2")
PAIR = {"chosen": turns("Q1", "A1", "Q2", "good"), "rejected": turns("Q1", "A1", "Q2", "bad")}
FOUND = [{"prompt": PROMPT, "chosen": "good", "rejected": "bad"}]


@pytest.mark.parametrize("prompt", [None, "", "Q1", "Q2", PROMPT, turns("Q1"), turns("Q1", "A1")])
def test_a_prompt_may_be_any_end_of_the_conversation(prompt):
    values = PAIR if prompt is None else {**PAIR, "prompt": prompt}
    assert preferences_of(values, "row 1") == FOUND


def test_a_first_turn_behind_a_system_turn_is_the_prompt():
    values = {"prompt": "Q1", **{key: [SYSTEM, *conversation] for key, conversation in PAIR.items()}}
    assert preferences_of(values, "row 1") == [{**FOUND[0], "prompt": [SYSTEM, *PROMPT]}]


@pytest.mark.parametrize("conversation", [turns("Q9", "A1", "Q2", "bad"), [SYSTEM, *turns("Q9", "bad")]])
def test_two_conversations_are_refused(conversation):
    with pytest.raises(UserError, match="`prompt` and the turns before the answer in `rejected` are two"):
        negatives_of({"prompt": "Q1", "rejected": conversation}, "row 1")


def test_a_prompt_that_ends_where_the_turns_go_on_is_their_beginning():
    values = {"prompt": turns("Q0", "A0"), "rejected": turns("Q1", "bad")}
    assert negatives_of(values, "row 1")[0]["prompt"] == turns("Q0", "A0", "Q1")


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_lists_of_messages_written_as_text(written):
    assert preferences_of({key: written(value) for key, value in PAIR.items()}, "row 1") == FOUND
    assert prompts_of({"prompt": written(PROMPT)}, "row 1") == [{"prompt": PROMPT}]
    sharegpt = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": 'it\'s "so"'}]
    found = negatives_of({"conversations": written(sharegpt)}, "row 1")
    assert (found[0]["prompt"], found[0]["response"]) == (turns("Q"), 'it\'s "so"')


def test_a_csv_that_pandas_wrote(tmp_path):
    """`to_csv` writes lists as Python does."""
    file, text = tmp_path / "pairs.csv", io.StringIO()
    writer = csv.writer(text)
    writer.writerows([["prompt", "chosen", "rejected"], *[[str(PROMPT), str(turns("x", "good")[1:]), "bad"]]])
    file.write_text(text.getvalue())
    found = load_preferences(str(file))[0]
    assert (found["prompt"], found["chosen"], found["rejected"]) == (PROMPT, "good", "bad")


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'assistant', 'content': 'cut off he",
        "[{'content': 'a', 'role': 'user'}\n {'content': 'b', 'role': 'assistant'}]",  # a printed numpy array
        '[{"role": "user", "content": ' + "[" * 100_000,
    ],
)
def test_what_cannot_be_read_as_messages_is_refused_by_column(text):
    with pytest.raises(UserError, match="line 7: `rejected` is text that begins like a list of messages"):
        negatives_of({"prompt": "Q", "rejected": text}, "line 7")


@pytest.mark.parametrize("text", ["[1, 2]", "[{'a': 1}]", "Human: no transcript", "{'role': 'user'}", "[{}]"])
def test_other_texts_stay_what_they_are(text):
    assert negatives_of({"prompt": text, "completion": text}, "row 1") == [
        {"prompt": turns(text), "response": text, "weight": 1.0}
    ]


TRANSCRIPT = "\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\n\nwith two lines\n\nAssistant:"


@pytest.mark.parametrize(
    "values",
    [
        {"chosen": f"{TRANSCRIPT} good", "rejected": f"{TRANSCRIPT} bad"},  # as Anthropic published it
        {"prompt": TRANSCRIPT, "chosen": f"{TRANSCRIPT} good", "rejected": f"{TRANSCRIPT} bad"},
    ],
)
def test_transcripts_of_hh_rlhf_are_conversations(values):
    (found,) = preferences_of(values, "row 1")
    assert found["prompt"] == turns("Q1", "A1", "Q2\n\nwith two lines")
    assert (found["chosen"].strip(), found["rejected"].strip()) == ("good", "bad")


def test_a_transcript_that_is_only_a_prompt_stays_raw_and_is_told(caplog):
    """For `--template none`: there its markers mean what they say."""
    written_messages._say_raw.cache_clear()
    with caplog.at_level(logging.WARNING, "u2a"):
        for _ in range(2):
            (found,) = preferences_of({"prompt": TRANSCRIPT, "chosen": " a", "rejected": " b"}, "row 1")
            assert found == {"prompt": turns(TRANSCRIPT), "chosen": " a", "rejected": " b"}
    assert len(caplog.records) == 1
    assert "right for --template none" in caplog.text


def test_beaver_tails_labels_count():
    """`is_safe` without it: every safe answer was a negative, and every unsafe one good."""
    rows = [{"prompt": "Q", "response": text, "is_safe": text == "good"} for text in ("good", "bad")]
    assert load_negatives(rows)["response"][:] == ["bad"]
    assert load_retain(rows)["response"][:] == ["good"]


@pytest.mark.parametrize(
    "column, told",
    [
        ({"is_harmful": True}, True),
        ({"thumbs": "false"}, True),
        ({"verified": True}, False),
        ({"safe": 3}, True),
        ({"rating": 5}, True),
        ({"vote": "-1"}, True),
        ({"feedback": "up"}, True),
        ({"feedback": "please shorten it"}, False),
        ({"score": None}, False),
        ({"tokens": 3}, False),
        ({"feedback_id": 7}, False),
        ({"thumbs_down_at": 1700000000}, False),
        ({"score_chosen": 3.5}, False),
        ({"score": float("nan")}, False),
        ({"user_feedback": "thumbs_down"}, True),
        ({"thumbsUp": True}, True),
        ({"upvotes": 3}, True),
    ],
)
@pytest.mark.parametrize("load", [load_negatives, load_retain])
def test_a_column_that_looks_like_a_label_and_is_not_read_is_told(caplog, load, column, told):
    rows = [{"prompt": "Q", "completion": text, **column} for text in ("a", "b")]
    with caplog.at_level(logging.WARNING, "u2a"):
        load(rows)
    (name,) = column
    assert (f"row 1: `{name}` is not read" in caplog.text) is told
    assert len(caplog.records) == told


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_vote_after_rows_without_one_is_told_once(tmp_path, caplog, kind):
    """The first row has none yet: it said nothing, and the answers that people liked were unlearned."""
    votes = [None, "up", "down", None, "up"]
    lines = {
        "jsonl": [json.dumps({"prompt": "Q", "completion": "a", "thumbs": vote}) for vote in votes],
        "csv": ["prompt,completion,thumbs", *(f"Q,a,{vote or ''}" for vote in votes)],
    }[kind]
    for name in ("one", "two"):
        (tmp_path / f"{name}.{kind}").write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING, "u2a"):
        load_negatives(str(tmp_path))
    assert caplog.text.count("`thumbs` is not read") == len(caplog.records) == 2  # once for each file
    assert ("row 2" if kind == "csv" else "line 2") in caplog.text


def test_unread_labels_are_told_once_though_ids_make_the_rows_read_twice(caplog):
    rows = [{"id": name, "prompt": "Q", "completion": "a", "thumbs": "up", "vote": 1} for name in "aa"]
    with caplog.at_level(logging.WARNING, "u2a"):
        load_negatives(rows)
    assert [record.getMessage().split(", and")[0] for record in caplog.records] == [
        "the rows given, row 1: `thumbs`, `vote` are not read"
    ]


def test_scores_of_both_answers_of_a_pair_are_no_label(caplog):
    with caplog.at_level(logging.WARNING, "u2a"):
        load_negatives([{"prompt": "Q", "chosen": "a", "rejected": "b", "score_rejected": 3.5}])
    assert not caplog.records


def test_labels_that_are_read_are_not_told(caplog):
    with caplog.at_level(logging.WARNING, "u2a"):
        load_negatives(
            [{"prompt": "Q", "completion": "a", "label": False, "is_safe": False, "harmful": True}]
        )
        load_preferences([{"prompt": "Q", "chosen": "a", "rejected": "b", "harmful": True}])
    assert not caplog.records


def test_texts_beside_rows_in_a_folder_are_no_rows(tmp_path, caplog):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Q", "completion": "bad"}\n')
    (tmp_path / "LICENSE.txt").write_text("MIT License\n")
    (tmp_path / "more.jsonl.gz").write_bytes(b"")
    (tmp_path / "README.md").write_text("About.\n")
    with caplog.at_level(logging.WARNING, "u2a"):
        assert load_negatives(str(tmp_path))["response"][:] == ["bad"]
    assert "left out of the folder: LICENSE.txt, more.jsonl.gz" in caplog.text
    assert "README.md" not in caplog.text
    (tmp_path / "rows.jsonl").unlink()
    assert load_prompts(str(tmp_path))["prompt"][:] == [turns("MIT License")]
