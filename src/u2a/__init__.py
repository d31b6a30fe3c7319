"""u2a: Unlearning to Align. The public names; loaded when first used, so that `import u2a` is quick."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` loads them
    from u2a.alignment.outer_loop import align as align
    from u2a.alignment.result import AlignResult as AlignResult
    from u2a.config import OuterOptions as OuterOptions
    from u2a.config import UnlearnOptions as UnlearnOptions
    from u2a.config import WeightOptions as WeightOptions
    from u2a.config import option as option
    from u2a.data.load import load_negatives as load_negatives
    from u2a.data.load import load_preferences as load_preferences
    from u2a.data.load import load_prompts as load_prompts
    from u2a.data.load import load_retain as load_retain
    from u2a.data.weighted_rows import drawn_by_weight as drawn_by_weight
    from u2a.data.weighted_rows import weighted_negatives as weighted_negatives
    from u2a.evaluation.evaluate import Evaluation as Evaluation
    from u2a.evaluation.evaluate import evaluate as evaluate
    from u2a.evaluation.figure import Figure as Figure
    from u2a.evaluation.material import Material as Material
    from u2a.evaluation.preference import PairMetrics as PairMetrics
    from u2a.evaluation.preference import pair_metrics as pair_metrics
    from u2a.evaluation.subject import Subject as Subject
    from u2a.impact.curvature import EKFAC as EKFAC
    from u2a.impact.curvature import KFAC as KFAC
    from u2a.impact.curvature import Adam as Adam
    from u2a.impact.curvature import Diagonal as Diagonal
    from u2a.impact.curvature import GaussNewton as GaussNewton
    from u2a.impact.curvature import Hessian as Hessian
    from u2a.impact.curvature import Identity as Identity
    from u2a.impact.several import score_curvatures as score_curvatures
    from u2a.impact.table import ImpactTable as ImpactTable
    from u2a.impact.table import score_impact as score_impact
    from u2a.losses import NPO as NPO
    from u2a.losses import GradientAscent as GradientAscent
    from u2a.losses import SimNPO as SimNPO
    from u2a.losses import UnlearningLoss as UnlearningLoss
    from u2a.models.policy import Policy as Policy
    from u2a.models.policy import load_policy as load_policy
    from u2a.models.tiny_model import tiny_model as tiny_model
    from u2a.objectives import MeanLogProb as MeanLogProb
    from u2a.objectives import Objective as Objective
    from u2a.objectives import Preference as Preference
    from u2a.objectives import Reward as Reward
    from u2a.preparation import prepare as prepare
    from u2a.problem import Measurement as Measurement
    from u2a.problem import Problem as Problem
    from u2a.trainer import UnlearnTrainer as UnlearnTrainer
    from u2a.training.config import U2AConfig as U2AConfig
    from u2a.trajectory.estimate import TrajectoryImpact as TrajectoryImpact
    from u2a.trajectory.first_order import first_order_impact as first_order_impact
    from u2a.trajectory.metagradient import metagradient_impact as metagradient_impact
    from u2a.types import GuardStop as GuardStop
    from u2a.types import Message as Message
    from u2a.types import OutOfMemory as OutOfMemory
    from u2a.types import UserError as UserError
    from u2a.validation import pair_texts as pair_texts
    from u2a.verification.verify import Verification as Verification
    from u2a.verification.verify import verify as verify

__version__ = version("u2a")

_HOME = {
    "Adam": "u2a.impact.curvature",
    "AlignResult": "u2a.alignment.result",
    "Diagonal": "u2a.impact.curvature",
    "EKFAC": "u2a.impact.curvature",
    "Evaluation": "u2a.evaluation.evaluate",
    "Figure": "u2a.evaluation.figure",
    "GaussNewton": "u2a.impact.curvature",
    "GradientAscent": "u2a.losses",
    "GuardStop": "u2a.types",
    "Hessian": "u2a.impact.curvature",
    "Identity": "u2a.impact.curvature",
    "ImpactTable": "u2a.impact.table",
    "KFAC": "u2a.impact.curvature",
    "Material": "u2a.evaluation.material",
    "MeanLogProb": "u2a.objectives",
    "Measurement": "u2a.problem",
    "Message": "u2a.types",
    "NPO": "u2a.losses",
    "Objective": "u2a.objectives",
    "OutOfMemory": "u2a.types",
    "OuterOptions": "u2a.config",
    "PairMetrics": "u2a.evaluation.preference",
    "Policy": "u2a.models.policy",
    "Preference": "u2a.objectives",
    "Problem": "u2a.problem",
    "Reward": "u2a.objectives",
    "SimNPO": "u2a.losses",
    "Subject": "u2a.evaluation.subject",
    "TrajectoryImpact": "u2a.trajectory.estimate",
    "U2AConfig": "u2a.training.config",
    "UnlearnOptions": "u2a.config",
    "UnlearnTrainer": "u2a.trainer",
    "UnlearningLoss": "u2a.losses",
    "UserError": "u2a.types",
    "Verification": "u2a.verification.verify",
    "WeightOptions": "u2a.config",
    "align": "u2a.alignment.outer_loop",
    "drawn_by_weight": "u2a.data.weighted_rows",
    "evaluate": "u2a.evaluation.evaluate",
    "first_order_impact": "u2a.trajectory.first_order",
    "load_negatives": "u2a.data.load",
    "load_policy": "u2a.models.policy",
    "load_preferences": "u2a.data.load",
    "load_prompts": "u2a.data.load",
    "load_retain": "u2a.data.load",
    "metagradient_impact": "u2a.trajectory.metagradient",
    "option": "u2a.config",
    "pair_metrics": "u2a.evaluation.preference",
    "pair_texts": "u2a.validation",
    "prepare": "u2a.preparation",
    "score_curvatures": "u2a.impact.several",
    "score_impact": "u2a.impact.table",
    "tiny_model": "u2a.models.tiny_model",
    "verify": "u2a.verification.verify",
    "weighted_negatives": "u2a.data.weighted_rows",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
