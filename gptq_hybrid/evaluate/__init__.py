"""How far a quantized checkpoint is from its original, by domain and with intervals."""

from ._page import write_evaluation_page
from ._plot import plot_evaluation
from ._result import (
    Evaluation,
    Statistics,
    as_json,
    build_evaluation,
    from_json,
    read_evaluation,
    write_evaluation,
)
from ._run import EvalRequest, Scored, evaluate, score
from ._task_table import task_tables
from .bootstrap import Estimate
from .compare import Comparison, Difference, DomainComparison, compare
from .documents import DocumentScores, ScoresError
from .inputs import checkpoint_name
from .summary import Acceptance, CheckpointSummary, Summary, summarize
from .table import (
    comparison_table,
    drafts_table,
    evaluation_summary,
    evaluation_tables,
    quality_table,
)
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
    "Acceptance",
    "CheckpointSummary",
    "Comparison",
    "Difference",
    "DocumentScores",
    "DomainComparison",
    "Estimate",
    "EvalRequest",
    "Evaluation",
    "Scored",
    "ScoresError",
    "Statistics",
    "Summary",
    "TaskDifference",
    "TaskRequest",
    "TaskResults",
    "TaskScore",
    "as_json",
    "build_evaluation",
    "check_tasks",
    "checkpoint_name",
    "compare",
    "comparison_table",
    "drafts_table",
    "evaluate",
    "evaluate_tasks",
    "evaluation_summary",
    "evaluation_tables",
    "from_json",
    "plot_evaluation",
    "quality_table",
    "read_evaluation",
    "score",
    "summarize",
    "task_tables",
    "write_evaluation",
    "write_evaluation_page",
]
