"""Continue a killed run: gptqmodel's checkpoints of a run, for this architecture and with our records.

gptqmodel 7.4 and later keep the state of a run in transactions (``CheckpointConfig``, ``gptq_checkpoint``);
none of that is done again here. Five things stand in the way of the hybrid, and each would be a patch for
upstream:

* ``validate_checkpoint_support`` allows ``llama`` and ``qwen3_moe`` only. A state is the layer's inputs and their
  arguments, the processors' logs and the packed modules; no model type adds to it.
* It refuses ``dynamic``, though ``packed_module_spec`` keeps bits and group size by module and the identity of
  a state holds the rules. (GPTAQ is another matter. ``NativeProcessor`` keeps the unquantized model's inputs,
  and no state holds its caches. That refusal stays.)
* ``_source_identity`` refuses shards that are links out of the folder, as in every snapshot of the hub's cache.
  It reads all of the source, 55 GB at 27B, before the run and before each continuation.
* Restored modules have their tensors in the order of the constructor, packed ones in the order of packing: the same
  tensors in another order in the file, and so other bytes.
* Records of finished layers have to be published together with those layers.

Changes: replaces ``validate_checkpoint_support``, ``QuantizationCheckpointAdapter``, ``_source_identity`` and
    ``CheckpointExtension.request_stop``.
Why: the five points above.
Versions: 7.4 and later; read in 7.6.0 and 7.7.0, where the file is the same.
Checks: the four exist, the adapter is version 3, ``checkpoint_session`` makes one, ``bind`` calls
    ``_source_identity``.
May go: when gptqmodel allows the hybrid and ``dynamic``, and takes a source identity from its caller.
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
from gptq_hybrid.losses import ModuleRecord

from .versions import installed_version, moved

_RECORDS = "gptq_hybrid_records"
_ORDER = "gptq_hybrid_order"
_METHOD = "gptq_hybrid_way"
_RESTART = "Begin anew with --restart."


class RunInterruptedError(HybridError):
    """Stopped on purpose, at a boundary of layers; the state is whole."""

    exit_code = 130


def can_resume() -> bool:
    """Whether the installed gptqmodel keeps the state of a run (7.4 and later)."""
    package = find_spec("gptqmodel")
    # By its file, as the plan of a run asks: importing it takes ten seconds and prints a banner.
    return package is not None and any(
        Path(place, "looper", "gptq_checkpoint.py").is_file()
        for place in package.submodule_search_locations or ()
    )


def checkpoint_config(folder: str | Path, interval: int) -> Any:
    """Return gptqmodel's ``CheckpointConfig`` that keeps its state in ``folder``, every ``interval`` layers.

    Two generations are kept, upstream's least: the older is left when the newer is damaged. A continuation may use
    another GPU of the same kind, as it must when a host of a cloud comes back.
    """
    from gptqmodel import CheckpointConfig

    return CheckpointConfig(
        path=str(folder), resume="auto", interval=f"layer:{interval}", keep_last=2, strict_device_check=False
    )


def finished_layers(folder: str | Path) -> int:
    """Count the layers in the newest published state of ``folder``; 0 if there is none.

    Raises:
        HybridError: what is there is no state, or a damaged one.
    """
    folder = Path(folder)
    current = folder / "CURRENT"
    if not current.exists():
        return 0
    try:
        # As gptqmodel does: the newest generation that can be read. It verifies the contents when it loads them.
        for reference in json.loads(current.read_bytes())["generations"]:
            manifest = folder / "objects" / str(reference)
            if manifest.is_file():
                return int(json.loads(manifest.read_bytes())["cursor"])
    except (ValueError, KeyError, TypeError) as error:
        raise HybridError(f"{current} does not hold the state of a run: {error}", remedy=_RESTART) from error
    raise HybridError(f"{folder} has lost the state of a run that {current.name} names", remedy=_RESTART)


@contextmanager
def resumable(
    records: dict[str, ModuleRecord],
    source_identity: Callable[[Path], Mapping[str, str]] | None = None,
    on_stop: Callable[[], None] | None = None,
    method: str = "",
) -> Iterator[None]:
    """Let gptqmodel keep, and continue from, the state of a run of the hybrid while the block runs.

    Args:
        records: goes into each state, and is filled from the state that is continued.
        source_identity: tells sources apart, by the folder of one; gptqmodel's own by default.
        on_stop: called at the first Ctrl-C or SIGTERM. The run then goes on to the end of its layer; a second
            signal interrupts it at once.
        method: how the run computes. A state is not continued by another method.

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
        allowed = SimpleNamespace(config=SimpleNamespace(model_type="llama"))
        validate(SimpleNamespace(quantize_config=config, model=allowed), **others)

    class Adapter(adapter):  # type: ignore[misc, valid-type]
        def capture(self) -> tuple[dict[str, Any], dict[str, Any]]:
            state, artifacts = super().capture()
            # As text: gptqmodel's codec takes no floats that are not finite.
            state[_RECORDS] = json.dumps([asdict(record) for record in records.values()])
            state[_METHOD] = method
            state[_ORDER] = {
                name: [*self.model.model.get_submodule(name)._buffers] for name in state["specs"]
            }
            return state, artifacts

        def restore(self, state: dict[str, Any], artifacts: dict[str, Any]) -> None:
            if state[_METHOD] != method:
                raise HybridError(
                    f"the earlier run was computed by {state[_METHOD]!r}, and this one is by {method!r}",
                    remedy="Set `faster` and `products` of the model as they were, or begin anew.",
                )
            earlier = [ModuleRecord(**fields) for fields in json.loads(state[_RECORDS])]
            super().restore(state, artifacts)
            for name, order in state[_ORDER].items():
                buffers = self.model.model.get_submodule(name)._buffers
                ordered = {key: buffers.pop(key) for key in order if key in buffers}
                buffers.update({**ordered, **{key: buffers.pop(key) for key in [*buffers]}})
            records.update((record.module, record) for record in earlier)

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
        raise HybridError(f"the state of the earlier run cannot be used: {error}", remedy=_RESTART) from error
    finally:
        gptq_checkpoint.validate_checkpoint_support = validate
        gptq_checkpoint.QuantizationCheckpointAdapter = adapter
        gptq_checkpoint._source_identity = identity
        CheckpointExtension.request_stop = request_stop


def _parts(module: Any) -> tuple[Callable[..., Any], type, Callable[..., Any]]:
    """Return what is patched, after a look at how gptqmodel uses it."""
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
    """Say why gptqmodel cannot continue a run with these settings of a recipe; None if it can."""
    if not can_resume():
        return f"gptqmodel {installed_version()} keeps no state of a run (7.4 and later do)"
    if settings.get("gptaq"):
        return "gptqmodel's state does not hold GPTAQ's inputs of the unquantized model"
    if settings.get("true_sequential") is False:
        return "gptqmodel keeps the state of sequential runs only (true_sequential)"
    return None
