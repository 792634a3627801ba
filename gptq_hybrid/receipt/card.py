"""A model card: what a checkpoint's own files, its receipts and its evaluation say, between two marks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import CALIBRATION_FILE, Checkpoint, layout_for
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.common.atomic import keep_previous, write_json_atomic, write_text_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.small_files import read_json, read_small_file
from gptq_hybrid.doctor import check
from gptq_hybrid.doctor.serve_line import serve_command
from gptq_hybrid.losses import LOG_NAME, as_json, read_log

from .hub import write_eval_results
from .markdown import quality_section, speed_section, table
from .quality import read_quality
from .record import KIND, Receipt, read_receipt
from .target import describe_subject

README, RECEIPTS, EVALUATION = "README.md", "receipts", "evaluation.json"
BEGIN = "<!-- qwen36 card: what is between these marks is written by `qwen36 card` -->"
END = "<!-- qwen36 card: end -->"
_GIB = 1 << 30
_MOST_DOMAINS = 24


@dataclass(frozen=True)
class CardRequest:
    """What goes on the card.

    Attributes:
        folder: of the checkpoint, where README.md goes.
        receipts: files or folders of receipts, beside those that are in the folder already.
        evaluation: of ``qwen36 eval``.
        base_model: hub id of the original.
        licence: of the checkpoint, as the hub names it.
        benchmark: id of a data set of the hub for figures of speed.
        force: replace a README.md that has no marks; it is kept as README.md.bak.
    """

    folder: Path
    receipts: tuple[Path, ...] = ()
    evaluation: Path | None = None
    base_model: str | None = None
    licence: str | None = None
    benchmark: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Written:
    """What :func:`write_card` wrote: the files, the headings of the section, and notes for people."""

    files: tuple[Path, ...]
    sections: tuple[str, ...]
    notes: tuple[str, ...]


def write_card(request: CardRequest) -> Written:
    """Write or rewrite the card of a checkpoint, with copies of its receipts beside it.

    Raises:
        HybridError: README.md was written by hand and ``force`` is not set, a receipt is of another checkpoint or
            not complete, or a file cannot be read. Nothing is written then.
    """
    folder = request.folder
    checkpoint = Checkpoint.open(folder)
    readme = folder / README
    before = read_small_file(readme).decode("utf-8", "replace") if readme.is_file() else None
    if before is not None and not _marked(before) and not request.force:
        raise HybridError(
            f"{readme} was written by hand, and is not replaced",
            remedy=f"Put these two lines where the section is to go:\n{BEGIN}\n{END}\nOr give --force: the file is "
            f"kept as {README}.bak.",
        )
    digest = checkpoint_fingerprint(checkpoint)
    receipts, notes = _receipts(request, digest)
    evaluation = request.evaluation or _kept(folder / RECEIPTS / EVALUATION)
    name = folder.resolve().name
    quality = None if evaluation is None else read_quality(evaluation, name)
    quality = quality or next((r.quality for r in receipts.values() if r.quality), None)
    parts = list(_parts(checkpoint, name, receipts, quality))
    section = "\n\n".join([BEGIN, *parts, END])
    if before is not None and _marked(before):
        text = _replaced(before, section)
    else:
        quantized = bool(checkpoint.config.get("quantization_config"))
        text = f"{_front_matter(request, quality, quantized=quantized)}\n# {name}\n\n{section}\n"
    files = [folder / RECEIPTS / file for file in receipts]
    for file, receipt in receipts.items():
        (folder / RECEIPTS).mkdir(exist_ok=True)
        receipt.write(folder / RECEIPTS / file)
    if request.evaluation is not None:
        source = request.evaluation / EVALUATION if request.evaluation.is_dir() else request.evaluation
        (folder / RECEIPTS).mkdir(exist_ok=True)
        write_json_atomic(folder / RECEIPTS / EVALUATION, read_json(source))
        files.append(folder / RECEIPTS / EVALUATION)
    if receipts and (results := _eval_results(receipts, quality, folder, request.benchmark)):
        files.append(results)
    if before is not None and not _marked(before) and (kept := keep_previous(readme, text)):
        notes.append(f"The card that was there before is in {kept}.")
    write_text_atomic(readme, text)
    titles = tuple(
        line.removeprefix("## ") for part in parts for line in part.splitlines() if line[:3] == "## "
    )
    return Written((readme, *files), titles, tuple(notes))


def _marked(text: str) -> bool:
    return 0 <= text.find(BEGIN) < text.find(END)


def _replaced(text: str, section: str) -> str:
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:begin] + section + text[end:]


def _kept(path: Path) -> Path | None:
    return path if path.is_file() else None


def _receipts(request: CardRequest, digest: str) -> tuple[dict[str, Receipt], list[str]]:
    """Read the receipts by the names that they get in the folder; those given now replace earlier ones."""
    found: dict[str, Receipt] = {}
    notes: list[str] = []
    for path in sorted((request.folder / RECEIPTS).glob("*.json")):
        content = read_json(path, most=1 << 30)
        if isinstance(content, Mapping) and content.get("kind") == KIND:
            receipt = read_receipt(path)
            if receipt.subject["digest"] not in (digest, None):
                notes.append(f"{path} is of other weights, and is left out of the card.")
            else:
                found[path.name] = receipt
    for path in request.receipts:
        receipt = read_receipt(path)
        if not receipt.complete:
            raise HybridError(f"{path} is not complete", remedy="Give its command again, and it goes on.")
        given = receipt.subject["digest"]
        if given is None:
            notes.append(f"{path} was measured elsewhere: whether it is of this checkpoint is not known.")
        elif given != digest:
            raise HybridError(
                f"{path} is of another checkpoint: {receipt.subject['name']} ({given[:16]}), and "
                f"{request.folder} is {digest[:16]}",
                remedy=f"Measure this one: qwen36 receipt {request.folder}",
            )
        found[_file_name(receipt)] = receipt
    return found, notes


def _file_name(receipt: Receipt) -> str:
    """Name a receipt by where and what: the same machine, vLLM and kind of prompts replace each other."""
    gpus = [gpu["name"] for gpu in receipt.machine.get("gpus") or []]
    place = gpus[0] if gpus else str(receipt.machine.get("cpu") or "elsewhere")
    prompts = "random" if receipt.plan.random_tokens else "prompts"
    plugin = "plugin" if receipt.server["plugin"] else "stock"
    words = f"{place} vllm {receipt.server['vllm']} {plugin} {prompts}"
    return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-") + ".json"


def _eval_results(
    receipts: Mapping[str, Receipt], quality: dict[str, Any] | None, folder: Path, benchmark: str | None
) -> Path | None:
    latest = max(receipts.values(), key=lambda receipt: receipt.made)
    latest.quality = latest.quality or quality
    return write_eval_results(latest, folder, benchmark)


def _front_matter(request: CardRequest, quality: Mapping[str, Any] | None, *, quantized: bool) -> str:
    """Return the metadata that the hub reads, by huggingface_hub's own class."""
    from huggingface_hub import ModelCardData

    base = request.base_model
    if base is None and quality is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", quality["reference"]):
        base = quality["reference"]
    data = ModelCardData(
        base_model=base,
        base_model_relation="quantized" if base and quantized else None,
        library_name="vllm",
        license=request.licence,
        pipeline_tag="text-generation",
        tags=["vllm", *(["gptq"] if quantized else []), "mtp", "speculative-decoding"],
    )
    return f"---\n{data.to_yaml().strip()}\n---\n"


def _parts(
    checkpoint: Checkpoint, name: str, receipts: Mapping[str, Receipt], quality: Mapping[str, Any] | None
) -> Iterator[str]:
    yield _what(checkpoint, name)
    # Whoever reads the card has the checkpoint elsewhere.
    command = serve_command(checkpoint)
    line = replace(command, arguments=(name, *command.arguments[1:])).line
    yield f"## Serve\n\n```bash\n{line}\n```"
    for file, receipt in receipts.items():
        picked = speed_section(receipt).replace("## Speed", f"## Speed: {_title(receipt)}", 1)
        yield (
            f"{picked}\n\nAll figures: [`{RECEIPTS}/{file}`]({RECEIPTS}/{file}). To check them: "
            f"`qwen36 receipt {name} --verify {RECEIPTS}/{file}`"
        )
    if quality is not None:
        yield quality_section(quality)
    yield from filter(None, (_calibration(checkpoint.path), _modules(checkpoint.path)))


def _title(receipt: Receipt) -> str:
    gpus = ", ".join(gpu["name"] for gpu in receipt.machine.get("gpus") or [])
    return f"{gpus or receipt.machine.get('cpu') or 'elsewhere'}, vLLM {receipt.server['vllm']}"


def _what(checkpoint: Checkpoint, name: str) -> str:
    subject = describe_subject(checkpoint, name)
    report = check(checkpoint.path, vllm=None)
    quantization = subject["quantization"]
    layout = layout_for(checkpoint.config)
    head = bool(layout.mtp) and any(tensor.startswith("mtp.") for tensor in checkpoint.loaded)
    tower = bool(layout.vision) and any(spec.name in checkpoint.loaded for spec in layout.vision)
    settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in quantization.items())
    rows = [
        (
            "architecture",
            f"{subject['architecture']}, {subject['layers']} layers, hidden {subject['hidden_size']}",
        ),
        ("quantization", settings or "none"),
        ("MTP head", "yes" if head else "no"),
        ("vision tower", "yes" if tower else "no"),
        ("weights on disk", f"{subject['disk_bytes'] / _GIB:.2f} GiB"),
        ("digest", f"`{subject['digest']}`"),
        ("`qwen36 check`", "no error" if not report.errors else "; ".join(f.message for f in report.errors)),
    ]
    return "\n".join(["## What it is", "", *table(("", ""), rows, numbers=2)])


def _calibration(folder: Path) -> str:
    """Return the section of what it was calibrated on; empty without a manifest."""
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return ""
    manifest = read_json(path)
    if not isinstance(manifest, Mapping):
        return ""
    domains = manifest.get("domains")
    rows: list[Sequence[Any]] = []
    for domain, figures in domains.items() if isinstance(domains, Mapping) else ():
        licences = ", ".join(map(str, figures.get("licences") or ())) or "not stated"
        rows.append((domain or "all", figures.get("documents"), figures.get("tokens"), licences))
    lines = ["## Calibration", "", f"From [`{CALIBRATION_FILE}`]({CALIBRATION_FILE}):", ""]
    lines += table(("domain", "rows", "tokens", "licence"), rows[:_MOST_DOMAINS], numbers=1)
    if len(rows) > _MOST_DOMAINS:
        lines.append(f"\nand {len(rows) - _MOST_DOMAINS} more")
    return "\n".join(lines)


def _modules(folder: Path) -> str:
    """Return the section of how well each kind of module was quantized; empty without a log."""
    if not (folder / LOG_NAME).is_file():
        return ""
    found = as_json(read_log(folder / LOG_NAME))
    modules = found["modules"]
    kinds: dict[str, list[float]] = {}
    for module in modules:
        if (value := module[found["measure"]]) is not None:
            kinds.setdefault(module["kind"], []).append(float(value))
    measure = str(found["measure"]).replace("_", " ").capitalize()
    rows = [(k, len(v), f"{sorted(v)[len(v) // 2]:.3g}", f"{max(v):.3g}") for k, v in kinds.items()]
    lines = [
        "## How well it was quantized",
        "",
        f"{measure} of each kind of module, from `{LOG_NAME}`:",
        "",
    ]
    return "\n".join([*lines, *table(("module", "count", "median", "worst"), rows, numbers=1)])
