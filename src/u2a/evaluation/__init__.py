"""Did it work, and what did it break? One file a metric, each a dataclass whose fields are its options.

A metric gives figures, an entry an example; its docstring has definition, direction (↑ higher is better,
↓ lower), unit and source. `needs` names roles of the material, one of each group being enough, and `asks`,
where there is one, options without any of which the metric is left out; `check`, where there is one, looks
at them before any model is loaded. One that sends text away has an `outlook` on what would go where, and
`consent`, the option that allows it. To add one: one file, one line in `METRICS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from u2a.evaluation.classifier import Harmful
from u2a.evaluation.coherence import Coherence
from u2a.evaluation.divergence import Divergence
from u2a.evaluation.fluency import Fluency
from u2a.evaluation.forgetting import Forgetting
from u2a.evaluation.harness import Harness
from u2a.evaluation.llm_judge import LLMJudge
from u2a.evaluation.membership import Membership
from u2a.evaluation.perplexity import Perplexity
from u2a.evaluation.preference import PreferenceMetric
from u2a.evaluation.refusal import Refusal
from u2a.evaluation.relearning import Relearning
from u2a.evaluation.reward import Reward
from u2a.evaluation.rounding import Rounding

if TYPE_CHECKING:
    from u2a.evaluation.figure import Figure
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject


class Metric(Protocol):
    """What `METRICS` holds."""

    needs: ClassVar[tuple[tuple[str, ...], ...]]

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """The figures of one model; none where the material has nothing for it."""
        ...


METRICS: dict[str, Any] = {
    "preference": PreferenceMetric,
    "perplexity": Perplexity,
    "kl": Divergence,
    "forgetting": Forgetting,
    "membership": Membership,
    "relearning": Relearning,
    "rounding": Rounding,
    "fluency": Fluency,
    "coherence": Coherence,
    "refusal": Refusal,
    "harmful": Harmful,
    "reward": Reward,
    "judge": LLMJudge,
    "harness": Harness,
}
"""Name -> metric class, in the order of the tables."""

JUDGES: dict[str, Any] = {}
"""Name -> class of a judge of the user's own (`u2a.evaluation.own_judge`) that an option named."""
