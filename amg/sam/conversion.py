"""Between our architectures and the configurations of the transformers library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from amg.errors import ConfigError
from amg.sam.config import ARCHITECTURES, Architecture, DecoderConfig, TinyVitConfig, VitConfig
from amg.sam.pretrained_config import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamTinyVisionConfig,
    SamVisionConfig,
)
from amg.sam.weights import KNOWN

ORIGINAL_BLOCK_EPS = 1e-5
CUSTOM = "custom"


def architecture_of(config: SamConfig) -> Architecture:
    """What this configuration describes; ConfigError where its numbers do not go together or are not built here."""
    config.check()
    _check_sizes(config)
    prompt, decoder = config.prompt_encoder_config, config.mask_decoder_config
    architecture = Architecture(
        name=CUSTOM,
        encoder=_encoder_of(config.vision_config),
        decoder=DecoderConfig(
            depth=decoder.num_hidden_layers,
            heads=decoder.num_attention_heads,
            mlp_width=decoder.mlp_dim,
            downsample=decoder.attention_downsample_rate,
            masks=decoder.num_multimask_outputs,
            iou_depth=decoder.iou_head_depth,
            iou_width=decoder.iou_head_hidden_dim,
        ),
        channels=prompt.hidden_size,
        mask_channels=prompt.mask_input_channels,
        side=prompt.image_size,
        grid=prompt.image_embedding_size,
    )
    published = (known for known in ARCHITECTURES.values() if replace(architecture, name=known.name) == known)
    return next(published, architecture)


def config_of(architecture: Architecture) -> SamConfig:
    """The configuration of a published checkpoint; its decoder's layer norms have the original package's epsilon."""
    decoder, channels = architecture.decoder, architecture.channels
    return SamConfig(
        _vision_of(architecture),
        SamPromptEncoderConfig(
            hidden_size=channels,
            image_size=architecture.side,
            patch_size=architecture.side // architecture.grid,
            mask_input_channels=architecture.mask_channels,
        ),
        SamMaskDecoderConfig(
            hidden_size=channels,
            mlp_dim=decoder.mlp_width,
            num_hidden_layers=decoder.depth,
            num_attention_heads=decoder.heads,
            attention_downsample_rate=decoder.downsample,
            num_multimask_outputs=decoder.masks,
            iou_head_depth=decoder.iou_depth,
            iou_head_hidden_dim=decoder.iou_width,
            layer_norm_eps=ORIGINAL_BLOCK_EPS,
        ),
    )


def config_of_weights(name: str | Path) -> SamConfig:
    """Of one of our weight names, without loading it, or of a weights file."""
    if str(name) in KNOWN:
        return config_of(ARCHITECTURES[OUR_NAMES[str(name)]])
    from amg.sam.load import read_original, recognise

    path = Path(name).expanduser()
    return config_of(recognise(read_original(path), path))


OUR_NAMES = {"mobile-sam": "vit_t", "sam-vit-b": "vit_b", "sam-vit-l": "vit_l", "sam-vit-h": "vit_h"}


def _vision_of(architecture: Architecture) -> SamVisionConfig | SamTinyVisionConfig:
    encoder, channels = architecture.encoder, architecture.channels
    sizes: dict[str, Any] = {
        "output_channels": channels,
        "image_size": architecture.side,
        "num_pos_feats": channels // 2,
    }
    if isinstance(encoder, TinyVitConfig):
        return SamTinyVisionConfig(
            hidden_sizes=encoder.widths,
            depths=encoder.depths,
            num_attention_heads=encoder.heads,
            window_sizes=encoder.windows,
            strides=encoder.strides,
            mlp_ratio=encoder.mlp_ratio,
            num_classes=encoder.classes,
            **sizes,
        )
    return SamVisionConfig(
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        mlp_ratio=encoder.mlp_ratio,
        window_size=encoder.window,
        global_attn_indexes=encoder.global_blocks,
        patch_size=encoder.patch,
        **sizes,
    )


def _encoder_of(vision: SamVisionConfig | SamTinyVisionConfig) -> VitConfig | TinyVitConfig:
    if isinstance(vision, SamTinyVisionConfig):
        return TinyVitConfig(
            widths=tuple(vision.hidden_sizes),
            depths=tuple(vision.depths),
            heads=tuple(vision.num_attention_heads),
            windows=tuple(vision.window_sizes),
            strides=tuple(vision.strides),
            mlp_ratio=vision.mlp_ratio,
            classes=vision.num_classes,
        )
    _check_vit(vision)
    assert vision.mlp_dim is not None
    return VitConfig(
        width=vision.hidden_size,
        depth=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        global_blocks=tuple(vision.global_attn_indexes),
        patch=vision.patch_size,
        window=vision.window_size,
        mlp_ratio=vision.mlp_dim // vision.hidden_size,
    )


def _check_vit(vision: SamVisionConfig) -> None:
    """Refuse the switches that no published SAM has turned."""
    fixed = {"num_channels": 3, "qkv_bias": True, "use_abs_pos": True, "use_rel_pos": True, "attention_dropout": 0}
    for name, wanted in fixed.items():
        if (came := getattr(vision, name)) != wanted:
            raise ConfigError(f"vision_config.{name} is {came!r}; this encoder is built with {wanted!r} only")
    assert vision.mlp_dim is not None
    if vision.mlp_dim % vision.hidden_size:
        raise ConfigError(
            f"vision_config.mlp_dim is {vision.mlp_dim}; wanted a multiple of hidden_size {vision.hidden_size}"
        )


def _check_sizes(config: SamConfig) -> None:
    vision, prompt, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    if prompt.num_point_embeddings != 4:
        raise ConfigError(
            f"prompt_encoder_config.num_point_embeddings is {prompt.num_point_embeddings}; wanted 4: background,"
            " foreground and the two corners of a box"
        )
    same = {
        "image_size": (vision.image_size, prompt.image_size),
        "patch_size": (vision.patch_size, prompt.patch_size),
        "output_channels, hidden_size, hidden_size": (vision.output_channels, prompt.hidden_size, decoder.hidden_size),
        "2 * num_pos_feats, hidden_size": (2 * vision.num_pos_feats, prompt.hidden_size),
    }
    for name, values in same.items():
        if len(set(values)) > 1:
            raise ConfigError(
                f"{name} of vision_config, prompt_encoder_config, mask_decoder_config: {', '.join(map(str, values))};"
                " wanted the same number"
            )
    _check_divides("prompt_encoder_config: patch_size", prompt.patch_size, "image_size", prompt.image_size)
    _check_divides("prompt_encoder_config: 4", 4, "mask_input_channels", prompt.mask_input_channels)
    _check_divides("mask_decoder_config: 8", 8, "hidden_size", decoder.hidden_size)
    for rate in (2, decoder.attention_downsample_rate):
        inner, heads = decoder.hidden_size // rate, decoder.num_attention_heads
        _check_divides("mask_decoder_config: num_attention_heads", heads, f"hidden_size / {rate}", inner)
    if isinstance(vision, SamVisionConfig):
        _check_divides(
            "vision_config: num_attention_heads", vision.num_attention_heads, "hidden_size", vision.hidden_size
        )


def _check_divides(what: str, divisor: int, name: str, value: int) -> None:
    if value % divisor:
        raise ConfigError(f"{what} {divisor} does not divide {name} {value}; wanted a divisor of it")
