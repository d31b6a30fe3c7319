"""Which options each command takes."""

from __future__ import annotations

from u2a.commands.options import (
    ChatOptions,
    CheckOptions,
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    MergeOptions,
    PlanOptions,
    PoolOptions,
    ProxyOptions,
    ReportOptions,
    ReviewOptions,
    SplitOptions,
    VerifyOptions,
)
from u2a.config import (
    CodeOptions,
    DataOptions,
    ImpactOptions,
    ModelOptions,
    OuterOptions,
    ResumeOptions,
    RunOptions,
    TestOptions,
    UnlearnOptions,
    WeightOptions,
)
from u2a.evaluation import JUDGES, METRICS
from u2a.impact.curvature import CURVATURES
from u2a.losses import COMPOSED, LOSSES
from u2a.objectives import OBJECTIVES
from u2a.schema import Registry, Schema

REGISTRIES = (
    Registry(
        "loss", LOSSES, aliases={name: loss for name, (loss, _) in COMPOSED.items()}, group="u2a.losses"
    ),
    Registry("objective", OBJECTIVES, prefix="objective_", group="u2a.objectives"),
    Registry("curvature", CURVATURES, prefix="curvature_"),
)
MEASURES = (
    Registry("metrics", METRICS, group="u2a.metrics", several=True),
    Registry("judge", JUDGES, prefix="judge_", group="u2a.judges", optional=True),
)
"""What `evaluate` chooses among; a metric of the user's own is measured when it is named."""

CHECK = Schema((CheckOptions,))
SPLIT = Schema((SplitOptions,))
REPORT = Schema((ReportOptions,))
IMPACT = Schema(
    (
        DataOptions,
        PoolOptions,
        ModelOptions,
        ProxyOptions,
        ImpactOptions,
        CodeOptions,
        RunOptions,
        ResumeOptions,
    ),
    REGISTRIES,
)
ALIGN = Schema(
    (
        DataOptions,
        TestOptions,
        ModelOptions,
        ImpactOptions,
        WeightOptions,
        UnlearnOptions,
        OuterOptions,
        CodeOptions,
        RunOptions,
        ResumeOptions,
        MergeOptions,
    ),
    REGISTRIES,
)
VERIFY = Schema(
    (
        DataOptions,
        TestOptions,
        ModelOptions,
        ImpactOptions,
        UnlearnOptions,
        VerifyOptions,
        CodeOptions,
        RunOptions,
        ResumeOptions,
    ),
    REGISTRIES,
)
COMPARE = Schema(
    (
        DataOptions,
        TestOptions,
        ModelOptions,
        ImpactOptions,
        CompareOptions,
        CodeOptions,
        RunOptions,
        ResumeOptions,
    ),
    REGISTRIES,
    aside=("methods",),
)
# a run folder's config.yaml names its models; the command line says which are meant
EVALUATE = Schema((EvaluateOptions, CodeOptions, RunOptions, ResumeOptions), MEASURES, aside=("models",))
DEMO = Schema((DemoOptions,))
PLAN = Schema((PlanOptions,))
CHAT = Schema((ChatOptions,))
REVIEW = Schema((ReviewOptions,))
