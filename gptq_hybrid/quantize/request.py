"""What ``qwen36 quantize`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gptq_hybrid.calibration import DEFAULT_CALIBRATION, DEFAULT_PACK
from gptq_hybrid.common.paths import keep_paths
from gptq_hybrid.recipes import DEFAULT_RECIPE, Recipe, load_recipe
from gptq_hybrid.writer import Limits


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """The arguments of a quantization run, named as the options of ``qwen36 quantize``.

    Attributes:
        source: folder of the BF16 original.
        target: folder to create.
        recipe: settings for gptqmodel and the writer.
        calibration: where rows come from, as ``--calibration`` takes it.
        samples: calibration rows.
        max_length: tokens kept of each document.
        batch_size: rows per forward pass.
        seed: for drawing calibration rows.
        pack: fill rows with several whole documents each.
        exclude: JSONL files that are evaluated on, whose documents are not drawn.
        keep_mtp: keep the MTP head, or write none.
        resume: keep the state of the run beside the target, and continue from one that is there.
        restart: throw an earlier state away first.
        state_every: layers between two states; by their size if None.
        limits: past which the run counts as failed.
    """

    source: Path
    target: Path
    recipe: Recipe = field(default_factory=lambda: load_recipe(DEFAULT_RECIPE))
    calibration: str = DEFAULT_CALIBRATION
    samples: int = 512
    max_length: int = 2048
    batch_size: int = 1
    seed: int = 0
    pack: bool = DEFAULT_PACK
    exclude: tuple[str, ...] = ()
    keep_mtp: bool = True
    resume: bool = True
    restart: bool = False
    state_every: int | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        keep_paths(self, "source", "target")

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return int(self.recipe.settings["group_size"])

    @property
    def most_tokens(self) -> int:
        """Calibration tokens at most; most documents are shorter than ``max_length``."""
        return self.samples * self.max_length
