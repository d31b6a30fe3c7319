"""Servers that text is sent to: when they ask to be asked again, and whose machine they are."""

import email.utils
import time

import pytest

from u2a.evaluation.endpoint import key_in, on_this_machine, retry_after, usable_key, whereabouts
from u2a.types import UserError


def test_retry_after_seconds_and_dates():
    assert retry_after({}) == 0
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "-7"}) == 0
    assert retry_after({"retry-after": "nan"}) == 0
    assert retry_after({"retry-after": "soon"}) == 0
    assert retry_after({"retry-after": "inf"}) == float("inf")
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 55 < retry_after({"retry-after": date}) <= 60


def test_whose_machine_in_words():
    assert whereabouts("http://localhost:1/v1", local=True) == "this machine"
    assert whereabouts("https://judge.example/v1", local=False) == "another machine"
    assert whereabouts("http://judge.example/v1", local=False) == "another machine, UNENCRYPTED"


def test_errors_name_the_server_by_its_job():
    with pytest.raises(UserError, match="the oracle's URL is none"):
        on_this_machine("http://", "oracle")
    with pytest.raises(UserError, match="the oracle's URL holds more than an address"):
        on_this_machine("http://a:b@localhost", "oracle")


def test_a_key_is_what_stands_in_the_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", " sk-some\n")
    assert key_in("MY_KEY") == usable_key("MY_KEY") == "sk-some"
    monkeypatch.delenv("MY_KEY")
    assert key_in("MY_KEY") == key_in("") == usable_key("") == ""
    monkeypatch.setenv("MY_KEY", "sk-zwei Zeilen\nlang")
    with pytest.raises(UserError, match="MY_KEY holds no key"):
        usable_key("MY_KEY")
