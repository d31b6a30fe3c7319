"""`write_model_card`: what a stranger may read, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load

from u2a.report.card_header import DEMO_BASE
from u2a.report.model_card import write_model_card
from u2a.report.wording import is_hub_id, public_value, settings, without_paths, without_secrets
from u2a.types import UserError

TABLE = [
    {"metric": "J on validation", "unit": "nats", "better": "higher", "original": -0.75, "aligned": -0.5},
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
        "model-index": [
            {
                "name": "model-u2a",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": "validation preference pairs", "type": "local"},
                        "metrics": [
                            {"type": "j_on_validation", "name": "J on validation (nats)", "value": -0.5}
                        ],
                    }
                ],
            }
        ],
    }
    assert "| J on validation | nats | higher | -0.75 | -0.5 | +0.25 (better) |" in card
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
    assert "| J on validation | nats | higher | -0.75 |\n" in card
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
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags", "model-index"}
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


# -- what the Hub reads --------------------------------------------------------------------------------------


def _row(metric: str, unit: str, better: str, original: float, aligned: float) -> dict[str, Any]:
    return {"metric": metric, "unit": unit, "better": better, "original": original, "aligned": aligned}


HELD_OUT = [
    *TABLE,
    _row("log-prob of the negatives", "nats/token", "", -2.0, -3.0),
    _row("held-out accuracy, summed", "share", "higher", 0.5, 0.75),
    _row("held-out margin, summed", "nats", "higher", 1.0, 2.0),
]


def test_the_header_is_what_huggingface_hub_reads(tmp_path: Path) -> None:
    config = {"negatives": "org/bad", "preferences": "org/pairs", "test": "/home/me/held_out.jsonl"}
    path = write_model_card(make_run(tmp_path / "run", config, table=HELD_OUT))
    assert metadata_load(path)["datasets"] == ["org/bad", "org/pairs"]
    card = ModelCard.load(path, ignore_metadata_errors=False)
    assert card.data.base_model == "org/model"
    assert card.data.model_name == "model-u2a"
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {
        ("org/pairs", "j_on_validation"): -0.5,
        ("org/bad", "log_prob_of_the_negatives"): -3.0,
        ("local", "accuracy"): 0.75,
        ("local", "held_out_margin_summed"): 2.0,
    }
    assert {r.dataset_name for r in card.data.eval_results if r.dataset_type == "local"} == {
        "held-out preference pairs"
    }
    again = ModelCard(str(card))  # it survives being written by huggingface_hub
    assert again.data.to_dict() == card.data.to_dict()


def test_data_and_cost_stand_in_the_card(tmp_path: Path) -> None:
    card = write_model_card(make_run(tmp_path / "run", {"preferences": "-"})).read_text(encoding="utf-8")
    assert "| unlearned: bad answers | bad.jsonl | 4 |" in card
    assert "| validation: J is measured on it | standard input | 5 |" in card
    assert "In all 1.5 s, at most 3 MiB." in card


@pytest.mark.parametrize(
    "header, licence, words",
    [
        ("license: apache-2.0", {"license": "apache-2.0"}, "apache-2.0, as the original model"),
        (
            "license: other\nlicense_name: llama3\nlicense_link: https://example.org/LICENSE",
            {"license": "other", "license_name": "llama3", "license_link": "https://example.org/LICENSE"},
            "llama3, as the original model: https://example.org/LICENSE",
        ),
        ("license: other\nlicense_link: javascript:x", {"license": "other"}, "other, as the original model"),
        ("license: [mit]", {}, "add `license` to the\nheader"),
        ("license: '<script>'", {}, "add `license` to the\nheader"),
        ("license: mit\n  broken: [", {}, "add `license` to the\nheader"),
        ("", {}, "add `license` to the\nheader"),
    ],
)
def test_licence_of_the_base_comes_from_its_own_card(tmp_path, header, licence, words) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(f"---\n{header}\n---\n# A model\n")
    card = write_model_card(make_run(tmp_path / "run", {"model": str(base)})).read_text(encoding="utf-8")
    assert {k: v for k, v in front_matter(card).items() if k.startswith("license")} == licence
    assert words in card


def test_licences_without_a_card(tmp_path: Path) -> None:
    def licence(model: str) -> Any:
        card = write_model_card(make_run(tmp_path / "run", {"model": model})).read_text(encoding="utf-8")
        return front_matter(card).get("license")

    assert licence("demo") == "apache-2.0"
    assert licence("org/model") is None
    secret = tmp_path / "secret"
    secret.write_text("---\nlicense: mit\n---\n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "README.md").symlink_to(secret)
    assert licence(str(tmp_path / "linked")) is None


def test_folders_that_would_be_pushed_have_cards_of_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("adapter", "merged"):
        (run / name).mkdir()
    (run / "adapter" / "README.md").write_text("PEFT's own, with /home/me/model in it")
    write_model_card(run)
    adapter = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    merged = (run / "merged" / "README.md").read_text(encoding="utf-8")
    assert front_matter(adapter)["base_model_relation"] == "adapter"
    assert 'PeftModel.from_pretrained(model, "the/folder/or/id/of/this/repository")' in adapter
    assert front_matter(merged)["library_name"] == "transformers"
    assert front_matter(merged)["base_model_relation"] == "finetune"
    assert "PeftModel" not in merged
    assert "A LoRA adapter merged into org/model" in merged
    assert "/home" not in adapter + merged
    assert not (run / "model").exists()


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora_rank": 0}, {"model": '/home/me/it\'s `my` #1 "model"'}],
    ids=["lora", "full", "local"],
)
def test_the_code_of_every_card_is_python(tmp_path: Path, settings: dict[str, Any]) -> None:
    """A comment in it had its `#` escaped as Markdown is."""
    run = make_run(tmp_path / "run", settings)
    for name in ("adapter", "model", "merged"):
        (run / name).mkdir()
    write_model_card(run)
    cards = [path.read_text(encoding="utf-8") for path in run.rglob("README.md")]
    assert len(cards) == 4
    for card in cards:
        (code,) = re.findall(r"^```python\n(.*?)^```$", card, flags=re.S | re.M)
        compile(code, "a card", "exec")
        assert (
            len(re.findall(r"from_pretrained\(.*\)(  # the folder `\w+` beside this card)?$", code, re.M)) > 1
        )


def test_a_merged_model_of_full_fine_tuning_had_no_adapter(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"lora_rank": 0})
    (run / "merged").mkdir()
    write_model_card(run)
    merged = (run / "merged" / "README.md").read_text(encoding="utf-8")
    assert "Made by full fine-tuning of org/model" in merged
    assert "adapter" not in merged.split("## Cost")[0]
