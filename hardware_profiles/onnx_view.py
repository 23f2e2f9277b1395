"""The cost view of an ONNX file: what a device prices of a model that somebody exported and measured.

Fusing follows runtimes that fold batch normalisation and activations into the product before them, and a residual
sum of floats into the convolution that makes its last operand. A kernel computes in integers where all its tensors
come out of a DequantizeLinear. Reshapes and conversions of what is already quantised cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Boundary, CostView, Family, Kernel, Lifetime, product

_FREE = ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Cast")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_ACTIVATIONS = ("Relu", "Clip")   # as `spaces.fusion`: other activations are kernels of their own
_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("Conv", "QLinearConv", "ConvInteger"), Family.CONV), "ConvTranspose": Family.TRANSPOSED,
    "Gemm": Family.LINEAR, **dict.fromkeys(("MatMul", "QLinearMatMul", "MatMulInteger"), Family.MATMUL),
    "Attention": Family.MATMUL, **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), Family.POOL),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"), Family.GLOBAL_POOL), "Concat": Family.CONCAT,
    **dict.fromkeys(
        ("BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"),
        Family.NORM,
    ),
    **dict.fromkeys(
        ("Pad", "Slice", "Transpose", "Gather", "Split", "Expand", "Resize", "Upsample", "Tile"), Family.DATA,
    ),
    **dict.fromkeys(
        (*_ACTIVATIONS, "LeakyRelu", "HardSwish", "HardSigmoid", "PRelu", "Mul", "Sub", "Div", "Sigmoid", "Tanh", "Erf",
         "Gelu", "Softmax", "Exp", "Sqrt", "Pow", "Neg", "Abs", "Elu", "Softplus", "Mish", "Min", "Max"),
        Family.ELEMENTWISE,
    ),
}
_WEIGHTED = (Family.CONV, Family.GROUPED, Family.DEPTHWISE, Family.TRANSPOSED, Family.LINEAR)
# Runtimes dequantise in front of these and quantise behind them.
_FLOAT_FAMILIES = (Family.NORM, Family.ELEMENTWISE, Family.MATMUL, Family.OTHER)
_INTEGER_OPERATORS = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger")
_BITS = {1: 32, 2: 8, 3: 8, 10: 16, 16: 16, 21: 4, 22: 4}   # onnx.TensorProto.DataType of tensors that kernels read
LARGEST_FILE = 2**31


@dataclass(frozen=True)
class OnnxKernels:
    """The kernels of an ONNX file with what connects them.

    Attributes:
        view: What a device prices.
        sources: Per kernel the kernels that make its operands, -1 for the model's input.
        weights: Per kernel its stored weights as in the file, None where it has none.
        operators: Per kernel the ONNX operator it is named after.
    """

    view: CostView
    sources: tuple[tuple[int, ...], ...]
    weights: tuple[NDArray[Any] | None, ...]
    operators: tuple[str, ...]


def onnx_view(path: Path) -> CostView:
    """Read the cost view of an ONNX file; dimensions without a number count as 1.

    Raises:
        ProfileError: The file is missing, too large, no ONNX model, or branches at run time.
    """
    return onnx_kernels(path).view


def onnx_kernels(path: Path) -> OnnxKernels:
    """Read the kernels of an ONNX file; dimensions without a number count as 1.

    Raises:
        ProfileError: The file is missing, too large, no ONNX model, or branches at run time.
    """
    import onnx

    if not path.is_file():
        raise ProfileError(f"{path}: no such file")
    if path.stat().st_size > LARGEST_FILE:
        raise ProfileError(f"{path}: {path.stat().st_size} bytes are too many for one ONNX file")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        for value in model.graph.input:
            for dimension in value.type.tensor_type.shape.dim:
                if not dimension.dim_value:
                    dimension.dim_value = 1
        model = onnx.shape_inference.infer_shapes(model)
    except Exception as error:   # noqa: BLE001 - protobuf and shape inference raise types of their own
        raise ProfileError(f"{path}: not an ONNX model: {' '.join(str(error).split())[:200]}") from None
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*model.graph.initializer, *constants]:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ProfileError(f"{path}: tensor {tensor.name!r} is in another file (allowed: models in one file)")
    try:
        return _Reader(model.graph, str(path)).read()
    except ProfileError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ProfileError(f"{path}: not a valid ONNX graph: {' '.join(what.split())[:200]}") from None


def _attribute(node: Any, name: str, default: Any) -> Any:  # noqa: ANN401 - protobuf
    from onnx import helper

    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


@dataclass
class _Reader:
    """Walks one graph in its order, which ONNX guarantees to be topological."""

    graph: Any
    source: str
    kernels: list[Kernel] = field(default_factory=list)
    made_by: dict[str, int] = field(default_factory=dict)     # tensor to the kernel that writes it
    reads: dict[int, list[int]] = field(default_factory=dict)  # kernel to its readers
    written: dict[int, str] = field(default_factory=dict)     # kernel to the tensor after its tail
    absorbed: set[int] = field(default_factory=set)           # identities of nodes in a tail
    sources: list[tuple[int, ...]] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)            # the operator that a kernel is named after

    def __post_init__(self) -> None:
        graph = self.graph
        self.constants = {item.name: (tuple(item.dims), item.data_type) for item in graph.initializer}
        self.constants.update({
            node.output[0]: (tuple(_attribute(node, "value", None).dims), _attribute(node, "value", None).data_type)
            for node in graph.node if node.op_type == "Constant" and _attribute(node, "value", None) is not None
        })
        self.folded: dict[str, tuple[tuple[int, ...], int] | None] = {}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.types: dict[str, tuple[tuple[int, ...], int]] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            self.types[value.name] = (tuple(d.dim_value or 1 for d in kind.shape.dim), kind.elem_type)
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.outputs = {value.name for value in graph.output}

    def read(self) -> OnnxKernels:
        for node in self.graph.node:
            if node.op_type in ("If", "Loop", "Scan"):
                raise ProfileError(f"{self.source}: {node.op_type} branches at run time: its cost depends on the input")
            if self._is_kernel(node):
                self._add(node)
        boundaries = tuple(self._boundaries())
        view = CostView(tuple(self.kernels), boundaries, tuple(self._lifetimes()), self._weight_bytes())
        weights = tuple(
            self._stored(node) if kernel.layer else None for node, kernel in zip(self.nodes, self.kernels, strict=True)
        )
        return OnnxKernels(view, tuple(self.sources), weights, tuple(node.op_type for node in self.nodes))

    def _stored(self, node: Any) -> NDArray[Any] | None:  # noqa: ANN401 - protobuf
        """The weights of a node as they are stored, None where they are not in an initialiser of this file."""
        from onnx import TensorProto, numpy_helper

        name = node.input[3 if node.op_type == "QLinearConv" else 1]
        passed: set[str] = set()
        while (producer := self.producer.get(name)) is not None and name not in passed:
            passed.add(name)
            operands = [one for one in producer.input if one]   # the largest one is the weight
            name = max(operands, key=lambda one: product((self._constant(one) or ((), 0))[0]))
        stored = next((item for item in self.graph.initializer if item.name == name), None)
        if stored is None or stored.data_location == TensorProto.EXTERNAL:   # those would be other files
            return None
        try:
            return np.asarray(numpy_helper.to_array(stored))
        except ValueError:
            raise ProfileError(f"{self.source}: tensor {name!r} does not hold what its dimensions say") from None

    def _is_kernel(self, node: Any) -> bool:  # noqa: ANN401 - protobuf
        if id(node) in self.absorbed or node.op_type in (*_FREE, *_CONVERSIONS, "Constant", "Shape"):
            return False
        if self._constant(node.output[0]) is not None:
            return False
        return self.types.get(node.output[0], ((), 1))[1] in _BITS   # whatever computes shapes is no kernel

    def _constant(self, name: str) -> tuple[tuple[int, ...], int] | None:
        """Dimensions, and type as it is stored, of what does not depend on inputs; None for what does.

        Runtimes compute it once: integers that are cast and scaled before a product are that product's weights.
        """
        if name in self.constants:
            return self.constants[name]
        if name not in self.folded:
            node, self.folded[name] = self.producer.get(name), None   # a cycle, which no valid file has, ends here
            operands = [self._constant(one) for one in node.input if one] if node is not None else []
            known = [one for one in operands if one is not None]
            if not known or len(known) < len(operands):
                self.folded[name] = None
            else:
                largest = max(known, key=lambda one: product(one[0]))
                self.folded[name] = (self.types[name][0] if name in self.types else largest[0], largest[1])
        return self.folded[name]

    def _root(self, name: str) -> tuple[str, bool]:
        """The tensor that is really read, and whether it is read as integers."""
        integers = False
        while (node := self.producer.get(name)) is not None and node.op_type in (*_FREE, *_CONVERSIONS):
            integers = integers or node.op_type == "DequantizeLinear"
            name = node.input[0]
        return name, integers

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.types:
            raise ProfileError(f"{self.source}: the shape of {name!r} cannot be inferred; export with static shapes")
        return self.types[name][0]

    def _add(self, node: Any) -> None:  # noqa: ANN401 - protobuf
        family, data = self._family(node), [name for name in node.input if name and self._constant(name) is None]
        roots = [self._root(name) for name in data]
        quantised = self._in_integers(node, family, roots)
        if family is Family.ADD and not quantised and self._merge_sum(node, roots):
            return
        weight = self._constant(node.input[1]) if family in _WEIGHTED and len(node.input) > 1 else None
        if node.op_type == "QLinearConv":
            weight = self._constant(node.input[3])
        output, tail = self._tail(node, family)
        before = self._shape(data[0]) if data else (1,)
        kernel = self._kernel(node, family, weight, before, self._shape(node.output[0]))
        index = len(self.kernels)
        self.kernels.append(replace(
            kernel, name=output, layer=output if weight else "", fused=tail, activation_bits=8 if quantised else 32,
            weight_bits=_BITS.get(weight[1], 32) if weight else 32,
            input_elements=sum(product(self._shape(name)) for name, _ in roots),
            output_elements=product(self._shape(output)),
        ))
        self.sources.append(tuple(self.made_by.get(name, -1) for name, _ in roots))
        self.nodes.append(node)
        self._made(index, output, roots)

    def _in_integers(self, node: Any, family: Family, roots: list[tuple[str, bool]]) -> bool:  # noqa: ANN401
        if node.op_type in _INTEGER_OPERATORS:
            return True
        if family in _FLOAT_FAMILIES or not roots or not all(integers for _, integers in roots):
            return False
        if family not in _WEIGHTED:
            return self._is_quantised_next(node.output[0])
        weight = self._constant(node.input[1]) if len(node.input) > 1 else None
        return weight is not None and _BITS.get(weight[1], 32) <= 8

    def _is_quantised_next(self, name: str) -> bool:
        """Whether all that reads a tensor, behind an activation or not, is a QuantizeLinear."""
        users = self.users.get(name, [])
        if len(users) == 1 and users[0].op_type in _ACTIVATIONS:
            return self._is_quantised_next(users[0].output[0])
        return bool(users) and all(user.op_type == "QuantizeLinear" for user in users)

    def _made(self, index: int, output: str, roots: list[tuple[str, bool]]) -> None:
        self.made_by[output] = index
        self.written[index] = output
        for name, _ in roots:
            self.reads.setdefault(self.made_by.get(name, -1), []).append(index)

    def _family(self, node: Any) -> Family:  # noqa: ANN401 - protobuf
        if node.op_type in ("Add", "Sum"):
            computed = [name for name in node.input if self._constant(name) is None]
            return Family.ADD if len(computed) > 1 else Family.ELEMENTWISE
        family = _FAMILIES.get(node.op_type, Family.OTHER)
        if node.op_type == "MatMul" and self._constant(node.input[1]) is not None:
            return Family.LINEAR
        if family is Family.CONV:
            groups, weight = _attribute(node, "group", 1), self._constant(node.input[3 if "QL" in node.op_type else 1])
            if groups > 1 and weight:
                return Family.DEPTHWISE if weight[0][1] == 1 else Family.GROUPED
        return family

    def _tail(self, node: Any, family: Family) -> tuple[str, tuple[str, ...]]:  # noqa: ANN401 - protobuf
        """The tensor after what the kernel absorbs, and the names of what it absorbs."""
        output, names = node.output[0], []
        while len(users := self.users.get(output, [])) == 1 and output not in self.outputs:
            user = users[0]
            folds = user.op_type == "BatchNormalization" and family in _WEIGHTED
            adds_bias = user.op_type == "Add" and family is Family.LINEAR and self._family(user) is Family.ELEMENTWISE
            activates = user.op_type in _ACTIVATIONS and family in (*_WEIGHTED, Family.ADD)
            if not (folds or adds_bias or activates):
                break
            if activates:
                names.append(user.op_type.lower())
            self.absorbed.add(id(user))
            output = user.output[0]
        return output, tuple(names)

    def _merge_sum(self, node: Any, roots: list[tuple[str, bool]]) -> bool:  # noqa: ANN401 - protobuf
        """Let the float convolution that makes the last operand absorb a sum; False where none can."""
        order = sorted(roots, key=lambda item: self.made_by.get(item[0], -1))
        index = self.made_by.get(order[-1][0], -1)
        if index < 0 or len(order) != 2 or len(self.users.get(order[-1][0], [])) != 1:
            return False
        kernel = self.kernels[index]
        if kernel.family not in (Family.CONV, Family.GROUPED, Family.DEPTHWISE) or kernel.fused:
            return False
        if kernel.activation_bits == 8:
            return False
        output, tail = self._tail(node, Family.ADD)
        extra = product(self._shape(order[0][0]))
        self.kernels[index] = replace(
            kernel, name=output, fused=("add", *tail), input_elements=kernel.input_elements + extra
        )
        self.sources[index] = (*self.sources[index], self.made_by.get(order[0][0], -1))
        self._made(index, output, order[:1])
        return True

    def _kernel(
        self, node: Any, family: Family, weight: tuple[tuple[int, ...], int] | None, before: tuple[int, ...],  # noqa: ANN401
        after: tuple[int, ...],
    ) -> Kernel:
        channels = [shape[1] if len(shape) > 1 else 1 for shape in (before, after)]
        plain = Kernel("", family, cin=channels[0], cout=channels[1], input_size=before[2:], output_size=after[2:])
        if family is Family.ELEMENTWISE:
            return replace(plain, operator=node.op_type.lower())
        if family is Family.GLOBAL_POOL:
            return replace(plain, output_size=())
        if family is Family.CONCAT:
            return replace(plain, cin=channels[1])
        if family is Family.POOL:
            window = tuple(_attribute(node, "kernel_shape", ()))
            return replace(plain, window=window, stride=tuple(_attribute(node, "strides", (1,) * len(window))))
        if family is Family.LINEAR and weight:
            wide = weight[0] if not _attribute(node, "transB", 0) else weight[0][::-1]
            return replace(plain, cin=wide[0], cout=wide[1], rows=product(after[:-1]), input_size=(), output_size=())
        if family is Family.MATMUL:
            return replace(plain, cin=before[-1], cout=after[-1], rows=product(after[:-1]))
        if family in _WEIGHTED and weight:
            window, groups = weight[0][2:], int(_attribute(node, "group", 1))
            stride = tuple(_attribute(node, "strides", (1,) * len(window)))
            return replace(plain, window=window, stride=stride, groups=groups)
        return plain

    def _boundaries(self) -> Iterator[Boundary]:
        """Where arithmetic changes: once per tensor and direction."""
        seen: set[tuple[str, str]] = set()
        for node in self.graph.node:
            if node.op_type not in _CONVERSIONS or self._constant(node.input[0]) is not None:
                continue
            root, integers = self._root(node.input[0])
            made = self.made_by.get(root, -1)
            if node.op_type == "QuantizeLinear":
                changes = not integers and (made < 0 or self.kernels[made].activation_bits != 8)
            else:
                changes = self._read_as_floats(node.output[0])
            if changes and (kind := node.op_type.removesuffix("Linear").lower()) and (root, kind) not in seen:
                seen.add((root, kind))
                yield Boundary(root, kind, product(self._shape(root)), len(self._shape(root)))

    def _read_as_floats(self, name: str) -> bool:
        """Whether anything but an integer kernel or a conversion back reads a dequantised tensor."""
        if name in self.outputs:
            return True
        integer = {self.written[index] for index, kernel in enumerate(self.kernels) if kernel.activation_bits == 8}
        for user in self.users.get(name, []):
            if user.op_type == "QuantizeLinear":
                continue
            if user.op_type in _FREE:
                if self._read_as_floats(user.output[0]):
                    return True
                continue
            output = user.output[0]
            while output not in self.made_by and len(users := self.users.get(output, [])) == 1:
                output = users[0].output[0]
            if output not in integer:
                return True
        return False

    def _lifetimes(self) -> Iterator[Lifetime]:
        count = len(self.kernels)
        for name in self.inputs:
            yield Lifetime(name, 4 * product(self._shape(name)), -1, max(self.reads.get(-1, [0])))
        for index, output in self.written.items():
            users = self.users.get(output, [])
            integers = self.kernels[index].activation_bits == 8
            width = 1 if integers and users and all(user.op_type == "QuantizeLinear" for user in users) else 4
            last = max(self.reads.get(index, [count if self._reaches_output(output) else index]))
            yield Lifetime(output, width * product(self._shape(output)), index, last)

    def _reaches_output(self, name: str) -> bool:
        return name in self.outputs or any(
            self._reaches_output(user.output[0])
            for user in self.users.get(name, []) if user.op_type in (*_FREE, *_CONVERSIONS)
        )

    def _weight_bytes(self) -> int:
        """Bytes of weights and biases, and of the scales of every output where weights are integers."""
        weighted = [kernel for kernel in self.kernels if kernel.weight_elements]
        return sum(
            kernel.weight_elements * kernel.weight_bits // 8 + kernel.cout * (8 if kernel.weight_bits <= 8 else 4)
            for kernel in weighted
        )
