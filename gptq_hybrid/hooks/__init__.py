"""Hooks for third parties: the specifications, the ``hookimpl`` marker and the plugin manager.

Imports pluggy and the standard library only.
"""

from .contracts import CalibrationSource, GpuProfile
from .manager import contributions, get_plugin_manager
from .specs import hookimpl

__all__ = ["CalibrationSource", "GpuProfile", "contributions", "get_plugin_manager", "hookimpl"]
