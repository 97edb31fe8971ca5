"""The last steps of the exported decoder, as ONNX nodes: from logits of 256 x 256 to masks of the image's size.

Written as nodes because sizes that are values of a tensor are beyond what PyTorch traces. The steps are those of
`Predictor`: to the model's side, without the padding, to the image, bilinear twice. Source:
`SamOnnxModel.mask_postprocessing`.
"""

from __future__ import annotations

import onnx

RESIZING = """
resizing (float[prompts, {n_masks}, low_height, low_width] low_res_masks, float[2] orig_im_size)
    => (float[prompts, {n_masks}, height, width] masks)
{{
    resize_size = Cast <to = 7> (orig_im_size)
    resize_precise = Cast <to = 11> (orig_im_size)
    resize_longest = ReduceMax <keepdims = 0> (resize_precise)
    resize_side = Constant <value = double {{{side}}}> ()
    resize_half = Constant <value = double {{0.5}}> ()
    resize_one = Constant <value = int64[1] {{1}}> ()
    resize_scale = Div (resize_side, resize_longest)
    resize_scaled = Mul (resize_precise, resize_scale)
    resize_raised = Add (resize_scaled, resize_half)
    resize_floor = Floor (resize_raised)
    resize_whole = Cast <to = 7> (resize_floor)
    resize_inner = Max (resize_whole, resize_one)
    resize_outer = Shape <start = 0, end = 2> (low_res_masks)
    resize_square = Constant <value = int64[2] {{{side}, {side}}}> ()
    resize_to_model = Concat <axis = 0> (resize_outer, resize_square)
    resize_model = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
        (low_res_masks, , , resize_to_model)
    resize_start = Constant <value = int64[2] {{0, 0}}> ()
    resize_axes = Constant <value = int64[2] {{2, 3}}> ()
    resize_cut = Slice (resize_model, resize_start, resize_inner, resize_axes)
    resize_to_image = Concat <axis = 0> (resize_outer, resize_size)
    masks = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (resize_cut, , , resize_to_image)
}}
"""


def add_resize(model: onnx.ModelProto, *, side: int) -> None:
    """Append them to a model with the output `low_res_masks` (P, M, L, L); `side` S is that of the model's square.

    `orig_im_size` becomes its last input, `masks` its first output.
    """
    low_res = next(output for output in model.graph.output if output.name == "low_res_masks")
    n_masks = low_res.type.tensor_type.shape.dim[1].dim_value
    resizing = onnx.parser.parse_graph(RESIZING.format(side=side, n_masks=n_masks))
    model.graph.node.extend(resizing.node)
    model.graph.input.append(resizing.input[1])
    model.graph.output.insert(0, resizing.output[0])
