"""How far a quantized checkpoint is from its original, by domain and with intervals."""

from ._bootstrap import Estimate
from ._compare import Comparison, Difference, DomainComparison, compare
from ._documents import ScoresError
from ._evaluation import Evaluation, Statistics, evaluation
from ._json import FormatError, as_json, from_json, read_evaluation, write_evaluation
from ._plot import plot
from ._run import DTYPES, EvalRequest, Scored, evaluate, score
from ._scores import DocumentScores
from ._summary import Acceptance, CheckpointSummary, Summary, summarize
from ._table import comparison_table, drafts_table, quality_table, tables

__all__ = [
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
    "as_json",
    "compare",
    "comparison_table",
    "drafts_table",
    "evaluate",
    "evaluation",
    "from_json",
    "plot",
    "quality_table",
    "read_evaluation",
    "score",
    "summarize",
    "tables",
    "write_evaluation",
]
