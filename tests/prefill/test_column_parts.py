"""Results of a GEMM that writes whole matrices alone: copied into some columns of a wider one, or none to copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from vllm_qwen36_plugin.prefill import routes, scratch  # noqa: E402
from vllm_qwen36_plugin.prefill.expand import reference  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402
from vllm_qwen36_plugin.upstream import scaled_mm  # noqa: E402

from .fake_gpu import FakeGpu  # noqa: E402
from .made import Weight  # noqa: E402

CPU = torch.device("cpu")
K, N = 128, 320
SHAPE = Shape("marlin", K, N, 4, 32, "bfloat16")


class Copies(TorchDispatchMode):
    """Notes what type the elements of each copy are of."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def bits(*shape: int) -> torch.Tensor:
    """All sorts of 16-bit patterns, those of NaN and infinity among them."""
    patterns = torch.randint(-(1 << 15), 1 << 15, shape, dtype=torch.int16)
    patterns.view(-1)[:2] = torch.tensor(
        [0x7F81, 0x7F80], dtype=torch.int16
    )  # a signalling NaN and infinity in BF16
    return patterns


def at(address: int, count: int) -> torch.Tensor:
    """So many 16-bit numbers whose storage begins ``address`` bytes behind a multiple of 64."""
    memory = bytearray(2 * count + 192)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 64 + address
    values = torch.frombuffer(memory, dtype=torch.int16, count=count, offset=start)
    assert values.data_ptr() % 64 == address
    return values


# Any number, and as often one that sixteen bytes go into.
ANY = st.integers(0, 40) | st.integers(0, 5).map(lambda eights: 8 * eights)


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.integers(1, 9),
    first=ANY,
    width=ANY.filter(bool),
    rest=ANY,
    address=st.sampled_from([0, 2, 8, 16, 30]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_a_copy_has_the_same_bits_and_leaves_all_other_columns_alone(
    tokens: int, first: int, width: int, rest: int, address: int, dtype: torch.dtype
) -> None:
    n = first + width + rest
    wide = at(address, tokens * n).view(tokens, n)
    wide.copy_(bits(tokens, n + 1)[:, :n])
    expected = wide.clone()
    whole = bits(tokens, width + 1)[:, :width].contiguous()
    expected[:, first : first + width] = whole
    scaled_mm.copy_columns(wide.view(dtype)[:, first : first + width], whole.view(dtype))
    assert torch.equal(wide, expected)


SIXTEENS = {
    "the first": (0, 8, 64, 0),
    "the last": (40, 24, 64, 0),
    "all": (0, 64, 64, 0),
    "at 48": (0, 8, 64, 48),
}
OTHERS = {
    "first column": (4, 8, 64, 0),
    "width": (8, 12, 64, 0),
    "row stride": (8, 8, 60, 0),
    "address": (0, 8, 64, 8),
    # Aligned as a whole, but PyTorch makes no view of it.
    "offset and address": (4, 8, 64, 8),
    "one column": (8, 1, 64, 0),
}


@pytest.mark.parametrize("case", SIXTEENS | OTHERS)
def test_copies_go_by_sixteen_bytes_where_everything_is_a_multiple_of_them(case: str) -> None:
    first, width, n, address = (SIXTEENS | OTHERS)[case]
    wide = at(address, 5 * n).view(torch.bfloat16).view(5, n)
    whole = bits(5, width).view(torch.bfloat16)
    with Copies() as copies:
        scaled_mm.copy_columns(wide[:, first : first + width], whole)
    assert copies.dtypes == [torch.complex128 if case in SIXTEENS else torch.bfloat16]


def test_a_result_that_is_no_multiple_itself_is_copied_by_its_own_elements() -> None:
    wide = at(0, 5 * 64).view(torch.bfloat16).view(5, 64)
    whole = at(2, 5 * 8).copy_(bits(40)).view(torch.bfloat16).view(5, 8)
    with Copies() as copies:
        scaled_mm.copy_columns(wide[:, 8:16], whole)
    assert copies.dtypes == [torch.bfloat16]
    assert torch.equal(wide[:, 8:16].view(torch.int16), whole.view(torch.int16))


@dataclass
class Gemm:
    """`cutlass_scaled_mm` on the CPU, exact sums. ``packs``: it writes as Hopper's does, row after row."""

    packs: bool = True
    widths: list[int] = field(default_factory=list)

    def torchs(self, tokens: torch.Tensor, columns: torch.Tensor, **options: Any) -> torch.Tensor:
        """As `torch._scaled_mm`, with a scale a row and a column."""
        out = options["out"]
        assert options["use_fast_accum"]
        assert options["out_dtype"] == out.dtype
        assert options["scale_a"].shape == (len(tokens), 1)
        assert options["scale_b"].shape == (1, columns.shape[1])
        self(out, tokens, columns, options["scale_a"], options["scale_b"], None)
        return out  # type: ignore[no-any-return]

    def __call__(
        self,
        out: torch.Tensor,
        tokens: torch.Tensor,
        columns: torch.Tensor,
        row_scales: torch.Tensor,
        column_scales: torch.Tensor,
        bias: None,
    ) -> None:
        # Products of e4m3 and sums of a few hundred are exact in float64: parts have the bits of the whole.
        product = (tokens.double() @ columns.double()) * row_scales * column_scales.reshape(1, -1)
        target = out.as_strided(out.shape, (out.shape[1], 1)) if self.packs else out
        target.copy_(product.to(out.dtype))
        self.widths.append(out.shape[1])


Hopper = Callable[[bool], Gemm]


@pytest.fixture
def gemm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hopper]:
    """Puts a `Gemm` in place of vLLM's op, already probed for how it writes."""

    def put(packs: bool) -> Gemm:
        stand_in = Gemm(packs)
        monkeypatch.setattr(torch.ops._C, "cutlass_scaled_mm", stand_in, raising=False)
        scaled_mm.writes_strided.cache_clear()
        assert scaled_mm.writes_strided(CPU, torch.bfloat16, "vllm") is not packs
        stand_in.widths.clear()
        return stand_in

    scratch.release()
    scaled_mm.works.cache_clear()
    monkeypatch.setattr(routes, "quantize_tokens", FakeGpu().quantize_tokens)
    monkeypatch.setattr(routes, "expand", reference)
    yield put
    scaled_mm.works.cache_clear()
    scaled_mm.writes_strided.cache_clear()
    scratch.release()


def test_a_gemm_that_refuses_a_strided_result_is_one_that_cannot_write_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As vLLM 0.33.0's for Hopper does: "output is not packed"."""

    def refuses(*_: object) -> None:
        raise RuntimeError("CUTLASS 3.x scaled_mm requires packed operands; output is not packed")

    monkeypatch.setattr(torch.ops._C, "cutlass_scaled_mm", refuses, raising=False)
    scaled_mm.writes_strided.cache_clear()
    assert not scaled_mm.writes_strided(CPU, torch.bfloat16, "vllm")
    scaled_mm.writes_strided.cache_clear()


@pytest.mark.parametrize("packs", [True, False])
def test_a_product_is_written_to_its_columns_and_nowhere_else(gemm: Hopper, packs: bool) -> None:
    gemm(packs)
    tokens = torch.randn(5, 32).to(torch.float8_e4m3fn)
    columns = torch.randn(16, 32).to(torch.float8_e4m3fn).t()
    row_scales, column_scales = torch.rand(5, 1), torch.rand(16, 1)
    wide = torch.full((5, 64), 7.0, dtype=torch.bfloat16)
    with Copies() as copies:
        scaled_mm.multiply(wide[:, 24:40], tokens, columns, row_scales, column_scales)
    expected = ((tokens.double() @ columns.double()) * row_scales * column_scales.t()).bfloat16()
    assert torch.equal(wide[:, 24:40], expected)
    assert bool((wide[:, :24] == 7).all())
    assert bool((wide[:, 40:] == 7).all())
    assert (torch.complex128 in copies.dtypes) is packs


def product(tokens: int, size: int, gemm: Any = "vllm") -> torch.Tensor:
    """`routes.fp8` of one weight and the first of some tokens, with a scratch of ``size`` bytes."""
    weight = Weight.random(SHAPE)
    packed = routes.Weight(weight.stock_words(), weight.stock_scales(), routes.fp8_scales(weight.scales, 4))
    x = torch.randn(200, K, generator=torch.Generator().manual_seed(0)).bfloat16()[:tokens]
    scratch.release()
    scratch.reserve(CPU, size)
    return routes.fp8(x, packed, SHAPE, gemm)


def test_a_weight_has_a_buffer_of_its_own_once_that_is_no_larger_than_a_parts_result(gemm: Hopper) -> None:
    stand_in = gemm(True)
    expected = product(200, K * N)
    assert stand_in.widths == [N]
    # In the bytes of 128 columns: parts of 128, 128 and 64 columns, results of 256 bytes a row.
    for tokens, widths in ((159, [128, 128, 64]), (160, [N]), (200, [N])):
        stand_in.widths.clear()
        with Copies() as copies:
            result = product(tokens, 128 * K)
        assert torch.equal(result.view(torch.int16), expected[:tokens].view(torch.int16)), tokens
        assert stand_in.widths == widths
        assert copies.dtypes.count(torch.complex128) == (3 if len(widths) > 1 else 0)


def test_a_weight_goes_through_the_scratch_in_parts_where_a_gemm_writes_them_in_place(gemm: Hopper) -> None:
    stand_in = gemm(False)
    expected = product(200, K * N)
    stand_in.widths.clear()
    result = product(200, 128 * K)
    assert torch.equal(result.view(torch.int16), expected.view(torch.int16))
    assert stand_in.widths == [128, 128, 64]


def test_the_other_gemm_writes_parts_in_place_where_vllms_does_not(
    gemm: Hopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllms, torchs = gemm(True), Gemm(packs=False)
    monkeypatch.setattr(torch, "_scaled_mm", torchs.torchs)
    assert scaled_mm.works(CPU, torch.bfloat16, "torch")
    vllms.widths.clear()
    expected = product(200, K * N)
    assert vllms.widths == [N]
    torchs.widths.clear()
    with Copies() as copies:
        result = product(200, 128 * K, "torch")
    assert torch.equal(result.view(torch.int16), expected.view(torch.int16))
    assert torchs.widths == [128, 128, 64]
    assert vllms.widths == [N]
    assert torch.complex128 not in copies.dtypes


def test_a_gemm_may_be_there_for_results_of_one_type_alone(
    gemm: Hopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    gemm(True)

    def bfloat16_alone(*args: Any, **kwargs: Any) -> Any:
        if kwargs["out_dtype"] != torch.bfloat16:
            raise RuntimeError("only bf16 high precision output types are supported for row-wise scaling")
        return Gemm(packs=False).torchs(*args, **kwargs)

    monkeypatch.setattr(torch, "_scaled_mm", bfloat16_alone)
    assert scaled_mm.works(CPU, torch.bfloat16, "torch")
    assert not scaled_mm.works(CPU, torch.float16, "torch")


def packs(*args: Any, **kwargs: Any) -> Any:
    return Gemm(packs=True).torchs(*args, **kwargs)


def refuses(*_: Any, **__: Any) -> None:
    raise RuntimeError("only supported on sm_90")


def lacks_out(tokens: Any, columns: Any, scale_a: Any, scale_b: Any) -> None: ...


def writes_elsewhere(*_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize("other", [packs, refuses, lacks_out, writes_elsewhere, None])
def test_a_gemm_that_is_not_what_is_expected_is_not_taken(
    gemm: Hopper, monkeypatch: pytest.MonkeyPatch, other: Any
) -> None:
    gemm(True)
    if other is None:
        monkeypatch.delattr(torch, "_scaled_mm")
    else:
        monkeypatch.setattr(torch, "_scaled_mm", other)
    assert not scaled_mm.works(CPU, torch.bfloat16, "torch")
    assert scaled_mm.works(CPU, torch.bfloat16, "vllm")


@pytest.mark.parametrize(
    ("capability", "version", "tried"),
    [
        ((8, 9), "2.11.0+cu130", False),
        ((8, 9), "2.12.0+cu130", True),
        ((8, 9), "2.12.0.dev20260401+cu130", True),
        ((9, 0), "2.11.0+cu130", True),
        ((12, 0), "2.11.0+cu130", True),
    ],
)
def test_pytorchs_gemm_is_not_even_tried_where_it_hangs(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], version: str, tried: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(scaled_mm, "writes_strided", lambda device, dtype, gemm: asked.append(gemm) is None)
    works = scaled_mm.works.__wrapped__  # nothing is kept of an answer
    assert works(torch.device("cuda", 0), torch.bfloat16, "torch") is tried
    assert bool(asked) is tried
    assert works(torch.device("cuda", 0), torch.bfloat16, "vllm")
