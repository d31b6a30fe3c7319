"""Scores of one shard of a pool at a time: made along directions that are computed once, kept as a parquet
file of the shard's own, and taken from there when a run is gone on with.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor

from u2a.data.collate import tokenize_rows
from u2a.data.pool import Shard
from u2a.data.render import Renderer
from u2a.fingerprint import fingerprint, fingerprint_of_model
from u2a.impact.aims import Aimed
from u2a.impact.context import ScoringContext, norm
from u2a.impact.scores import directional_derivatives
from u2a.impact.table import SCHEMA, ImpactTable, scored_rows
from u2a.losses import UnlearningLoss
from u2a.models.policy import Policy
from u2a.passes.dataset import dataset_logprobs
from u2a.problem import Problem
from u2a.storage.files import whole_file

PART_SCHEMA = pa.schema([field for field in SCHEMA if field.name not in ("prompt", "response")])
"""Columns of a part: those of `impact.parquet` without the texts, which the pool has."""


def without_gradients(aimed: Aimed) -> Aimed:
    """The same without what scoring does not read: ∇U and the gradients of J's parts."""
    return replace(aimed, aims=replace(aimed.aims, of_u={}, parts=[]))


def mark_of(
    problem: Problem, aimed: Aimed, objective: float, utility: float, *, of_negatives: bool = False
) -> str:
    """What scores are of: the model, the loss, the validation and retain texts, J and U at φ, the route, the
    directions. Scores with another mark are made again.

    Model, loss and texts are compared exactly. They decide the directions but for what nobody can see from
    here (a scorer on the network, another version of a library), which J, U and the directions' sizes tell.
    These are rounded: another number of threads, or another device, adds up in another order, and nobody
    wants a million rows scored again for the last digit.

    Args:
        of_negatives: the directions are made of the negatives of `problem`, so these are in it. Else they are
            not: each shard has its digest.
    """
    if not of_negatives:
        none = problem.negatives.select([]), problem.negative_texts.select([])
        problem = replace(problem, negatives=none[0], negative_texts=none[1])
    exact = f"{fingerprint(problem)} {fingerprint_of_model(problem.policy.model)}"
    sizes = " ".join(f"{norm(v):.3g}" for v in aimed.directions)
    loss = json.dumps([type(problem.loss).__name__, vars(problem.loss)], default=str)
    facts = f"{exact} {loss} J {objective:.4g} U {utility:.4g} {aimed.method} {sizes}"
    return sha256(facts.encode()).hexdigest()


@dataclass(frozen=True)
class ShardScorer:
    """Scores rows along directions that are there already, at the φ that they belong to.

    `max_tokens`, `self_check` as in `score_impact`. Without an adapter φ must still be the original model, as
    there is no other to take reference log-probs of. The rows of one call are batched by themselves:
    what a shard scores depends on nothing but the shard.
    """

    policy: Policy
    renderer: Renderer
    loss: UnlearningLoss
    aimed: Aimed
    max_tokens: int
    self_check: int = 4

    @classmethod
    def of(cls, problem: Problem, aimed: Aimed, self_check: int = 4) -> ShardScorer:
        """For the model and the loss of a prepared problem."""
        return cls(problem.policy, problem.renderer, problem.loss, aimed, problem.max_tokens, self_check)

    def __call__(self, rows: Dataset) -> ImpactTable:
        """Impact and utility cost of canonical negatives.

        Raises:
            UserError: a row has no tokens, or the chat template refuses it. GuardStop: a score is not finite.
            Both name the row.
        """
        texts = tokenize_rows(rows, self.renderer, role="negatives")
        pad = self.policy.tokenizer.pad_token_id or 0
        context = ScoringContext(self.policy.model, self.policy.trainable(), self.max_tokens, pad)
        found = directional_derivatives(
            context, texts, self.aimed.directions, method=self.aimed.method, self_check=self.self_check
        )
        lengths = torch.tensor(texts["n_tokens"])
        reference = self._reference(texts, found.s, pad)
        return scored_rows(self.loss, rows, lengths, reference, self.aimed.aims, found, self.aimed.solutions)

    def _reference(self, texts: Dataset, s: Tensor, pad_token_id: int) -> Tensor:
        """s_ref (N,); without a further pass where φ is still the original model."""
        if not self.policy.has_adapter or _is_new(self.policy):
            return s
        sizes: dict[str, Any] = {"max_tokens": self.max_tokens, "pad_token_id": pad_token_id}
        with self.policy.reference() as model:
            return dataset_logprobs(model, texts, **sizes)


def _is_new(policy: Policy) -> bool:
    """Whether the adapter changes nothing: every B is 0."""
    return not any(bool(p.detach().any()) for n, p in policy.model.named_parameters() if ".lora_B." in n)


def part_of(rows: Dataset, table: ImpactTable) -> pa.Table:
    """The scores as the columns of a part, with the worst self-check of `fd` as a note."""
    columns: dict[str, Any] = {"row": rows["row"][:], "id": rows["id"][:]}
    for name in PART_SCHEMA.names[2:]:
        values = getattr(table, name)
        columns[name] = [None] * len(rows) if values is None else values
    found = pa.table(columns, schema=PART_SCHEMA)
    if not table.self_checks:
        return found
    worst = max(table.self_checks, key=lambda check: check.relative_error)
    # json has no infinity, which is what a check that could not be made is off by
    check = {**asdict(worst), "relative_error": min(worst.relative_error, 1e9)}
    return found.replace_schema_metadata({"self_check": json.dumps(check)})


class Parts:
    """The folder of a pool's scores, `part-00000000.parquet` and so on, one for each shard: sorted by name
    they are in the order of the rows, up to a hundred million shards."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self.mark = folder, mark

    def path(self, index: int) -> Path:
        """Of the shard with this index."""
        return self.folder / f"part-{index:08d}.parquet"

    def write(self, shard: Shard, scores: pa.Table) -> None:
        """Keeps a shard's scores, whole: a killed process leaves all of a part or nothing."""
        noted = scores.replace_schema_metadata(
            {**(scores.schema.metadata or {}), "mark": self.mark, "rows": shard.digest}
        )
        with whole_file(self.path(shard.index)) as temporary:
            pq.write_table(noted, temporary, write_page_checksum=True)

    def read(self, shard: Shard) -> pa.Table | None:
        """What was kept, None where there is nothing of these rows and this mark, or it is damaged."""
        path = self.path(shard.index)
        if not path.is_file():
            return None
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                noted = file.schema_arrow.metadata or {}
                wanted = {b"mark": self.mark.encode(), b"rows": shard.digest.encode()}
                if any(noted.get(key) != value for key, value in wanted.items()):
                    return None
                found = file.read()
        except (pa.ArrowException, OSError):
            return None
        whole = found.num_rows == len(shard.rows) and found.schema.equals(PART_SCHEMA)
        return found if whole else None

    def drop_after(self, count: int) -> None:
        """Removes parts of shards that the pool does not have any more, and those under other names: whoever
        reads the folder would find their rows twice."""
        for path in self.folder.glob("part-*.parquet"):
            number = path.stem.removeprefix("part-")
            if number.isdigit() and (int(number) >= count or path != self.path(int(number))):
                path.unlink()
