"""`SamModel`: the model behind the interface that users of the transformers library know.

Names, arguments, shapes and results are those of that library's `SamModel`; it is a `Sam` too, so that it generates
masks, predicts and exports like one. Letters as in `model_inputs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from amg.errors import ConfigError
from amg.sam import pretrained
from amg.sam.checkpoint import check_fit
from amg.sam.conversion import architecture_of
from amg.sam.keys import to_transformers
from amg.sam.layers import LayerNorm2d
from amg.sam.load import Uninitialised, arithmetic
from amg.sam.model import Sam, build_sam
from amg.sam.model_inputs import Limits, Prompts, check_embeddings, check_pixels, check_prompts
from amg.sam.outputs import SamImageSegmentationOutput, SamVisionEncoderOutput
from amg.sam.pretrained_config import SamConfig, SamVisionConfig
from amg.sam.prompted import decode, embed
from amg.sam.renamed import Renamed, VisionLayer, rename
from amg.sam.vision_output import VisionOutput
from amg.tensors import Batch, Embedding


class SamModel(Renamed, Sam, image_encoder="vision_encoder"):
    """Random weights, in training mode; `from_pretrained` gives those of a checkpoint, in evaluation mode."""

    config_class = SamConfig
    main_input_name = "pixel_values"
    vision_encoder: VisionOutput

    def __init__(self, config: SamConfig | None = None) -> None:
        config = config or SamConfig()
        parts = build_sam(architecture_of(config))
        rename(parts)
        super().__init__(
            image_encoder=parts.image_encoder,
            prompt_encoder=parts.prompt_encoder,
            mask_decoder=parts.mask_decoder,
            name=parts.name,
        )
        self._modules = {"shared_image_embedding": self.prompt_encoder.pe_layer, **self._modules}
        self.config = config
        self._set_epsilons()
        self.train()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        config: SamConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        use_safetensors: bool | None = None,
        **options: Any,
    ) -> Self:
        """The model of a folder, a hub name, one of our weight names or a weights file, in evaluation mode.

        dtype: the one that the weights were saved in unless another is given; `torch_dtype` is its older name.
        device_map: one device for the whole model, `"cuda:0"`.
        options: those of `resolve_folder`, for the hub.
        Raises ConfigError for arguments, WeightsError where files are not what they should be.
        """
        source = pretrained.open_source(name, config=config, use_safetensors=use_safetensors, **options)
        chosen = pretrained.chosen_dtype(dtype if dtype is not None else torch_dtype, source)
        device = pretrained.single_device(device_map)
        with device, Uninitialised():
            model = cls(source.config)
        check_fit(source.state, model.state_dict(), path=source.path, name=model.name)
        model.load_state_dict(source.state)
        model.weights_digest, model.precision = source.sha256, arithmetic(chosen, device)
        return model.to(chosen).eval()

    def save_pretrained(self, folder: str | Path, *, safe_serialization: bool = True, **sharding: Any) -> None:
        """Write `config.json` and the weights, which transformers reads too (not those of MobileSAM).

        safe_serialization: safetensors, else a pickle. `max_shard_size="2GB"`: in several files.
        """
        pretrained.save(self.state_dict(), self.config, Path(folder), pickled=not safe_serialization, **sharding)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        multimask_output: bool = True,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        original_sizes: object = None,
        reshaped_input_sizes: object = None,
        labels: object = None,
    ) -> SamImageSegmentationOutput | tuple[Any, ...]:
        """Masks for each prompt: three, or the single one without `multimask_output`.

        pixel_values (N, 3, S, S) as the processor makes them, or image_embeddings (N, D, G, G) of an earlier call.
        input_points (N, P, K, 2) in pixels of the model's square, x before y; input_labels (N, P, K): 1 foreground,
        0 background, -1 no point, -10 padding, 2 and 3 the corners of a box; without them all points are foreground.
        input_boxes (N, P, 4); input_masks (N, 1, L, L), logits for all prompts of an image, or (N, P, L, L).
        attention_similarity (X, heads, tokens, G * G) and target_embedding (N, P, tokens, D), or what broadcasts to
        them: of PerSAM. The last three arguments are what else a processor returns; they change nothing.
        Raises ConfigError with the argument's name and shape.
        """
        images = self._checked_images(pixel_values, image_embeddings)
        prompts = self._prompts(input_points, input_labels, input_boxes, input_masks, images=images)
        attentions = self._asked("output_attentions", output_attentions)
        hidden_states = self._asked("output_hidden_states", output_hidden_states)
        seen = SamVisionEncoderOutput(image_embeddings)
        if pixel_values is not None:
            seen = self.vision_encoder(pixel_values, output_hidden_states=hidden_states, output_attentions=attentions)
        features_NDGG = cast(Tensor, seen.last_hidden_state).to(self.dtype)
        found = decode(
            self,
            features_NDGG,
            prompts,
            multimask=multimask_output,
            similarity=attention_similarity,
            target=target_embedding,
            record=attentions,
        )
        output = SamImageSegmentationOutput(
            iou_scores=found.iou_NPM,
            pred_masks=found.logits_NPMLL,
            vision_hidden_states=seen.hidden_states,
            vision_attentions=seen.attentions,
            mask_decoder_attentions=found.answers,
        )
        as_object = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if as_object else output.to_tuple()

    @torch.no_grad()
    def get_image_embeddings(self, pixel_values: Tensor) -> Tensor:
        """(N, D, G, G) for `image_embeddings`: many prompts on one image, which is encoded once."""
        check_pixels(pixel_values, self._limits)
        return self.vision_encoder(pixel_values).last_hidden_state

    @torch.no_grad()
    def get_prompt_embeddings(
        self,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Tokens (N, P, tokens, D), None where there is no point and no box; what masks add to images, (N, D, G, G).

        With one mask for each prompt the latter is (N * P, D, G, G).
        """
        prompts = self._prompts(input_points, input_labels, input_boxes, input_masks, images=None)
        sparse_XKD, dense_YDGG = embed(self, prompts)
        if prompts.masks_Y1LL is None:
            dense_YDGG = dense_YDGG.expand(prompts.images, -1, -1, -1)
        sparse_NPKD = sparse_XKD.unflatten(0, (prompts.images, prompts.per_image)) if prompts.has_tokens else None
        return sparse_NPKD, dense_YDGG

    def get_image_wide_positional_embeddings(self) -> Tensor:
        """Where each place of the embedding lies: (1, D, G, G)."""
        return self.prompt_encoder.grid_encoding()

    @property
    def dtype(self) -> torch.dtype:
        return self.mask_decoder.iou_token.weight.dtype

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Train the image encoder in less memory and more time. It is never of the reentrant kind."""
        self._checkpoint(True)

    def gradient_checkpointing_disable(self) -> None:
        self._checkpoint(False)

    def _checkpoint(self, on: bool) -> None:
        for layer in self.vision_encoder.layers:
            if not isinstance(layer, VisionLayer):
                raise ConfigError("gradient checkpointing: MobileSAM's encoder has none; leave it off")
            layer.gradient_checkpointing = on

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Names of transformers or of the original package."""
        return super().load_state_dict(to_transformers(state_dict), strict=strict, assign=assign)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Embedding:
        """The image embedding of every crop."""
        features_NDGG = self.vision_encoder(batch.pixels_N3SS).last_hidden_state
        return Embedding(features_NDGG, batch.crops, batch.resized)

    def _set_epsilons(self) -> None:
        config = self.config
        parts: list[tuple[nn.Module, float]] = [
            (self.prompt_encoder.mask_downscaling, config.prompt_encoder_config.layer_norm_eps),
            (self.mask_decoder.transformer.layers, config.mask_decoder_config.layer_norm_eps),
        ]
        if isinstance(config.vision_config, SamVisionConfig):
            parts.append((self.vision_encoder.layers, config.vision_config.layer_norm_eps))
        for part, eps in parts:
            for module in part.modules():
                if isinstance(module, nn.LayerNorm | LayerNorm2d):
                    module.eps = eps

    @property
    def _limits(self) -> Limits:
        return Limits(self.side, 4 * self.prompt_encoder.grid, self.device)

    def _checked_images(self, pixel_values: Tensor | None, image_embeddings: Tensor | None) -> int:
        """How many images came, as pixels or as embeddings; ConfigError where neither is right."""
        if pixel_values is not None and image_embeddings is None:
            check_pixels(pixel_values, self._limits)
            return len(pixel_values)
        if image_embeddings is not None and pixel_values is None:
            channels = self.mask_decoder.iou_token.embedding_dim
            check_embeddings(image_embeddings, channels, self.prompt_encoder.grid, self._limits)
            return len(image_embeddings)
        came = "neither" if pixel_values is None else "both"
        raise ConfigError(f"pixel_values, image_embeddings: {came} came; wanted one of them")

    def _prompts(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        *,
        images: int | None,
    ) -> Prompts:
        return check_prompts(points, labels, boxes, masks, images=images, limits=self._limits)

    def _asked(self, name: str, given: bool | None) -> bool:
        return bool(getattr(self.config, name, False) if given is None else given)
