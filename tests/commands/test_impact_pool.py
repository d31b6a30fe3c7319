"""`u2a impact --pool`: shard by shard what `--negatives` gives at once; killed in between it goes on."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS
from u2a import interruption
from u2a.cli import app
from u2a.commands import impact_pool
from u2a.data.pool import Pool
from u2a.impact.shard_scores import Parts, ShardScorer

ROWS = [
    {"id": f"n{k}-{i}", "prompt": f"{p} {k}", "completion": f"{r} {'No. ' * k}", "category": "x"}
    for k in range(3)
    for i, (p, r) in enumerate(BAD)
]
ROWS.append({**ROWS[4], "id": "again"})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    return {
        "--model": str(save_tiny(folder / "model", "qwen")),
        "--preferences": jsonl(
            folder / "pairs.jsonl", [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
        ),
        "--retain": jsonl(folder / "good.jsonl", [{"prompt": p, "completion": r} for p, r in GOOD]),
        "--lora-rank": "2",
    }


@pytest.fixture
def pool(tmp_path):
    return jsonl(tmp_path / "bad.jsonl", ROWS)


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """A run that was left alone, shards of 5 rows, the best 6 kept."""
    folder = tmp_path_factory.mktemp("whole")
    done = impact(files, pool=jsonl(folder / "bad.jsonl", ROWS), output=folder / "run", shard_rows=5, keep=6)
    assert done.exit_code == 0, done.output
    return folder / "run"


def impact(files, **options):
    words = [word for pair in files.items() for word in pair]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return CliRunner().invoke(app, ["impact", *words])


def parts(run):
    return [pq.read_table(path) for path in sorted((run / "impact").glob("*.parquet"))]


def test_the_same_as_the_negatives_at_once(files, pool, whole, tmp_path):
    """Scores, their order, the file for `align`, and a report of the kept rows that can be written again."""
    once = impact(files, negatives=pool, output=tmp_path / "once")
    assert once.exit_code == 0, once.output
    shutil.copytree(whole, tmp_path / "run")
    expected = pq.read_table(tmp_path / "once" / "impact.parquet").to_pandas()
    found = parts(tmp_path / "run")
    assert [table.num_rows for table in found] == [5, 5, 5, 4]
    for name in ("impact", "utility_cost", "loss", "cosine", "grad_norm", "n_tokens", "row"):
        both = np.concatenate([table[name].to_numpy() for table in found])
        np.testing.assert_allclose(both, expected[name], rtol=1e-3, err_msg=name)

    kept = pq.read_table(tmp_path / "run" / "impact.parquet").to_pandas()
    first = expected.drop_duplicates(["prompt", "response"]).sort_values("impact", ascending=False)[:6]
    assert kept["row"].tolist() == first["row"].tolist()
    assert kept["response"].tolist() == first["response"].tolist()
    selected = [json.loads(line) for line in (tmp_path / "run" / "selected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in selected] == kept["id"][kept["impact"] > 0].tolist()
    assert selected[0]["category"] == "x"

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["counts"]["negatives"] == len(ROWS)
    assert summary["counts"]["helpful"] == (expected["impact"] > 0).sum()
    assert summary["counts"]["kept"] == 6
    assert "6 best rows of the pool only" in summary["findings"][0]
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run")]).exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert selected[0]["completion"] in page
    assert "6 best rows of the pool only" in page


def test_align_takes_what_was_selected(files, whole, tmp_path):
    given = {**files, "--negatives": str(whole / "selected.jsonl")}
    words = [word for pair in given.items() for word in pair]
    more = ["--outer-steps", "1", "--max-steps", "1", "--output", str(tmp_path / "aligned")]
    done = CliRunner().invoke(app, ["align", *words, *more])
    assert done.exit_code in (0, 1), done.output
    assert (tmp_path / "aligned" / "weights.parquet").is_file()


@pytest.mark.parametrize("by", ["kill", "signal"])
def test_cut_off_it_goes_on_and_ends_with_the_same(files, pool, whole, tmp_path, monkeypatch, by):
    """What is there is not scored again, also in other hands: engine and workers are not held to."""
    real, calls = ShardScorer.__call__, []

    def counted(self, rows):
        calls.append(rows["row"][0])
        if len(calls) == 3:
            if by == "kill":
                raise KeyboardInterrupt
            monkeypatch.setattr(interruption._Asked, "by", 15)
        return real(self, rows)

    monkeypatch.setattr(ShardScorer, "__call__", counted)
    run = tmp_path / "run"
    cut = impact(files, pool=pool, output=run, shard_rows=5, keep=6)
    assert cut.exit_code == 3, cut.output
    kept = 2 if by == "kill" else 3
    assert len(parts(run)) == kept
    assert not (run / "impact.parquet").exists()
    monkeypatch.setattr(interruption._Asked, "by", 0)
    (run / "impact" / ".part-00000002.parquet.0123.part").write_bytes(b"half")  # as a kill leaves it
    done = impact(files, pool=pool, output=run, shard_rows=5, keep=6, resume=True)
    assert done.exit_code == 0, done.output
    assert calls[3:] == [5 * index for index in range(kept, 4)]
    for name in ("impact.parquet", "selected.jsonl", *(f"impact/part-{i:08d}.parquet" for i in range(4))):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list((run / "impact").glob(".*"))
    assert not {"engine", "workers"} & yaml.safe_load((run / "config.yaml").read_text()).keys()


def test_a_signal_stops_it_also_among_shards_that_are_there_already(files, whole, tmp_path, monkeypatch):
    run, real, read = shutil.copytree(whole, tmp_path / "run"), Parts.read, []

    def signalled(self, shard):
        read.append(shard.index)
        monkeypatch.setattr(interruption._Asked, "by", 15)
        return real(self, shard)

    monkeypatch.setattr(Parts, "read", signalled)
    pool = str(whole.parent / "bad.jsonl")
    done = impact(files, pool=pool, output=run, shard_rows=5, keep=6, resume=True)
    assert done.exit_code == 3, done.output
    assert read == [0]


def test_changed_rows_are_scored_again_and_the_others_not(files, whole, tmp_path, monkeypatch):
    run, pool = shutil.copytree(whole, tmp_path / "run"), str(whole.parent / "bad.jsonl")
    before = parts(run)
    monkeypatch.setattr(Pool, "__init__", _of_other_rows(Pool.__init__, tmp_path / "other.jsonl"))
    jsonl(tmp_path / "other.jsonl", [*ROWS[:7], {**ROWS[7], "completion": "Other words."}, *ROWS[8:14]])
    real, calls = ShardScorer.__call__, []

    def counted(self, rows):
        calls.append(rows["row"][0])
        return real(self, rows)

    monkeypatch.setattr(ShardScorer, "__call__", counted)
    done = impact(files, pool=pool, output=run, shard_rows=5, keep=6, resume=True)
    assert done.exit_code == 0, done.output
    assert calls == [5, 10]  # the changed one, and the last, which is shorter now
    after = parts(run)
    assert [table.num_rows for table in after] == [5, 5, 4]
    assert after[0].equals(before[0])
    assert after[1]["impact"][2] != before[1]["impact"][2]


def test_a_broken_row_is_named_and_what_is_scored_is_kept(files, tmp_path):
    name = jsonl(tmp_path / "bad.jsonl", [*ROWS[:9], {"prompt": "Q", "completion": ""}])
    run = tmp_path / "run"
    done = impact(files, pool=name, output=run, shard_rows=5)
    assert done.exit_code == 2
    assert f"{name}, row 10: the answer is empty" in done.output
    assert "1 shards are scored and kept" in done.output
    jsonl(tmp_path / "bad.jsonl", ROWS[:10])
    assert impact(files, pool=name, output=run, shard_rows=5, resume=True).exit_code == 0
    # within the first rows nothing is run and nothing written
    done = impact(files, pool=jsonl(tmp_path / "x.jsonl", [{"text": ""}]), output=tmp_path / "other")
    assert done.exit_code == 2
    assert not (tmp_path / "other").exists()


def test_fd_reports_its_worst_self_check(files, pool, tmp_path):
    done = impact(files, pool=pool, output=tmp_path / "run", shard_rows=5, keep=6, scoring="fd")
    assert done.exit_code == 0, done.output
    checks = [json.loads(table.schema.metadata[b"self_check"]) for table in parts(tmp_path / "run")]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["self_check"] == max(checks, key=lambda check: check["relative_error"])


def test_curvatures_of_negatives_are_made_of_the_first_rows_and_said_so(files, pool, tmp_path, monkeypatch):
    """With a head of 6 rows, only the first rows decide; with the default all of this small pool do."""
    impacts = []
    for head in (512, 6):
        monkeypatch.setattr(impact_pool, "HEAD", head)
        done = impact(files, pool=pool, output=tmp_path / "run", shard_rows=9, keep=6, curvature="adam")
        assert done.exit_code == 0, done.output
        assert f"--curvature adam is made of the first {min(head, len(ROWS))} rows" in done.output
        impacts.append(np.concatenate([table["impact"].to_numpy() for table in parts(tmp_path / "run")]))
        shutil.rmtree(tmp_path / "run")
    assert not np.allclose(*impacts, rtol=1e-2)


def test_another_row_among_those_a_curvature_is_made_of_scores_all_again(files, pool, tmp_path, monkeypatch):
    """Also where the directions hardly move: here they are rounded until they do not at all."""
    monkeypatch.setattr("u2a.impact.shard_scores.norm", lambda _direction: 1.0)
    given = {"pool": pool, "output": tmp_path / "run", "shard_rows": 5, "keep": 6, "curvature": "adam"}
    assert impact(files, **given).exit_code == 0
    jsonl(tmp_path / "bad.jsonl", [*ROWS[:-1], {**ROWS[-1], "completion": "Other words."}])
    assert impact(files, **given, resume=True).exit_code == 0
    assert impact(files, **{**given, "output": tmp_path / "anew"}).exit_code == 0
    for gone_on, anew in zip(parts(tmp_path / "run"), parts(tmp_path / "anew"), strict=True):
        assert gone_on.equals(anew)


def test_prompts_of_the_validation_rows_are_counted(files, tmp_path):
    name = jsonl(tmp_path / "bad.jsonl", [*ROWS[:3], {"prompt": PAIRS[0][0], "completion": "No."}])
    done = impact(files, pool=name, output=tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "1 rows of the pool have a prompt that is also in the validation rows" in done.output


def _of_other_rows(real, path):
    """The pool's file has other rows now, without another name in the configuration."""
    return lambda self, _source, **options: real(self, path, **options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"negatives": "x", "pool": "y"}, "--pool stands in the place of --negatives"),
        ({"negatives": "x", "keep": 5}, "--keep means something only with --pool"),
        ({"negatives": "x", "engine": "ray"}, "--engine means something only with --pool"),
        ({"pool": "x", "workers": 2}, "--workers means something only with --engine ray"),
        ({"pool": "no-such-file.jsonl"}, "no-such-file.jsonl: no such file"),
        ({}, "--negatives is missing"),
    ],
)
def test_bad_options(files, tmp_path, options, words):
    done = impact(files, output=tmp_path / "run", **options)
    assert done.exit_code == 2
    assert words in done.output
    assert not (tmp_path / "run").exists()
