"""Choose what was left open, and say how sure the answer is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.common.errors import CheckpointError, HybridError
from gptq_hybrid.doctor.place import Place
from gptq_hybrid.doctor.serve_line import DRAFTS, FP8_SINCE, ServeCommand, has_mtp, serve_command
from gptq_hybrid.doctor.vllm_releases import VllmRelease
from gptq_hybrid.hooks import GpuProfile
from gptq_hybrid.memory import LEAST, MOST, RESERVE, TRITON_KV_DTYPES, VISION, Fit, fit, weight_bytes
from gptq_hybrid.recipes import load_recipe, recipe_names
from gptq_hybrid.recipes.sizes import quantized_bytes

from .figures import Figure, figures
from .question import MOST_SEQUENCES, Question
from .speed import EQUAL, MOST_OF_CACHE, Speed, speed

Sure = Literal["fits", "should fit", "may fit", "does not fit"]
# Shown; and what is chosen from: published heads gain little past three, and one backend failed with four.
_DRAFTS, _CHOSEN = range(5), range(4)
_GIB = 1 << 30
# vLLM's own default on cards of less than 70 GiB, and on others.
_BATCHED, _BATCHED_LARGE, _LARGE = 2048, 8192, 70


@dataclass(frozen=True, slots=True)
class Option:
    """One choice of drafts and KV type for the same question.

    Attributes:
        fit: how the memory is divided.
        at_once: sequences of the asked context that the cache holds together.
        kept: contexts of that length that stay cached while as many as can run do.
        longest: tokens that each of the asked concurrency can have at once.
        holds: whether that is what was asked for.
        speed: derived; of as many sequences as were asked for and run at once.
        round: derived; seconds until each of those asked for has replied once.
    """

    fit: Fit
    at_once: int
    kept: int
    longest: int
    holds: bool
    speed: Speed | None
    round: float | None


@dataclass(frozen=True)
class Plan:
    """The answer to a question about one checkpoint.

    Attributes:
        question: as asked.
        checkpoint: the open checkpoint.
        option: what was chosen.
        solved: names of what had been left open and was found.
        drafts: the same request with 0 to 4 drafts.
        kv_types: the same request with other KV types.
        recipes: name, bytes that stay loaded, and context of each sequence, of what this project would write.
    """

    question: Question
    checkpoint: Checkpoint
    option: Option
    solved: tuple[str, ...]
    drafts: tuple[Option, ...]
    kv_types: tuple[Option, ...]
    recipes: tuple[tuple[str, int, int], ...]

    @property
    def fit(self) -> Fit:
        """How the memory is divided."""
        return self.option.fit

    @property
    def number(self) -> int:
        """Sequences at once that the tables are for."""
        return self.question.concurrency or self.fit.sequences

    @property
    def tokens(self) -> int:
        """Tokens that each of the sequences is planned to hold at once."""
        if self.question.context is not None:
            return self.question.context
        return min(self.option.longest, self.fit.context) if self.option.longest else self.fit.context

    @cached_property
    def sure(self) -> Sure:
        """Whether the request holds at every margin, as expected, only with luck, or not."""
        for reserve, word in ((MOST, "fits"), (RESERVE, "should fit"), (LEAST, "may fit")):
            if _option(self.checkpoint, self._asked, self.fit.drafts, self.fit.kv_dtype, reserve).holds:
                return word  # type: ignore[return-value]
        return "does not fit"

    @cached_property
    def margin(self) -> tuple[int, int]:
        """Tokens that each sequence can have if running takes the most, and the least, that was seen."""
        asked = replace(self._asked, context=None, concurrency=self.fit.sequences)
        low, high = (
            _option(self.checkpoint, asked, self.fit.drafts, self.fit.kv_dtype, reserve).longest
            for reserve in (MOST, LEAST)
        )
        return low, high

    @property
    def _asked(self) -> Question:
        """The question with what was chosen, so that the same is asked at another margin."""
        asked = self.question
        if asked.context is None and asked.concurrency is None:
            asked = replace(asked, concurrency=self.fit.sequences)
        return replace(asked, images=self.fit.images)

    @cached_property
    def figures(self) -> list[Figure]:
        """Every byte of the card."""
        return figures(self.question, self.fit, tokens=self.tokens)

    @property
    def missing(self) -> int:
        """Bytes that the request lacks on this card, as expected; 0 if it holds."""
        layout, fitted = self.fit.layout, self.fit
        needed = (
            1 + fitted.sequences * (layout.sequence_blocks + layout.token_blocks(max(1, self.tokens)))
        ) * (layout.block_bytes)
        running = RESERVE + fitted.images * VISION.expected
        return max(0, needed + fitted.loaded + running - fitted.usable)

    @cached_property
    def command(self) -> ServeCommand:
        """The `vllm serve` line."""
        return serve_command(
            self.checkpoint,
            self.question.card,
            drafts=self.fit.drafts,
            schedule=self.flag_schedule,
            fitted=self.fit,
        )

    @property
    def flag_schedule(self) -> list[tuple[int, int, int]]:
        """The schedule if the release that serves knows the option; empty else."""
        return self.schedule if self.question.drafts_by_batch else []

    @cached_property
    def schedule(self) -> list[tuple[int, int, int]]:
        """Ranges of batch sizes with the drafts that are fastest there, derived; empty where fewer never pay."""
        most, drafts = self.fit.sequences, self.fit.drafts
        if not drafts or most < 2 or not self.question.card.bandwidth:
            return []
        options = [option for option in self.drafts if option.fit.drafts <= drafts]
        ranges = [(1, 1, drafts)]
        for batch in range(2, most + 1):
            first, _, before = ranges[-1]
            best = min(before, _fastest(self.checkpoint, self.question, options, batch, self.tokens))
            if best == before:
                ranges[-1] = (first, batch, best)
            else:
                ranges.append((batch, batch, best))
        return ranges if len(ranges) > 1 else []


def solve(checkpoint: Checkpoint, question: Question) -> Plan:
    """Answer a question about a checkpoint.

    Raises:
        UnsupportedArchitectureError: no family recognises the checkpoint's config.
        HybridError: drafts are asked of a checkpoint without an MTP head, images of one without a vision tower, a
            context that the model cannot take, or heads that so many GPUs cannot share.
    """
    _refuse(checkpoint, question)
    counts = tuple(_DRAFTS) if has_mtp(checkpoint) else (0,)
    asked_drafts = (question.drafts,) if question.drafts is not None else counts[: len(_CHOSEN)]
    kinds = (question.kv,) if question.kv is not None else _kv_types(question)
    options = {
        (drafts, kv): _option(checkpoint, question, drafts, kv)
        for drafts, kv in itertools.product(asked_drafts, kinds)
    }
    drafts, kv = _choose(checkpoint, options, question)
    option = options[drafts, kv]
    # The same request, so that numbers in one column are answers to one question.
    same = replace(
        question, images=option.fit.images, concurrency=question.concurrency or option.fit.sequences
    )
    if question.context is not None:
        same = replace(same, concurrency=question.concurrency or max(1, option.at_once))
    given = {
        "context": question.context,
        "concurrency": question.concurrency,
        "drafts": question.drafts,
        "KV type": question.kv,
    }
    return Plan(
        question=question,
        checkpoint=checkpoint,
        option=option,
        solved=tuple(name for name, value in given.items() if value is None),
        drafts=tuple(_option(checkpoint, same, number, kv) for number in sorted({*counts, drafts})),
        kv_types=tuple(
            _option(checkpoint, same, drafts, name) for name in ("auto", "fp8", *TRITON_KV_DTYPES[-1:])
        ),
        recipes=_recipes(checkpoint, same, option.fit),
    )


def serving(
    checkpoint: Checkpoint,
    place: Place | None,
    *,
    mtp: bool = True,
    vllm: VllmRelease | None = None,
    plugin: bool = False,
) -> ServeCommand:
    """Return the command that serves a checkpoint at a place, with the drafts that are fastest there.

    On a GPU of known bandwidth these are those of a plan in which all is left open; elsewhere two.

    Args:
        checkpoint: an open one.
        place: as for :func:`~gptq_hybrid.doctor.serve_line.serve_command`.
        mtp: whether to draft at all.
        vllm, plugin: as in :class:`Question`.
    """
    known = isinstance(place, GpuProfile) and place.bandwidth > 0
    if not (mtp and known and has_mtp(checkpoint)):
        return serve_command(checkpoint, place, drafts=DRAFTS if mtp else 0)
    assert isinstance(place, GpuProfile)
    try:
        found = solve(checkpoint, Question(place, vllm=vllm, plugin=plugin))
    except CheckpointError:  # no layer of one kind: nothing that can be derived
        return serve_command(checkpoint, place)
    if not found.fit.fits:
        return serve_command(checkpoint, place)
    return serve_command(checkpoint, place, drafts=found.fit.drafts, schedule=found.flag_schedule)


def _refuse(checkpoint: Checkpoint, question: Question) -> None:
    limit = checkpoint.text_config.get("max_position_embeddings")
    if question.context is not None and isinstance(limit, int) and question.context > limit > 0:
        raise HybridError(
            f"--context {question.context} is more than the {limit:,} tokens that this model takes",
            remedy=f"Give at most: --context {limit}",
        )
    if question.drafts and not has_mtp(checkpoint):
        raise HybridError(
            f"{checkpoint.location} has no MTP head that a loader finds, so it drafts nothing",
            remedy=f"Leave --drafts out, or bring the head: qwen36 repair {checkpoint.location} --mtp-from "
            "OWNER/ORIGINAL",
        )
    if question.images and not weight_bytes(checkpoint).vision:
        raise HybridError(
            f"{checkpoint.location} has no vision tower, so it takes no images", remedy="Leave --images out."
        )


def _kv_types(question: Question) -> tuple[str, ...]:
    """The types to choose from: 8 bits only where the card is known to have them."""
    return ("auto", "fp8") if question.card.compute_capability >= FP8_SINCE else ("auto",)


def _option(
    checkpoint: Checkpoint, question: Question, drafts: int, kv: str, reserve: int = RESERVE
) -> Option:
    context, concurrency = question.context, question.concurrency
    fitted = fit(
        checkpoint,
        question.memory,
        drafts=drafts,
        kv_dtype=kv,
        sequences=concurrency,
        context=context,
        each=concurrency is not None,
        images=question.images,
        utilization=question.utilization,
        reserve=reserve,
        state_dtype=question.state,
        tensor_parallel=question.tensor_parallel,
        checkpoints=question.flashinfer,
    )
    layout = fitted.layout
    at_once = min(MOST_SEQUENCES, layout.at_once(fitted.cache, context or max(1, fitted.context)))
    if context is not None and concurrency is None:
        fitted = replace(fitted, sequences=max(1, at_once))
    fitted = replace(fitted, batched_tokens=_batched(question, layout.block_tokens))
    holds = at_once >= (concurrency or 1) if context is not None else fitted.fits
    tokens = context or max(1, fitted.context)
    number = concurrency or 1
    run = min(number, max(1, at_once))
    kept = layout.kept(fitted.cache, tokens, run)
    found = speed(checkpoint, question, fitted, batch=run, tokens=tokens)
    return Option(
        fit=fitted,
        at_once=at_once,
        kept=min(MOST_SEQUENCES, kept),
        longest=layout.longest(fitted.cache, concurrency or fitted.sequences),
        holds=holds,
        speed=found,
        round=found.round(number, kept, tokens) if found else None,
    )


def _batched(question: Question, block: int) -> int:
    """As vLLM's default, but never less than a block: with prefix caching vLLM refuses that."""
    usual = _BATCHED_LARGE if question.card.memory_gib >= _LARGE else _BATCHED
    return -(-max(usual, block) // 1024) * 1024


def _choose(
    checkpoint: Checkpoint, options: dict[tuple[int, str], Option], question: Question
) -> tuple[int, str]:
    """Drafts and KV type.

    Of what holds, the fastest; where speeds are alike, the fewest drafts, as each takes cache. If nothing holds,
    what comes closest. Where all else is given, the KV type with the most bits that still holds it.
    """
    able = [key for key, option in options.items() if option.holds]
    if not able:
        order = list(options)
        return max(
            options, key=lambda key: (options[key].at_once, options[key].longest, -key[0], order.index(key))
        )
    kinds = list(dict.fromkeys(kv for _, kv in able))
    kv = kinds[-1]
    counts = [drafts for drafts, kind in able if kind == kv]
    if question.context is None and question.concurrency is None:
        counts, rounds = _alone(checkpoint, question, {drafts: options[drafts, kv].fit for drafts in counts})
    else:
        rounds = {drafts: found for drafts in counts if (found := options[drafts, kv].round)}
    if rounds:
        enough = min(rounds.values()) * (1 + EQUAL)
        drafts = min(drafts for drafts, seconds in rounds.items() if seconds <= enough)
    else:  # nothing is known of the card's speed
        drafts = min(counts, key=lambda number: abs(number - DRAFTS))
    if question.context is not None and question.concurrency is not None:
        kv = next(kind for kind in kinds if (drafts, kind) in able)
    return drafts, kv


def _alone(
    checkpoint: Checkpoint, question: Question, fits: dict[int, Fit]
) -> tuple[list[int], dict[int, float]]:
    """Numbers of drafts to choose from where the context is what is left, and seconds of a reply to one alone.

    Speeds are of the shortest context, as what is compared must be the same. More than two drafts are no choice
    where they cost a sequence, or more of the context than the plugin's copy of the output head may.
    """
    usual = fits.get(DRAFTS)
    able = {
        drafts: fitted
        for drafts, fitted in fits.items()
        if drafts <= DRAFTS
        or usual is None
        or (fitted.sequences >= usual.sequences and fitted.context >= usual.context * (1 - MOST_OF_CACHE))
    }
    tokens = min(fitted.context for fitted in able.values())
    found = {
        drafts: speed(checkpoint, question, fitted, batch=1, tokens=tokens) for drafts, fitted in able.items()
    }
    return list(able), {drafts: one.round(1, 1, tokens) for drafts, one in found.items() if one}


def _fastest(
    checkpoint: Checkpoint, question: Question, options: Sequence[Option], batch: int, tokens: int
) -> int:
    speeds = {
        option.fit.drafts: found.total
        for option in options
        if (found := speed(checkpoint, question, option.fit, batch=batch, tokens=tokens))
    }
    most = max(speeds.values())
    return min(drafts for drafts, total in speeds.items() if total >= most * (1 - EQUAL))


def _recipes(checkpoint: Checkpoint, question: Question, chosen: Fit) -> tuple[tuple[str, int, int], ...]:
    """What recipes of this project would leave to each sequence; the largest rest for each size."""
    layout = layout_for(checkpoint.config)
    running = RESERVE + chosen.images * VISION.expected
    found = []
    for name in recipe_names():
        recipe = load_recipe(name)
        text_only = recipe.packaging.text_only or not chosen.images
        size = quantized_bytes(
            layout,
            recipe.settings,
            replace(recipe.packaging, text_only=text_only),
            keep_mtp=bool(chosen.drafts),
        )
        each = -(-size // question.tensor_parallel)
        cache = max(0, chosen.usable - each - running)
        found.append((name, size, chosen.layout.longest(cache, chosen.sequences)))
    return tuple(found)
