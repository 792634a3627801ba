"""How far a quantized checkpoint is from its original, by domain and with intervals."""

from gptq_hybrid.common.machine import environment
from gptq_hybrid.common.typed_json import FormatError

from ._evaluation import Evaluation, Statistics, evaluation
from ._json import as_json, from_json, read_evaluation, write_evaluation
from ._plot import plot
from ._run import DTYPES, EvalRequest, Scored, evaluate, score
from ._scores import DocumentScores
from ._task_table import task_tables
from .bootstrap import Estimate
from .compare import Comparison, Difference, DomainComparison, compare
from .documents import ScoresError
from .inputs import name_of
from .summary import Acceptance, CheckpointSummary, Summary, summarize
from .table import comparison_table, drafts_table, quality_table, tables
from .tasks import (
    BACKENDS,
    TaskDifference,
    TaskRequest,
    TaskResults,
    TaskScore,
    check_tasks,
    evaluate_tasks,
)

__all__ = [
    "BACKENDS",
    "DTYPES",
    "Acceptance",
    "CheckpointSummary",
    "Comparison",
    "Difference",
    "DocumentScores",
    "DomainComparison",
    "Estimate",
    "EvalRequest",
    "Evaluation",
    "FormatError",
    "Scored",
    "ScoresError",
    "Statistics",
    "Summary",
    "TaskDifference",
    "TaskRequest",
    "TaskResults",
    "TaskScore",
    "as_json",
    "check_tasks",
    "compare",
    "comparison_table",
    "drafts_table",
    "environment",
    "evaluate",
    "evaluate_tasks",
    "evaluation",
    "from_json",
    "name_of",
    "plot",
    "quality_table",
    "read_evaluation",
    "score",
    "summarize",
    "tables",
    "task_tables",
    "write_evaluation",
]
