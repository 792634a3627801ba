"""The prompts of a receipt, by domain: those that come with it, or the user's own; and text ahead of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from gptq_hybrid.calibration.prompts import SHIPPED_PROMPTS, Prompt, read_prompts
from gptq_hybrid.common.errors import HybridError

_MARK = "(Request {mark}.)"
_RECORD = (
    "Entry {number}, day {day}: pump {pump} in hall {hall} ran for {minutes} minutes at {bar} bar and used "
    "{kwh} kWh. Checked by {name}; {remark}."
)
_NAMES = ("Okafor", "Lindqvist", "Tanaka", "Moreau", "Haddad", "Novak", "Silva", "Byrne")
_REMARKS = (
    "nothing to report",
    "bearing warm, to be looked at within a week",
    "seal replaced, no leak since",
    "pressure fell for two minutes after the start",
    "filter cleaned, flow back to normal",
    "noise at high speed, vibration within limits",
)
_LOG = "Below are entries of a log; the request comes after them."


@dataclass(frozen=True)
class Workload:
    """Prompts by domain.

    Attributes:
        name: where they come from, and a digest of all of them.
        domains: the prompts of each, in an order that depends on their texts alone.
    """

    name: str
    domains: dict[str, tuple[Prompt, ...]]

    def of(self, domain: str | None) -> tuple[Prompt, ...]:
        """Return the prompts of a domain; of all in turn, one of each, for None."""
        if domain is not None:
            return self.domains[domain]
        most = max(map(len, self.domains.values()))
        return tuple(p[at] for at in range(most) for p in self.domains.values() if at < len(p))


def read_workload(path: Path | None, *, chat: bool, prompts: int | None = None) -> Workload:
    """Read the prompts that come with this project, or those of a JSONL file.

    Args:
        path: the user's own; each row's ``domain`` is its domain, else the file's name is.
        chat: whether the server has a chat template.
        prompts: most prompts of each domain.

    Raises:
        HybridError: the file cannot be read, or a line is no prompt.
    """
    found = read_prompts(path or SHIPPED_PROMPTS, chat=chat)
    domains: dict[str, list[Prompt]] = {}
    for prompt in found.prompts:
        domains.setdefault(prompt.domain or found.path.stem, []).append(prompt)
    # Every domain has as many, so that the mean over all of them gives each the same share.
    least = min(prompts or 1 << 30, *map(len, domains.values()))
    if len(domains) == 1:
        least = min(prompts or 1 << 30, len(found.prompts))
    kept = {name: tuple(domains[name][:least]) for name in sorted(domains)}
    source = "qwen36" if path is None else path.name
    digest = digest_of(p for name in kept for p in kept[name])[:16]
    return Workload(f"{source}, {least} of each of {', '.join(kept)}, sha256 {digest}", kept)


def digest_of(prompts: Iterable[Prompt]) -> str:
    """Return the SHA-256 of prompts as they are sent, in hexadecimal."""
    bodies = [json.dumps(prompt.body(), sort_keys=True, ensure_ascii=False) for prompt in prompts]
    return hashlib.sha256("\n".join(bodies).encode("utf-8", "surrogatepass")).hexdigest()


def marked(prompt: Prompt, mark: str, records: str = "") -> Prompt:
    """Put a mark ahead of a prompt, and records between: two prompts of other marks share no prefix.

    Without it, a second look at the same prompt would find it in the prefix cache.
    """
    ahead = [_MARK.format(mark=mark), *([_LOG, records] if records else [])]
    return prompt.behind("\n".join(ahead))


def records(first: int, count: int) -> str:
    """Return ``count`` entries of a made-up log, a line each; no two of all entries are alike.

    They are drawn by a hash of their number, so that every Python makes the same.
    """
    return "\n".join(_record(number) for number in range(first, first + count))


def _record(number: int) -> str:
    drawn = hashlib.sha256(f"record {number}".encode()).digest()
    return _RECORD.format(
        number=number,
        day=1 + number // 24,
        pump=1 + drawn[0] % 9,
        hall="ABCDEF"[drawn[1] % 6],
        minutes=20 + drawn[2] * 3,
        bar=f"{1 + drawn[3] % 4}.{drawn[4] % 10}",
        kwh=f"{2 + drawn[5] % 40}.{drawn[6] % 10}",
        name=_NAMES[drawn[7] % len(_NAMES)],
        remark=_REMARKS[drawn[8] % len(_REMARKS)],
    )


@dataclass
class Contexts:
    """Puts records ahead of prompts until they have about so many tokens, as a server's tokenizer counts them."""

    count: Callable[[str], int]
    _each: float = 0.0
    _counted: dict[tuple[int, int], int] = field(default_factory=dict)

    def long(self, prompt: Prompt, mark: str, first: int, tokens: int) -> Prompt:
        """Return a prompt of at most ``tokens`` tokens, and fewer by less than two entries and the chat template.

        Raises:
            HybridError: the prompt alone has more.
        """
        if not self._each:
            sample = 64
            self._each = self._count(0, sample) / sample
        own = self.count(" ".join(str(m.get("content") or "") for m in prompt.messages) or prompt.text) + 48
        room = tokens - own
        if room < self._each:
            raise HybridError(
                f"a prompt of {own:,} tokens does not fit a context of {tokens:,}",
                remedy="Give shorter prompts, or larger --contexts.",
            )
        entries = int(room / self._each)
        while entries > 1 and (over := self._count(first, entries) - room) > 0:
            entries -= max(1, int(over / self._each))
        return marked(prompt, mark, records(first, entries))

    def _count(self, first: int, entries: int) -> int:
        """Tokens of entries; the same are asked for when a digest is made and when they are sent."""
        if (first, entries) not in self._counted:
            self._counted[first, entries] = self.count(records(first, entries))
        return self._counted[first, entries]


def take(prompts: tuple[Prompt, ...], count: int) -> list[Prompt]:
    """Return ``count`` prompts, starting over after the last."""
    return [replace(prompts[at % len(prompts)]) for at in range(count)]
