"""Does it fit, with what flags, and what would be given up: from headers alone; and what a start-up log means."""

from .explain import Explanation, Gain, explain, gains_table, sentences
from .explain import as_json as explanation_json
from .figures import Figure, figures
from .plot import draw, plot_plan
from .question import ACCEPTANCE, Question, card_given, read_acceptance, read_bandwidth
from .report import answers, as_json, choices_table, drafts_table, flags, parts_table, verdict
from .solve import Option, Plan, serving, solve
from .speed import Speed, speed
from .startup_log import StartupLog, parse_log, read_log
from .states import about_states, half_states

__all__ = [
    "ACCEPTANCE",
    "Explanation",
    "Figure",
    "Gain",
    "Option",
    "Plan",
    "Question",
    "Speed",
    "StartupLog",
    "about_states",
    "answers",
    "as_json",
    "card_given",
    "choices_table",
    "drafts_table",
    "draw",
    "explain",
    "explanation_json",
    "figures",
    "flags",
    "gains_table",
    "half_states",
    "parse_log",
    "parts_table",
    "plot_plan",
    "read_acceptance",
    "read_bandwidth",
    "read_log",
    "sentences",
    "serving",
    "solve",
    "speed",
    "verdict",
]
