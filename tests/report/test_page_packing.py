"""What the page carries packed."""

from __future__ import annotations

import base64
import gzip
import json

import pytest

from run_folders import HOSTILE
from u2a.report.packing import packed, packed_json


def inflated(text: str) -> str:
    return gzip.decompress(base64.b64decode(text)).decode()


@pytest.mark.parametrize("text", ["", HOSTILE, "é👩\u200d👧" * 1000])
def test_it_comes_out_as_it_went_in_and_has_no_markup(text: str) -> None:
    assert inflated(packed(text)) == text
    assert not set(packed(text)) & set("<>&\"'")
    assert packed(text) == packed(text)


def test_lone_surrogates_are_no_fault() -> None:
    assert inflated(packed("a\ud800b")) == "a?b"


def test_what_json_does_not_know_becomes_null() -> None:
    given = {"x": [1.5, float("nan"), {"y": float("-inf")}], "z": "NaN"}
    assert json.loads(inflated(packed_json(given))) == {"x": [1.5, None, {"y": None}], "z": "NaN"}
