"""The hooks: what a third party can add, one hook each.

A plugin is a module or object whose functions are marked with :data:`hookimpl`. Its distribution names the module
in the entry-point group ``qwen36``::

    [project.entry-points.qwen36]
    my_plugin = "my_package.qwen36"

Whatever this project ships comes through the same hooks. All plugins are loaded, once a process, when the first
hook is called: by ``qwen36``, by ``check()``, and by ``vllm serve`` when vllm-qwen36-plugin checks a checkpoint.
Keep the module cheap to import, and import heavy libraries inside its functions.

Every hook that returns a list is called anew at each question, and its lists are joined in order of registration:
built-ins first, then entry points in the order in which importlib.metadata lists them. An implementation marked
``trylast=True`` counts as registered first, one marked ``tryfirst=True`` as registered last. An exception in a
hook reaches the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from .contracts import CalibrationSource, GpuProfile

if TYPE_CHECKING:
    # The rooms above define what their hooks carry; only types are taken from them.
    import typer

    from gptq_hybrid.checkpoint import Family
    from gptq_hybrid.doctor import Rule

hookspec = pluggy.HookspecMarker("qwen36")
hookimpl = pluggy.HookimplMarker("qwen36")


@hookspec
def qwen36_families() -> list[Family]:  # type: ignore[empty-body]
    """Return families of architectures: how to recognise one, and the tensors its checkpoints hold.

    Called whenever a ``config.json`` has to be understood: by check and repair, by the writer, and by vLLM's
    processes with the plugin. Of several families whose ``matches`` accepts a config the one registered last
    wins, so a plugin's family replaces a built-in one.
    """


@hookspec
def qwen36_check_rules() -> list[Rule]:  # type: ignore[empty-body]
    """Return rules to run over a checkpoint, made with :func:`gptq_hybrid.doctor.rule`.

    Called at every check: ``qwen36 check`` and ``repair``, the check of a written checkpoint, and the checks
    before a start of vLLM. Rules run in order of registration, and each sees the same ``Inspection``. None
    replaces another, so give a rule an ``id`` of its own. A rule's ``scope`` decides which checks run it:
    ``files`` and ``mtp`` (before a start with MTP too), ``index``, ``quantized``, ``act-order`` (before a start in
    act order too), ``serving``; a scope of your own runs in the full check. A rule that raises is reported as the
    error ``rule-failed``.
    """


@hookspec
def qwen36_gpu_profiles() -> list[GpuProfile]:  # type: ignore[empty-body]
    """Return GPU models: how a driver names them, their memory, and flags of ``vllm serve``.

    Called when a serve line is made for a GPU, and by ``qwen36 tune drafts``. Of several profiles that match a
    device name the one registered last wins, so a plugin's profile replaces a built-in one.
    """


@hookspec
def qwen36_calibration_sources() -> list[CalibrationSource]:  # type: ignore[empty-body]
    """Return sources of calibration rows; each says which values of ``--calibration`` are its own.

    Called when ``qwen36 quantize`` or a calibration mix reads rows. Of several sources whose ``matches`` accepts
    a value the one registered last wins, so a plugin's source goes before a built-in one.
    """


@hookspec
def qwen36_commands(app: typer.Typer) -> None:
    """Add commands to the ``qwen36`` command line.

    Called once, when the command line starts and has its own commands; pluggy calls the plugin registered last
    first. ``qwen36 --help`` imports whatever this function imports, so load libraries inside the command.

    Args:
        app: the Typer application; add to it with ``app.command("name")(function)``.
    """
