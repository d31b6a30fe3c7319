"""The HTTP scorer against a server that fails in every way it can: scores by hand, consent, secrets."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest

from faulty_server import Scorer, serving
from u2a.evaluation import http_scorer
from u2a.evaluation.http_scorer import HttpScorer
from u2a.types import UserError

KEY = "sk_a_very_secret_key"


@pytest.fixture
def server():
    with serving(Scorer()) as running:
        yield running


@pytest.fixture
def scorer(server):
    return scoring(server)


def scoring(server, **options):
    how = {"consent": True, "timeout": 20.0, "attempts": 3, "backoff": 0.01, "longest_wait": 1.0, **options}
    return HttpScorer(server.url, **how)


def turns(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def rows(n):
    return turns(*(f"question {i}" for i in range(n))), ["x" * (i + 1) for i in range(n)]


# -- scores -------------------------------------------------------------------------------------------------


def test_scores_are_the_servers_in_order_and_it_sees_prompts_and_answers_in_full(server, scorer):
    """The server scores by length: 1, 2, …, 20, in requests of 16 and 4."""
    prompts, answers = rows(20)
    prompts[0] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "é\ud83d"}]
    seen = []
    found = scorer(prompts, answers, seen.append)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.arange(1, 21))
    assert [len(body["items"]) for body in server.bodies] == [16, 4]
    assert server.bodies[0]["items"][0] == {"prompt": prompts[0], "response": "x"}
    assert server.bodies[1]["items"][3] == {"prompt": prompts[19], "response": "x" * 20}
    assert list(server.bodies[0]) == ["items"]
    assert seen == [16, 4]


def test_equal_items_are_sent_once(server, scorer):
    """Another prompt or another answer is another item."""
    prompts = turns("a", "a", "b", "a")
    np.testing.assert_array_equal(scorer(prompts, ["x", "x", "x", "yy"]), [1, 1, 1, 2])
    np.testing.assert_array_equal(scorer(turns("a", "c"), ["x", "zzz"]), [1, 3])
    sent = [(item["prompt"][0]["content"], item["response"]) for b in server.bodies for item in b["items"]]
    assert sent == [("a", "x"), ("b", "x"), ("a", "yy"), ("c", "zzz")]


def test_nothing_is_asked_about_nothing(server):
    assert scoring(server, consent=False)([], []).shape == (0,)
    with pytest.raises(ValueError, match="shorter"):
        scoring(server)(turns("a"), [])
    assert server.asked == []


@pytest.mark.parametrize(
    "script, words",
    [
        (['{"scores":[1]}'], "gave 1 scores for 16 answers, to prompts 0 to 15"),
        (["answer", '{"scores":[1,2,3,4,5]}'], "gave 5 scores for 4 answers, to prompts 16 to 19"),
        (["answer", '{"scores":[1,NaN,3,4]}'], "answer to prompt 17 is no finite number"),
        (["answer", '{"scores":[1,2,3,-Infinity]}'], "answer to prompt 19 is no finite number"),
        (["answer", '{"scores":[null,2,3,4]}'], "answer to prompt 16 is no finite number"),
        (["answer", '{"scores":["1",2,3,4]}'], "answer to prompt 16 is no finite number"),
        (["answer", '{"scores":[true,2,3,4]}'], "answer to prompt 16 is no finite number"),
        (["answer", f'{{"scores":[1,2,1{"0" * 400},4]}}'], "answer to prompt 18 is no finite number"),
        (["[1]"], 'no JSON object with a list "scores"'),
        (['{"scores":1}'], 'no JSON object with a list "scores"'),
        (['{"score":[1]}'], 'no JSON object with a list "scores"'),
    ],
)
def test_what_is_no_score_is_an_error_with_the_prompts_place(server, scorer, script, words):
    """No retry mends it."""
    server.script["items"] = [what if what == "answer" else f"schema {what}" for what in script]
    with pytest.raises(UserError, match=re.escape(words)):
        scorer(*rows(20))
    assert len(server.asked) == len(script)


# -- what goes wrong ----------------------------------------------------------------------------------------

FAULTS = [
    "slow",
    "drip",
    "drip_headers",
    "broken",
    "page",
    "cut",
    "gone",
    "status 408",
    "status 429",
    "status 500",
    "status 503",
]
LATE = ("slow", "drip", "drip_headers")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_retried(server, fault):
    scorer = scoring(server, timeout=0.5 if fault in LATE else 20.0)
    server.script["items"] = [fault]
    np.testing.assert_array_equal(scorer(*rows(2)), [1, 2])
    assert len(server.asked) == 2
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize(
    "fault, words",
    [
        ("slow", "no answer within 0.3 s"),
        ("drip", "no answer within 0.3 s"),
        ("drip_headers", "no answer within 0.3 s"),
        ("broken", "the reply is no JSON"),
        ("gone", "no connection, or it was cut"),
        ("status 503", "HTTP 503"),
    ],
)
def test_a_lasting_fault_ends_it_after_so_many_attempts(server, fault, words):
    server.script["items"] = [fault] * 3
    with pytest.raises(UserError, match=rf"{words} \(3 attempts\)"):
        scoring(server, timeout=0.3 if fault in LATE else 20.0)(*rows(2))
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_no_retry_can_mend_is_not_retried(server, scorer, status):
    server.script["items"] = [f"status {status}"]
    with pytest.raises(UserError, match=rf"{server.url} gave no scores: HTTP {status}$"):
        scorer(*rows(2))
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(server, scorer, status):
    """Neither with the text nor, as urllib would for a 302, without it."""
    with serving(Scorer()) as other:
        server.script["items"] = [f"elsewhere {other.server_port} {status}"]
        with pytest.raises(UserError, match=f"HTTP {status}: a redirection, which is not followed"):
            scorer(*rows(2))
        assert other.asked == []
    assert len(server.asked) == 1


def test_waits_double_up_to_the_longest(server, monkeypatch):
    """1, 2, 4 s, then 5 s, the longest, instead of 8."""
    waits = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=time.monotonic)
    monkeypatch.setattr(http_scorer, "time", clock)
    server.script["items"] = ["status 500"] * 4
    scorer = HttpScorer(server.url, consent=True, longest_wait=5.0)
    np.testing.assert_array_equal(scorer(*rows(1)), [1])
    assert waits == [1, 2, 4, 5]


def test_retry_after_is_waited_for_unless_it_is_too_long(server, monkeypatch):
    waits = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=time.monotonic)
    monkeypatch.setattr(http_scorer, "time", clock)
    scorer = HttpScorer(server.url, consent=True)
    server.script["items"] = ["status 429 7"]
    scorer(*rows(1))
    assert waits == [7]
    server.script["items"] = ["status 503 61"]
    with pytest.raises(UserError, match=r"HTTP 503$"):
        scorer(*rows(2))
    assert waits == [7]


def test_a_reply_without_end_is_cut_off(server, scorer, monkeypatch):
    """As many bytes are allowed as two scores need; sixteen need more."""
    monkeypatch.setattr(http_scorer, "LARGEST_REPLY", len('{"scores": [1, 2]}'))
    np.testing.assert_array_equal(scorer(*rows(2)), [1, 2])
    with pytest.raises(UserError, match=r"the reply is longer than 18 bytes$"):
        scorer(*rows(18))
    assert len(server.asked) == 2


def test_a_reply_of_gigabytes_is_cut_off(server, scorer):
    server.script["items"] = ["endless 200"]
    with pytest.raises(UserError, match="the reply is longer than 1,048,576 bytes"):
        scorer(*rows(1))
    assert server.written < 100_000_000


def test_no_proxy_stands_between(scorer, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    np.testing.assert_array_equal(scorer(*rows(1)), [1])


# -- consent and secrets ------------------------------------------------------------------------------------


def test_nothing_is_sent_without_consent(server):
    scorer = scoring(server, consent=False)
    scorer.check()
    with pytest.raises(UserError, match="--send-to-scorer allows it") as caught:
        scorer(*rows(17))
    assert scorer.describe(17) in str(caught.value)
    assert server.asked == []


def test_what_would_be_sent_where(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    said = scoring(server, key_variable="MY_KEY").describe(1000)
    assert said == (
        f"scorer: {server.url} (this machine)\n"
        "to send: at most 1,000 prompts with an answer each, in full, in 63 requests\n"
        "key: the one in $MY_KEY"
    )
    far = HttpScorer("http://scorer.example/score").describe(16)
    assert "(another machine, UNENCRYPTED)" in far
    assert "in 1 requests" in far
    assert far.endswith("key: none")


def test_the_check_sends_nobodys_text(server, scorer):
    scorer.check()
    assert server.bodies == [{"items": [{"prompt": turns("Hello.")[0], "response": "Hello."}]}]
    server.script["items"] = ["status 404"]
    with pytest.raises(UserError, match="HTTP 404"):
        scoring(server).check()


def test_the_key_is_sent_and_shown_nowhere(server, monkeypatch, caplog):
    """The server's error repeats it."""
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    scorer = scoring(server, key_variable="MY_KEY")
    server.script["items"] = ["status 400"]
    with pytest.raises(UserError) as caught:
        scorer(*rows(1))
    scoring(server)(*rows(1))
    assert server.keys == {f"Bearer {KEY}", None}
    assert KEY not in f"{caught.value} {caplog.text} {scorer!r} {vars(scorer)}"


def test_a_key_that_is_missing_or_none_is_found_before_anything_is_sent(server, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    scorer = scoring(server, key_variable="MY_KEY")
    with pytest.raises(UserError, match="MY_KEY is not set: it holds the scorer's key"):
        scorer.check()
    monkeypatch.setenv("MY_KEY", "sk-two\nlines")
    for call in (scorer.check, lambda: scorer(*rows(1))):
        with pytest.raises(UserError, match="MY_KEY holds no key") as caught:
            call()
        assert "sk-" not in str(caught.value)
    assert server.asked == []


def test_what_is_no_address_is_refused():
    with pytest.raises(UserError, match="the scorer's URL is none"):
        HttpScorer("scorer.example")
    with pytest.raises(UserError, match="belongs in the environment"):
        HttpScorer("https://scorer.example/score?key=secret")
