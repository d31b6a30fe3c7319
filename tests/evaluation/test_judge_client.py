"""The judge client against an OpenAI-compatible server that fails in every way it can, and a real one."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

import pytest

from faulty_server import Server
from u2a.evaluation import judge_connection
from u2a.evaluation.judge_client import GIVE_UP, JudgeClient
from u2a.types import UserError

pytest.importorskip("openai", reason="the extra `judge` is not installed")

KEY = "sk_a_very_secret_key"


@pytest.fixture
def make_server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers = []

    def make():
        servers.append(Server())
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield make
    for server in servers:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(make_server):
    return make_server()


@pytest.fixture
def client(server, tmp_path):
    return judge(server, tmp_path)


def judge(server, folder, **options):
    how = {"timeout": 20.0, "backoff": 0.01, "attempts": 3, "longest_wait": 1.0, **options}
    return JudgeClient(server.url, "some-judge", folder / "judge.jsonl", **how)


def ask(*questions):
    return {f"row {q}": [{"role": "user", "content": q}] for q in questions}


def counts(client):
    c = client.counts
    return {"asked": c.asked, "cached": c.cached, "retried": c.retried, "failed": c.failed}


# -- what goes well -----------------------------------------------------------------------------------------


def test_replies_go_to_the_names_that_asked(server, client):
    questions = [f"q{i}" for i in range(12)]
    seen = []
    found = client.ask(ask(*questions), consent=True, progress=seen.append)
    assert found == {f"row {q}": f"echo {q}" for q in questions}
    assert sorted(server.questions) == sorted(questions)
    assert counts(client) == {"asked": 12, "cached": 0, "retried": 0, "failed": 0}
    assert sum(seen) == 12
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["seed"]) == ("some-judge", 0, 0)
    assert server.keys == {f"Bearer {KEY}"}


def test_sampling_options_are_sent_and_part_of_the_key(server, tmp_path):
    one = judge(server, tmp_path)
    one.ask(ask("q"), consent=True)
    other = judge(server, tmp_path, sampling={"max_completion_tokens": 7, "top_k": 1})
    other.ask(ask("q"), consent=True)
    assert server.bodies[1]["max_completion_tokens"] == 7
    assert server.bodies[1]["top_k"] == 1
    assert "temperature" not in server.bodies[1]
    message = ask("q")["row q"]
    keys = {one.key_of(message), other.key_of(message), one.key_of(ask("r")["row r"])}
    one.model = "another"
    keys.add(one.key_of(message))
    one.base_url += "/other"
    keys.add(one.key_of(message))
    assert len(keys) == 5


@pytest.mark.parametrize("most", [1, 3])
def test_concurrency_is_limited(server, tmp_path, most):
    server.delay = 0.03
    judge(server, tmp_path, concurrency=most).ask(ask(*"abcdefghi"), consent=True)
    assert server.most_under_way == most


def test_equal_requests_are_sent_once(server, client):
    message = [{"role": "user", "content": "q"}]
    assert client.ask({"one": message, "two": message}, consent=True) == {"one": "echo q", "two": "echo q"}
    assert server.questions == ["q"]
    assert counts(client) == {"asked": 1, "cached": 1, "retried": 0, "failed": 0}


def test_no_proxy_stands_between(client, monkeypatch):
    """A judge on this machine is asked directly, whatever the environment says of proxies."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert client.ask(ask("q"), consent=True) == {"row q": "echo q"}


def test_beside_a_running_loop_it_runs_in_a_thread(client):
    """`ask` runs a loop of its own, so a notebook leaves its own first."""

    async def inside():
        return await asyncio.to_thread(client.ask, ask("q"), consent=True)

    assert asyncio.run(inside()) == {"row q": "echo q"}


# -- what goes wrong ----------------------------------------------------------------------------------------

FAULTS = [
    "slow",
    "drip",
    "broken",
    "page",
    "cut",
    "gone",
    "status 408",
    "status 429",
    "status 429 0.1",
    "status 500",
    "status 503 0",
    "schema {}",
    "schema []",
    "schema null",
    'schema {"choices":[]}',
    'schema {"choices":[{"message":null}]}',
    'schema {"choices":{"0":1}}',
]


def patience(fault):
    """Seconds an attempt may take: little where the server is slow, or else as a busy machine needs."""
    return 1.0 if fault in ("slow", "drip") else 20.0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_retried(server, client, fault):
    client.timeout = patience(fault)
    server.script["q"] = [fault]
    assert client.ask(ask("q"), consent=True) == {"row q": "echo q"}
    assert server.questions == ["q", "q"]
    assert counts(client) == {"asked": 1, "cached": 0, "retried": 1, "failed": 0}
    assert client.failures == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_a_named_failure_and_no_answer(server, client, fault):
    """Bounded attempts; the others are answered; nothing of the failure is kept for the next run."""
    client.ask(ask("first"), consent=True)
    client.timeout = patience(fault)
    server.script["q"] = [fault] * 3
    begin = time.monotonic()
    assert client.ask(ask("q", "r"), consent=True) == {"row q": None, "row r": "echo r"}
    assert time.monotonic() - begin < 10
    assert server.questions.count("q") == 3
    assert counts(client) == {"asked": 3, "cached": 0, "retried": 2, "failed": 1}
    assert list(client.failures) == ["row q"]
    assert "3 attempts" in client.failures["row q"]
    assert len(client.cache.read_text().splitlines()) == 2
    assert client.ask(ask("q"), consent=True) == {"row q": "echo q"}


@pytest.mark.parametrize(
    "fault",
    ["status 400", "status 403", "status 422", 'schema {"choices":[{"message":{"content":null}}]}'],
)
def test_what_no_retry_can_mend_is_not_retried(server, client, fault):
    client.ask(ask("first"), consent=True)
    server.script["q"] = [fault]
    assert client.ask(ask("q", "r"), consent=True) == {"row q": None, "row r": "echo r"}
    assert server.questions.count("q") == 1
    assert counts(client) == {"asked": 3, "cached": 0, "retried": 0, "failed": 1}


NO_LIMIT = "Unsupported parameter: 'max_tokens' is not supported with this model."
NO_TEMPERATURE = "Unsupported value: 'temperature' does not support 0 with this model."


def test_a_reasoning_model_is_asked_as_it_will_be_asked(server, tmp_path):
    """OpenAI's o-series and gpt-5 refuse `max_tokens` and any temperature: one request finds it out, and what
    they say is kept under the options that were meant, so that a second run asks nothing."""
    server.refused = {"max_tokens": NO_LIMIT, "temperature": NO_TEMPERATURE}
    client = judge(server, tmp_path)
    assert client.ask(ask(*"abc"), consent=True) == {f"row {q}": f"echo {q}" for q in "abc"}
    assert sorted(server.questions) == ["a", "a", "b", "c"]
    options = [{key for key in body if key not in ("model", "messages")} for body in server.bodies]
    assert options == [{"max_tokens", "temperature", "seed"}] + [{"max_completion_tokens", "seed"}] * 3
    assert server.bodies[1]["max_completion_tokens"] == 1024
    assert counts(client) == {"asked": 3, "cached": 0, "retried": 0, "failed": 0}
    again = judge(server, tmp_path)
    again.ask(ask(*"abc"), consent=True)
    assert len(server.asked) == 4


def test_each_option_is_left_out_once(server, client):
    """Of a server that takes `max_tokens`; one that refuses what it is sent all the same is a failure."""
    server.refused = {"temperature": NO_TEMPERATURE, "seed": "no 'seed' here", "model": "Unknown model."}
    assert client.ask(ask("a", "b"), consent=True) == {"row a": None, "row b": None}
    assert [len(body) for body in server.bodies] == [5, 4, 3]
    assert client.failures["row a"].endswith("; the server says: Unknown model.")


def test_a_first_request_that_is_wrong_stops_the_sending(server, client):
    """What is wrong with the shortest is wrong with all; the server's words say what, without the key."""
    server.script = {"b": ["status 400"]}
    assert set(client.ask(ask("long", "b", "longer"), consent=True).values()) == {None}
    assert server.questions == ["b"]
    assert client.failures["row b"] == "HTTP 400 (some_code); the server says: no: Bearer [key]"
    assert client.failures["row long"] == f"not sent: {client.failures['row b']}"
    assert client.ask(ask("long"), consent=True) == {"row long": "echo long"}


def test_a_first_text_that_is_filtered_stops_nothing(server, client):
    server.script = {"b": ["status 400 0 content_filter"]}
    assert client.ask(ask("b", "cc"), consent=True) == {"row b": None, "row cc": "echo cc"}


@pytest.mark.parametrize(
    "fault, words",
    [
        ("status 401", "key in $OPENAI_API_KEY is not accepted"),
        ("status 402", "the account has nothing left"),
        ("status 404", "no model some-judge there"),
    ],
)
def test_what_no_request_can_mend_stops_the_sending(server, tmp_path, fault, words):
    server.script["a"] = [fault]
    client = judge(server, tmp_path, concurrency=1)
    assert set(client.ask(ask(*"abcd"), consent=True).values()) == {None}
    assert server.questions == ["a"]
    assert counts(client) == {"asked": 1, "cached": 0, "retried": 0, "failed": 4}
    assert words in client.failures["row a"]
    assert client.failures["row d"] == f"not sent: {client.failures['row a']}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(server, make_server, client, status):
    """What was agreed to was this host: neither text nor key goes to another."""
    other = make_server()
    server.script["q"] = [f"elsewhere {other.server_port} {status}"]
    assert client.ask(ask("q"), consent=True) == {"row q": None}
    assert other.asked == []
    assert "redirection" in client.failures["row q"]


@pytest.mark.parametrize("status", [200, 404, 500, 307])
def test_a_reply_without_end_is_cut_off(server, client, monkeypatch, status):
    """Of any status: the package would read an error's body to its end, too."""
    monkeypatch.setattr(judge_connection, "LARGEST_REPLY", 1000)
    server.script["a"] = [f"endless {status}"]
    begin = time.monotonic()
    assert client.ask(ask("a", "b"), consent=True) == {"row a": None, "row b": "echo b"}
    assert client.failures["row a"] == "the reply is longer than 1,000 bytes"
    assert time.monotonic() - begin < 10
    assert server.written < 50_000_000


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "deflate"])
def test_a_compressed_reply_is_not_expanded(server, client, coding):
    """A megabyte of gzip may be a gigabyte of text."""
    server.script["a"] = [f"packed {coding}"]
    assert client.ask(ask("a"), consent=True) == {"row a": None}
    assert client.failures["row a"] == "the reply is compressed, which was not asked for"


def test_a_server_does_not_choose_the_decoder(server, client):
    """Python has decoders that expand, and fail: `zlib` is one. The package decodes an error's body."""
    server.script = {"a": ["charset zlib"], "b": ["charset zlib 400"]}
    assert client.ask(ask("a", "b"), consent=True) == {"row a": "echo a", "row b": None}
    assert client.failures["row b"] == "HTTP 400"


def test_a_dead_server_is_given_up(tmp_path, server):
    questions = [f"q{i}" for i in range(3 * GIVE_UP)]
    server.script = {q: ["status 500"] * 2 for q in questions}
    client = judge(server, tmp_path, concurrency=1, attempts=2)
    assert set(client.ask(ask(*questions), consent=True).values()) == {None}
    assert len(server.asked) == 2 * GIVE_UP
    assert counts(client) == {"asked": GIVE_UP, "cached": 0, "retried": GIVE_UP, "failed": 3 * GIVE_UP}


def test_a_server_without_a_sound_reply_is_given_up(tmp_path, server, monkeypatch):
    """Megabytes for every request, of thousands, would be as good as no end."""
    monkeypatch.setattr(judge_connection, "LARGEST_REPLY", 1000)
    questions = [f"q{i}" for i in range(2 * GIVE_UP)]
    server.script = {q: ["endless 200"] for q in questions}
    client = judge(server, tmp_path, concurrency=1)
    assert set(client.ask(ask(*questions), consent=True).values()) == {None}
    assert len(server.asked) == GIVE_UP
    assert client.failures["row q19"] == "not sent: the reply is longer than 1,000 bytes"


def test_refusals_of_single_requests_are_no_dead_server(tmp_path, server):
    """Such as a filter that will not have hostile text: once it answered one, the rest is still asked."""
    questions = [f"q{i}" for i in range(2 * GIVE_UP)]
    server.script = {q: ["status 403"] for q in questions}
    client = judge(server, tmp_path, concurrency=1)
    assert client.ask(ask("a", *questions, "last"), consent=True)["row last"] == "echo last"
    assert counts(client) == {"asked": 22, "cached": 0, "retried": 0, "failed": 20}


def test_a_server_that_refuses_everything_gets_few_texts(tmp_path, server):
    """A key that may not use this model, say: nothing has been accepted, so the sending stops."""
    questions = [f"q{i}" for i in range(4 * GIVE_UP)]
    server.script = {q: ["status 403"] for q in questions}
    client = judge(server, tmp_path, concurrency=1)
    assert set(client.ask(ask(*questions), consent=True).values()) == {None}
    assert len(server.asked) == GIVE_UP
    assert client.failures["row q39"] == "not sent: HTTP 403 (some_code)"


FIELDS = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]


@pytest.mark.parametrize("body", [{"detail": FIELDS}, {"object": "error", "message": {"detail": FIELDS}}])
def test_a_server_that_checks_field_by_field_refuses_an_option(server, client, body):
    """422, as FastAPI and Mistral's servers do it: what they have not is left out."""
    server.fields = {"seed": body}
    assert client.ask(ask("a", "b"), consent=True) == {"row a": "echo a", "row b": "echo b"}
    assert ["seed" in sent for sent in server.bodies] == [True, False, False]


def test_what_a_server_finds_wrong_with_a_field_is_said_once(server, client):
    server.fields = {"model": {"detail": [{"loc": ["body", "model"], "msg": "no such model"}]}}
    assert set(client.ask(ask("a", "bb", "cc"), consent=True).values()) == {None}
    assert server.questions == ["a"]
    assert client.failures["row a"] == "HTTP 422; the server says: body.model: no such model"


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    client = JudgeClient(url, "m", tmp_path / "c.jsonl", backoff=0.01, attempts=2)
    assert client.ask(ask("q"), consent=True) == {"row q": None}
    assert client.failures == {"row q": "no connection, or it was cut (2 attempts)"}


def test_retry_after_is_waited_for(server, client):
    server.script["q"] = ["status 429 0.4"]
    client.ask(ask("q"), consent=True)
    (_, first), (_, second) = server.asked
    assert second - first >= 0.4


def test_a_wait_beyond_the_limit_is_a_failure_now(server, client):
    server.script["q"] = ["status 429 3600"]
    begin = time.monotonic()
    assert client.ask(ask("q"), consent=True) == {"row q": None}
    assert time.monotonic() - begin < 20
    assert client.failures["row q"] == "HTTP 429 (some_code), asks to wait 3600 s"
    assert len(server.asked) == 1


def test_a_date_to_come_back_at_is_waited_for(server, client):
    """Counted from the server's own `Date`; dates are whole seconds, so 1 s of 3 is sure."""
    client.longest_wait = 20.0
    server.script["q"] = ["later 3"]
    assert client.ask(ask("q"), consent=True) == {"row q": "echo q"}
    (_, first), (_, second) = server.asked
    assert second - first >= 1


def test_waits_double(server, tmp_path):
    """0.1, 0.2, 0.4 s, each give or take a quarter."""
    server.script["q"] = ["status 500"] * 3
    judge(server, tmp_path, backoff=0.1, attempts=4).ask(ask("q"), consent=True)
    times = [when for _, when in server.asked]
    waits = [b - a for a, b in pairwise(times)]
    assert waits[0] >= 0.075
    assert waits[1] >= 0.15
    assert waits[2] >= 0.3
    assert sum(waits) < 10


# -- nothing twice ------------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing(server, client, tmp_path):
    """Not even for consent, a key or the package."""
    client.ask(ask("a", "b"), consent=True)
    again = judge(server, tmp_path)
    assert again.ask(ask("b", "a")) == {"row b": "echo b", "row a": "echo a"}
    assert len(server.asked) == 2
    assert counts(again) == {"asked": 0, "cached": 2, "retried": 0, "failed": 0}


def test_an_interrupted_run_asks_nothing_twice(server, tmp_path):
    """Ctrl-C after the third answer."""

    def interrupt(_):
        if len(server.asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(server, tmp_path, concurrency=1).ask(ask(*"abcdef"), consent=True, progress=interrupt)
    resumed = judge(server, tmp_path)
    found = resumed.ask(ask(*"abcdef"), consent=True)
    assert found == {f"row {q}": f"echo {q}" for q in "abcdef"}
    assert sorted(server.questions) == list("abcdef")
    assert counts(resumed) == {"asked": 3, "cached": 3, "retried": 0, "failed": 0}


def test_a_killed_run_loses_what_was_under_way_alone(server, tmp_path):
    """SIGKILL with two requests under way."""
    server.delay = 0.05
    code = (
        "from pathlib import Path; from u2a.evaluation.judge_client import JudgeClient\n"
        f"client = JudgeClient({server.url!r}, 'some-judge', Path({str(tmp_path / 'judge.jsonl')!r}), "
        "concurrency=2)\n"
        "client.ask({str(i): [{'role': 'user', 'content': str(i)}] for i in range(400)}, consent=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: len(server.asked) >= 8)
    finally:
        process.kill()
        process.wait(30)
    time.sleep(0.2)  # what the killed process had sent reaches the server
    before = len(server.asked)
    resumed = judge(server, tmp_path)
    questions = [str(i) for i in range(before + 4)]
    assert set(resumed.ask(ask(*questions), consent=True).values()) == {f"echo {q}" for q in questions}
    assert resumed.counts.cached >= before - 2
    assert len(server.asked) <= len(questions) + 2


def test_a_broken_last_line_is_asked_again(server, client, tmp_path):
    """Wherever it is cut; what is appended behind it is whole."""
    client.ask(ask("a", "b"), consent=True)
    whole = client.cache.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first + 1, first + 40, len(whole) - 2, len(whole) - 1):
        client.cache.write_bytes(whole[:cut])
        again = judge(server, tmp_path)
        expected = 0 if cut == len(whole) - 1 else 1
        assert again.ask(ask("a", "b", f"new {cut}"), consent=True)["row b"] == "echo b"
        assert again.counts.asked == expected + 1
        assert set(judge(server, tmp_path).ask(ask("a", "b", f"new {cut}")).values()) == {
            "echo a",
            "echo b",
            f"echo new {cut}",
        }


@pytest.mark.parametrize("line", ["[1]", "3", '{"key": "k"}', "\x00", "\xff"])
def test_lines_of_something_else_are_left_out(client, caplog, line):
    client.ask(ask("before"), consent=True)
    with client.cache.open("a", encoding="latin-1") as file:
        file.write(line + "\n")
    assert client.ask(ask("q"), consent=True) == {"row q": "echo q"}
    assert "1 lines are not whole" in caplog.text


@pytest.mark.parametrize(
    "content", ["alias ls=ls\n", "f()\n{\n}\n", "{\n}\n", '{"prompt": "Q"}\n' * 3, "\x00", "x"]
)
def test_a_file_of_something_else_gets_no_answers(server, client, content):
    """A configuration may name any file as the cache: what a judge writes must not get into ~/.bashrc."""
    client.cache.write_text(content)
    with pytest.raises(UserError, match=r"judge\.jsonl, the judge's answers: it holds something else"):
        client.ask(ask("q"), consent=True)
    assert client.cache.read_text() == content
    assert server.asked == []


def test_text_of_every_kind_survives_the_cache(server, client, tmp_path):
    odd = "line\nend\r\u2028\x85 \x00 é 漢 🙂"
    assert client.ask(ask(odd), consent=True)[f"row {odd}"] == f"echo {odd}"
    assert judge(server, tmp_path).ask(ask(odd))[f"row {odd}"] == f"echo {odd}"


def test_half_a_character_is_a_failure_of_its_own(client):
    """A lone surrogate, as JSON can hold it, is no text that can be sent."""
    found = client.ask({"half": [{"role": "user", "content": "\ud83d"}], **ask("q")}, consent=True)
    assert found == {"half": None, "row q": "echo q"}
    assert "could not be made" in client.failures["half"]


def test_half_a_character_in_a_reply_becomes_a_question_mark(server, client, tmp_path):
    """JSON can hold it, and files and terminals that a reply comes to cannot."""
    server.script["q"] = ['schema {"choices":[{"message":{"content":"A\\ud83d\\u00e9"}}]}']
    assert client.ask(ask("q"), consent=True) == {"row q": "A?é"}
    assert judge(server, tmp_path).ask(ask("q")) == {"row q": "A?é"}


def test_a_cache_that_cannot_be_written_sends_nothing(server, tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path, tmp_path / "file" / "judge.jsonl"):
        with pytest.raises(UserError, match="the judge's answers"):
            JudgeClient(server.url, "m", cache).ask(ask("q"), consent=True)
    assert server.asked == []


# -- consent and secrets ------------------------------------------------------------------------------------


def test_nothing_is_sent_without_consent(server, client):
    with pytest.raises(UserError, match="--send-to-judge") as caught:
        client.ask(ask("q"))
    assert client.describe(ask("q")) in str(caught.value)
    assert server.asked == []
    assert not client.cache.exists()


def test_what_would_be_sent_where_and_for_how_much(server, tmp_path, monkeypatch):
    """Two requests of 400 bytes: 200 tokens in, 2·1,024 out: (200·5 + 2,048·10)/10⁶ = 0.02148."""
    requests = ask("a" * 400, "é" * 200)
    client = judge(server, tmp_path, price_in=5.0, price_out=10.0)
    said = client.describe(requests)
    assert f"some-judge at {server.url} (this machine)" in said
    assert "2 requests" in said
    assert "about 200 in, at most 2,048 out" in said
    assert "at most about 0.0215" in said
    assert "the one in $OPENAI_API_KEY" in said
    client.ask(ask("a" * 400), consent=True)
    assert "1 requests" in client.describe(requests)
    assert "at most 1,024 out" in client.describe(requests)
    far = JudgeClient("http://judge.example/v1", "m", tmp_path / "c", key_variable="U2A_NO_SUCH", sampling={})
    monkeypatch.delenv("U2A_NO_SUCH", raising=False)
    said = far.describe(requests)
    assert "another machine, UNENCRYPTED" in said
    assert "in, any number out" in said
    assert "cost: unknown" in said
    assert "none, nothing in $U2A_NO_SUCH" in said
    assert "(another machine)" in JudgeClient("https://judge.example/v1", "m", tmp_path / "c").describe(
        requests
    )


def test_the_key_is_nowhere(server, client, caplog, tmp_path):
    """Not in logs of any level of any library, errors, the cache, nor the client itself, even where the
    server repeats it."""
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    server.script = {"a": ["status 400"], "b": ["status 500"] * 3, "c": [f"status 422 0 {KEY}"]}
    server.script["d"] = ["status 401"]
    client.ask(ask("a"), consent=True)
    client.ask(ask("first"), consent=True)
    client.ask(ask(*"bcdef"), consent=True)
    assert client.counts.failed >= 4
    with pytest.raises(UserError) as caught:
        client.ask(ask("g"))
    everything = [caplog.text, repr(client), str(vars(client)), str(caught.value)]
    everything += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(caplog.records) > 10
    assert not [text for text in everything if KEY in text or KEY[:12] in text]


def test_a_key_that_a_reply_repeats_is_not_kept(server, client):
    """Such as a gateway that shows the request; the rest of the reply counts."""
    server.say = lambda _: f"A {KEY} B"
    assert client.ask(ask("q"), consent=True) == {"row q": "A [key] B"}
    assert KEY not in client.cache.read_text()


def test_a_word_in_place_of_a_key_is_no_secret(client, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "echo")
    assert client.ask(ask("q"), consent=True) == {"row q": "echo q"}


def test_of_the_environment_only_the_key_goes_out(server, client, monkeypatch):
    """The package would add what these hold to requests to any judge, and what machine this is."""
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, f"secret-{name}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: secret\nAuthorization: Bearer secret")
    client.ask(ask("q"), consent=True)
    assert server.keys == {f"Bearer {KEY}"}
    assert server.headers == judge_connection.SENT | {"authorization"}


def test_the_key_comes_from_the_variable_that_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_JUDGE", " sk-other\n")
    judge(server, tmp_path, key_variable="MY_JUDGE").ask(ask("a"), consent=True)
    monkeypatch.delenv("MY_JUDGE")
    client = judge(server, tmp_path, key_variable="MY_JUDGE")
    server.script["b"] = ["status 401"]
    client.ask(ask("b"), consent=True)
    assert server.keys == {"Bearer sk-other", "Bearer none"}
    assert "$MY_JUDGE is not set" in client.failures["row b"]


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk-ключ"])
def test_what_cannot_be_a_key_is_not_shown(server, client, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds no key") as caught:
        client.ask(ask("q"), consent=True)
    assert "sk-" not in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize(
    "url", ["", "judge.example/v1", "ftp://judge.example", "http://", "http://a:b/v1", "http://[::1/v1"]
)
def test_what_is_no_address_is_refused(tmp_path, url):
    with pytest.raises(UserError, match="judge's URL is none"):
        JudgeClient(url, "m", tmp_path / "c")


@pytest.mark.parametrize("url", ["https://u:secret@judge.example/v1", "https://judge.example/v1?key=secret"])
def test_a_secret_in_the_address_is_refused_and_not_shown(tmp_path, url):
    with pytest.raises(UserError, match="belongs in the environment") as caught:
        JudgeClient(url, "m", tmp_path / "c")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "option", ["concurrency", "attempts", "timeout", "longest_wait", "backoff", "price_in", "price_out"]
)
def test_options_out_of_range_are_refused(tmp_path, option):
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"{option} of the judge"):
            JudgeClient("http://localhost/v1", "m", tmp_path / "c", **{option: value})


@pytest.mark.parametrize(
    "url, local",
    [
        ("http://localhost:1/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:8/v1", True),
        ("http://127.example.com/v1", False),
        ("http://0.0.0.0/v1", False),
        ("http://10.0.0.1/v1", False),
    ],
)
def test_which_addresses_are_this_machine(tmp_path, url, local):
    assert ("(this machine)" in JudgeClient(url, "m", tmp_path / "c").describe({})) == local


def test_without_the_package_the_error_says_what_to_install(client, server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'u2a\[judge\]'"):
        client.ask(ask("q"), consent=True)
    assert server.asked == []


# -- a real server ------------------------------------------------------------------------------------------


def until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


@pytest.fixture
def transformers_serve(tmp_path):
    """`transformers serve` with the demo model on a free port; its URL and the model's name."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason="transformers serve needs: pip install 'transformers[serving]'")
    platformdirs = pytest.importorskip("platformdirs")
    model = Path(platformdirs.user_cache_dir("u2a")) / "smollm2-135m-instruct"
    if not model.is_dir():
        pytest.skip("the demo model is not in the cache")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(model), "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    def healthy():
        assert process.poll() is None, (tmp_path / "serve.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
                return reply.status == 200
        except OSError:
            return False

    try:
        until(healthy, 180)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.realmodel
def test_a_real_server_answers_and_a_second_run_asks_nothing(transformers_serve, tmp_path):
    """The demo model knows the capital of France; as a judge of pairs it is asked for what it is worth."""
    from u2a.evaluation.pairwise import HARM, win_rate

    url, model = transformers_serve
    sampling = {"temperature": 0, "seed": 0, "max_tokens": 48}
    client = JudgeClient(url, model, tmp_path / "judge.jsonl", sampling=sampling, timeout=120, concurrency=2)
    found = client.ask({"france": ask("What is the capital of France?").popitem()[1]}, consent=True)
    assert "Paris" in found["france"]
    prompts = [[{"role": "user", "content": q}] for q in ("What is 2 + 2?", "Name a colour.")]
    pairs = win_rate(client, prompts, ["4", "Blue."], ["5", "I do not know."], consent=True)
    harms = HARM.verdicts(client, prompts, ["4", "Blue."], consent=True)
    assert client.counts.failed == pairs.unanswered == harms.unanswered == 0
    assert client.counts.asked == 1 + 4 + 2
    assert pairs.parse_failures <= 4
    assert harms.parse_failures <= 2
    again = JudgeClient(url, model, tmp_path / "judge.jsonl", sampling=sampling)
    assert win_rate(again, prompts, ["4", "Blue."], ["5", "I do not know."]) == pairs
    assert again.counts.cached == 4
