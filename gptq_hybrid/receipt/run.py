"""Make a receipt: find the server or start it, measure, look at what came out, keep it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.versions import find_vllm, plugin_installed
from gptq_hybrid.common.vllm_server import ServerExitedError, vllm_server
from gptq_hybrid.doctor.chat import readable_template
from gptq_hybrid.live import Reading, read, scrape
from gptq_hybrid.live.endpoint import Endpoint

from . import fiction
from .load import LoadGenerator, Target, vllm_bench
from .measure import Measurement
from .plan import Plan
from .record import NAME, Receipt, differences, read_receipt
from .target import (
    Launch,
    checkpoint_of,
    describe_machine,
    describe_server,
    describe_subject,
    is_url,
    launch,
    on_this_machine,
    open_target,
    server_url,
)
from .workload import Workload, read_workload

# A 27B on a cold GPU host compiles for 200 s.
_START_SECONDS = 1800.0
OnTotal = Callable[[int, int], None]
OnCell = Callable[[str, int], None]
OnWait = Callable[[float, str], None]
Loads = Callable[[Target, Path], Any]


@dataclass(frozen=True)
class Request:
    """What to measure, and where it is kept.

    Attributes:
        target: address of a server, or folder or hub id of a checkpoint, for which one is started.
        plan: what is sent; ``domains`` and ``workload`` are filled in from the prompts.
        prompts: the user's own JSONL file; None for those that come with this room.
        flags: of ``vllm serve``, for a checkpoint.
        environment: variables of the server that is started.
        out: folder of the receipt.
        api_key: of the server.
        tokenizer: folder or hub id; None for the one of the checkpoint.
        expected: the workload that another receipt had; None for any.
    """

    target: str
    plan: Plan
    prompts: Path | None
    flags: tuple[str, ...]
    environment: Mapping[str, str]
    out: Path
    api_key: str | None = None
    tokenizer: str | None = None
    expected: str | None = None


@dataclass(frozen=True)
class Tell:
    """How progress is told: the number of repeats, what is measured next, and what a server says as it starts."""

    total: OnTotal = lambda done, total: None
    cell: OnCell = lambda what, done: None
    wait: OnWait = lambda seconds, what: None
    note: Callable[[str], None] = lambda text: None


def require_vllm() -> None:
    """Refuse where the load generator is missing.

    Raises:
        HybridError: vLLM is not installed, or pandas, with which its benchmark reads prompts.
    """
    if find_spec("vllm") is None:
        raise HybridError(
            "vLLM is not installed here, and the requests are sent by its `vllm bench serve`",
            remedy="Run: pip install 'vllm-qwen36-plugin[serve]' (where there is no GPU: [cpu])",
        )
    if find_spec("pandas") is None:
        raise HybridError(
            "pandas is not installed, and `vllm bench serve` reads prompts with it",
            remedy="Run: pip install pandas",
        )


def make_receipt(request: Request, tell: Tell | None = None, *, loads: Loads | None = None) -> Receipt:
    """Measure what the folder of ``request`` lacks; its receipt is written after every repeat.

    Args:
        request: what to measure.
        tell: how progress is told.
        loads: makes the load generator, a context manager of a target and a log; ``vllm bench serve`` by default.

    Raises:
        HybridError: the target is no vLLM or no checkpoint, the folder holds a receipt of something else, or the
            server ended. What was measured is kept.
    """
    tell = tell or Tell()
    require_vllm()
    earlier = read_receipt(request.out) if (request.out / NAME).is_file() else None
    if is_url(request.target):
        return _of_url(request, earlier, tell, loads or vllm_bench)
    return _of_checkpoint(request, earlier, tell, loads or vllm_bench)


def _of_url(request: Request, earlier: Receipt | None, tell: Tell, loads: Loads) -> Receipt:
    if request.flags:
        raise HybridError(
            "flags of vllm serve were given, and the server runs already",
            remedy="Give a checkpoint, or leave out what stands after --.",
        )
    url = server_url(request.target)
    reading = read(scrape(url, api_key=request.api_key))
    _refuse_silent(reading)
    return _measure(request, reading, None, checkpoint_of(reading), None, earlier, tell, loads)


def _of_checkpoint(request: Request, earlier: Receipt | None, tell: Tell, loads: Loads) -> Receipt:
    checkpoint = open_target(request.target)
    started = launch(
        checkpoint,
        request.flags,
        most_in_flight=max(request.plan.batches),
        environment=request.environment,
    )
    # Read before the server starts, which can take minutes: a file that is no list of prompts is refused now.
    chat = readable_template(checkpoint) is not None
    plan, _ = _with_prompts(request, chat)
    if earlier is not None:
        # What the server says is known once it runs; what is typed and lies here is known now.
        digest = describe_subject(checkpoint, "")["digest"]
        known = {**earlier.identity, "plan": plan.as_json(), "digest": digest, **started.public}
        installed = _release(find_vllm())
        if installed != _release(earlier.server["vllm"]):
            known["vllm"] = installed
        _refuse_other(earlier, known, request.out)
        if earlier.complete:
            tell.note(
                f"{request.out / NAME} is complete already, so nothing was measured. "
                "To measure again, give another folder with --out."
            )
            return earlier
    request.out.mkdir(parents=True, exist_ok=True)
    log = request.out / "server.log"
    tell.note(f"Starting: {started.line}")
    tell.note(f"Its log: {log}")
    for warning in _faults(checkpoint):
        tell.note(warning["message"])
    try:
        with vllm_server(
            started.arguments,
            log=log,
            environment=started.environment,
            timeout=_START_SECONDS,
            on_wait=tell.wait,
        ) as server:
            reading = read(scrape(server.url))
            return _measure(request, reading, started, checkpoint, log, earlier, tell, loads)
    except ServerExitedError as error:
        raise HybridError(
            error.message,
            remedy=f"{error.remedy}\nFlags of vllm serve go after --, such as: qwen36 receipt {request.target} -- "
            "--max-model-len 8192",
        ) from error


def _measure(
    request: Request,
    reading: Reading,
    started: Launch | None,
    checkpoint: Checkpoint | None,
    log: Path | None,
    earlier: Receipt | None,
    tell: Tell,
    loads: Loads,
) -> Receipt:
    here = started is not None or on_this_machine(reading.url)
    model = reading.model or ""
    endpoint = Endpoint(reading.url, model, request.api_key)
    chat = endpoint.has_chat_template()
    plan, workload = _with_prompts(request, chat)
    if request.expected is not None and plan.workload != request.expected:
        raise HybridError(
            f"the prompts are not those of the other receipt: {request.expected} there, {plan.workload} here",
            remedy="Give the same file with --prompts.",
        )
    fitted, left_out = plan.fitted(reading.max_model_len)
    name = Path(checkpoint.location).resolve().name if checkpoint and not checkpoint.files.far else model
    receipt = Receipt(
        plan,
        describe_subject(checkpoint, name),
        describe_server(reading, started, log),
        describe_machine() if here else {},
    )
    if earlier is not None:
        _refuse_other(earlier, receipt.identity, request.out)
        receipt.cells, receipt.quality, receipt.made = earlier.cells, earlier.quality, earlier.made
    cells = fitted.cells(warm=reading.prefix_caching is True)
    warnings = [] if checkpoint is None else _faults(checkpoint)
    warnings += fiction.before(receipt, reading)
    for context in left_out:
        warnings.append({"rule": "context-left-out", "message": _too_long(context, reading.max_model_len)})
    receipt.warnings = warnings
    request.out.mkdir(parents=True, exist_ok=True)
    path = request.out / NAME
    target = Target(reading.url, model, _tokenizer(request, checkpoint, reading), request.api_key)
    tell.total(sum(len(m.repeats) for m in receipt.cells.values()), len(cells) * plan.repeats)
    with closing(endpoint), _loads(loads, target, request.out / "bench.log") as load:
        measurement = Measurement(
            receipt,
            path,
            workload,
            endpoint,
            load,
            here,
            # A server that is started here has an empty cache; another may have seen the prompts of an earlier run.
            salt="" if started else secrets.token_hex(3),
            rendered=chat,
            on_cell=tell.cell,
        )
        measurement.run(cells)
    later = read(scrape(reading.url, api_key=request.api_key))
    counted = replace(later, counters=later.counters.since(reading.counters))
    receipt.warnings = [*warnings, *fiction.after(receipt, counted)]
    receipt.write(path)
    return receipt


@contextmanager
def _loads(loads: Loads, target: Target, log: Path) -> Iterator[LoadGenerator]:
    with loads(target, log) as load:
        yield load


def _with_prompts(request: Request, chat: bool) -> tuple[Plan, Workload | None]:
    """Read the prompts, and name them in the plan."""
    plan = request.plan
    if plan.random_tokens:
        return replace(plan, workload="random tokens"), None
    workload = read_workload(request.prompts, chat=chat, prompts=plan.prompts or None)
    each = min(map(len, workload.domains.values()))
    return replace(plan, domains=tuple(workload.domains), prompts=each, workload=workload.name), workload


def _faults(checkpoint: Checkpoint) -> list[dict[str, str]]:
    if checkpoint.files.far:
        return []
    return list(fiction.of_checkpoint(checkpoint.path, vllm=find_vllm(), plugin=plugin_installed()))


def _tokenizer(request: Request, checkpoint: Checkpoint | None, reading: Reading) -> str:
    if request.tokenizer:
        return request.tokenizer
    if checkpoint is not None and not checkpoint.files.far:
        return str(checkpoint.path.resolve())
    return reading.root or reading.model or ""


def _release(version: str | None) -> str | None:
    """Return a version without what stands behind a plus sign, such as ``+cpu``."""
    return None if version is None else version.partition("+")[0]


def _refuse_silent(reading: Reading) -> None:
    if not reading.counts:
        raise HybridError(
            f"{reading.url} counts nothing: its /metrics has none of vLLM's counters",
            remedy="Start vllm serve without --disable-log-stats, or give the address of a vLLM.",
        )
    if reading.models_problem:
        raise HybridError(
            f"{reading.url}/v1/models tells nothing: {reading.models_problem}", remedy="Give --api-key."
        )


def _refuse_other(earlier: Receipt, now: Mapping[str, Any], out: Path) -> None:
    if changed := differences(earlier.identity, now):
        raise HybridError(
            f"{out / NAME} is of something else: {'; '.join(changed)}",
            remedy="Give another folder with --out, or remove that one.",
        )


def _too_long(context: str, most: int | None) -> str:
    return f"{context} tokens and an answer do not fit the server's {most:,}: that context was left out"
