"""Sample answers of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from u2a.report.answers import SAMPLES, read_samples
from u2a.types import UserError


def line(model: str, prompt: int, text: str, role: str = "test") -> str:
    return json.dumps({"model": model, "prompts": role, "prompt": prompt, "text": text}) + "\n"


def test_the_first_prompts_of_each_role_with_every_model(tmp_path: Path) -> None:
    lines = [line(model, i, f"{model} {i}") for model in ("original", "mine") for i in range(SAMPLES + 3)]
    lines += [line(model, 0, "no\u2028" * 100, "unsafe_prompts") for model in ("original", "mine")]
    (tmp_path / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    samples = read_samples(tmp_path, 20)
    assert [(one.role, one.prompt) for one in samples] == [("test", i) for i in range(SAMPLES)] + [
        ("unsafe_prompts", 0)
    ]
    assert samples[1].texts == {"original": "original 1", "mine": "mine 1"}
    assert samples[-1].texts["mine"].endswith("… (280 more characters)")


def test_the_prompt_itself_is_read_where_it_was_kept(tmp_path: Path) -> None:
    kept = {"model": "a", "prompts": "test", "prompt": 1, "asked": "Tea? " * 10, "text": "Yes."}
    (tmp_path / "answers.jsonl").write_text(line("a", 0, "b") + json.dumps(kept) + "\n", encoding="utf-8")
    before, now = read_samples(tmp_path, 20)
    assert before.asked == ""
    assert now.asked == "Tea? Tea? Tea? Tea? … (30 more characters)"


def test_a_run_without_answers_has_none(tmp_path: Path) -> None:
    assert read_samples(tmp_path, 20) == []


@pytest.mark.parametrize(
    "content",
    ["{broken", "[" * 100_000, "[]", '{"model": "a"}', '{"prompts": "a", "prompt": "x"}'],
    ids=range(5),
)
def test_a_broken_line_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "answers.jsonl").write_text(line("a", 0, "b") + content + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"answers\.jsonl, line 2"):
        read_samples(tmp_path, 20)
