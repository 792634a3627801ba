"""One quantization run: preflight, gptqmodel, verdict, checkpoint."""

from ._preflight import Preflight, preflight
from ._run import QuantizeRequest, QuantizeResult, quantize

__all__ = ["Preflight", "QuantizeRequest", "QuantizeResult", "preflight", "quantize"]
