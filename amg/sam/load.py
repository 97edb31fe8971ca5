"""From a weights file to a model. Which architecture a file holds is read from its keys and shapes.

Precision and device are decided here, once.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from amg.errors import ConfigError, WeightsError
from amg.sam.bfloat16 import round_products, round_vit
from amg.sam.checkpoint import WANTED, check_fit, read_state_dict, sam_of
from amg.sam.config import ARCHITECTURES, Architecture, VitConfig
from amg.sam.faster import check_triton, compile_blocks, use_triton
from amg.sam.keys import to_original
from amg.sam.model import Sam, build_sam
from amg.sam.precision import Kernels, Precision, in_words
from amg.sam.products import use_fastest_products
from amg.sam.vit import Vit
from amg.sam.weights import DEFAULT, KNOWN, checked_file


def load_sam(
    weights: str | Path = DEFAULT,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "parity",
    kernels: Kernels = "torch",
    compiled: bool = False,
) -> Sam:
    """The model of a weights file, of a known name or of an address (fetched into the cache first), in evaluation mode.

    precision: `parity`, float32 and the masks of the reference, or `fast`, and some masks are others: the image encoder
    multiplies in bfloat16 (on a CPU and in a TinyViT its linear layers alone), on a GPU the mask decoder in float16.
    kernels: `torch`, or `triton` for kernels of ours on a GPU, which no GPU has run yet (docs/gpu.md).
    compiled: let PyTorch compile the blocks of a ViT when they are first called.
    Raises WeightsError where the file is not what it should be, ConfigError where file or device is not there, where
    `fast` is asked of a processor that has no bfloat16, or `triton` of one that is no GPU.
    """
    device = usable_device(device)
    dtype = usable_dtype(precision, device)
    if str(weights) not in KNOWN and Path(weights).expanduser().is_dir():
        raise ConfigError(
            f"{weights} is a folder; wanted a weights file or a name: SamModel.from_pretrained reads folders"
        )
    path, sha256 = checked_file(weights)
    state = read_original(path)
    architecture = recognise(state, path)
    with device, Uninitialised():
        sam = build_sam(architecture)
    check_fit(state, sam.state_dict(), path=path, name=sam.name)
    sam.load_state_dict(state)
    sam.weights_digest = sha256
    if kernels == "triton":
        check_triton(device)
        use_triton(sam.image_encoder)
        sam.kernels = kernels
    if dtype == torch.bfloat16:
        use_fewer_bits(sam, device)
    sam.precision = in_words(precision, device.type)
    if device.type == "cpu":
        sam.precision += f"; {use_fastest_products(sam.image_encoder)}"
    if compiled:
        compile_blocks(sam.image_encoder)
    return sam


def use_fewer_bits(sam: Sam, device: torch.device) -> None:
    """Turn a finished float32 model into what `fast` is on this kind of device; docs/gpu.md says what masks make of it.

    The decoder is float16 on a GPU, not bfloat16: its numbers are small, and their last bits decide more masks. Kernels
    of ours need no weights of fewer bits: they round the image tokens alone, a third of the error.
    """
    if device.type == "cuda" and isinstance(sam.image_encoder, Vit):
        round_vit(sam.image_encoder)
    else:
        round_products(sam.image_encoder)
    if sam.kernels == "triton":
        sam.fused_in = torch.float16
    elif device.type == "cuda":
        sam.mask_decoder.half()


def arithmetic(dtype: torch.dtype, device: torch.device) -> str:
    """In words, which arithmetic a model does that was loaded in one type throughout, and why."""
    if dtype == torch.float32:
        return in_words("parity", device.type)
    return f"{str(dtype).removeprefix('torch.')} on {device.type}: as asked for; float32 gives the published masks"


def usable_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What the linear layers of the image encoder multiply in; ConfigError where the device cannot do it fast."""
    if precision == "parity":
        return torch.float32
    if precision != "fast":
        raise ConfigError(f"precision {precision!r}; wanted 'parity' or 'fast'")
    reason = lacks_bfloat16(device)
    if reason is not None:
        raise ConfigError(f"precision 'fast' is bfloat16, but {reason}; use precision 'parity' (model.precision)")
    return torch.bfloat16


def lacks_bfloat16(device: torch.device) -> str | None:
    """Why a device has no bfloat16 of its own, None where it has. Emulated, it would be lossy and slow."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            has = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if has else f"the GPU {torch.cuda.get_device_name(device)} multiplies in float32 and float16 alone"
    if device.type != "cpu":
        return f"what it does to masks on {device.type} was never measured"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "PyTorch finds no bfloat16 for this processor"
    if platform.machine().lower() in ("x86_64", "amd64") and not _has_x86_bfloat16():
        return "this processor has neither AVX512_BF16 nor AMX"
    return None


def _has_x86_bfloat16() -> bool:
    """oneDNN takes bfloat16 on any processor with AVX-512, and then emulates it."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(has is not None and has() for has in asked)


class Uninitialised(TorchFunctionMode):
    """Leaves out the drawing of random weights that the file's replace at once: seconds for the large models."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def usable_device(device: str | torch.device) -> torch.device:
    """`cpu`, `cuda`, `cuda:N` or `mps`, if this machine and this PyTorch have it."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {str(device)!r} is none; wanted cpu, cuda, cuda:N or mps") from error
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(wanted.type, 0)
    if (wanted.index or 0) >= count:
        raise ConfigError(
            f"device {device} is not there: PyTorch {torch.__version__} sees {count} of kind {wanted.type}; use cpu,"
            " another number, or a PyTorch built for it"
        )
    return wanted


def read_original(path: Path) -> dict[str, Tensor]:
    """The tensors of the SAM in a weights file under the original package's names, whichever it has them under."""
    return to_original(sam_of(read_state_dict(path), path))


def recognise(state: Mapping[str, Tensor], path: Path) -> Architecture:
    """The architecture whose image encoder these are, under the original package's names."""
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return ARCHITECTURES["vit_t"]
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None:
        raise WeightsError(f"{path} holds a SAM with an image encoder of another kind; {WANTED}")
    widths = {c.encoder.width: c for c in ARCHITECTURES.values() if isinstance(c.encoder, VitConfig)}
    width = patches.shape[0]
    if width not in widths:
        raise WeightsError(f"{path} holds an image encoder of width {width}, not one of {list(widths)}; {WANTED}")
    return widths[width]
