"""The units of a scan: modules that vLLM loads as one count as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gptq_hybrid.checkpoint import LinearSpec, TensorLayout

Place = Literal["layer", "head", "mtp"]
WHOLE_MTP = "mtp"


@dataclass(frozen=True, slots=True)
class Unit:
    """Linears that must be stored alike.

    Attributes:
        name: the checkpoint's name; if vLLM loads several linears as one, the name of the fused module.
        kind: the name within a layer, such as ``mlp.gate_up_proj``; ``lm_head``; ``mtp.…`` for the MTP head.
        layer: None for the heads.
        place: decoder layer, output head, or MTP head.
    """

    name: str
    kind: str
    layer: int | None
    place: Place
    linears: tuple[LinearSpec, ...]

    @property
    def parameters(self) -> int:
        return sum(linear.out_features * linear.in_features for linear in self.linears)


def list_units(layout: TensorLayout, *, mtp: bool) -> list[Unit]:
    """List the decoder layers in order, the output head unless it is tied, then the MTP head if ``mtp``.

    The MTP head comes module by module and last as a whole (:data:`WHOLE_MTP`), because recipes choose one number
    of bits for all of it.
    """
    linears = {linear.name: linear for linear in layout.quantized}
    groups = {fused.shards[0]: fused for fused in layout.fused}
    inner = {shard for fused in layout.fused for shard in fused.shards[1:]}
    units = []
    for linear in layout.quantized:
        if linear.name in inner:
            continue
        fused = groups.get(linear.name)
        name, shards = (fused.name, fused.shards) if fused else (linear.name, (linear.name,))
        number, _, kind = name.removeprefix(f"{layout.layers_prefix}.").partition(".")
        units.append(Unit(name, kind, int(number), "layer", tuple(linears[shard] for shard in shards)))
    head = layout.output_head
    if head is not None:
        units.append(Unit(head.name, head.name, None, "head", (head,)))
    return units + (_list_mtp_units(layout) if mtp else [])


def _list_mtp_units(layout: TensorLayout) -> list[Unit]:
    linears = layout.mtp_linears
    if not linears:
        return []
    fused = _fused_kinds(layout)
    groups: dict[str, list[LinearSpec]] = {}
    for linear in linears:
        parent, _, leaf = linear.name.rpartition(".")
        # mtp.layers.0.self_attn.q_proj is fused with its neighbours as in any layer of full attention.
        block = parent.rpartition(".")[2]
        together = fused.get(f"{block}.{leaf}")
        name = linear.name if together is None else f"{parent}.{together.rpartition('.')[2]}"
        groups.setdefault(name, []).append(linear)
    units = [Unit(name, _mtp_kind(name), None, "mtp", tuple(group)) for name, group in groups.items()]
    return [*units, Unit(WHOLE_MTP, WHOLE_MTP, None, "mtp", tuple(linears))]


def _fused_kinds(layout: TensorLayout) -> Mapping[str, str]:
    """Map the kind of each shard to its fused kind, such as ``self_attn.q_proj`` to ``self_attn.qkv_proj``."""

    def kind(module: str) -> str:
        return module.removeprefix(f"{layout.layers_prefix}.").partition(".")[2]

    return {kind(shard): kind(fused.name) for fused in layout.fused for shard in fused.shards}


def _mtp_kind(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "layers" and not part.isdigit())
