"""How fast a step of decoding is, derived from what it must read and compute; for comparing numbers of drafts.

A step reads every weight that it uses once, the keys and values of each sequence, and reads and writes each state.
It multiplies each token of the batch, drafts included, by every linear. A draft reads the MTP head and the
output head, in the precision that the plugin drafts from where it is there. Whichever takes longer sets the pace:

    seconds = max(bytes / (SHARE × bandwidth), 2 × parameters × tokens / dense rate)

A prompt takes ``2 × parameters × tokens`` operations. When agents take turns and not all of their contexts stay in
the prefix cache, those that do not are read again; a round is one turn of each:

    round = sequences × (reply / total speed + share read again × context / prompt speed)

Checked against one public report (RTX 4090, stock vLLM 0.30, RedHatAI's INT4 of 27B, text alone, real prompts): 53
tokens a second without drafts and 82 with two, and 2,814 to 2,888 of a prompt, where this gives 53, 90 and 2,780.
There an 8-agent load took 2.3 times as long with two drafts, as prefix hits fell from 77 to 51 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.memory import Fit
from gptq_hybrid.memory.weights import WeightBytes

from .question import Question

# Share of the public bandwidth that a step reaches: 0.8 in that report; 0.5 on an H200, whose launches set the
# pace.
SHARE = 0.8
# Share of the tensor rate that a prompt reaches with Marlin, in that report and on an RTX 6000 Ada.
PROMPT_SHARE = 0.82
# Tokens of a turn's reply.
REPLY = 256
# So far apart speeds are called equal: within what the formula is off.
EQUAL = 0.05


# What the plugin drafts from by default, bytes a weight with its scales of 16 bits: the MTP layer's linears in W8,
# groups of 128; and a copy of the output head in W4, groups of 32, where it takes at most that share of the KV
# cache. As in vllm_qwen36_plugin/draft_head, against which a test holds them.
LINEAR_IN_W8, HEAD_IN_W4 = (8 + 16 / 128) / 8, (4 + 16 / 32) / 8
MOST_OF_CACHE = 1 / 16


@dataclass(frozen=True, slots=True)
class Speed:
    """Derived speed of decoding ``batch`` sequences at once.

    Attributes:
        seconds: of a step.
        tokens_a_step: that it brings to each sequence.
        prompt: tokens of a prompt read in a second; 0 if the card's tensor rate is not known.
    """

    batch: int
    seconds: float
    tokens_a_step: float
    prompt: float = 0.0

    @property
    def each(self) -> float:
        """Tokens a second of one sequence."""
        return self.tokens_a_step / self.seconds

    @property
    def total(self) -> float:
        """Tokens a second of all of them."""
        return self.each * self.batch

    def round(self, sequences: int, kept: int, context: int) -> float:
        """Seconds until each of ``sequences`` has replied once, ``kept`` of their contexts being cached."""
        again = max(0.0, 1 - kept / sequences) * context / self.prompt if self.prompt else 0.0
        return sequences * (REPLY / self.total + again)


def parameters(checkpoint: Checkpoint) -> tuple[int, int]:
    """Parameters of the model's linears, which every token is multiplied by, and of its output head."""
    layout = layout_for(checkpoint.config)
    linears = sum(linear.out_features * linear.in_features for linear in layout.quantized)
    head = layout.output_head
    return linears, 0 if head is None else head.out_features * head.in_features


def draft_bytes(checkpoint: Checkpoint, question: Question, fit: Fit, weights: WeightBytes) -> int:
    """Bytes of weights that one draft reads: of the MTP head, and of the output head or the copy of it."""
    # Tied embeddings are read as the output head.
    head = weights.output_head or weights.embedding
    if not question.plugin:
        return weights.mtp + head
    layout, ranks = layout_for(checkpoint.config), question.tensor_parallel
    linears = sum(prod(linear.weight.shape) for linear in layout.mtp_linears) / ranks
    mtp = min(weights.mtp, int(linears * LINEAR_IN_W8))
    copy = int(parameters(checkpoint)[1] / ranks * HEAD_IN_W4)
    # A head that is packed already is shared.
    fits = copy - (weights.mtp - mtp) <= fit.cache * MOST_OF_CACHE
    return mtp + (min(head, copy) if copy and fits else head)


def speed(checkpoint: Checkpoint, question: Question, fit: Fit, *, batch: int, tokens: int) -> Speed | None:
    """Derive the speed of ``batch`` sequences that hold ``tokens`` each; None for a card of unknown bandwidth."""
    card, ranks = question.card, question.tensor_parallel
    if not card.bandwidth:
        return None
    weights = fit.weights.rank(ranks) if ranks > 1 else fit.weights
    # Tied embeddings are read as the output head.
    head = weights.output_head or weights.embedding
    layout, drafts = fit.layout, fit.drafts
    states = layout.state_layers * layout.state_bytes * (2 + drafts)
    values = layout.token_bytes * layout.attention_layers * tokens
    read = weights.linears + weights.rest + head + batch * (states + values)
    if drafts:
        read += drafts * draft_bytes(checkpoint, question, fit, weights)
    seconds = read / (SHARE * card.bandwidth)
    linears, output = parameters(checkpoint)
    prompt = 0.0
    if card.dense:
        seconds = max(seconds, 2 * (linears + output) * batch * (1 + drafts) / (ranks * card.dense))
        # Of a prompt only the last token is multiplied by the output head.
        prompt = PROMPT_SHARE * ranks * card.dense / (2 * linears)
    return Speed(batch, seconds, question.tokens_a_step(drafts), prompt)
