"""The sweep's Triton kernel: torch's numbers to the bit, by Triton's interpreter, and no fused multiply-add."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from gptq_hybrid.upstream import IncompatibleError  # noqa: E402
from gptq_hybrid.upstream.speedups import _block_kernel, block_kernel  # noqa: E402
from tests.interpreted import interpreted_copy  # noqa: E402

NAMES = ("quantized", "errors", "losses", "work")
Update = Callable[..., None]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Update:
    """`block_update` of a copy of the module, whose kernel Triton interprets."""
    update: Update = interpreted_copy(_block_kernel, monkeypatch).block_update
    return update


def block(rows: int, groups: int, bits: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of a block as GPTQ.quantize has them: views of a wider matrix, a triangular factor."""
    drawn = torch.Generator().manual_seed(seed)
    wide = torch.randn(rows, 300, generator=drawn)
    mixed = torch.randn(256, 256, generator=drawn)
    factor = torch.linalg.cholesky(mixed @ mixed.T / 256 + 0.1 * torch.eye(256), upper=True)
    maxq = 2**bits - 1
    return {
        "work": wide[:, 40:168].clone(),
        "hinv": factor[64:192, 64:192],
        "scale": 0.1 + torch.rand(groups, rows, generator=drawn) / maxq,
        "zero": torch.full((groups, rows), float((maxq + 1) // 2)),
        "column_group": torch.randint(0, groups, (128,), generator=drawn).to(torch.int32),
        "quantized": torch.zeros(rows, 300)[:, 40:168],
        "errors": torch.zeros(rows, 128),
        "losses": torch.zeros(rows, 300)[:, 40:168],
        "maxq": maxq,
    }


def eager(tensors: dict[str, Any]) -> dict[str, Any]:
    """gptqmodel's loop over the columns."""
    from gptqmodel.quantization.quantizer import quantize

    work, hinv = tensors["work"].clone(), tensors["hinv"]
    outputs = {name: torch.zeros_like(work) for name in ("quantized", "errors", "losses")}
    maxq = torch.tensor(tensors["maxq"])
    for i in range(128):
        w, d, group = work[:, i], hinv[i, i], int(tensors["column_group"][i])
        q = quantize(
            w.unsqueeze(1), tensors["scale"][group][:, None], tensors["zero"][group][:, None], maxq, False
        )
        outputs["quantized"][:, i] = q.flatten()
        delta = outputs["errors"][:, i]
        torch.sub(w, q.flatten(), out=delta)
        outputs["losses"][:, i] = delta.square() / d.square()
        delta.div_(d)
        work[:, i:] -= delta.unsqueeze(1) * hinv[i, i:]
    return {**outputs, "work": work}


@pytest.mark.parametrize(("rows", "groups", "bits"), [(4, 1, 4), (7, 3, 4), (1, 128, 8)])
def test_a_block_has_the_bits_of_gptqmodel_s_loop(
    interpreted: Update, rows: int, groups: int, bits: int
) -> None:
    tensors = block(rows, groups, bits)
    expected = eager(tensors)
    interpreted(*tensors.values())
    assert expected["quantized"].unique().numel() > 1
    for name in NAMES:
        assert torch.equal(tensors[name], expected[name]), name


def test_what_is_no_number_and_what_is_far_away_end_as_in_torch(interpreted: Update) -> None:
    tensors = block(4, 1, 4)
    tensors["work"][0, 5] = float("nan")
    tensors["work"][1, 5] = float("inf")
    tensors["work"][2, 5] = 1e30
    tensors["work"][3, 5] = 0.0
    expected = eager(tensors)
    interpreted(*tensors.values())
    assert expected["quantized"].isnan().any()
    for name in NAMES:
        assert torch.equal(tensors[name].nan_to_num(7.0), expected[name].nan_to_num(7.0)), name
        assert torch.equal(tensors[name].isnan(), expected[name].isnan()), name


@pytest.mark.parametrize("wrong", ["work", "hinv", "scale", "column_group", "losses"])
def test_other_shapes_are_refused(interpreted: Update, wrong: str) -> None:
    tensors = block(4, 1, 4)
    tensors[wrong] = tensors[wrong][..., ::2]
    with pytest.raises(ValueError, match="other shapes"):
        interpreted(*tensors.values())


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_the_compiler_fuses_no_multiply_with_an_add(capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    parameters = list(_block_kernel._update.arg_names)
    signature = dict.fromkeys(parameters, "i32")
    signature |= {name: "*fp32" for name in parameters if name.endswith("_ptr")}
    signature |= {"group_ptr": "*i32", "maxq": "fp32", "CHANNELS": "constexpr", "WIDTH": "constexpr"}
    source = ASTSource(_block_kernel._update, signature, {"CHANNELS": 4, "WIDTH": 128})

    def ptx(**options: Any) -> str:
        target = GPUTarget("cuda", capability, 32)
        return str(compile(source, target=target, options={"num_warps": 1, **options}).asm["ptx"])

    fused = re.compile(r"\bfma\.rn\.f32\b")
    assert not fused.search(ptx(enable_fp_fusion=False))
    assert "div.rn.f32" in ptx(enable_fp_fusion=False)
    # The option is what does it.
    assert fused.search(ptx(enable_fp_fusion=True))


@pytest.mark.parametrize(("built", "runs"), [(True, "theirs"), (False, "triton")])
def test_gptqmodel_s_own_kernel_runs_where_it_can_be_built(
    built: bool, runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptqmodel.quantization import gptq_cuda

    tried: list[str] = []
    taken: list[str] = []

    def theirs(work, hinv, scale, zero, column_group, quantized, errors, losses, maxq):  # type: ignore[no-untyped-def]
        taken.append("theirs")

    def available() -> bool:
        tried.append("build")
        return built

    monkeypatch.setattr(gptq_cuda, "block_update_available", available)
    monkeypatch.setattr(gptq_cuda, "gptq_block_update", theirs)
    monkeypatch.setattr(_block_kernel, "block_update", lambda *tensors: taken.append("triton"))
    with block_kernel():
        # As GPTQ.quantize does: both first, then the question.
        from gptqmodel.quantization.gptq_cuda import block_update_available, gptq_block_update

        for _ in range(2):
            assert block_update_available()
            gptq_block_update(*range(9))
    assert taken == [runs] * 2
    assert tried == ["build"]
    assert gptq_cuda.gptq_block_update is theirs


def test_a_kernel_of_another_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.quantization import gptq_cuda

    monkeypatch.setattr(gptq_cuda, "gptq_block_update", lambda work, hinv: None)
    with pytest.raises(IncompatibleError, match="gptq_block_update is expected to take"), block_kernel():
        pass


def test_a_solver_that_asks_for_no_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.quantization.gptq import GPTQ

    monkeypatch.setattr(GPTQ, "quantize", lambda self: None)
    with pytest.raises(IncompatibleError, match="expected to import"), block_kernel():
        pass
