"""The configurations of the transformers library's SAM, as plain typed objects.

Names and defaults are those of its `SamConfig` and of the three sections in it. MobileSAM's encoder has a section of
its own, `SamTinyVisionConfig`, which that library does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amg.errors import ConfigError
from amg.sam.config_section import Section

SIDES = frozenset({"image_size", "patch_size"})


@dataclass(eq=False, repr=False)
class SamVisionConfig(Section):
    """A plain vision transformer; attention over the whole grid in the blocks `global_attn_indexes`, else in windows.

    `mlp_dim` None becomes `hidden_size * mlp_ratio`. The default is ViT-B.
    """

    model_type = "sam_vision_model"
    base_config_key = "vision_config"
    DERIVED = frozenset({"scale"})
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {"hidden_act": ("gelu",)}
    MAY_BE_ZERO = frozenset({"window_size"})
    MAY_BE_PAIRS = SIDES

    hidden_size: int = 768
    output_channels: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 1e-10
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    num_pos_feats: int = 128
    mlp_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_dim is None:
            self.mlp_dim = int(self.hidden_size * self.mlp_ratio)

    @property
    def scale(self) -> int:
        return self.hidden_size // 2


@dataclass(eq=False, repr=False)
class SamTinyVisionConfig(Section):
    """MobileSAM's TinyViT: one number a stage; the first stage is of convolutions. Unknown to transformers."""

    model_type = "sam_tiny_vit_vision_model"
    base_config_key = "vision_config"

    hidden_sizes: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_attention_heads: tuple[int, ...] = (2, 4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)
    strides: tuple[int, ...] = (2, 2, 1)
    mlp_ratio: int = 4
    num_classes: int = 1000
    output_channels: int = 256
    image_size: int = 1024
    num_pos_feats: int = 128

    @property
    def patch_size(self) -> int:
        """Pixels of the model's square to one place of the embedding, in a row."""
        return 4 * math.prod(self.strides)


@dataclass(eq=False, repr=False)
class SamPromptEncoderConfig(Section):
    model_type = "sam_prompt_encoder"
    base_config_key = "prompt_encoder_config"
    DERIVED = frozenset({"image_embedding_size"})
    MAY_BE_PAIRS = SIDES
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {"hidden_act": ("gelu",)}

    hidden_size: int = 256
    image_size: int = 1024
    patch_size: int = 16
    mask_input_channels: int = 16
    num_point_embeddings: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6

    @property
    def image_embedding_size(self) -> int:
        return self.image_size // self.patch_size


@dataclass(eq=False, repr=False)
class SamMaskDecoderConfig(Section):
    """`layer_norm_eps` is that of the two-way blocks: 1e-6 in transformers, 1e-5 in the original package."""

    model_type = "sam_mask_decoder"
    base_config_key = "mask_decoder_config"
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {"hidden_act": ("relu",)}

    hidden_size: int = 256
    hidden_act: str = "relu"
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    layer_norm_eps: float = 1e-6


@dataclass(eq=False, repr=False, init=False)
class SamConfig(Section):
    """The three sections. Each may be given as an object or as a dict, and is the default if it is not given."""

    model_type = "sam"
    MODEL_TYPES = ("sam", "sam_tiny_vit")

    vision_config: SamVisionConfig | SamTinyVisionConfig
    prompt_encoder_config: SamPromptEncoderConfig
    mask_decoder_config: SamMaskDecoderConfig
    initializer_range: float

    def __init__(
        self,
        vision_config: SamVisionConfig | SamTinyVisionConfig | Mapping[str, Any] | None = None,
        prompt_encoder_config: SamPromptEncoderConfig | Mapping[str, Any] | None = None,
        mask_decoder_config: SamMaskDecoderConfig | Mapping[str, Any] | None = None,
        initializer_range: float = 0.02,
    ) -> None:
        self.vision_config = _section(vision_config, SamVisionConfig, SamTinyVisionConfig)
        self.prompt_encoder_config = _section(prompt_encoder_config, SamPromptEncoderConfig)
        self.mask_decoder_config = _section(mask_decoder_config, SamMaskDecoderConfig)
        self.initializer_range = initializer_range
        self.__post_init__()

    def check(self) -> None:
        """ConfigError for the first value that is wrong, in the sections too."""
        super().check()
        for section in (self.vision_config, self.prompt_encoder_config, self.mask_decoder_config):
            section.check()

    def to_dict(self) -> dict[str, Any]:
        # Another name where transformers would build its own encoder from the numbers of MobileSAM's.
        tiny = isinstance(self.vision_config, SamTinyVisionConfig)
        return {**super().to_dict(), "model_type": self.MODEL_TYPES[tiny]}


def _section(value: Any, *kinds: type[Any]) -> Any:
    """One of the `kinds`, from an object of it, from a dict by its model_type, or the first one's default."""
    if value is None or isinstance(value, kinds):
        return kinds[0]() if value is None else value
    if not isinstance(value, Mapping):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{kinds[0].base_config_key} is a {type(value).__name__}; wanted a {wanted}, a dict or None")
    kind = next((kind for kind in kinds if kind.model_type == value.get("model_type")), kinds[0])
    return kind.from_dict(value)
