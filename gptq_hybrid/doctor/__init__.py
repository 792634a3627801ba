"""What is wrong with a checkpoint, what to do about it, and how to serve it.

Imports no torch, gptqmodel, numpy or HTTP library; ``gptq_hybrid.doctor.repair`` is imported by those who repair.
"""

from ._check import (
    DEADLINE,
    NOT_READ,
    ActOrder,
    check,
    check_act_order,
    check_mtp,
    check_quantized,
    check_rules,
    inspect,
    run_rules,
)
from .findings import Fault, Finding, Inspection, Rule, Severity, rule
from .mtp_head import find_mtp
from .report import Report, finding_json
from .vllm_releases import VllmRelease, installed_vllm

__all__ = [
    "DEADLINE",
    "NOT_READ",
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
    "finding_json",
    "inspect",
    "installed_vllm",
    "rule",
    "run_rules",
]
