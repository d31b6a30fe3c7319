"""Parts of the user's own: by entry point and by path, their options, and what is refused."""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import pairs, tiny_problem
from u2a import cli, plugins
from u2a.commands import schemas
from u2a.evaluation import JUDGES, METRICS
from u2a.losses import LOSSES
from u2a.losses.contract import check_loss
from u2a.objectives import OBJECTIVES
from u2a.types import UserError

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugin"
PAIRS = [
    {"prompt": f"Question {i}?", "chosen": f"Answer {i}, with care.", "rejected": "Go away."}
    for i in range(4)
]
BAD = [{"prompt": f"Bad {i}?", "completion": "No. " * (i + 1)} for i in range(4)]


@pytest.fixture(autouse=True)
def unloaded(monkeypatch):
    """What a test loads is gone after it."""
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {id(each): dict(each) for each in (LOSSES, OBJECTIVES, METRICS, JUDGES)}
    modules = set(sys.modules)
    yield
    for each in (LOSSES, OBJECTIVES, METRICS, JUDGES):
        each.clear()
        each.update(before[id(each)])
    for name in set(sys.modules) - modules:
        if name.startswith(("u2a_example_plugin", "own_")):
            del sys.modules[name]


def package(folder, name, points, version="1.0"):
    """What pip leaves of an installed package, put where Python looks."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)
    sys.path.insert(0, str(folder))


@pytest.fixture
def example(tmp_path):
    """The package of `examples/plugin`, as if it were installed."""
    groups = re.findall(
        r'\[project\.entry-points\."([\w.]+)"\]\n((?:.+ = .+\n)+)', (EXAMPLE / "pyproject.toml").read_text()
    )
    assert {group for group, _ in groups} == set(plugins.MUST_HAVE)
    points = "".join(f"[{group}]\n{lines.replace(chr(34), '')}\n" for group, lines in groups)
    package(tmp_path / "site", "u2a_example_plugin", points, "0.1.0")
    sys.path.insert(0, str(EXAMPLE))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "--model": str(save_tiny(folder / "model", "llama")),
        "--negatives": jsonl(folder / "bad.jsonl", BAD),
        "--preferences": jsonl(folder / "pairs.jsonl", PAIRS),
    }


def call(command, options, *more):
    """As `main` does it, with what is printed."""
    args = [command, *more, *(word for pair in options.items() for word in pair)]
    try:
        return CliRunner().invoke(cli.app_for(args), args)
    except UserError as error:
        return error


# -- the example ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("example")
def test_align_with_a_loss_and_an_objective_of_ones_own(given, tmp_path):
    impacts = []
    for ceiling in ("0.5", "0.9"):
        run = tmp_path / ceiling
        more = {"--output": str(run), "--loss": "unlikelihood", "--ceiling": ceiling, "--objective": "hinge"}
        result = call("align", {**given, **more, "--objective-gap": "2", "--outer-steps": "1"})
        assert result.exit_code in (0, 1), result.output + result.stderr
        kept = yaml.safe_load((run / "config.yaml").read_text())
        assert (kept["ceiling"], kept["objective_gap"]) == (float(ceiling), 2.0)
        table = json.loads((run / "summary.json").read_text())["table"]
        (j,) = [row for row in table if row["metric"].startswith("J")]
        assert j["original"] == pytest.approx(-2.0)  # at the original model every pair lacks the whole gap
        import pyarrow.parquet as pq

        impacts.append(pq.read_table(run / "impact.parquet")["impact"].to_pylist())
    assert impacts[0] != impacts[1]


@pytest.mark.usefixtures("example")
def test_evaluate_with_a_metric_and_a_judge_of_ones_own(given, tmp_path):
    other = str(save_tiny(tmp_path / "other", "llama", seed=1))
    options = {
        "--original": given["--model"],
        "--test": given["--preferences"],
        "--metrics": "words,judge",
        "--unwanted": "rude,stupid",
        "--judge": "short",
        "--judge-slack": "1",
        "--max-new-tokens": "6",
        "--output": str(tmp_path / "run"),
    }
    refused = call("evaluate", options, other)
    assert refused.exit_code == 2
    assert "--send-to-judge; nothing was sent" in refused.stderr
    assert "go to short" in refused.output
    result = call("evaluate", options, other, "--send-to-judge")
    assert result.exit_code == 0, result.output + result.stderr
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())["models"]["other"]["figures"]
    assert figures["unwanted_words"]["n"] == 4
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    own, theirs = ([len(a["text"]) for a in answers if a["model"] == name] for name in ("other", "original"))
    wins = [0.5 if abs(a - b) <= 1 else float(a < b) for a, b in zip(own, theirs, strict=True)]
    assert figures["judge_win"]["value"] == pytest.approx(sum(wins) / 4)


@pytest.mark.usefixtures("example")
def test_the_options_are_in_help_when_the_part_is_named():
    assert "--ceiling" in call("align", {"--loss": "unlikelihood"}, "--help").output
    assert "--ceiling" not in call("align", {}, "--help").output


@pytest.mark.usefixtures("example")
def test_the_figures_of_the_example_by_hand():
    """Loss: p = e^(−6/3), ℓ = −log(1 − 0.5·p). Hinge: gaps of 3 and −1 nats against m = 2: 0 and −3."""
    loss = plugins.find("u2a.losses", "unlikelihood", LOSSES, flag="--loss")
    check_loss(loss())
    p = torch.tensor(-2.0).exp()
    value = loss(ceiling=0.5)(torch.tensor([-6.0]), torch.zeros(1), torch.tensor([3]))
    torch.testing.assert_close(value, -torch.log(1 - 0.5 * p)[None])
    hinge = plugins.find("u2a.objectives", "hinge", OBJECTIVES, flag="--objective")
    j = hinge(texts=None, reference=torch.zeros(4), gap=2.0)
    assert j.terms(torch.tensor([-1.0, -3.0, -4.0, -2.0])).tolist() == [0.0, -3.0]


@pytest.mark.usefixtures("example")
def test_held_out_pairs_get_the_same_objective_with_its_options():
    from u2a.verification.truth import held_out_objective

    hinge = plugins.find("u2a.objectives", "hinge", OBJECTIVES, flag="--objective")
    problem = tiny_problem(objective=hinge, objective_options={"gap": 3.0}, random_b=False)
    assert problem.measure().objective == pytest.approx(-3.0)
    assert type(held_out_objective(problem, pairs())) is hinge
    assert held_out_objective(problem, pairs()).gap == 3.0
    assert type(tiny_problem(objective="hinge").objective) is hinge  # an installed name will do from Python


@pytest.mark.usefixtures("example")
def test_a_worker_process_loads_them_again():
    values = schemas.VERIFY.resolve(None, {"loss": "unlikelihood"})
    del LOSSES["unlikelihood"]
    plugins._LOADED.clear()
    schemas.VERIFY.load_parts(values)
    assert LOSSES["unlikelihood"].__name__ == "Unlikelihood"


@pytest.mark.usefixtures("example")
def test_metrics_from_python(given):
    from u2a import evaluate, load_preferences
    from u2a.evaluation.llm_judge import LLMJudge

    short = plugins.find("u2a.judges", "short", JUDGES, flag="--judge")
    test = load_preferences(PAIRS)
    judge = LLMJudge(own_judge=short(), send_to_judge=True)
    found = evaluate(given["--model"], {"same": given["--model"]}, metrics=[judge], test=test, answers=1)
    assert found.readings["same"]["judge_win"].estimate.value == 0.5
    with pytest.raises(UserError, match="words: it needs --unwanted"):
        evaluate(given["--model"], {}, metrics=["words"], test=test)


@pytest.mark.usefixtures("example")
def test_compare_with_a_loss_of_ones_own(given, tmp_path):
    """Of an installed package by a method, and as the one of all; each with its own options."""
    test = jsonl(tmp_path / "test.jsonl", PAIRS)
    file = tmp_path / "run.yaml"
    file.write_text(
        "methods:\n- uniform\n- {method: uniform, name: uniform npo, loss: npo}\n"
        "loss: unlikelihood\nceiling: 0.5\nsteps: 1\nrates: 1e-4\nseeds: 1\nlooks: 1\nmetrics: perplexity\n"
    )
    more = {"--config": str(file), "--test": test, "--retain": given["--negatives"]}
    result = call("compare", {**given, **more, "--output": str(tmp_path / "run")})
    assert result.exit_code in (0, 1), result.output + result.stderr
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert {"uniform", "uniform npo"} <= set(found["methods"])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["ceiling"] == 0.5


# -- code by its path ----------------------------------------------------------------------------------------

OWN_LOSS = """
from dataclasses import dataclass
from typing import ClassVar
from u2a.config import option

@dataclass(frozen=True)
class Half:
    needs_reference: ClassVar[bool] = False
    beta: float = option(0.5, "half: β, with another default than npo's.")
    def __call__(self, s, s_ref, length):
        return self.beta * s / length
    def derivative(self, s, s_ref, length):
        return self.beta / length + 0 * s
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_losses.py").write_text(OWN_LOSS)
    return "own_losses:Half"


def test_a_path_from_the_command_line_runs(own):
    values = schemas.IMPACT.resolve(None, {"loss": own})
    assert values["beta"] == 0.5  # its own default
    assert schemas.IMPACT.resolve(None, {"loss": own, "beta": 2.0})["beta"] == 2.0
    assert schemas.IMPACT.resolve(None, {})["beta"] == 0.1  # and npo keeps its


def test_a_path_in_a_file_runs_only_with_leave(own, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"loss: {own}\nbeta: 3\n")
    for schema in (schemas.ALIGN, schemas.IMPACT, schemas.VERIFY):
        with pytest.raises(UserError, match=r"loss in .*run\.yaml names code by its path.*--allow-code"):
            schema.resolve(str(file), {})
    assert "own_losses" not in sys.modules
    assert schemas.ALIGN.resolve(str(file), {"allow_code": True})["beta"] == 3.0
    assert schemas.ALIGN.resolve(str(file), {"loss": "npo"})["loss"] == "npo"  # a flag overrides the file
    file.write_text(f"loss: {own}\nallow_code: true\n")
    plugins._LOADED.clear()
    with pytest.raises(UserError, match="names code by its path"):
        schemas.ALIGN.resolve(str(file), {})
    file.write_text("metrics: own_losses:Half\n")
    with pytest.raises(UserError, match=r"metrics in .* names code by its path"):
        schemas.EVALUATE.resolve(str(file), {})


def test_a_path_that_was_loaded_once_is_still_refused_from_a_file(own, tmp_path):
    schemas.ALIGN.resolve(None, {"loss": own})
    file = tmp_path / "run.yaml"
    file.write_text(f"loss: {own}\n")
    with pytest.raises(UserError, match="names code by its path"):
        schemas.ALIGN.resolve(str(file), {})


def test_the_command_line_reads_the_file_for_the_flags(own, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"loss: {own}\n")
    assert "names code by its path" in str(call("align", {"--config": str(file)}))
    result = call("align", {"--config": str(file), "--beta": "2"}, "--allow-code")
    assert result.exit_code == 2
    assert "--model is missing" in result.stderr  # the loss and its flag were taken


# -- packages ------------------------------------------------------------------------------------------------


def test_a_name_of_u2as_own_names_both_packages(tmp_path):
    package(tmp_path, "evil", "[u2a.losses]\nnpo = evil:Loss\n", "9.9")
    with pytest.raises(UserError, match=r"--loss npo: u2a and evil 9\.9 each bring one of that name"):
        schemas.ALIGN.resolve(None, {"loss": "npo"})
    assert schemas.ALIGN.resolve(None, {"loss": "ga"})["loss"] == "ga"


def test_two_packages_of_the_same_name_are_both_named(tmp_path):
    package(tmp_path / "a", "first", "[u2a.losses]\nmine = a:Loss\n")
    package(tmp_path / "b", "second", "[u2a.losses]\nmine = b:Loss\n", "2.0")
    with pytest.raises(UserError, match=r"first 1\.0 and second 2\.0 each bring"):
        schemas.ALIGN.resolve(None, {"loss": "mine"})


def test_a_package_is_loaded_only_when_it_is_named(tmp_path):
    (tmp_path / "own_lazy.py").write_text("raise RuntimeError('loaded')\n")
    package(tmp_path, "lazy", "[u2a.losses]\nlazy = own_lazy:Loss\n", "0.3")
    assert plugins.installed("u2a.losses") == ["lazy"]
    schemas.ALIGN.resolve(None, {"loss": "npo"})
    with pytest.raises(UserError, match=r"take one of .*lazy"):
        schemas.ALIGN.resolve(None, {"loss": "lasy"})
    assert "own_lazy" not in sys.modules
    words = r"--loss lazy: own_lazy:Loss of lazy 0\.3 cannot be loaded: RuntimeError: loaded"
    with pytest.raises(UserError, match=words):
        schemas.ALIGN.resolve(None, {"loss": "lazy"})


@pytest.mark.parametrize(
    "code, words",
    [
        ("X = 3", "must be a dataclass"),
        ("class X: pass", "must be a dataclass"),
        ("from dataclasses import dataclass\n@dataclass\nclass X:\n  pass", "has no __call__, derivative"),
        ("import nothing_of_that_name", "No module named"),
        ("Y = 1", "has no attribute 'X'"),
        ("1 / 0", "ZeroDivisionError"),
        (
            OWN_LOSS.replace("Half", "X").replace("beta: float", "model: float"),
            "two options are called model",
        ),
        (OWN_LOSS.replace("Half", "X").replace("beta: float", "beta: list"), "cannot be one"),
    ],
)
def test_what_is_no_part_is_refused(tmp_path, monkeypatch, code, words):
    monkeypatch.chdir(tmp_path)
    Path("own_bad.py").write_text(code)
    with pytest.raises(UserError, match=f"--loss own_bad:X.*{words}"):
        schemas.ALIGN.resolve(None, {"loss": "own_bad:X"})


# -- the contract of losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(LOSSES))
def test_u2as_own_losses_keep_the_contract(name):
    check_loss(LOSSES[name]())


@dataclass(frozen=True)
class Wrong:
    """`kind` says what is wrong with it."""

    needs_reference: ClassVar[bool] = False
    kind: str = field(default="", metadata={"help": "."})

    def __call__(self, s, s_ref, length):  # noqa: ARG002
        if self.kind == "sign":
            return -s
        if self.kind == "mean":
            return s.mean()
        if self.kind == "batch":
            return s - s.detach().mean()
        if self.kind == "reference":
            return s - s_ref
        return s / 0 if self.kind == "infinite" else s

    def derivative(self, s, s_ref, length):  # noqa: ARG002
        return s.new_full(s.shape, {"sign": -1.0, "slope": 2.0}.get(self.kind, 1.0))


@pytest.mark.parametrize(
    "kind, words",
    [
        ("sign", "sign is the wrong way round"),
        ("slope", "is not dℓ/ds"),
        ("mean", "one value and one derivative per example"),
        ("batch", "must not depend on the others"),
        ("reference", "set needs_reference to True"),
        ("infinite", "not finite"),
    ],
)
def test_a_loss_that_breaks_the_contract_is_refused(kind, words):
    check_loss(Wrong())
    with pytest.raises(UserError, match=words):
        check_loss(Wrong(kind))
    with pytest.raises(UserError, match=words):
        tiny_problem(loss=Wrong(kind))


def test_the_page_names_what_there_is():
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    for group, names in plugins.MUST_HAVE.items():
        assert f"`{group}`" in page
        assert all(f"`{name}`" in page for name in names), group


def test_a_judge_that_fails_or_says_no_text_is_named():
    from u2a.evaluation.own_judge import OwnJudge

    requests = {"a": [{"role": "user", "content": "x"}]}
    with pytest.raises(UserError, match=r"--judge mine raised ZeroDivisionError"):
        OwnJudge(lambda _: 1 / 0, "mine").ask(requests, consent=True)
    with pytest.raises(UserError, match="must reply with text, not int"):
        OwnJudge(lambda _: 1, "mine").ask(requests, consent=True)
    asked = []
    judge = OwnJudge(lambda messages: asked.append(messages) or "yes", "mine")
    assert judge.ask({**requests, "b": requests["a"]}, consent=True) == {"a": "yes", "b": "yes"}
    assert len(asked) == 1
    with pytest.raises(UserError, match="needs --send-to-judge"):
        judge.ask(requests)
