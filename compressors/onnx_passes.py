"""Rewrites of an exported ONNX graph that change no value: forms that runtimes execute faster.

Zero padding in front of a convolution moves into the convolution, batch normalisation behind a layer moves into
its weights, a mean over all positions becomes a global average pooling, padding in front of a pooling is
written so that no runtime merges the two, layers of floats behind integers so that no runtime rounds their weights,
additions in front of layer normalisations so that no slower kernel takes both, and traces of the exporting process
(source lines, local paths) are removed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")
_KEEPS_ZERO = ("DequantizeLinear", "QuantizeLinear", "Identity", "Dropout")   # runtimes move or remove them


def rewrite(model: Any) -> Any:  # noqa: ANN401 - onnx protobufs have no useful types
    """Apply all rewrites to a `ModelProto` in place and return it."""
    import onnx

    _Rewriter(onnx.shape_inference.infer_shapes(model), model.graph).run()
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


class _Rewriter:
    """One pass over a graph with its producers, readers and constants at hand."""

    def __init__(self, inferred: Any, graph: Any) -> None:  # noqa: ANN401
        from onnx import numpy_helper

        self.graph, self.changed = graph, set[str]()
        known = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        self.shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in known}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.to_array, self.from_array = numpy_helper.to_array, numpy_helper.from_array
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}

    def run(self) -> None:
        """Apply the rewrites, then drop nodes and constants that nothing reads."""
        for node in list(self.graph.node):
            if node.op_type == "Conv":
                self._absorb_padding(node)
            elif node.op_type in ("ReduceMean", "AveragePool"):
                self._pool_globally(node)
            elif node.op_type == "BatchNormalization":
                self._fold_normalisation(node)
        for node in list(self.graph.node):
            if node.op_type in ("MaxPool", "AveragePool"):
                self._keep_padding(node)
            elif node.op_type in _WEIGHTED:
                self._keep_floats(node)
            elif node.op_type == "LayerNormalization":
                self._keep_addition(node)
        self._drop_unread()

    def _array(self, name: str) -> np.ndarray | None:
        tensor = self.constants.get(name)
        return None if tensor is None else self.to_array(tensor)

    def _absorb_padding(self, conv: Any) -> None:  # noqa: ANN401
        """`Pad → [QuantizeLinear →] [DequantizeLinear →] Conv`: the convolution pads instead.

        Integer convolutions pad with the zero point of their input, which is what zero is quantised to.
        """
        chain = [conv]
        pad = self.producers.get(conv.input[0])
        for op_type in ("DequantizeLinear", "QuantizeLinear"):
            if pad is not None and pad.op_type == op_type:
                chain.append(pad)
                pad = self.producers.get(pad.input[0])
        if pad is None or pad.op_type != "Pad" or len(self.readers[pad.output[0]]) != 1:
            return
        if any(len(self.readers[node.output[0]]) != 1 for node in chain[1:]):
            return
        amounts, value, zero = self._array(pad.input[1]), self._padding_value(pad), 0
        if chain[-1].op_type == "DequantizeLinear" and len(chain[-1].input) > 2:
            zero_point = self._array(chain[-1].input[2])
            zero = -1 if zero_point is None else int(zero_point.reshape(-1)[0])
        attributes = {attribute.name: attribute for attribute in conv.attribute}
        mode = next((attribute.s for attribute in pad.attribute if attribute.name == "mode"), b"constant")
        automatic = attributes.get("auto_pad")
        fixed = automatic is None or automatic.s in (b"", b"NOTSET")
        chosen_axes = len(pad.input) > 3 and bool(pad.input[3])
        if amounts is None or value != zero or mode != b"constant" or not fixed or chosen_axes:
            return
        half = len(amounts) // 2
        if any(amounts[:2]) or any(amounts[half : half + 2]) or any(amount < 0 for amount in amounts):
            return
        total = np.concatenate([amounts[2:half], amounts[half + 2 :]])
        if "pads" in attributes:
            total = total + np.array(attributes["pads"].ints)
            conv.attribute.remove(attributes["pads"])
        conv.attribute.add(name="pads", type=7, ints=[int(amount) for amount in total])
        chain[-1].input[0] = pad.input[0]
        self.changed |= {node.output[0] for node in chain[1:]}

    def _padding_value(self, pad: Any) -> int | float | None:  # noqa: ANN401
        if len(pad.input) < 3 or not pad.input[2]:
            return 0
        value = self._array(pad.input[2])
        return None if value is None else value.reshape(-1)[0].item()

    def _keep_padding(self, pool: Any) -> None:  # noqa: ANN401
        """Name the axes, all of them, of a padding that a pooling reads.

        ONNX Runtime (seen in 1.31) merges a padding with zeros into the pooling, but not one with named axes.
        A maximum pools as if padded with minus infinity, which is wrong for windows of negative numbers, and
        the padding of a pooling must be smaller than its window, else the file does not load.
        """
        pad = self.producers.get(pool.input[0])
        while pad is not None and pad.op_type in _KEEPS_ZERO:
            pad = self.producers.get(pad.input[0])
        if pad is None or pad.op_type != "Pad" or len(pad.input) > 3:
            return
        amounts = self._array(pad.input[1])
        if amounts is None:
            return
        name = f"{pad.output[0]}_axes"
        self.graph.initializer.append(self.from_array(np.arange(len(amounts) // 2, dtype=np.int64), name))
        pad.input.extend([*[""] * (3 - len(pad.input)), name])

    def _keep_floats(self, layer: Any) -> None:  # noqa: ANN401
        """Dequantise what a layer of floats reads along an axis: all steps are the same, the values too.

        ONNX Runtime (seen in 1.32: `WeightBiasQuantization`) takes a layer that reads a `DequantizeLinear` with one
        step for all as one that should be quantised: it rounds the layer's weights to 8 bits with one scale for the
        whole tensor, and runs it in integers, whatever the layer was left in floats for.
        """
        source, weight = (self.producers.get(name) for name in layer.input[:2])
        if source is None or source.op_type != "DequantizeLinear":
            return
        if weight is not None and weight.op_type == "DequantizeLinear":
            return
        scale, shape = self._array(source.input[1]), self.shapes.get(source.input[0], [])
        axis = next((axis for axis, size in enumerate(shape) if axis and size > 1), None)
        if scale is None or scale.size != 1 or axis is None:
            return
        name = f"{source.output[0]}_per_{axis}"
        if name not in self.producers:
            read, count = [source.input[0]], shape[axis]
            for index, constant in enumerate(source.input[1:3]):
                value = self._array(constant)
                assert value is not None
                read.append(f"{name}:{index}")
                self.graph.initializer.append(self.from_array(np.repeat(value.reshape(1), count), read[-1]))
            self.producers[name] = self._inserted(source, "DequantizeLinear", read, name, axis)
        layer.input[0] = name

    def _inserted(self, behind: Any, op_type: str, read: list[str], name: str, axis: int) -> Any:  # noqa: ANN401
        """Write a node behind another one."""
        from onnx import helper

        node = helper.make_node(op_type, read, [name], name=name, axis=axis)
        self.graph.node.insert([*self.graph.node].index(behind) + 1, node)
        return node

    def _pool_globally(self, node: Any) -> None:  # noqa: ANN401
        """A mean over all spatial positions of a 4-d tensor, kept as 1x1, is a global average pooling."""
        shape = self.shapes.get(node.input[0], [])
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if len(shape) != 4:
            return
        if node.op_type == "ReduceMean":
            axes = self._array(node.input[1]) if len(node.input) > 1 else None
            keeps = "keepdims" not in attributes or attributes["keepdims"].i == 1
            whole = axes is not None and {int(axis) % 4 for axis in axes.reshape(-1)} == {2, 3}
        else:
            keeps = not any(attributes["pads"].ints) if "pads" in attributes else True
            whole = list(attributes["kernel_shape"].ints) == shape[2:] and 0 not in shape[2:]
        if keeps and whole:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]

    def _fold_normalisation(self, norm: Any) -> None:  # noqa: ANN401
        """`Conv | Gemm → BatchNormalization` of constants: one layer with other weights."""
        layer = self.producers.get(norm.input[0])
        if layer is None or len(self.readers[norm.input[0]]) != 1 or norm.input[0] in self.outputs:
            return
        attributes = {attribute.name: attribute for attribute in layer.attribute}
        rows = "transB" in attributes and attributes["transB"].i == 1 and attributes.keys() <= {"transB"}
        if layer.op_type != "Conv" and not (layer.op_type == "Gemm" and rows):
            return
        weight, bias = self._array(layer.input[1]), self._array(layer.input[2]) if len(layer.input) > 2 else 0.0
        parameters = [array for array in map(self._array, norm.input[1:5]) if array is not None]
        if weight is None or bias is None or len(parameters) < 4 or len(self.readers[layer.input[1]]) > 1:
            return
        gamma, beta, mean, variance = (parameter.astype(np.float64) for parameter in parameters)
        epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        folded = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1)), (bias - mean) * factor + beta
        names = [f"{norm.output[0]}_{kind}" for kind in ("weight", "bias")]
        for name, array in zip(names, folded, strict=True):
            self.graph.initializer.append(self.from_array(array.astype(weight.dtype), name))
        layer.input[:] = [layer.input[0], *names]
        layer.output[0] = norm.output[0]
        self.producers[norm.output[0]] = layer
        self.graph.node.remove(norm)

    def _keep_addition(self, norm: Any) -> None:  # noqa: ANN401
        """`Add → LayerNormalization`: written as a `Sum`, which is the same and stays a kernel of its own.

        ONNX Runtime merges an addition into its SkipLayerNormalization, whose kernel for CPUs takes several times as
        long as the two together: 158 instead of 32 microseconds for 64 rows of 384 (1.32, a Xeon with AVX-512).
        """
        addition = self.producers.get(norm.input[0])
        if addition is not None and addition.op_type == "Add":
            ranks = {len(self.shapes.get(name, ())) for name in addition.input}
            if ranks == {3}:   # what it merges; biases go with products, sums of pictures with convolutions
                addition.op_type = "Sum"

    def _drop_unread(self) -> None:
        removed = True
        while removed:
            read = {name for node in self.graph.node for name in node.input} | self.outputs
            unread = [node for node in self.graph.node if not any(name in read for name in node.output)]
            for node in unread:
                self.graph.node.remove(node)
            removed = bool(unread)
        for tensor in list(self.graph.initializer):
            if tensor.name not in read:
                self.graph.initializer.remove(tensor)
        made = {name for node in self.graph.node for name in node.output} - self.changed
        for value in list(self.graph.value_info):
            if value.name not in made:
                self.graph.value_info.remove(value)
