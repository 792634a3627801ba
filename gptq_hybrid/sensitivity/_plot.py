"""A heat map of a scan: layers across, kinds of module down, one panel per precision."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures
from gptq_hybrid.common.extras import need

from ._precisions import STORED
from ._result import Sensitivity

# Colours reach from the largest value down to this share of it; smaller values get the last colour.
_SMALLEST_SHARE = 1e-4
_LABELS = 16  # layers that are numbered, at most


def plot_sensitivity(result: Sensitivity, path: str | Path) -> None:
    """Draw the mean KLD of every module into the PNG file ``path``, which appears only once it is complete.

    Colours are logarithmic. Each panel has its own scale, because 8 bits cost some hundred times less than 4. Grey
    means that a layer has no such module. The output head belongs to no layer and has a column at the right.

    Raises:
        HybridError: matplotlib is not installed.
    """
    path = Path(path)
    np = need("numpy")
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grids = [_grid(result, form, np) for form in result.forms]
    kinds, depth = grids[0][0], grids[0][1].shape[1] - 2
    width = min(16.0, 4.6 + 0.19 * max(depth, 24))
    height = 1.5 + len(grids) * (0.75 + 0.32 * len(kinds))
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(len(grids), 1, sharex=True, squeeze=False)[:, 0])
    for ax, form, (_, values) in zip(axes, result.forms, grids, strict=True):
        norm = _scale(values, np)
        shown = np.ma.masked_invalid(np.clip(values, norm.vmin, norm.vmax))
        image = ax.imshow(shown, cmap=_colours(), norm=norm, aspect="auto", interpolation="nearest")
        ax.set_yticks(range(len(kinds)), [figures.text(kind) for kind in kinds], fontsize=8)
        ax.set_title(_describe_precision(result, form), fontsize=9, loc="left")
        _draw_grid_lines(ax, len(kinds), depth + 2)
        bar = figure.colorbar(image, ax=ax, pad=0.01, fraction=0.05)
        bar.set_label("mean KLD, nats per token", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    step = max(1, -(-depth // _LABELS))
    numbers = list(range(0, depth, step))
    axes[-1].set_xticks([*numbers, depth + 1], [*map(str, numbers), "head"], fontsize=8)
    axes[-1].set_xlabel("layer", fontsize=9)
    figure.suptitle(figures.text(_title(result, int(width * 14))), fontsize=9, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def _scale(values: Any, np: Any) -> Any:
    """Return a scale from the least to the largest value, over at most four decades."""
    from matplotlib.colors import LogNorm

    positive = values[np.isfinite(values) & (values > 0)]
    largest = float(positive.max()) if positive.size else 1.0
    least = float(positive.min()) if positive.size else largest
    if least == largest:  # a single value, or a precision that changed nothing
        least = largest / 10
    return LogNorm(max(least, largest * _SMALLEST_SHARE), largest)


def _grid(result: Sensitivity, form: str, np: Any) -> tuple[list[str], Any]:
    """Return kinds and KLD ``[kinds, layers + 2]``: NaN for no module; a gap and the output head at the right."""
    in_layers = [module for module in result.modules if module.layer is not None]
    kinds = list(dict.fromkeys(module.kind for module in in_layers))
    # The blocks of a layer in the order of the forward pass, whichever kind of layer comes first.
    kinds.sort(key=lambda kind: kind.startswith("mlp."))
    heads = [m for m in result.modules if m.layer is None and any(x.kld for x in m.measured)]
    kinds += [module.kind for module in heads]
    depth = 1 + max((module.layer for module in in_layers if module.layer is not None), default=-1)
    values = np.full((len(kinds), depth + 2), np.nan)
    for module in (*in_layers, *heads):
        measured = module.measured_in(form)
        if measured is not None and measured.kld is not None:
            column = depth + 1 if module.layer is None else module.layer
            values[kinds.index(module.kind), column] = measured.kld.value
    return kinds, values


def _colours() -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"].with_extremes(bad="0.93")


def _draw_grid_lines(ax: Any, rows: int, columns: int) -> None:
    """Draw thin white lines between cells."""
    ax.set_xticks([i - 0.5 for i in range(1, columns)], minor=True)
    ax.set_yticks([i - 0.5 for i in range(1, rows)], minor=True)
    ax.grid(which="minor", color="white", linewidth=0.6)
    ax.tick_params(which="both", length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def _describe_precision(result: Sensitivity, form: str) -> str:
    if form == STORED:
        title = f"as stored in {result.quantized}"
    else:
        group_size = result.settings.get("group_size", "?")
        title = f"rounded to {form.removeprefix('rtn')} bit, groups of {group_size}"
    together = next((t for t in result.together if t.form == form), None)
    if together is not None:
        title += f": sum {together.kld_sum.value:.3g}, all together {together.kld.value:.3g}"
    return figures.text(title)


def _title(result: Sensitivity, columns: int) -> str:
    settings = result.settings
    where = str(result.environment.get("device", ""))
    versions = [f"{name} {value}" for name, value in result.environment.items() if name != "device"]
    lines = [
        f"{result.reference}, one module quantized at a time: {settings.get('documents', 0):,} documents, "
        f"{settings.get('tokens', 0):,} tokens",
        *textwrap.wrap("; ".join([where] * bool(where) + versions), columns),
    ]
    return "\n".join(line for line in lines if line)
