"""What is written beside a receipt: a section of a model card, a picture, results for the hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from gptq_hybrid.common.atomic import write_text_atomic

from .hub import write_eval_results
from .markdown import quality_section, speed_section
from .record import NAME, Receipt


def write_outputs(receipt: Receipt, folder: Path, benchmark: str | None = None) -> list[Path]:
    """Write ``receipt.json``, ``receipt.md``, ``receipt.png`` and ``.eval_results``; return what was written.

    The picture needs matplotlib; without it there is none.

    Raises:
        HybridError: there are results for the hub, and the installed huggingface_hub is too old.
    """
    receipt.write(folder / NAME)
    written = [folder / NAME]
    sections = [speed_section(receipt)]
    if receipt.quality is not None:
        sections.append(quality_section(receipt.quality))
    write_text_atomic(folder / "receipt.md", "\n\n".join(sections) + "\n")
    written.append(folder / "receipt.md")
    if find_spec("matplotlib") is not None:
        from .picture import plot

        plot(receipt, folder / "receipt.png")
        written.append(folder / "receipt.png")
    results = write_eval_results(receipt, folder, benchmark)
    return [*written, *([results] if results else [])]
