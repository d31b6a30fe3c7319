"""`write_model_card`: what a stranger may read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from u2a.report.model_card import DEMO_BASE, write_model_card
from u2a.report.wording import is_hub_id, public_value, settings, without_paths, without_secrets
from u2a.types import UserError

TABLE = [
    {"metric": "J", "unit": "nats", "better": "higher", "original": -0.75, "aligned": -0.5},
    {"metric": "retain NLL", "unit": "nats/token", "better": "lower", "original": 2.0, "aligned": None},
]


def make_run(run: Path, config: dict[str, Any] | None = None, **summary: Any) -> Path:
    run.mkdir(exist_ok=True)
    defaults = {"model": "org/model", "negatives": "/home/me/secret place/bad.jsonl", "lora_rank": 8}
    (run / "config.yaml").write_text(yaml.safe_dump(defaults | (config or {})), encoding="utf-8")
    (run / "versions.json").write_text(json.dumps({"u2a": "0.1.0", "git_commit": None}), encoding="utf-8")
    content = {
        "command": "align",
        "outcome": "2 of 4 negatives are worth unlearning.",
        "table": TABLE,
        "phases": [{"name": "scoring", "seconds": 1.5, "peak_bytes": 3 * 2**20}],
        "counts": {"negatives": 4, "validation": 5, "test": 0, "retain": 0},
        "self_check": {"examples": 4, "relative_error": 0.5, "epsilon": 0.1, "passed": False},
        "warnings": ["row 3 says WARNING TEXT"],
    }
    (run / "summary.json").write_text(json.dumps(content | summary), encoding="utf-8")
    rows = {"row": [0], "id": ["ROW ID"], "prompt": ["ROW PROMPT"], "response": ["ROW RESPONSE"]}
    pq.write_table(pa.table(rows | {"impact": [1.0]}), run / "impact.parquet")
    return run


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_card_of_an_adapter(tmp_path: Path) -> None:
    path = write_model_card(make_run(tmp_path / "run"))
    card = path.read_text(encoding="utf-8")
    assert path.name == "README.md"
    assert front_matter(card) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "org/model",
        "base_model_relation": "adapter",
        "tags": ["u2a", "unlearning", "alignment"],
    }
    assert "| J | nats | higher | -0.75 | -0.5 | +0.25 (better) |" in card
    assert "| retain NLL | nats/token | lower | 2 | – | – |" in card
    assert "| scoring | 1.5 | 3 MiB |" in card
    assert 'PeftModel.from_pretrained(model, "adapter")' in card
    assert "negatives: bad.jsonl" in card
    assert "| u2a | 0.1.0 |" in card
    assert "2504.06659" in card
    for limitation in ("Only 5 validation rows", "No retain data", "No held-out pairs", "self-check"):
        assert limitation in card
    assert card.endswith("```\n")


def test_card_gives_no_row_text_path_or_secret_away(tmp_path: Path) -> None:
    config = {
        "preferences": "../customers/acme/pairs.parquet",
        "retain": "C:\\Users\\me\\good.csv",
        "hub_token": "hf_abcdefghijklmnopqrst",
        "scorer": "https://me:pass@scorer.example/rate?key=sesame",
        "note": "see sk-abcdefghijklmnopqrstuv",
        "nested": {"api_key": "sesame", "files": ["~/private/x.jsonl"]},
    }
    outcome = f"Stopped: {tmp_path}/run/metrics.jsonl is full (hf_abcdefghijklmnopqrst)."
    card = write_model_card(make_run(tmp_path / "run", config, outcome=outcome)).read_text(encoding="utf-8")
    for private in (
        *(
            "ROW",
            "WARNING TEXT",
            str(tmp_path),
            "/home",
            "secret place",
            "customers",
            "acme",
            "Users",
            "private",
        ),
        *("hf_abc", "sk-abc", "sesame", "me:pass"),
    ):
        assert private not in card
    assert "Stopped: metrics.jsonl is full (" in card
    assert "Warnings during the run: 1." in card
    assert "scorer: https://scorer.example/rate" in card


@pytest.mark.parametrize(
    "model, base",
    [
        ("org/model", "org/model"),
        ("demo", DEMO_BASE),
        ("here/original", None),
        ("/somewhere/original", None),
        ("../runs/original", None),
        ("models/small.gguf", None),
        ("original", None),
    ],
)
def test_base_model_only_when_it_is_on_the_hub(tmp_path: Path, model: str, base: str | None) -> None:
    (tmp_path / "here" / "original").mkdir(parents=True)  # a relative path, seen from where the run was made
    card = write_model_card(make_run(tmp_path / "run", {"model": model})).read_text(encoding="utf-8")
    assert front_matter(card).get("base_model") == base
    assert "somewhere" not in card
    assert "../" not in card


def test_card_of_full_fine_tuning(tmp_path: Path) -> None:
    card = write_model_card(make_run(tmp_path / "run", {"lora_rank": 0})).read_text(encoding="utf-8")
    assert front_matter(card)["library_name"] == "transformers"
    assert front_matter(card)["base_model_relation"] == "finetune"
    assert "PeftModel" not in card


def test_card_of_an_impact_run_claims_no_model(tmp_path: Path) -> None:
    table = [row | {"aligned": None} for row in TABLE]
    card = write_model_card(make_run(tmp_path / "run", command="impact", table=table)).read_text(
        encoding="utf-8"
    )
    assert "library_name" not in front_matter(card)
    assert "measurements, not a model" in card
    assert "| metric | unit | better | original |\n" in card
    assert "| J | nats | higher | -0.75 |\n" in card
    assert "from_pretrained" not in card


def test_hostile_words_cannot_become_markup(tmp_path: Path) -> None:
    hostile = "</script><script>x</script> | [a](javascript:x) `b`\n# title\n---\n\x1b[31m\x00\ud800"
    config = {"model": 'o"\n```\nrm', "```\nkey": ["```\n</pre><b>"]}
    table = [TABLE[0] | {"metric": hostile, "unit": hostile}]
    run = make_run(tmp_path / "run", config, outcome=hostile, table=table, counts={hostile: 3})
    card = write_model_card(run).read_text(encoding="utf-8")
    prose, code = card.split("```yaml\n")
    assert "&lt;script&gt;x" in prose
    assert "<" not in prose
    assert "\\[a\\](javascript:x)" in prose
    assert "\n# title" not in prose
    assert not set(card) & {"\x1b", "\x00"}
    assert "␛" in prose
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    block, rest = code.split("\n```\n", 1)
    assert rest.startswith("\n## Versions")
    assert "```\n" not in block
    assert yaml.safe_load(block)["```\nkey"] == ["```\n<pre><b>"]  # `/pre` could be a path


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "summary.json"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(UserError, match=name):
        write_model_card(run)
    assert not (run / "README.md").exists()


@pytest.mark.parametrize(
    "value, public",
    [
        ("org/model", "org/model"),
        ("/a/b/my model", "my model"),
        ("a/b/c", "c"),
        ("data/x.jsonl", "x.jsonl"),
        ("\\\\server\\share\\x.json", "x.json"),
        ("file:///a/b.json", "b.json"),
        ("https://u:p@host/x?token=1#y", "https://host/x"),
        ("all-linear", "all-linear"),
        ("50%", "50%"),
        (1e-4, 1e-4),
        (["/a/b"], ["b"]),
        ({"secret": "x", "n": 1}, {"secret": "(hidden)", "n": 1}),
    ],
)
def test_public_values(value: Any, public: Any) -> None:
    assert public_value(value) == public


def test_words_that_only_look_like_paths_or_secrets_stay() -> None:
    text = "nats/token, and/or, 1 / 2, https://arxiv.org/abs/2504.06659, org/model"
    assert without_paths(text) == text
    assert without_secrets(text) == text
    assert without_paths("read /a/b/c.jsonl, then (~/d/e.csv)") == "read c.jsonl, then (e.csv)"


def test_settings_are_yaml_that_reads_back() -> None:
    config = {"a": "x\ny", "rate": 1e-5, "score_tokens": 2048, "on": True, "none": None, "list": ["q", "v"]}
    text = settings(config, public=True)
    assert yaml.safe_load(text) == config
    assert len(text.split("\n")) == len(config)


def test_hub_ids(tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert is_hub_id("org/model")
    assert not is_hub_id("org/model", folders=[tmp_path])
    assert not any(
        is_hub_id(source) for source in ("model", "a/b/c", "/a/b", "../b", "a/..", "a/b.jsonl", "a b/c")
    )
