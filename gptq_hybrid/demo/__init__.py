"""A small, real checkpoint of the architecture whose behaviour is known by construction, and text for it."""

from .builder import DemoCheckpoint, build_demo_checkpoint
from .spec import DemoSpec, MtpLayout

__all__ = ["DemoCheckpoint", "DemoSpec", "MtpLayout", "build_demo_checkpoint"]
