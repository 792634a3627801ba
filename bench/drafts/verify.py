"""Verification by a 4-bit copy of the output head: the share of rows that it settles, and its time on a GPU.

    python -m bench.drafts.verify bench/drafts/verify.json            # the small model's own head and states, a CPU
    python -m bench.drafts.verify bench/drafts/verify.json --time     # kernels of the 27B's head, random weights

A bound by Cauchy and Schwarz grows with the root of the width, what it bounds does not. So the first also widens
each bound as the width of the 27B would, which is the row to believe for it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import linear

from bench.arguments import command_line
from bench.engine import environment
from bench.results import Json, load, save
from gptq_hybrid.packing import quantize_rtn
from vllm_qwen36_plugin.verify_head.planes import make_planes

_MINI, _DOCUMENTS, _TOKENS, _EVERY = Path("bench/mini"), 6, 400, 16
# The 27B's head; tokens listed a row at most.
_N, _K, _MOST, _ROWS = 248320, 5120, 8192, (1, 3, 16, 48)


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def study() -> Json:
    """Copy, width, shares of tokens that may win (median, 99 % of rows), and of rows where they are few enough."""
    from bench.mini import evaluate

    models, tokenizer = evaluate.load(_MINI / "checkpoint")
    states, model = [], models.target.model.language_model
    for domain in evaluate.DOMAINS:
        for text in evaluate.texts(_MINI / "heldout", domain)[:_DOCUMENTS]:
            ids = torch.tensor([tokenizer(text)["input_ids"][:_TOKENS]])
            states.append(model(input_ids=ids).last_hidden_state[0])
    h = torch.cat(states)[::_EVERY].bfloat16().float()
    weight = models.target.lm_head.weight.bfloat16()
    (n, k), norms, exact = weight.shape, h.norm(dim=1, keepdim=True), linear(h, weight.float())
    result: Json = {"states": len(h), "n": n, "k": k, "rows": []}
    at = torch.arange(k)
    for bits, group in ((4, 32), (8, 128)):
        codes, scales = quantize_rtn(weight, bits, group, scale_dtype=torch.bfloat16)
        values = (codes.float() - (1 << bits - 1)).view(n, -1, group) * scales.float()[..., None]
        copy = values.view(n, k).bfloat16()
        planes = make_planes(weight, partial(linear, weight=copy))
        more = (planes.words[:, at % (k // 16)] >> 2 * (at // (k // 16)) & 3) - 1.5
        more = copy + more * planes.scales[at // planes.group].float().t()
        least = exact.gather(1, linear(h, copy.float()).argmax(-1, keepdim=True))
        for name, matrix, bound in (("", copy.float(), planes.far), (" and two bits", more, planes.near)):
            for width in (k, _K):
                may = linear(h, matrix) + norms * bound * (width / k) ** 0.5 >= least - least.abs() / 128
                # None outside can win, whatever the width.
                assert bool(may.gather(1, exact.argmax(-1, keepdim=True)).all())
                count = may.sum(-1) / n
                shares = [count.median(), count.quantile(0.99), (count <= _MOST / _N).float().mean()]
                result["rows"].append([f"W{bits}{name}", width, *(round(float(x), 5) for x in shares)])
    return result


def timed() -> Json:
    """By rows and hidden states: tokens listed, rows with stock's token, and microseconds in CUDA graphs."""
    from bench.prefill.linear import graphed, vllm_config
    from vllm_qwen36_plugin.draft_head.head import DraftHead
    from vllm_qwen36_plugin.draft_head.room import sure_states
    from vllm_qwen36_plugin.verify_head.kernel import settle

    result: Json = {"rows": []}
    with vllm_config():
        lm_head = torch.nn.Module()
        lm_head.weight = weight = torch.randn(_N, _K, dtype=torch.bfloat16, device="cuda") * 0.02
        head = DraftHead(lm_head, _N, None, "w4")
        planes, found = make_planes(weight, head), weight.new_zeros(1, dtype=torch.int32)
        for rows in _ROWS:
            plain, sure = torch.randn(rows, _K, device="cuda").bfloat16(), sure_states(weight, rows)
            for name, x, most in (("any", plain, _MOST), ("sure", sure, _MOST), ("whole head", plain, 1)):
                listed = found.new_zeros(rows * most)

                def settled(x: torch.Tensor = x, listed: torch.Tensor = listed) -> torch.Tensor:
                    logits = head.logits(x)
                    settle(logits, x, weight, planes, found, listed)
                    return logits

                same = int((linear(x, weight).argmax(-1) == settled().argmax(-1)).sum())
                calls = {"stock": partial(linear, x, weight), "copy": partial(head.logits, x), "all": settled}
                row = [rows, name, int(found), same, *(each["us"] for each in graphed(calls, 500.0).values())]
                result["rows"].append(row)
                print(*row, flush=True)
    return result


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "result")
    parser.add_argument("--time", action="store_true", help="on a GPU")
    args = parser.parse_args()
    key, what = ("kernels", timed()) if args.time else ("study", study())
    save(args.result, {**(load(args.result) or {}), key: {"environment": environment(), **what}})


if __name__ == "__main__":
    main()
