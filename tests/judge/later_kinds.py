"""More of what was suspected and is right, found after the first table of kinds was settled: see `kinds.py`."""

from __future__ import annotations

from typing import Any

from .kinds import Change, Kind, config, group_zero, quantization
from .made import Made

BF16, GPTQ = Made(), Made(format="gptq")
HEAD = frozenset({"mtp"})


def text(**changes: Any) -> Change:
    return config(lambda c: c["text_config"].update(changes))


def vision(**changes: Any) -> Change:
    return config(lambda c: c["vision_config"].update(changes))


LATER: tuple[Kind, ...] = (
    Kind("mtp-count-as-text-unasked", 2, "serves", "does not read it", BF16,
         text(mtp_num_hidden_layers="1"), mtp=False),
    Kind("mtp-count-as-text", 2, "faulty", "compares it with a number", BF16, text(mtp_num_hidden_layers="1")),
    Kind("mtp-count-negative-unasked", 2, "serves", "does not read it", BF16,
         text(mtp_num_hidden_layers=-1), mtp=False),
    Kind("packed-head-without-drafts", 2, "serves", "skips mtp.* in the target",
         Made(nested=False, format="awq", packed=HEAD, style="regex", count="text-0", tied=(None, True)),
         mtp=False),
    *(
        Kind(f"dynamic-rule-in-{form}", 5, "faulty", "builds the draft's layers plain, whatever the method",
             Made(format=form, packed=HEAD), quantization(dynamic={"-:.*mtp.*": {}}))
        for form in ("packed", "awq", "auto-round", "fp8")
    ),
    Kind("dynamic-null-in-packed", 5, "faulty", "iterates over it", Made(format="packed"),
         config(lambda c: c["quantization_config"].update(dynamic=None))),
    Kind("dynamic-list-in-packed", 16, "faulty", "looks at act order in configs of any method",
         Made(format="packed"), quantization(dynamic=["-:mtp"])),
    Kind("text-model-type", 8, "faulty", "has no layers for it", BF16, text(model_type="qwen3_5")),
    Kind("unknown-dtype", 16, "faulty", "transformers asks PyTorch for it", BF16,
         config(lambda c: c.update(dtype="floaty"))),
    Kind("dtype-auto", 16, "faulty", "transformers asks PyTorch for it", BF16,
         config(lambda c: c.update(dtype="auto"))),
    Kind("dtype-no-model-has", 16, "serves", "takes a type of its own", BF16,
         config(lambda c: c.update(dtype="float64"))),
    Kind("unknown-dtype-in-text", 16, "faulty", "transformers asks PyTorch for it", BF16, text(dtype="floaty")),
    Kind("unknown-vision-act", 16, "faulty", "has no such activation", BF16, vision(hidden_act="geglu")),
    Kind("other-vision-act", 16, "serves", "has this one", BF16, vision(hidden_act="swish")),
    Kind("patch-as-list", 16, "faulty", "multiplies it", BF16, vision(patch_size=[16, 16])),
    Kind("rope-theta-as-text", 16, "faulty", "takes a power of it", BF16,
         config(lambda c: c["text_config"]["rope_parameters"].update(rope_theta="1e7"))),
    Kind("gate-as-text", 16, "faulty", "adds it to 1", BF16, text(attn_output_gate="true")),
    Kind("extra-key", 16, "serves", "ignores it", BF16, text(foo={"a": [1]})),
    Kind("rule-with-a-list", 16, "faulty", "asks it for settings", GPTQ,
         quantization(dynamic={r"-:^mtp\.": {}, "+:.*down_proj": []})),
    Kind("rule-with-a-list-for-nothing", 16, "serves", "never asks it", GPTQ,
         quantization(dynamic={r"-:^mtp\.": {}, "+:.*nowhere": []})),
    Kind("awq-without-zero-points", 16, "faulty", "has no kernel for it", Made(format="awq"),
         quantization(zero_point=False)),
    Kind("packed-without-format", 16, "faulty", "has no scheme for it", Made(format="packed"),
         quantization(format=None)),
    Kind("packed-as-dense", 16, "faulty", "has no scheme for it", Made(format="packed"),
         quantization(format="dense")),
    Kind("packed-floats", 16, "faulty", "takes the words for another format", Made(format="packed"),
         group_zero(weights={"num_bits": 4, "type": "float", "symmetric": True, "group_size": 32,
                              "strategy": "group"})),
    Kind("fp8-block-of-one-number", 16, "faulty", "wants two", Made(format="fp8"),
         quantization(weight_block_size=[128])),
    Kind("auto-round-mxfp-as-gptq", 16, "faulty", "takes it in another packing", Made(format="auto-round"),
         quantization(data_type="mx_fp")),
    Kind("gptq-v2", 16, "serves", "knows both", GPTQ, quantization(checkpoint_format="gptq_v2")),
)  # fmt: skip
