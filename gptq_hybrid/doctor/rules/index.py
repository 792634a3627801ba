"""Rules: does the index tell the truth about the files, and are the files whole?"""

from __future__ import annotations

import glob
from collections.abc import Iterator

from gptq_hybrid.checkpoint import INDEX_NAME, is_weight_file
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .samples import samples

_REPAIR = "Rebuild the index from the files: qwen36 repair {path}"
# Two copies of a whole shard hold hundreds of tensors; a difference shows in the first few.
_MOST_COMPARED = 16
_FETCH = "Fetch the file again from where it came from."


@rule(
    "index-unreadable",
    scope="files",
    explanation="vLLM and transformers read model.safetensors.index.json first and fail on a broken one.",
    remedy=_REPAIR,
)
def unreadable(inspection: Inspection) -> Iterator[Fault]:
    if inspection.checkpoint.index_error is not None:
        yield Fault(inspection.checkpoint.index_error.message, file=INDEX_NAME)


def _named_for(inspection: Inspection) -> dict[str, list[str]]:
    """The tensors that the index names, by file."""

    def compute(inspection: Inspection) -> dict[str, list[str]]:
        by_file: dict[str, list[str]] = {}
        for tensor, file in (inspection.checkpoint.index or {}).items():
            by_file.setdefault(file, []).append(tensor)
        return by_file

    return inspection.once("index_by_file", compute)


@rule(
    "file-outside",
    scope="files",
    explanation="A name or link that leads out of the checkpoint is not followed: it could expose other files.",
    remedy="Put the file itself into the checkpoint folder, or allow links with --follow-symlinks.",
)
def outside(inspection: Inspection) -> Iterator[Fault]:
    for name, reason in inspection.checkpoint.refused_files.items():
        tensors = _named_for(inspection).get(name, [])
        subject = f"{INDEX_NAME} sends {some(tensors)} to {name!r}, which" if tensors else repr(name)
        yield Fault(f"{subject} {reason}", tensor=tensors[0] if tensors else None, file=name)


@rule(
    "file-in-subfolder",
    scope="files",
    explanation="vLLM looks for weights in the checkpoint folder itself, not in folders below it.",
    remedy="Move the file beside config.json, and change its name in the index.",
)
def in_subfolder(inspection: Inspection) -> Iterator[Fault]:
    inspection.checkpoint.read_all_headers()
    for name in inspection.checkpoint.referenced:
        if "/" in name and name not in inspection.checkpoint.refused_files:
            header = inspection.checkpoint.headers.get(name)
            head = header is not None and all(tensor.startswith("mtp.") for tensor in header.tensors)
            yield Fault(
                f"{INDEX_NAME} names {name}, below the checkpoint folder"
                + (": the MTP head" if head else ""),
                file=name,
                remedy="Move it: qwen36 repair {path}" if head else None,
            )


@rule(
    "file-name",
    scope="files",
    explanation='vLLM searches the folder for "*.safetensors" as a shell would, and opens what it finds.',
    remedy="Rename the file, in the index too: NAME.safetensors in small letters, without a dot before it.",
)
def not_found_by_name(inspection: Inspection) -> Iterator[Fault]:
    checkpoint = inspection.checkpoint
    absent = {*checkpoint.refused_files, *checkpoint.missing_files}
    for name in checkpoint.referenced:
        if "/" not in name and name not in absent and not is_weight_file(name):
            yield Fault(f"{INDEX_NAME} names {name}, which vLLM does not find by that name", file=name)
    folder = checkpoint.files.folder
    if folder is None:
        return
    # As vLLM has it: the folder's own name is part of the pattern, which Path.glob() would not do.
    pattern = f"{folder}/*.safetensors"
    if glob.has_magic(str(folder)) and checkpoint.on_disk and not glob.glob(pattern):  # noqa: PTH207
        yield Fault(
            f"vLLM takes the brackets, stars or question marks in {folder} for a pattern, and finds no weights",
            remedy="Rename the folder.",
        )
    if checkpoint.index is None:
        for path in sorted(folder.glob("*.safetensors")):
            if is_weight_file(path.name) and not path.is_file():
                yield Fault(
                    f"{path.name} is no file, and without an index vLLM opens it all the same",
                    file=path.name,
                    remedy="Move it out of the folder.",
                )


@rule(
    "index-missing-file",
    scope="files",
    explanation="vLLM up to 0.22 silently skips a file that the index names and nobody has; later releases fail.",
    remedy=_FETCH,
)
def missing_file(inspection: Inspection) -> Iterator[Fault]:
    for name in inspection.checkpoint.missing_files:
        tensors = _named_for(inspection)[name]
        yield Fault(
            f"{INDEX_NAME} names {name}, which does not exist; it should hold {some(tensors)}",
            file=name,
            remedy=f"Fetch {name} again; if it lies elsewhere, put it beside {INDEX_NAME}.",
        )


@rule(
    "shard-unreadable",
    scope="files",
    explanation="A shard whose header and size disagree was cut short, or is not safetensors at all.",
    remedy=_FETCH,
)
def shard_unreadable(inspection: Inspection) -> Iterator[Fault]:
    inspection.checkpoint.read_all_headers()
    referenced = set(inspection.checkpoint.referenced)
    for name, error in sorted(inspection.checkpoint.header_errors.items()):
        if name in referenced:
            yield Fault(error.message, file=name, remedy=error.remedy)


@rule(
    "consolidated-files",
    scope="files",
    explanation="If there is a consolidated*.safetensors, vLLM reads that (Mistral's layout) and nothing else.",
    remedy="Move the consolidated*.safetensors files out of the folder.",
)
def consolidated(inspection: Inspection) -> Iterator[Fault]:
    for name in inspection.checkpoint.listing or ():
        if name.startswith("consolidated") and name.endswith(".safetensors"):
            yield Fault(f"{name} would be loaded instead of the model", file=name)


@rule(
    "no-weights",
    scope="files",
    explanation="A folder without a safetensors file serves nothing.",
    remedy=_FETCH,
)
def no_weights(inspection: Inspection) -> Iterator[Fault]:
    if not inspection.checkpoint.referenced:
        yield Fault("there is no safetensors file")


@rule(
    "index-stale-entry",
    scope="index",
    severity=Severity.WARNING,
    explanation="vLLM reads whole files and does not notice; transformers looks a tensor up where the index says.",
    remedy=_REPAIR,
)
def stale_entry(inspection: Inspection) -> Iterator[Fault]:
    inspection.checkpoint.read_all_headers()
    headers = inspection.checkpoint.headers
    wrong = [
        (name, file)
        for name, file in (inspection.checkpoint.index or {}).items()
        if file in headers and name not in headers[file].tensors
    ]
    if wrong:
        name, file = wrong[0]
        yield Fault(
            f"{len(wrong)} entries of {INDEX_NAME} name a file that does not hold the tensor: "
            + some(f"{n} in {f}" for n, f in wrong),
            tensor=name,
            file=file,
        )


@rule(
    "index-unnamed-tensor",
    scope="index",
    severity=Severity.WARNING,
    explanation="vLLM reads whole files, so it finds the tensor; transformers and gptqmodel do not.",
    remedy=_REPAIR,
)
def unnamed_tensor(inspection: Inspection) -> Iterator[Fault]:
    index = inspection.checkpoint.index
    if index is None:
        return
    unnamed = [name for name in inspection.checkpoint.loaded if name not in index]
    if unnamed:
        first = inspection.checkpoint.loaded[unnamed[0]]
        yield Fault(
            f"{len(unnamed)} tensors are not named in {INDEX_NAME}: {some(unnamed)}",
            tensor=first.name,
            file=first.file,
        )


@rule(
    "index-orphan-file",
    scope="index",
    severity=Severity.WARNING,
    explanation="No loader opens a safetensors file that the index does not name.",
    remedy="Delete it; if it belongs to the model, name it in the index: qwen36 repair {path}",
)
def orphan_file(inspection: Inspection) -> Iterator[Fault]:
    inspection.checkpoint.read_all_headers()
    dense = {spec.name for spec in inspection.layout.dense}
    referenced = set(inspection.checkpoint.referenced)
    for name in inspection.checkpoint.on_disk:
        if name in referenced:
            continue
        header = inspection.checkpoint.headers.get(name)
        needed = [
            t
            for t in (header.tensors if header else ())
            if t in dense and t not in inspection.checkpoint.loaded
        ]
        # If a missing tensor lies here, the rules about that tensor report it.
        if not needed:
            yield Fault(f"{name} is not named in {INDEX_NAME}, so no loader opens it", file=name)


@rule(
    "index-duplicate",
    scope="index",
    explanation="If two files hold a tensor, vLLM keeps the one read last, whatever the index says.",
    remedy="Decide which file is right, and remove the other from the folder and the index.",
)
def duplicate(inspection: Inspection) -> Iterator[Fault]:
    inspection.checkpoint.read_all_headers()
    first: dict[str, str] = {}
    twice: dict[tuple[str, str], list[str]] = {}
    for file in inspection.checkpoint.referenced:
        header = inspection.checkpoint.headers.get(file)
        for name in header.tensors if header else ():
            if name in first:
                twice.setdefault((first[name], file), []).append(name)
            first[name] = file
    for (one, other), names in twice.items():
        headers = inspection.checkpoint.headers
        pairs = [(headers[one].tensors[name], headers[other].tensors[name]) for name in names]
        same = all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)
        same = same and all(_sampled_alike(inspection, a, b) for a, b in pairs[:_MOST_COMPARED])
        yield Fault(
            f"{len(names)} tensors lie both in {one} and in {other}"
            + (" (alike, as far as sampled): " if same else ", and differ: ")
            + some(names),
            tensor=names[0],
            file=other,
            severity=Severity.WARNING if same else Severity.ERROR,
        )


def _sampled_alike(inspection: Inspection, a: TensorInfo, b: TensorInfo) -> bool:
    one, other = samples(inspection.checkpoint, [a, b])
    return one == other


@rule(
    "index-total-size",
    scope="index",
    severity=Severity.WARNING,
    explanation="Tools use metadata.total_size to plan memory and downloads; no loader depends on it.",
    remedy=_REPAIR,
)
def total_size(inspection: Inspection) -> Iterator[Fault]:
    declared = inspection.checkpoint.declared_size
    if declared is None or inspection.checkpoint.missing_files or inspection.checkpoint.header_errors:
        return
    actual = sum(info.nbytes for info in inspection.checkpoint.loaded.values())
    if declared != actual:
        yield Fault(
            f"{INDEX_NAME} declares a total_size of {declared!r}; the tensors have {actual} bytes",
            file=INDEX_NAME,
        )


@rule(
    "index-absent",
    scope="index",
    severity=Severity.WARNING,
    explanation="Without an index vLLM reads every safetensors file; transformers finds none if there are several.",
    remedy=_REPAIR,
)
def absent(inspection: Inspection) -> Iterator[Fault]:
    if (
        inspection.checkpoint.index is None
        and inspection.checkpoint.index_error is None
        and len(inspection.checkpoint.on_disk) > 1
    ):
        yield Fault(f"{len(inspection.checkpoint.on_disk)} weight files and no {INDEX_NAME}", file=INDEX_NAME)


INDEX_RULES = (
    unreadable,
    outside,
    in_subfolder,
    not_found_by_name,
    missing_file,
    shard_unreadable,
    consolidated,
    no_weights,
    duplicate,
    stale_entry,
    unnamed_tensor,
    orphan_file,
    total_size,
    absent,
)
