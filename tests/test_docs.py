"""What docs/ and the README show is so: commands parse, YAML is accepted, Python runs, the site builds."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import u2a
from cases import jsonl, save_tiny
from documents import PAGES, ROOT, blocks, commands, inline, named
from u2a.baselines import METHODS
from u2a.cli import app
from u2a.commands import schemas
from u2a.commands.comparison_plan import make_plan
from u2a.schema import Schema
from u2a.types import UserError

COMMANDS = typer.main.get_command(app).commands
FLAGS = {
    name: {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in COMMANDS.items()
}
KNOWN = set().union(*FLAGS.values()) | {"--help", "--version"}
OTHERS = {"--table", "--strength", "--cpu"}
"""Flags of other programs, and of an example's plug-in, that pages mention."""
SHOWN = [(page, words) for page in PAGES for words in commands(page)]
WHOLE = [(page, words) for page, words in SHOWN if not {"…", "..."} & set(words)]


def of_page(shown):
    """Things found on pages, called after them."""
    return [pytest.param(thing, id=f"{named(page)}-{i}") for i, (page, thing) in enumerate(shown)]


@pytest.mark.parametrize("words", of_page(WHOLE))
def test_a_command_is_one_that_would_run(words):
    """Its flags exist, nothing is missing, and every value is one that the command takes."""
    name, *arguments = words
    if name in ("--version", "--help"):
        return
    given = COMMANDS[name].make_context(name, arguments).params
    schema = getattr(schemas, name.upper(), Schema(()))
    if not given.get("config"):
        schema.resolve(None, {key: value for key, value in given.items() if key in schema.specs})


def test_commands_are_found_and_wrong_ones_noticed(tmp_path):
    assert len(WHOLE) > 30
    page = tmp_path / "page.md"
    page.write_text(
        "```\nA=1 u2a align --model m \\\n  --nonsense  # why\nls\ntorchrun -m u2a.cli impact --resume\n```\n"
    )
    assert commands(page) == [["align", "--model", "m", "--nonsense"], ["impact", "--resume"]]
    with pytest.raises(Exception, match="No such option"):
        test_a_command_is_one_that_would_run(["align", "--nonsense"])
    with pytest.raises(UserError, match="must be at least"):
        test_a_command_is_one_that_would_run(["align", "--lora-rank", "-1"])


@pytest.mark.parametrize("words", of_page([each for each in SHOWN if each not in WHOLE]))
def test_an_abridged_command_has_flags_that_exist(words):
    assert {word for word in words if word.startswith("--")} <= FLAGS[words[0]] | OTHERS


def exists(flag):
    """Whether there is such a flag, or for `--objective-…` and `--objective-` one that begins so."""
    beginning = flag.removesuffix("…")
    return flag in KNOWN | OTHERS or (beginning[-1] == "-" and any(f.startswith(beginning) for f in KNOWN))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_flags_and_commands_within_sentences_exist(page):
    for code in inline(page):
        if code.startswith("--"):
            assert exists(re.match(r"[^\s=]+", code)[0]), code
        elif re.match(r"u2a [a-z]", code):
            name, *words = code.split()[1:]
            assert name in COMMANDS, code
            assert {word for word in words if word.startswith("--")} <= FLAGS[name] | OTHERS | {"--help"}, (
                code
            )


@pytest.mark.parametrize("block", of_page([(p, b) for p in PAGES for b in blocks(p, "yaml")]))
def test_a_configuration_is_accepted(block, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(block, encoding="utf-8")
    if "methods:" in block:
        make_plan(schemas.COMPARE.resolve(str(file), {}))
    else:
        schemas.ALIGN.resolve(str(file), {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the files and runs that pages name, made by the commands from tiny rows."""
    folder = tmp_path_factory.mktemp("docs")
    save_tiny(folder / "my-model", "qwen")
    rows = [{"prompt": f"Q {i}", "completion": f"No {i}."} for i in range(4)]
    pairs = [{"prompt": f"P {i}", "chosen": f"Yes {i}, gladly.", "rejected": "No."} for i in range(4)]
    data = ["--negatives", jsonl(folder / "bad.jsonl", rows), "--preferences"]
    data += [jsonl(folder / "pairs.jsonl", pairs), "--retain", jsonl(folder / "good.jsonl", rows)]
    again = str(folder / "runs" / "align" / "adapter")
    for name, command, model in (
        ("impact", "impact", str(folder / "my-model")),
        ("align", "align", str(folder / "my-model")),
        ("again", "align", again),
    ):
        options = ["--model", model, "--output", str(folder / "runs" / name), *data]
        done = CliRunner().invoke(app, [command, *options])
        assert done.exit_code in (0, 1), done.output
    return folder


@pytest.mark.parametrize(
    "code", of_page([(p, b) for p in PAGES for b in blocks(p, "python") if p.name != "README.md"])
)
def test_its_python_runs(code, runs, monkeypatch):
    """The README's is run by test_readme.py."""
    monkeypatch.chdir(runs)
    exec(compile(code, "a page", "exec"), {})


def test_every_option_of_every_method_is_on_the_page_of_compare():
    def default(value):
        if isinstance(value, bool):
            return "yes" if value else "no"
        return "" if value == "" else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"

    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    found = page.split("| method | option | default | meaning |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    assert found.splitlines() == [
        f"| `{name}` | `{f.name}` | {default(f.default)} | {f.metadata['help']} |"
        for name, method in METHODS.items()
        for f in dataclasses.fields(method)
    ]
    table = page.split("## Methods", 1)[1].split("\n\n")[1]
    assert re.findall(r"^\| `([\w-]+)` \|", table, flags=re.M) == list(METHODS)


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: u2a\.(\w+)$", page, flags=re.M))
    assert shown == set(u2a.__all__)


def test_every_command_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`u2a (\w+)`\]\(cli/\1\.md\)", page, flags=re.M)
    assert set(re.findall(r"`u2a (\w+)`\]\(cli", page)) == set(COMMANDS)


def test_the_picture_is_well_formed_and_follows_the_readers_scheme():
    from xml.dom import minidom

    picture = ROOT / "docs" / "pipeline.svg"
    document = minidom.parse(str(picture))
    assert document.getElementsByTagName("title")
    assert document.getElementsByTagName("desc")
    assert "prefers-color-scheme: dark" in picture.read_text(encoding="utf-8")
    assert not document.getElementsByTagName("script")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    import subprocess

    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_option_of_every_command(site):
    for name, flags in FLAGS.items():
        page = (site / "reference" / "cli" / f"{name}.html").read_text(encoding="utf-8")
        missing = [flag for flag in flags if flag not in page]
        assert not missing, f"{name}: {missing}"


def test_the_site_has_the_docstrings(site):
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in u2a.__all__:
        assert f'id="u2a.{name}"' in page
    assert "positive = unlearning it raises alignment" in page


def test_the_site_loads_nothing_from_elsewhere(site):
    """Links may lead out; scripts, styles, pictures and fonts may not."""
    loaded = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\s\">]+)"
    )
    for page in site.rglob("*.html"):
        assert not loaded.findall(page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?https?:|@import", style.read_text(encoding="utf-8")), style
    assert loaded.findall('<script async src="https://cdn.example/x.js">') == ["https://cdn.example/x.js"]


def test_links_between_pages_lead_somewhere():
    """Also in the README and the guide, which are no part of the site; anchors are checked by the build."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not target.startswith("http") and "/cli/" not in f"/{target}":
                assert (page.parent / target).exists(), f"{named(page)} links {target}"


def test_no_page_is_left_behind():
    """Every file of docs/ is a page, a picture or the notebook: no draft, no data."""
    endings = {path.suffix for path in Path(ROOT, "docs").rglob("*") if path.is_file()}
    assert endings <= {".md", ".svg", ".ipynb", ".css"}
