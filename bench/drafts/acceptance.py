"""What cheaper drafts cost in acceptance, and that they change nothing else: a trained model, real text.

    python -m bench.drafts.acceptance CHECKPOINT RAW.json [--ways none bf16 w4 w8 w8:4096 w8:4096:v2]
    python -m bench.drafts.acceptance CHECKPOINT RAW.json --summary acceptance.json

CHECKPOINT is made from bench/mini (BF16, or quantized), with a draft_vocab.json for the ways that cut the
vocabulary. A way is a form of weights, and after a colon how many tokens may be drafted (0: all); `none` is no
speculation, `bf16` vLLM's own drafts. After a second colon the name of another list, `answers` for
CHECKPOINT/answers.json. With `:v2` at the end vLLM runs it in its V2 model runner, else in the one it
takes by itself (of 0.26 V1). Each is an engine of its own, and RAW.json is written after each; ways already in it
are kept unless named, and of a way the task that is not asked for. ``--summary`` writes what the page needs of it.

Greedy: held-out text, all domains, two drafts a step: acceptance by position, tokens a step, and whether the tokens
are those of `none`. Sampled: temperature 1, a prompt of each domain drawn many times; tokens two and three, which
drafts had a part in, counted against those of `none`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from bench.arguments import command_line
from bench.engine import mini_prompts, place
from bench.mini import engine
from bench.results import Json, load, save

DRAFTS, _NEW, _A_DOMAIN = 2, 64, 8
# Of sampling: tokens of a prompt (each draw computes them anew), and tokens drawn: one without drafts, two with.
_SAMPLED_LENGTH, _SAMPLED_NEW = 8, 3
TASKS = ("greedy", "sampled")
WAYS = ("none", "bf16", "w4", "w8")
_V2 = ":v2"
# Below so many expected counts the statistic is no longer distributed as chi-square (Cochran's rule).
_LEAST_EXPECTED = 5.0


def options(way: str, checkpoint: Path) -> Json:
    """The plugin's options of a way."""
    way, _, verify = way.removesuffix(_V2).partition("+")
    form, count, listed, *_ = [*way.split(":"), "", ""]
    found: Json = {"draft": "bf16" if form == "none" else form, "draft_vocab": int(count or 0)}
    found |= {"draft_vocab_file": str(checkpoint / f"{listed}.json")} if listed else {}
    return found | ({"verify": "copy"} if verify else {})


def _drafts(way: str) -> bool:
    return way.partition(":")[0] != "none"


def start(checkpoint: Path, way: str, seed: int) -> Any:
    """The engine in this process, with the plugin, which vLLM loads by its entry point."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    if way.endswith(_V2):
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    import torch

    on_gpu: Json = {}
    if way == "auto" and not torch.cuda.is_available():
        _decide_as_on_a_gpu()
    if torch.cuda.is_available():
        # Little of the card, so that others can be at work on it beside this one.
        on_gpu = {
            "gdn_prefill_backend": "triton",
            "attention_backend": "TRITON_ATTN",
            "gpu_memory_utilization": 0.1,
            "kv_cache_memory_bytes": 4 << 30,
        }
    return engine.start(
        checkpoint,
        drafts=DRAFTS if _drafts(way) else 0,
        seed=seed,
        max_num_seqs=128,
        additional_config={"qwen36": options(way, checkpoint)},
        **on_gpu,
    )


def _decide_as_on_a_gpu() -> None:
    """Let `auto` choose what it does on an Ampere card with room for a head; the plugin runs in this process."""
    from vllm_qwen36_plugin.draft_head import model

    mock.patch.object(model, "current_device", return_value=("cuda", (8, 0))).start()
    mock.patch.object(model, "share_of_cache", return_value=0.0).start()


def digest(tokens: Iterable[int]) -> str:
    """Eight hex digits of a reply; two that differ agree in them once in four billion."""
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()[:8]


def greedy(llm: Any, prompts: dict[str, list[list[int]]], *, drafts: bool) -> Json:
    """By domain: a digest of each reply, and the counters of speculation."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=_NEW, ignore_eos=True)
    by_domain: Json = {}
    before = engine.counters(llm) if drafts else []
    for domain, rows in prompts.items():
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in rows], sampling, use_tqdm=False)
        by_domain[domain] = {"replies": [digest(output.outputs[0].token_ids) for output in outputs]}
        if drafts:
            after = engine.counters(llm)
            steps, *accepted = (b - a for a, b in zip(before, after, strict=True))
            before = after
            by_domain[domain] |= {"steps": steps, "accepted": accepted}
    return by_domain


def sampled(llm: Any, prompts: dict[str, list[list[int]]], samples: int) -> dict[str, dict[str, int]]:
    """Of a prompt of each domain: how often which second and third token were drawn at temperature 1.

    The first comes from the prompt; these two have been drafted, where anything is.
    """
    from vllm import SamplingParams

    few = {domain: rows[0] for domain, rows in prompts.items()}
    each = -(-samples // len(few))
    sampling = SamplingParams(temperature=1.0, max_tokens=_SAMPLED_NEW, ignore_eos=True)
    by_domain = {}
    for domain, ids in few.items():
        prompt = {"prompt_token_ids": ids[:_SAMPLED_LENGTH]}
        outputs = llm.generate([prompt] * each, sampling, use_tqdm=False)
        drawn = (output.outputs[0].token_ids[1:] for output in outputs)
        by_domain[domain] = dict(sorted(Counter(" ".join(map(str, ids)) for ids in drawn).items()))
    return by_domain


def run(
    checkpoint: Path,
    way: str,
    before: Json,
    tasks: Sequence[str],
    samples: int,
    seed: int,
    documents: int = _A_DOMAIN,
) -> Iterator[Json]:
    """The figures asked for of one way, greedy ones first; others stay as they were ``before``."""
    prompts = mini_prompts(checkpoint, documents)
    llm = start(checkpoint, way, seed)
    figures: Json = {
        "greedy": {},
        "sampled": {},
        **before,
        "environment": place(),
        "options": options(way, Path()),
    }
    begin = time.perf_counter()
    for task in TASKS:
        if task not in tasks:
            continue
        figures[task] = (
            greedy(llm, prompts, drafts=_drafts(way)) if task == "greedy" else sampled(llm, prompts, samples)
        )
        print(f"{way}: {task}, {time.perf_counter() - begin:.0f} s", flush=True)
        yield figures


@dataclass(frozen=True, slots=True)
class Homogeneity:
    """The statistic over all groups, its degrees of freedom, and the probability of as much or more by chance."""

    statistic: float
    freedom: int
    p: float


Sample = Sequence[Hashable] | Mapping[Any, int]


def homogeneity(one: Mapping[str, Sample], other: Mapping[str, Sample]) -> Homogeneity:
    """Chi-square test of homogeneity: are two samples of every group (a prompt), drawn independently, alike?

    A sample is what was drawn, or how often each outcome was.

    Outcomes that are expected less than five times in either sample are put together. The statistics of groups add
    up, as do their degrees of freedom.

    Raises:
        ValueError: the groups differ, or nothing is left to compare.
    """
    from scipy.stats import chi2

    if one.keys() != other.keys():
        raise ValueError("the samples are of other prompts")
    statistic, freedom = 0.0, 0
    for group in one:
        added, cells = _one(Counter(one[group]), Counter(other[group]))
        statistic += added
        freedom += max(0, cells - 1)
    if freedom == 0:
        raise ValueError("every prompt has one outcome alone")
    return Homogeneity(statistic, freedom, float(chi2.sf(statistic, freedom)))


def _one(one: Counter[Hashable], other: Counter[Hashable]) -> tuple[float, int]:
    sizes = sum(one.values()), sum(other.values())
    whole = sum(sizes)
    cells, rest = [], [0, 0]
    for outcome in one.keys() | other.keys():
        counts = one[outcome], other[outcome]
        if min(sizes) * sum(counts) / whole >= _LEAST_EXPECTED:
            cells.append(counts)
        else:
            rest = [rest[0] + counts[0], rest[1] + counts[1]]
    if min(sizes) * sum(rest) / whole >= _LEAST_EXPECTED:
        cells.append((rest[0], rest[1]))
    statistic = sum(
        (count - size * sum(counts) / whole) ** 2 / (size * sum(counts) / whole)
        for counts in cells
        for count, size in zip(counts, sizes, strict=True)
    )
    return statistic, len(cells)


def summary(result: Json) -> Json:
    """What the page needs: of the draws, how they differ from those without drafts in place of their counts."""
    runs: Json = {}
    for way, run in result["runs"].items():
        none, drawn = result["runs"].get("none", {}).get("sampled"), run["sampled"]
        runs[way] = {**run, "sampled": {}}
        if way != "none" and none and drawn:
            tested = homogeneity(none, drawn)
            draws = sum(sum(counts.values()) for counts in drawn.values())
            runs[way]["sampled"] = {**asdict(tested), "draws": draws}
    return {**result, "runs": runs}


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "checkpoint", "raw")
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--samples", type=int, default=20000, help="draws of all prompts together")
    parser.add_argument("--documents", type=int, default=_A_DOMAIN, help="of each domain")
    parser.add_argument("--summary", type=Path, metavar="OUT.json", help="run nothing; summarize RAW.json")
    parser.add_argument("--one", help="this way only, in this process")
    args = parser.parse_args()
    if args.one:
        # Another seed for each way: with the same noise two ways would agree better than chance.
        before = (load(args.raw) or {"runs": {}})["runs"].get(args.one, {})
        seed = 1 + sum(args.one.encode())
        for run_ in run(args.checkpoint, args.one, before, args.tasks, args.samples, seed, args.documents):
            result = load(args.raw) or {"runs": {}}
            result["runs"][args.one] = run_
            save(args.raw, result)
        return
    if not args.summary:
        failed = []
        for way in args.ways:
            command = [sys.executable, "-m", "bench.drafts.acceptance", *sys.argv[1:], "--one", way]
            if subprocess.run(command, check=False).returncode:
                failed.append(way)
        if failed:
            sys.exit(f"failed: {', '.join(failed)}")
    result = load(args.raw)
    if result is None:
        parser.error(f"{args.raw} is not there")
    from bench.drafts.report import acceptance_table

    result = summary(result)
    print(acceptance_table(result))
    if args.summary:
        save(args.summary, result)


if __name__ == "__main__":
    main()
