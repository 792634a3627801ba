"""Verification by a 4-bit copy of the output head: the share of rows that it settles, and what it costs on a GPU.

    python -m bench.drafts.verify bench/drafts/verify.json            # the small model's own head and states, a CPU
    python -m bench.drafts.verify bench/drafts/verify.json --time     # kernels of the 27B's head, random weights

A bound by Cauchy and Schwarz grows with the root of the width, what it bounds does not. So the first also widens
each bound as the width of the 27B would, which is the row to believe for it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from bench.arguments import command_line
from bench.engine import environment
from bench.results import Json, load, save
from gptq_hybrid.packing import quantize_rtn
from vllm_qwen36_plugin.verify_head.planes import make_planes

_MINI = Path("bench/mini")
_DOCUMENTS, _TOKENS, _EVERY = 6, 400, 16
_N, _K, _ROWS = 248320, 5120, (1, 3, 16, 48)
# Tokens listed a row at most, of the 27B's vocabulary.
_MOST = 8192


def states() -> tuple[torch.Tensor, torch.Tensor]:
    """Every 16th hidden state along held-out text, BF16 ``[rows, k]``, and the head's weight."""
    from bench.mini import evaluate

    models, tokenizer = evaluate.load(_MINI / "checkpoint")
    found, model = [], models.target.model.language_model
    for domain in evaluate.DOMAINS:
        for text in evaluate.texts(_MINI / "heldout", domain)[:_DOCUMENTS]:
            ids = torch.tensor([tokenizer(text)["input_ids"][:_TOKENS]])
            with torch.no_grad():
                found.append(model(input_ids=ids).last_hidden_state[0])
    return torch.cat(found)[::_EVERY].bfloat16(), models.target.lm_head.weight.detach().bfloat16()


def study() -> Json:
    """Copy, width, shares of tokens that may win (median, 99 % of rows), and of rows where they are few enough."""
    hidden, weight = states()
    (n, k), h = weight.shape, hidden.float()
    exact, norms = h @ weight.float().t(), h.norm(dim=1, keepdim=True)
    result: Json = {"states": len(h), "n": n, "k": k, "rows": []}
    for bits, group in ((4, 32), (8, 128)):
        codes, scales = quantize_rtn(weight, bits, group, scale_dtype=torch.bfloat16)
        copy = ((codes.float() - (1 << bits - 1)).view(n, -1, group) * scales.float()[..., None]).view(n, k)
        planes = make_planes(weight, partial(torch.nn.functional.linear, weight=copy.bfloat16()))
        at = torch.arange(k)
        more = (planes.words[:, at % (k // 16)] >> 2 * (at // (k // 16)) & 3) - 1.5
        more = copy.bfloat16() + more * planes.scales[at // planes.group].float().t()
        least = exact.gather(1, (h @ copy.t()).argmax(-1, keepdim=True))
        for name, matrix, bound in (("", copy, planes.far), (" and two bits", more, planes.near)):
            for width in (k, _K):
                off = norms * bound * (width / k) ** 0.5
                may = h @ matrix.t() + off >= least - least.abs() / 128
                # None outside can win, whatever the width.
                assert bool(may.gather(1, exact.argmax(-1, keepdim=True)).all())
                count = may.sum(-1) / n
                shares = [count.median(), count.quantile(0.99), (count <= _MOST / _N).float().mean()]
                row = [f"W{bits}{name}", width, *(round(float(share), 5) for share in shares)]
                result["rows"].append(row)
    return result


def timed() -> Json:
    """By rows: microseconds of the whole head, of the copy alone, and of all that settles, in CUDA graphs."""
    from bench.prefill.linear import graphed, vllm_config
    from vllm_qwen36_plugin.draft_head.head import DraftHead
    from vllm_qwen36_plugin.verify_head.kernel import settle

    result: Json = {}
    with vllm_config():
        weight = torch.randn(_N, _K, dtype=torch.bfloat16, device="cuda") * 0.02
        head = DraftHead(SimpleNamespace(weight=weight), _N, None, "w4")
        planes, found = make_planes(weight, head), weight.new_zeros(1, dtype=torch.int32)
        result["MiB"] = {"copy": head.bytes >> 20, "two bits": planes.bytes >> 20}
        for rows in _ROWS:
            plain = torch.randn(rows, _K, device="cuda")
            # Its own token stands out by ten standard deviations of the others.
            sure = plain + weight[:rows].float() * 7
            entry: Json = {}
            for name, h, most in (("any", plain, _MOST), ("sure", sure, _MOST), ("whole", plain, 1)):
                x, listed = h.bfloat16(), found.new_zeros(rows * most)

                def all_of_it(x: torch.Tensor = x, listed: torch.Tensor = listed) -> torch.Tensor:
                    logits = head.logits(x)
                    settle(logits, x, weight, planes, found, listed)
                    return logits

                calls = {
                    "stock": partial(torch.nn.functional.linear, x, weight),
                    "copy": partial(head.logits, x),
                }
                same = calls["stock"]().argmax(-1) == all_of_it().argmax(-1)
                entry[name] = {"listed": int(found), "same": int(same.sum())}
                entry[name] |= graphed({**calls, "settled": all_of_it}, 500.0)
                print(rows, name, entry[name], flush=True)
            result[str(rows)] = entry
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
