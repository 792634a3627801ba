"""What a receipt measures: cells of a context, a batch and a domain, each several times over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.numbers import parse_numbers

Cache = Literal["cold", "warm"]
ALL, RANDOM, SHORT = "all", "random", "short"
# A prompt of a long context is its question behind so many tokens of records.
CONTEXTS = (SHORT, "4096", "16384")
BATCHES = (1, 4, 16)
MAX_TOKENS, REPEATS = 256, 3
# Room for the chat template and for tokens that two counts differ by.
SLACK = 64


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One thing to measure.

    Attributes:
        context: ``"short"``, prompts as they are; or the tokens of a long one; or of a random one.
        batch: requests in flight.
        domain: of its prompts; ``"all"`` for all of them, ``"random"`` for random tokens.
        cache: ``"cold"``: no prompt was seen before; ``"warm"``: each was.
    """

    context: str
    batch: int
    domain: str
    cache: Cache = "cold"

    @property
    def name(self) -> str:
        """In words, for progress and tables."""
        warm = ", warm prefix cache" if self.cache == "warm" else ""
        return f"{self.domain}, {self.context} context, batch {self.batch}{warm}"


@dataclass(frozen=True)
class Plan:
    """Everything that decides what is sent.

    Attributes:
        domains: names of the prompts' domains, in order; empty for random tokens.
        prompts: how many of each domain.
        workload: name and digest of the prompts' source.
        contexts: see :class:`Cell`.
        batches: requests in flight.
        max_tokens: most tokens of an answer.
        repeats: of each cell.
        temperature: of sampling; 0 is greedy.
        random_tokens: tokens of random prompts, in place of real ones; 0 for real ones.
        requests: of a repeat of random prompts; real ones are as many as there are, or twice the batch.
        seed: of random prompts.
    """

    domains: tuple[str, ...]
    prompts: int
    workload: str
    contexts: tuple[str, ...] = CONTEXTS
    batches: tuple[int, ...] = BATCHES
    max_tokens: int = MAX_TOKENS
    repeats: int = REPEATS
    temperature: float = 0.0
    random_tokens: int = 0
    requests: int = 0
    seed: int = 0

    def cells(self, *, warm: bool) -> list[Cell]:
        """List all cells in the order in which they are measured.

        Args:
            warm: whether the server caches prefixes, so that a prompt that it has seen is another case.
        """
        if self.random_tokens:
            return [Cell(str(self.random_tokens), batch, RANDOM) for batch in self.batches]
        cells: list[Cell] = []
        for context in self.contexts:
            for batch in self.batches:
                alone = batch == 1 and context == SHORT
                for domain in self.domains if alone else (ALL,):
                    cells.append(Cell(context, batch, domain))
                    # Blocks of a hybrid's cache have hundreds of tokens: no short prompt fills one.
                    if warm and context != SHORT and batch == 1:
                        cells.append(Cell(context, batch, domain, "warm"))
        return cells

    def requests_of(self, cell: Cell) -> int:
        """Compute the number of requests of a repeat: each prompt once, and at least two rounds of the batch."""
        if cell.domain == RANDOM:
            return max(self.requests, 2 * cell.batch)
        available = self.prompts * (1 if cell.domain != ALL else len(self.domains))
        if cell.context != SHORT:
            # A long prompt takes seconds to read: two rounds, and enough for a median.
            return min(max(2 * cell.batch, 4), max(available, 2 * cell.batch))
        return max(available, 2 * cell.batch)

    def tokens_of(self, context: str) -> int:
        """Return the tokens of a long context; 0 for the short one."""
        return 0 if context == SHORT else int(context)

    def fitted(self, max_model_len: int | None) -> tuple[Plan, list[str]]:
        """Leave out the contexts that a server does not take; also return their names.

        Raises:
            HybridError: none fits.
        """
        from dataclasses import replace

        room = (max_model_len or 1 << 30) - self.max_tokens - SLACK
        if self.random_tokens > room:
            raise HybridError(
                f"a random prompt of {self.random_tokens:,} tokens and {self.max_tokens:,} of an answer do not fit "
                f"the server's {max_model_len:,} tokens",
                remedy="Serve with a larger --max-model-len, or give fewer with --random or --max-tokens.",
            )
        if self.random_tokens:
            return self, []
        fitting = tuple(c for c in self.contexts if self.tokens_of(c) <= room)
        if not fitting or room < 1:
            raise HybridError(
                f"no context fits the server's {max_model_len:,} tokens with answers of {self.max_tokens:,}",
                remedy="Give fewer tokens with --max-tokens, or --contexts short.",
            )
        return replace(self, contexts=fitting), [c for c in self.contexts if c not in fitting]

    def as_json(self) -> dict[str, Any]:
        """Make the object of the receipt."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


def parse_contexts(text: str) -> tuple[str, ...]:
    """Parse ``short``, numbers of tokens, or both with commas between; short comes first.

    Raises:
        HybridError: a part is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    long = [part for part in parts if part != SHORT]
    numbers = parse_numbers("--contexts", ",".join(long), 256, 1 << 20) if long else ()
    return (*((SHORT,) if SHORT in parts else ()), *map(str, numbers))


def parse_random(text: str) -> tuple[int, int]:
    """Parse ``1024/256``: tokens of a random prompt and of its answer.

    Raises:
        HybridError: it is not of that form.
    """
    prompt, _, answer = text.partition("/")
    if not (prompt.isdigit() and answer.isdigit() and int(prompt) > 0 and int(answer) > 1):
        raise HybridError(
            f"--random {text!r} is not PROMPT/ANSWER in tokens", remedy="Such as: --random 1024/256"
        )
    return int(prompt), int(answer)


def plan_from_json(content: Mapping[str, Any]) -> Plan:
    """Read back what :meth:`Plan.as_json` made.

    Raises:
        KeyError, TypeError: it is not of that form.
    """
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    return Plan(**values)
