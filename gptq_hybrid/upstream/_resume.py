"""Continuing a killed run: gptqmodel's checkpoints of a run, for this architecture and with our records.

gptqmodel 7.4 and later keep the state of a run in transactions (``CheckpointConfig``, ``gptq_checkpoint``):
nothing of that is done again here. Five things stand in the way of the hybrid, and each is a patch for upstream:

* ``validate_checkpoint_support`` allows ``llama`` and ``qwen3_moe`` only. The continuation is the layer's inputs
  and their arguments, the processors' logs and the packed modules; no model type adds to it.
* It refuses ``dynamic``, though ``packed_module_spec`` keeps bits and group size by module and the identity of a
  state holds the rules. (GPTAQ is another matter: the unquantized model's inputs are kept by ``NativeProcessor``,
  whose caches no continuation holds. That refusal stays.)
* ``_source_identity`` refuses shards that are links out of the folder, as in every snapshot of the hub's cache,
  and reads all of the source: 55 GB at 27B, before the run and before each continuation. It is replaced by the
  caller's.
* Restored modules have their tensors in the order of the constructor, packed ones in that of packing: the same
  tensors, in another order in the file, and so other bytes.
* What :func:`.record_modules` noted of finished layers goes into the continuation, so that it is
  published together with them.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gptq_hybrid.common.errors import HybridError

from ._module_record import ModuleRecord
from .gptqmodel import installed_version, moved

_RECORDS = "gptq_hybrid_records"
_ORDER = "gptq_hybrid_order"
_WAY = "gptq_hybrid_way"
_ANEW = "Begin anew with --restart."


class RunInterruptedError(HybridError):
    """Stopped on purpose, at a boundary of layers; the state is whole."""

    exit_code = 130


def can_resume() -> bool:
    """Whether the installed gptqmodel keeps the state of a run (7.4 and later)."""
    package = find_spec("gptqmodel")
    # Looked for as a file: to import it takes ten seconds and prints a banner, and the preflight asks.
    return package is not None and any(
        Path(place, "looper", "gptq_checkpoint.py").is_file()
        for place in package.submodule_search_locations or ()
    )


def checkpoint_config(folder: Path, interval: int) -> Any:
    """gptqmodel's ``CheckpointConfig`` that keeps its state in ``folder``, every ``interval`` layers.

    Two generations are kept (upstream's least): the older is what is left when the newer is damaged. A GPU of the
    same kind will do; its serial number may be another, as it is when a host of a cloud comes back.
    """
    from gptqmodel import CheckpointConfig

    return CheckpointConfig(
        path=str(folder), resume="auto", interval=f"layer:{interval}", keep_last=2, strict_device_check=False
    )


def finished_layers(folder: Path) -> int:
    """Layers in the newest published state of ``folder``; 0 if there is none.

    Raises:
        HybridError: it is not a state, or a damaged one.
    """
    current = folder / "CURRENT"
    if not current.exists():
        return 0
    try:
        # As gptqmodel does: the newest generation that can be read. It verifies the rest when it loads it.
        for reference in json.loads(current.read_bytes())["generations"]:
            manifest = folder / "objects" / str(reference)
            if manifest.is_file():
                return int(json.loads(manifest.read_bytes())["cursor"])
    except (ValueError, KeyError, TypeError) as error:
        raise HybridError(f"{current} does not hold the state of a run: {error}", remedy=_ANEW) from error
    raise HybridError(f"{folder} has lost the state of a run that {current.name} names", remedy=_ANEW)


@contextmanager
def resumable(
    records: dict[str, ModuleRecord],
    source_identity: Callable[[Path], Mapping[str, str]] | None = None,
    on_stop: Callable[[], None] | None = None,
    way: str = "",
) -> Iterator[None]:
    """Let gptqmodel keep, and continue from, the state of a run of the hybrid while the block runs.

    ``records`` goes into each state, and is filled from the one that is continued. ``source_identity(folder)``
    tells sources apart. ``on_stop()`` is called at the first Ctrl-C or SIGTERM, after which the run goes on to the
    end of its layer; a second one interrupts it at once. ``way``: how it is computed, of which a state is not
    continued in another.

    Raises:
        IncompatibleError: gptqmodel's parts are not those this was written against.
        RunInterruptedError: stopped by Ctrl-C or SIGTERM, after the state was written.
        HybridError: the state does not fit the run, or is damaged.
    """
    from gptqmodel.looper import gptq_checkpoint
    from gptqmodel.looper.checkpoint import CheckpointExtension, CheckpointStopped
    from gptqmodel.looper.checkpoint_store import CheckpointError

    validate, adapter, identity = _parts(gptq_checkpoint)
    request_stop: Callable[..., Any] | None = getattr(CheckpointExtension, "request_stop", None)
    if request_stop is None:
        raise moved("CheckpointExtension.request_stop is expected")

    def validate_hybrid(model: Any, **others: Any) -> None:
        config = copy.copy(model.quantize_config)
        config.dynamic = None
        known = SimpleNamespace(config=SimpleNamespace(model_type="llama"))
        validate(SimpleNamespace(quantize_config=config, model=known), **others)

    class Adapter(adapter):  # type: ignore[misc, valid-type]
        def capture(self) -> tuple[dict[str, Any], dict[str, Any]]:
            state, artifacts = super().capture()
            # Text, as gptqmodel's codec takes no floats that are not finite.
            state[_RECORDS] = json.dumps([asdict(record) for record in records.values()])
            state[_WAY] = way
            state[_ORDER] = {
                name: [*self.model.model.get_submodule(name)._buffers] for name in state["specs"]
            }
            return state, artifacts

        def restore(self, state: dict[str, Any], artifacts: dict[str, Any]) -> None:
            if state[_WAY] != way:
                raise HybridError(
                    f"the earlier run was computed by {state[_WAY]!r}, and this one is by {way!r}",
                    remedy="Set `faster` and `products` of the model as they were, or begin anew.",
                )
            kept = [ModuleRecord(**found) for found in json.loads(state[_RECORDS])]
            super().restore(state, artifacts)
            for name, order in state[_ORDER].items():
                buffers = self.model.model.get_submodule(name)._buffers
                found = {key: buffers.pop(key) for key in order if key in buffers}
                buffers.update({**found, **{key: buffers.pop(key) for key in [*buffers]}})
            records.update((record.module, record) for record in kept)

    def stop_at_layer(self: Any) -> None:
        if getattr(self, "_stop_requested", False):
            raise KeyboardInterrupt
        request_stop(self)
        if on_stop is not None:
            on_stop()

    gptq_checkpoint.validate_checkpoint_support = validate_hybrid
    gptq_checkpoint.QuantizationCheckpointAdapter = Adapter
    if source_identity is not None:
        gptq_checkpoint._source_identity = lambda model: dict(source_identity(Path(model.model_local_path)))
    CheckpointExtension.request_stop = stop_at_layer
    try:
        yield
    except CheckpointStopped as error:
        raise RunInterruptedError(
            "Interrupted; the layers done so far are kept", remedy="Run the same command again to continue."
        ) from error
    except CheckpointError as error:
        raise HybridError(f"the state of the earlier run cannot be used: {error}", remedy=_ANEW) from error
    finally:
        gptq_checkpoint.validate_checkpoint_support = validate
        gptq_checkpoint.QuantizationCheckpointAdapter = adapter
        gptq_checkpoint._source_identity = identity
        CheckpointExtension.request_stop = request_stop


def _parts(module: Any) -> tuple[Callable[..., Any], type, Callable[..., Any]]:
    """What is patched, after a look at how gptqmodel uses it."""
    validate = getattr(module, "validate_checkpoint_support", None)
    adapter = getattr(module, "QuantizationCheckpointAdapter", None)
    identity = getattr(module, "_source_identity", None)
    session = getattr(module, "checkpoint_session", None)
    if validate is None or adapter is None or identity is None or session is None:
        raise moved(
            "gptq_checkpoint is expected to have validate_checkpoint_support, QuantizationCheckpointAdapter, "
            "_source_identity and checkpoint_session"
        )
    if getattr(adapter, "VERSION", None) != 3:
        raise moved(f"the state adapter is of version {getattr(adapter, 'VERSION', None)}; 3 is expected")
    if "QuantizationCheckpointAdapter(" not in inspect.getsource(session):
        raise moved("checkpoint_session is expected to make a QuantizationCheckpointAdapter")
    if "_source_identity(self.model)" not in inspect.getsource(adapter.bind):
        raise moved("QuantizationCheckpointAdapter.bind is expected to call _source_identity(self.model)")
    return validate, adapter, identity


def why_not_resumable(settings: Mapping[str, Any]) -> str | None:
    """Why gptqmodel cannot continue a run with these settings of a recipe; None if it can."""
    if not can_resume():
        return f"gptqmodel {installed_version()} keeps no state of a run (7.4 and later do)"
    if settings.get("gptaq"):
        return "gptqmodel's state does not hold GPTAQ's inputs of the unquantized model"
    if settings.get("true_sequential") is False:
        return "gptqmodel keeps the state of sequential runs only (true_sequential)"
    return None
