"""What is private stays where docs/security.md says; and that every threat there has a test that exists."""

from __future__ import annotations

import ast
import base64
import gzip
import json
import logging
import re
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import u2a
from cases import jsonl, save_tiny
from u2a.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "security.md"

SECRETS = {
    name: f"sesame-{name.lower()}-0123456789abcdef"
    for name in (
        *("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "ANTHROPIC_API_KEY"),
        *("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "DATABASE_URL", "MY_PASSWORD"),
    )
}
ROW_TEXT = {"negatives": "zebra", "preferences": "walrus", "test": "ocelot", "retain": "badger"}
"""A word that is in every text of a role, and in nothing else."""


def rows(role: str, count: int) -> list[dict[str, str]]:
    word = ROW_TEXT[role]
    if role in ("preferences", "test"):
        return [
            {"prompt": f"{word} {i}?", "chosen": f"Yes, {word} {i}.", "rejected": f"No {word}."}
            for i in range(count)
        ]
    return [{"prompt": f"{word} {i}?", "completion": f"No {word} {i}."} for i in range(count)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder of `align` and one of `evaluate`, made with secrets in the environment; all that was
    printed, and logged by any library at any level."""
    folder = tmp_path_factory.mktemp("security")
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    root = logging.getLogger()
    level = root.level
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            given = {f"--{role}": jsonl(folder / f"{role}.jsonl", rows(role, 6)) for role in ROW_TEXT}
            given["--model"] = str(save_tiny(folder / "model", "qwen"))
            more = {"--lora-rank": "2", "--outer-steps": "1", "--kl-budget": "0", "--max-nll-rise": "100"}
            align = call("align", {**given, **more, "--output": str(folder / "align")})
            asked = {name: given[name] for name in ("--negatives", "--test", "--retain")}
            asked |= {"--original": given["--model"], "--max-new-tokens": "4"}
            evaluate = call(
                "evaluate", {**asked, "--output": str(folder / "evaluate")}, str(folder / "align")
            )
            wrong = call("align", {**given, "--output": str(folder / "x"), "--learning-rate": "-1"})
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
    assert align.exit_code in (0, 1), align.output
    assert evaluate.exit_code == 0, evaluate.output
    assert wrong.exit_code == 2
    printed = "".join(result.output + result.stderr for result in (align, evaluate, wrong))
    return folder, printed, "\n".join(said)


def call(command, options, *more):
    return CliRunner().invoke(app, [command, *more, *(word for pair in options.items() for word in pair)])


def content_of(path: Path) -> bytes:
    """A file's bytes, with what is compressed in parquet files and reports in the clear."""
    if path.suffix == ".parquet":
        return json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
    content = path.read_bytes()
    if path.suffix == ".html":
        blocks = re.findall(rb'<script type="text/plain"[^>]*>([^<]*)', content)
        assert blocks
        content += b"".join(gzip.decompress(base64.b64decode(block)) for block in blocks)
    return content


def files_with(words, folder: Path) -> set[str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) > 5
    return {
        str(path.relative_to(folder)) for path in paths if any(w.encode() in content_of(path) for w in words)
    }


def test_no_secret_of_the_environment_is_written_or_shown(made):
    folder, printed, logged = made
    for run in ("align", "evaluate"):
        assert files_with(SECRETS.values(), folder / run) == set()
    assert "sesame" not in printed + logged


def test_text_of_rows_is_in_the_files_that_are_named_and_nowhere_else(made):
    """Those of docs/security.md. Of rows that are no negatives: held-out prompts, beside their answers."""
    folder, printed, logged = made
    assert files_with([ROW_TEXT["negatives"]], folder / "align") == {"impact.parquet", "report.html"}
    others = [word for role, word in ROW_TEXT.items() if role != "negatives"]
    assert files_with(others, folder / "align") == set()
    evaluated = folder / "evaluate"
    assert files_with([ROW_TEXT["test"]], evaluated) == {"answers.jsonl", "report.html"}
    assert files_with(set(ROW_TEXT.values()) - {ROW_TEXT["test"]}, evaluated) == set()
    assert not [word for word in ROW_TEXT.values() if word in printed]
    ours = [line for line in logged.splitlines() if any(word in line for word in ROW_TEXT.values())]
    assert not ours
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "`impact.parquet`" in text
    assert "`report.html`" in text


def test_what_is_pushed_holds_no_text_of_rows(made):
    """The adapter's folder, and the model card."""
    folder, _, _ = made
    assert files_with(ROW_TEXT.values(), folder / "align" / "adapter") == set()
    card = (folder / "align" / "README.md").read_text(encoding="utf-8")
    assert not [word for word in ROW_TEXT.values() if word in card]


def test_the_report_without_text_holds_none(made):
    folder, _, _ = made
    result = CliRunner().invoke(app, ["report", str(folder / "align"), "--no-text"])
    assert result.exit_code == 0
    assert b"zebra" not in content_of(folder / "align" / "report.html")
    CliRunner().invoke(app, ["report", str(folder / "align")])
    assert b"zebra" in content_of(folder / "align" / "report.html")


def test_a_report_of_a_run_with_a_link_out_of_it_is_refused(made, tmp_path):
    import shutil

    folder, _, _ = made
    shutil.copytree(folder / "align", tmp_path / "run")
    (tmp_path / "secret").write_text("password: sesame\n")
    (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / "config.yaml").symlink_to(tmp_path / "secret")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "is a link that leads out of" in result.stderr


# -- the package itself -------------------------------------------------------------------------------------

SOURCES = sorted(Path(u2a.__file__).parent.rglob("*.py"))
FORBIDDEN = {
    "pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "eval", "exec", "torch.load", "os.system",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.load", "csv.writer", "csv.DictWriter", "to_csv",
    "push_to_hub", "upload_folder", "wandb",
}  # fmt: skip
"""What u2a never calls: what runs code that was read; what writes cells that a spreadsheet takes for
formulas; what sends a folder away."""
ALLOWED = {"cluster_code": {"pickle"}}
"""There for the name of an error alone: Ray sends a job's code to its workers so, and u2a reads none."""


def calls_of(tree: ast.AST) -> set[str]:
    """Modules imported and functions called, with the last part of a dotted name also by itself."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found |= {name, name.rpartition(".")[2]} if name.endswith(("to_csv", "push_to_hub")) else {name}
            found |= {f"shell of {name}" for k in node.keywords if k.arg == "shell"}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_nothing_dangerous_is_called(path):
    found = calls_of(ast.parse(path.read_text(encoding="utf-8")))
    assert not found & FORBIDDEN - ALLOWED.get(path.stem, set())
    assert not [name for name in found if name.startswith("shell of")]


def test_what_is_allowed_reads_no_pickle():
    for stem in ALLOWED:
        (path,) = [path for path in SOURCES if path.stem == stem]
        assert not [name for name in calls_of(ast.parse(path.read_text("utf-8"))) if "load" in name]


def test_a_dangerous_call_would_be_noticed():
    code = "import pickle\ntorch.load(x)\ntable.to_csv('a')\nsubprocess.run('x', shell=True)"
    found = calls_of(ast.parse(code))
    assert found >= {"pickle", "torch.load", "to_csv", "shell of subprocess.run"}


# -- the document -------------------------------------------------------------------------------------------

_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def threats() -> dict[str, str]:
    """Heading of each threat -> its section."""
    _, *parts = re.split(r"^### (.+)$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sections = [re.split(r"^## ", text, flags=re.MULTILINE)[0] for text in parts[1::2]]
    return dict(zip(parts[::2], sections, strict=True))


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_threat_has_a_test_that_exists():
    assert len(threats()) > 15
    for name, text in threats().items():
        named = _NAMED.findall(text)
        assert named, f"{name}: no test is named"
        for path, test in named:
            assert (ROOT / path).is_file(), f"{name}: {path} does not exist"
            assert test in functions_of(path), f"{name}: {path} has no {test}"


def test_every_threat_says_what_is_not_covered():
    for name, text in threats().items():
        assert "*Not covered:*" in text, name
