"""``qwen36 doctor``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.tables import plain, report_table
from gptq_hybrid.common.terminal import SETTINGS, Screen, Step, note, out, print_next
from gptq_hybrid.doctor import Finding, Severity

from ._findings import print_findings


def doctor_command(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of a running vllm serve.")],
    over: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Count what comes in so many seconds.  [default: since its start]",
            show_default=False,
        ),
    ] = 0.0,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="VLLM_API_KEY", help="Key for /v1/models.", show_default=False, show_envvar=False
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for each request.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Say what a running server does, and what to change.

    Reads /metrics and /v1/models: whether the plugin is in the server, what it does there, how many drafts are
    accepted at each position and why none may be, and what the prefix cache saves. It sends no request to the
    model. Where the checkpoint's folder is on this machine, a dead MTP head is looked up in it.

    Exit code 0: nothing is broken. 1: errors were found. 2: no vLLM could be read there.
    """
    from dataclasses import replace

    from gptq_hybrid import live

    reading = live.read(live.scrape(url, api_key=api_key, timeout=timeout))
    if over:
        note(f"Counting for {over:g} s ...")
        time.sleep(over)
        later = live.read(live.scrape(url, api_key=api_key, timeout=timeout))
        reading = replace(later, counters=later.counters.since(reading.counters))
    findings = live.advise(reading)
    if as_json:
        print_json(
            {
                **live.as_json(reading),
                "over_seconds": over or None,
                "findings": [_as_json(f) for f in findings],
            },
            vllm=reading.vllm,
            plugin=reading.plugin is not None,
        )
    else:
        screen = out()
        screen.say(live.summary(reading))
        if not SETTINGS.quiet:
            _print_facts(screen, live.facts(reading))
        print_findings(screen, reading.url, findings)
        print_next(*_steps(reading.url, reading.model, reading.counters.drafts, reading.speculates, findings))
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)


def _print_facts(screen: Screen, facts: list[tuple[str, str]]) -> None:
    table = report_table("", "")
    table.show_header = False
    table.add_column("what", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, value in facts:
        table.add_row(plain(name), plain(value))
    screen.print(table)


def _steps(url: str, model: str | None, drafts: int, speculates: bool, findings: list[Finding]) -> list[Step]:
    if any(finding.severity is Severity.ERROR for finding in findings):
        return [Step("do what `help` says, start the server again, and look again", f"qwen36 doctor {url}")]
    if speculates and not drafts:
        body = f'{{"model": "{model or "MODEL"}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
        ask = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
        return [
            Step("ask it something, so that there are drafts to count", ask),
            Step("look again", f"qwen36 doctor {url}"),
        ]
    return [Step("look at one minute of your own load", f"qwen36 doctor {url} --over 60")]


def _as_json(finding: Finding) -> dict[str, str]:
    return {
        "rule": finding.rule,
        "severity": str(finding.severity),
        "message": finding.message,
        "remedy": finding.remedy,
    }
