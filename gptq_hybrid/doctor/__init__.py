"""What is wrong with a checkpoint, what to do about it, and how to serve it.

Light by design: no torch, no gptqmodel, no numpy at import.
"""

from ._check import ActOrder, check, check_act_order, check_mtp, check_quantized, inspect, run_rules
from ._report import Report
from .contributed import check_rules
from .findings import Fault, Finding, Inspection, Rule, Severity, rule
from .mtp_head import find_mtp
from .vllm_releases import VllmRelease, installed_vllm

__all__ = [
    "ActOrder",
    "Fault",
    "Finding",
    "Inspection",
    "Report",
    "Rule",
    "Severity",
    "VllmRelease",
    "check",
    "check_act_order",
    "check_mtp",
    "check_quantized",
    "check_rules",
    "find_mtp",
    "inspect",
    "installed_vllm",
    "rule",
    "run_rules",
]
