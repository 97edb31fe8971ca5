"""What a plain vision transformer does on a GPU, run on a CPU: windows without padding, biases in bands, a kernel in
Triton's interpreter, compiled blocks. Twins are the reference's encoder and the forms that a CPU takes.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amg.errors import ConfigError
from amg.sam import vit, windows
from amg.sam.config import VIT_B, VIT_H, TinyVitConfig, VitConfig
from amg.sam.faster import compile_blocks, use_triton
from amg.sam.layers import from_windows, to_windows
from amg.sam.tinyvit import TinyVit
from amg.sam.vit import Attention, Vit, attend_in_bands, relative_position_bias
from tests.sam_reference import assert_near, draw_weights, pixels
from tests.test_sam_model import reference_vit
from tests.test_sam_training import counting_backend

SIDES = VitConfig(width=32, depth=4, heads=2, global_blocks=(1, 3), window=3)
"""Blocks of both kinds, twice, on a grid of 8 with windows of 3: a row and a column of padding."""


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of a device other than the CPU, on the CPU."""
    monkeypatch.setattr(vit, "on_host", lambda _: False)


def encoder_of(config: VitConfig, side: int, *, seed: int = 5) -> Vit:
    encoder = Vit(config, side=side, channels=16).eval()
    draw_weights(encoder, seed)
    return encoder


# Windows.


def with_padding(attention: Attention, x_NHWC: Tensor) -> Tensor:
    """Windows as the CPU takes them: zeros beyond the edge go through all of it."""
    n, h, w, _ = x_NHWC.shape
    return from_windows(attention(to_windows(x_NHWC, attention.side)), n, h, w)


def attention_of(*, heads: int, channels: int, side: int) -> Attention:
    attention = Attention(heads * channels, heads, side=side)
    draw_weights(attention, seed=channels)
    return attention


@pytest.mark.parametrize("channels", [8, 64, 80])
@pytest.mark.parametrize(
    ("size", "side"), [((9, 13), 4), ((8, 8), 4), ((5, 3), 7), ((20, 20), 14), ((1, 6), 5), ((4, 9), 3)], ids=str
)
def test_windows_without_padding_give_what_windows_with_it_give(
    channels: int, size: tuple[int, int], side: int
) -> None:
    attention = attention_of(heads=2, channels=channels, side=side)
    x_NHWC = pixels(2, *size, 2 * channels)
    with torch.no_grad():
        assert_near(attention(x_NHWC), with_padding(attention, x_NHWC), 1e-6)


def test_windows_have_the_same_gradients_without_padding() -> None:
    attention = attention_of(heads=2, channels=8, side=5)
    x_NHWC = pixels(2, 7, 8, 16)
    target = pixels(2, 7, 8, 16, seed=1)
    found, wanted = [], []
    for form, grads in ((attention, found), (with_padding, wanted)):
        attention.zero_grad()
        given = x_NHWC.clone().requires_grad_()
        y_NHWC = form(given) if form is attention else with_padding(attention, given)
        F.mse_loss(y_NHWC, target, reduction="sum").backward()
        grads += [given.grad, *(parameter.grad for parameter in attention.parameters())]
    for ours, theirs in zip(found, wanted, strict=True):
        assert_near(ours, theirs)


def test_nothing_is_projected_for_padding(on_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, tokens, widths = encoder_of(SIDES, 128), [], []
    for block in encoder.blocks:
        for linear in (block.attn.qkv, block.attn.proj):
            linear.register_forward_hook(lambda _module, args, _out: tokens.append(args[0].numel() // SIDES.width))
    attend = F.scaled_dot_product_attention

    def seen(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        if q.shape[2] == SIDES.window**2:
            assert options.keys() == {"scale"}, "a bias for windows"
            widths.append((q.shape[-1], k.shape[-1]))
        return attend(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    with torch.no_grad():
        encoder(pixels(2, 3, 128, 128))
    assert tokens == [2 * 8 * 8] * 8
    assert widths == [(32, 32)] * 2  # 16 channels, two times 3 places, to a multiple of 16


@pytest.mark.parametrize(("channels", "wide"), [(64, 96), (80, 112)])
def test_heads_of_the_published_models_become_multiples_of_16_and_as_wide_as_their_values(
    channels: int, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    attend = F.scaled_dot_product_attention

    def seen(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        shapes.append((q.shape, k.shape, v.shape))
        return attend(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    attention = attention_of(heads=1, channels=channels, side=14).bfloat16()
    with torch.no_grad():
        attention(pixels(1, 20, 20, channels).bfloat16())
    assert shapes == [((4, 1, 196, wide),) * 3]


@pytest.mark.parametrize("channels", [64, 80])
def test_windows_in_two_bytes_are_as_near_to_the_truth_as_with_a_bias(channels: int) -> None:
    attention = attention_of(heads=2, channels=channels, side=14)
    x_NHWC = pixels(1, 20, 20, 2 * channels)
    with torch.no_grad():
        truth = with_padding(attention, x_NHWC)
        for dtype in (torch.bfloat16, torch.float16):
            rounded = copy.deepcopy(attention).to(dtype)
            ours, before = (
                float((y.float() - truth).square().mean())
                for y in (rounded(x_NHWC.to(dtype)), with_padding(rounded, x_NHWC.to(dtype)))
            )
            assert ours <= 1.1 * before


# The whole encoder.


@pytest.mark.parametrize("config", [VIT_B.encoder, VIT_H.encoder], ids=["64 channels", "80 channels"])
def test_the_encoder_gives_the_reference_features_on_a_device(on_device: None, config: VitConfig) -> None:
    config = replace(config, width=2 * config.width // config.heads, heads=2, depth=3, global_blocks=(1,))
    theirs, ours = reference_vit(config, 320).eval(), Vit(config, side=320, channels=256).eval()
    ours.load_state_dict(draw_weights(theirs, seed=config.width))
    with torch.no_grad():
        assert_near(ours(pixels(2, 3, 320, 320)), theirs(pixels(2, 3, 320, 320)))


def test_every_gradient_is_the_references_on_a_device(on_device: None) -> None:
    theirs, ours = reference_vit(SIDES, 128), Vit(SIDES, side=128, channels=256)
    ours.load_state_dict(draw_weights(theirs, seed=2))
    for encoder in (theirs, ours):
        (encoder(pixels(1, 3, 128, 128)) * pixels(1, 256, 8, 8, seed=3)).sum().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_near(parameter.grad, wanted[name])


def test_what_windows_share_is_made_once_and_serves_training_after_inference(
    on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch refuses to send gradients through what was made in inference mode."""
    windows._kept_places.cache_clear()
    made: list[int] = []
    make = windows._make_places
    monkeypatch.setattr(windows, "_make_places", lambda *given: (made.append(1), make(*given))[1])
    with torch.inference_mode():
        encoder_of(SIDES, 128)(pixels(1, 3, 128, 128))
    encoder = encoder_of(SIDES, 128)
    encoder(pixels(1, 3, 128, 128)).sum().backward()
    assert encoder.blocks[0].attn.rel_pos_h.grad.any()
    assert len(made) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_of_two_bytes_works_on_a_device(on_device: None, dtype: torch.dtype) -> None:
    encoder = encoder_of(SIDES, 128)
    x_N3SS = pixels(1, 3, 128, 128)
    with torch.no_grad():
        truth = encoder(x_N3SS)
        found = encoder.to(dtype)(x_N3SS.to(dtype))
    assert found.dtype == dtype
    assert_near(found.float(), truth, 0.03)


# Bands.


def drawn(side: int, channels: int, *, images: int = 1, heads: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """Queries, keys and values as they lie behind their layer, and numbers for rows and columns."""
    q_BhTc, k_BhTc, v_BhTc = pixels(images, side * side, 3, heads, channels).to(dtype).permute(2, 0, 3, 1, 4)
    rows_BhTs, columns_BhTs = pixels(2, images, heads, side * side, side, seed=1).to(dtype)
    return q_BhTc, k_BhTc, v_BhTc, rows_BhTs, columns_BhTs


@contextmanager
def largest_bias(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    sizes: list[int] = []

    def made(rows_BhTs: Tensor, columns_BhTs: Tensor) -> Tensor:
        bias_BhTT = relative_position_bias(rows_BhTs, columns_BhTs)
        sizes.append(bias_BhTT.nbytes)
        return bias_BhTT

    with monkeypatch.context() as patch:
        patch.setattr(vit, "relative_position_bias", made)
        yield sizes


@pytest.mark.parametrize("limit", [1, 2 * 2 * 81 * 4, 5 * 2 * 2 * 81 * 4 + 3, 2**30])
def test_bands_of_queries_give_what_all_at_once_give_in_bounded_memory(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = drawn(9, 16, images=2)
    of_a_query = 2 * 2 * 81 * 4
    with torch.no_grad(), largest_bias(monkeypatch) as sizes:
        wanted = attend_in_bands(*given, scale=0.3)
        assert sizes.pop() == 81 * of_a_query
        monkeypatch.setattr(vit, "BIAS_BYTES", limit)
        assert_near(attend_in_bands(*given, scale=0.3), wanted, 1e-6)
    assert max(sizes) <= max(limit, of_a_query)
    assert sum(sizes) == 81 * of_a_query


# The kernel.


@pytest.fixture
def kernel() -> Any:
    pytest.importorskip("triton")
    from amg.kernels.gpu import attention

    return attention


def twin(q_BhTc: Tensor, k_BhTc: Tensor, v_BhTc: Tensor, rows_BhTs: Tensor, columns_BhTs: Tensor) -> Tensor:
    """As it is written in the paper, in float64."""
    q, k, v, rows, columns = (x.double() for x in (q_BhTc, k_BhTc, v_BhTc, rows_BhTs, columns_BhTs))
    scores_BhTT = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + relative_position_bias(rows, columns)
    return (scores_BhTT.softmax(-1) @ v).transpose(1, 2)


def assert_like_twin(found_BThc: Tensor, given: Any) -> None:
    """Within rounding: of float32, or of the result to two bytes and of the weights before."""
    wanted = twin(*given)
    assert found_BThc.dtype == given[0].dtype
    assert found_BThc.is_contiguous()
    assert_near(found_BThc.double(), wanted, 1e-6 if found_BThc.dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("channels", [64, 80])
@pytest.mark.parametrize("side", [5, 9, 14, 16])
def test_the_kernel_is_like_its_twin(kernel: Any, side: int, channels: int) -> None:
    given = drawn(side, channels)
    assert_like_twin(kernel.attend(*given, scale=channels**-0.5), given)


@pytest.mark.parametrize("keys", [16, 32, 64])
@pytest.mark.parametrize(("side", "queries"), [(8, 16), (8, 64), (9, 16), (9, 128), (5, 32), (12, 16)])
def test_the_kernel_is_right_for_tiles_of_several_rows_and_of_parts_of_one(
    kernel: Any, side: int, queries: int, keys: int
) -> None:
    given = drawn(side, 16, heads=1)
    tiles = kernel.Tiles(queries, keys, 4, 1)
    assert_like_twin(kernel.launch(*given, scale=0.25, tiles=tiles), given)


@pytest.mark.parametrize("queries", [64, 256])
def test_a_tile_that_is_a_row_gives_what_other_tiles_give(kernel: Any, queries: int) -> None:
    given = drawn(16, 24, heads=1)
    for keys in (16, 32):
        assert_like_twin(kernel.launch(*given, scale=24**-0.5, tiles=kernel.Tiles(queries, keys, 4, 1)), given)


@pytest.mark.parametrize("channels", [8, 16, 24, 40, 96, 112])
def test_heads_of_any_width_are_taken_apart(kernel: Any, channels: int) -> None:
    given = drawn(6, channels, heads=1)
    assert_like_twin(kernel.attend(*given, scale=channels**-0.5), given)


@pytest.mark.parametrize("side", [7, 16])
def test_the_kernel_takes_two_bytes(kernel: Any, side: int) -> None:
    """float16: the interpreter multiplies bfloat16 by its bits."""
    given = drawn(side, 80, heads=1, dtype=torch.float16)
    assert_like_twin(kernel.attend(*given, scale=80**-0.5), given)


def test_images_and_heads_are_kept_apart(kernel: Any) -> None:
    given = drawn(5, 16, images=3, heads=4)
    assert_like_twin(kernel.attend(*given, scale=0.25), given)
    contiguous = [x.contiguous() for x in given]
    assert torch.equal(kernel.attend(*given, scale=0.25), kernel.attend(*contiguous, scale=0.25))


def test_large_scores_of_any_order_neither_overflow_nor_vanish(kernel: Any) -> None:
    """The largest score comes first in one square and last in the other; both are far beyond what exp can take."""
    q_BhTc, k_BhTc, v_BhTc, rows_BhTs, columns_BhTs = drawn(8, 16, images=2, heads=1)
    rows_BhTs = rows_BhTs.clone()
    rows_BhTs[0, ..., 0] += 3000
    rows_BhTs[1, ..., -1] += 3000
    given = q_BhTc, k_BhTc, v_BhTc, rows_BhTs, columns_BhTs - 500
    wanted = twin(*given)
    found = kernel.attend(*given, scale=0.25)
    assert torch.isfinite(found).all()
    assert_near(found.double(), wanted, 1e-4)  # of a score of 3000 float32 has three digits behind the point


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from amg.kernels.gpu import attention

dtype, kind = (torch.bfloat16, "*bf16") if sys.argv[1] == "bfloat16" else (torch.float32, "*fp32")
tiles = attention.tiles_for(dtype, 64)
shapes = attention.shapes_of(64, 80, tiles)
names = attention._attend.arg_names
types = {
    name: "constexpr" if name in shapes else kind if i < 6 else "fp32" if name == "scale" else "i32"
    for i, name in enumerate(names)
}
aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name] in (kind, "i32")}
constants = {(names.index(name),): value for name, value in shapes.items()}
built = triton.compile(
    ASTSource(attention._attend, types, constants, aligned),
    target=GPUTarget("cuda", 90, 32),
    options={"num_warps": tiles.warps, "num_stages": tiles.stages},
)
print(built.metadata.shared, built.asm["ptx"].count("wgmma.mma_async"), len(built.asm["cubin"]) > 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_kernel_compiles_for_hopper(kernel: Any, tmp_path: Path, dtype: str) -> None:
    """For the published heads of 80: with matrix instructions, and in the shared memory of a multiprocessor."""
    done = run(COMPILE, dtype, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    shared, matrix_instructions, built = done.split()
    assert int(shared) < 227 * 1024
    assert int(matrix_instructions) >= 13  # 64 and 16 channels: 4 + 1 for scores, 4 + 4 for values
    assert built == "True"


def run(code: str, *arguments: str, **environment: str) -> str:
    """What a Python process of its own prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


# The switch.


@pytest.fixture
def launches(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that the kernel was asked for."""
    shapes: list[tuple[int, ...]] = []
    launch = kernel.launch

    def noted(*given: Tensor, **options: Any) -> Tensor:
        shapes.append(tuple(given[0].shape))
        return launch(*given, **options)

    monkeypatch.setattr(kernel, "launch", noted)
    return shapes


def test_the_kernel_does_the_global_blocks_where_there_are_no_gradients(
    on_device: None, launches: list[tuple[int, ...]]
) -> None:
    encoder = encoder_of(SIDES, 128)
    x_N3SS = pixels(2, 3, 128, 128)
    with torch.no_grad():
        wanted = encoder(x_N3SS)
        use_triton(encoder)
        assert_near(encoder(x_N3SS), wanted)
    assert launches == [(2, 2, 64, 16)] * 2
    encoder(x_N3SS).sum().backward()
    assert len(launches) == 2
    copied = copy.deepcopy(encoder)
    with torch.no_grad():
        assert_near(copied(x_N3SS), wanted)
    assert len(launches) == 4


def test_the_kernel_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(SIDES, 128)
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(ConfigError, match=r"run on CUDA devices, and the model is on cpu; use kernels 'torch'"):
            use_triton(encoder)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("amg.sam.faster.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="need the package triton, and it is not installed"):
        use_triton(encoder)


def test_an_encoder_of_another_kind_stays_as_it_is() -> None:
    config = TinyVitConfig(widths=(8, 8), depths=(1, 1), heads=(1, 1), windows=(7, 7), strides=(2,))
    encoder = TinyVit(config, channels=8).eval()
    before = dict(encoder.named_modules())
    use_triton(encoder)
    compile_blocks(encoder)
    assert dict(encoder.named_modules()) == before
    assert all(module._compiled_call_impl is None for module in encoder.modules())


# Compiled and exported.


@pytest.fixture
def graphs() -> Iterator[list[Any]]:
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


@pytest.mark.parametrize("triton", [False, True])
def test_blocks_of_one_kind_share_what_is_compiled(
    on_device: None, graphs: list[Any], kernel: Any, *, triton: bool
) -> None:
    encoder = encoder_of(SIDES, 128)
    with torch.no_grad():
        wanted = {images: encoder(pixels(images, 3, 128, 128)) for images in (1, 3, 2, 5)}
        if triton:
            use_triton(encoder)
        compile_blocks(encoder, backend=counting_backend(graphs))
        compiled = []
        for images, features in wanted.items():
            assert_near(encoder(pixels(images, 3, 128, 128)), features)
            compiled.append(len(graphs))
    assert compiled == [2, 4, 4, 4]  # with windows and without, for one image; then for any number
    operators = {node.target for graph in graphs for node in graph.graph.nodes}
    assert (torch.ops.amg.attend.default in operators) == triton


@pytest.mark.parametrize("device", [False, True])
def test_an_encoder_is_exported_for_any_number_of_images(device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "on_host", lambda _: not device)
    encoder, free = encoder_of(SIDES, 128), torch.export.Dim("images", max=64)
    with torch.no_grad():
        program = torch.export.export(encoder, (pixels(2, 3, 128, 128),), dynamic_shapes=({0: free},))
        for images in (1, 5):
            x_N3SS = pixels(images, 3, 128, 128)
            assert_near(program.module()(x_N3SS), encoder(x_N3SS))


COMPILED = """
import torch
from torch._dynamo.utils import counters
from amg.sam import vit, windows
from amg.sam.faster import compile_blocks, use_triton
from tests.sam_reference import pixels
from tests.test_vit_gpu import SIDES, encoder_of

vit.on_host = lambda _: False
encoder, x_N3SS = encoder_of(SIDES, 128), pixels(1, 3, 128, 128)
with torch.no_grad():
    wanted = encoder(x_N3SS)
    use_triton(encoder)
    compile_blocks(encoder)
    worst = float((encoder(x_N3SS) - wanted).abs().max() / (wanted.max() - wanted.min()))
print(worst < 1e-5, counters["stats"]["unique_graphs"], counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU with g++")
def test_compiled_blocks_give_the_same_and_are_there_in_the_next_process(kernel: Any, tmp_path: Path) -> None:
    for found_in_cache in (0, 2):
        assert run(COMPILED, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)).split() == ["True", "2", str(found_in_cache)]
