"""One quantization run: a request, its plan, gptqmodel, the checkpoint.

``quantize(plan_run(request))``: the plan holds all that was worked out and checked, and the run follows it.
"""

from .estimate import Estimate, estimate_seconds
from .plan import RunPlan, plan_run
from .request import QuantizeRequest
from .run import QuantizeResult, quantize

__all__ = [
    "Estimate",
    "QuantizeRequest",
    "QuantizeResult",
    "RunPlan",
    "estimate_seconds",
    "plan_run",
    "quantize",
]
