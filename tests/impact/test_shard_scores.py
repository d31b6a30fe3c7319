"""Shard by shard the scores are those of all rows at once; what is kept is taken only if it is the same."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cases import FAMILIES
from problems import answers, tiny_problem
from u2a.data.collate import tokenize_rows
from u2a.data.pool import Shard
from u2a.impact.aims import aim
from u2a.impact.curvature import Adam
from u2a.impact.shard_scores import PART_SCHEMA, Parts, ShardScorer, mark_of, part_of, without_gradients
from u2a.impact.table import score_impact
from u2a.losses import NPO, SimNPO
from u2a.types import GuardStop

NAMES = ("impact", "utility_cost", "loss", "n_tokens")


def _shards(problem, size):
    count = len(problem.negatives)
    return [problem.negatives.select(range(i, min(i + size, count))) for i in range(0, count, size)]


def _by_shards(problem, scoring, size, **options):
    at = problem.measure()
    scorer = ShardScorer.of(problem, without_gradients(aim(problem, at, scoring=scoring, **options)))
    tables = [scorer(rows) for rows in _shards(problem, size)]
    return {name: np.concatenate([getattr(t, name) for t in tables]) for name in NAMES}, tables


@pytest.mark.parametrize("scoring", ["exact", "fd", "jvp"])
@pytest.mark.parametrize("random_b", [False, True])
@pytest.mark.usefixtures("true_float64")
def test_the_same_as_all_at_once(scoring, random_b):
    """With a random B the reference is another model, which the loss must see."""
    problem = tiny_problem("llama", random_b=random_b, loss=NPO(0.5))
    whole = score_impact(problem, scoring=scoring)
    found, tables = _by_shards(problem, scoring, 4)
    for name in NAMES:
        expected = getattr(whole, name)
        # fd takes its step from the rows it is given
        most = 2e-3 if scoring == "fd" else 1e-6
        assert np.linalg.norm(found[name] - expected) <= most * np.linalg.norm(expected), name
    assert len(tables[0].self_checks) == (2 if scoring == "fd" else 0)
    if scoring == "exact":
        for name in ("impact_se", "cosine", "grad_norm"):
            both = np.concatenate([getattr(t, name) for t in tables])
            np.testing.assert_allclose(both, getattr(whole, name), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_fine_tuning_has_the_original_model_for_reference(family):
    problem = tiny_problem(family, lora_rank=0, loss=SimNPO(0.5))
    whole = score_impact(problem, scoring="exact")
    found, _ = _by_shards(problem, "exact", 4)
    np.testing.assert_allclose(found["impact"], whole.impact, rtol=1e-5)


def test_directions_of_the_first_rows_differ_from_those_of_all():
    """Curvatures made of negatives see the head only; the others do not care which negatives there are."""

    def directions(problem, curvature):
        return aim(problem, problem.measure(), scoring="exact", curvature=curvature).directions[0]

    problem = tiny_problem("llama")
    head = problem.negatives.select(range(2))
    few = replace(problem, negatives=head, negative_texts=tokenize_rows(head, problem.renderer))
    few = replace(few, reference=problem.reference[:2])
    for curvature, same in ((None, True), (Adam(), False)):
        all_, some = directions(problem, curvature), directions(few, curvature)
        assert all(torch.equal(all_[name], some[name]) for name in all_) is same


def _shard(rows, digest="d", index=0):
    return Shard(index, rows, digest)


def test_parts_are_kept_and_others_are_not_taken(tmp_path):
    problem = tiny_problem("llama")
    rows = problem.negatives
    _, (table,) = _by_shards(problem, "fd", 99)
    parts = Parts(tmp_path / "impact", "mark")
    part = part_of(rows, table)
    assert parts.read(_shard(rows)) is None
    parts.write(_shard(rows), part)
    assert [path.name for path in (tmp_path / "impact").iterdir()] == ["part-00000000.parquet"]
    kept = parts.read(_shard(rows))
    assert kept.equals(part)
    assert kept.schema.equals(PART_SCHEMA)
    check = json.loads(kept.schema.metadata[b"self_check"])
    assert check["relative_error"] == max(c.relative_error for c in table.self_checks)
    assert parts.read(_shard(rows, digest="other")) is None
    assert parts.read(_shard(rows, index=1)) is None
    assert Parts(tmp_path / "impact", "other").read(_shard(rows)) is None
    parts.write(_shard(rows, index=3), part)
    (tmp_path / "impact" / "part-00000.parquet").write_bytes(b"under another name")
    parts.drop_after(1)
    assert [path.name for path in (tmp_path / "impact").iterdir()] == ["part-00000000.parquet"]


def test_names_of_parts_are_in_the_order_of_the_rows(tmp_path):
    """A billion rows are a quarter of a million shards."""
    parts, indices = Parts(tmp_path, "mark"), [0, 9, 10, 4095, 99_999, 100_000, 250_000, 99_999_999]
    names = [parts.path(index).name for index in indices]
    assert sorted(names) == names


def test_a_damaged_part_is_not_taken(tmp_path):
    problem = tiny_problem("llama")
    _, (table,) = _by_shards(problem, "exact", 99)
    parts, shard = Parts(tmp_path, "mark"), _shard(problem.negatives)
    parts.write(shard, part_of(shard.rows, table))
    path = parts.path(0)
    whole = path.read_bytes()
    impact = pq.ParquetFile(path).metadata.row_group(0).column(PART_SCHEMA.names.index("impact"))
    place = impact.data_page_offset + impact.total_compressed_size - 1
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert parts.read(shard) is None
    path.write_bytes(whole[: len(whole) // 2])
    assert parts.read(shard) is None


def test_the_mark_changes_with_what_scores_are_of():
    def mark(problem, at=None, **options):
        at = at or problem.measure()
        return mark_of(problem, aim(problem, at, **options), at.objective, at.utility)

    problem = tiny_problem("llama")
    first = mark(problem)
    assert mark(problem) == first
    # each shard has its own digest, so other negatives change nothing
    fewer = answers([("Q", "A")])
    other = replace(problem, negatives=fewer, negative_texts=tokenize_rows(fewer, problem.renderer))
    assert mark(other) == first
    # but for a curvature that is made of them, however little it moves the directions
    at = problem.measure()
    aimed = aim(problem, at)
    with_them = [
        mark_of(each, aimed, at.objective, at.utility, of_negatives=True)
        for each in (problem, problem, other)
    ]
    assert with_them[0] == with_them[1] != with_them[2]
    retain = problem.utility.texts.select([0])
    changed = [
        mark(problem, scoring="fd"),
        mark(replace(problem, loss=NPO(0.7))),
        mark(replace(problem, utility=replace(problem.utility, texts=retain))),
        mark(problem, curvature=Adam()),
        mark(tiny_problem("llama", seed=3)),
    ]
    assert len({first, *changed}) == 6


def test_the_mark_changes_with_any_weight_of_the_model_however_little(monkeypatch):
    """Also where J, U and the directions' sizes, which are rounded, do not tell."""
    problem = tiny_problem("llama")
    at = problem.measure()
    aimed = aim(problem, at)

    def mark():
        return mark_of(problem, aimed, at.objective, at.utility)

    first, parameters = mark(), dict(problem.policy.model.named_parameters())
    assert len(parameters) > 10
    for p in parameters.values():
        with torch.no_grad():
            kept = p.flatten()[0].clone()
            p.flatten()[0] = torch.nextafter(kept, kept + 1)
            changed = mark()
            p.flatten()[0] = kept
        assert changed != first
    assert mark() == first
    # of large tensors a share is looked at, and training changes nearly all elements
    monkeypatch.setattr("u2a.fingerprint.SAMPLE", 3)
    sampled = mark()
    with torch.no_grad():
        next(iter(parameters.values())).mul_(1.001)
    assert mark() != sampled


def test_a_score_that_is_not_finite_names_its_row_in_the_pool():
    problem = tiny_problem("llama", dtype=torch.float32)
    at = problem.measure()
    scorer = ShardScorer.of(problem, aim(problem, at, scoring="exact"))
    later = problem.negatives.map(lambda row: {"row": row["row"] + 4096})
    with torch.no_grad():
        next(iter(problem.policy.trainable().values())).fill_(float("inf"))
    with pytest.raises(GuardStop, match=r"row 4\d\d\d"):
        scorer(later)
