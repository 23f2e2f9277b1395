"""Capture a model's forward pass with `torch.export` into a plain `Graph`."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from paretopress.spaces.errors import DataError, UnsupportedModelError
from paretopress.spaces.graph import Graph, Node, Ref
from paretopress.spaces.mutation import without_dead_code, without_mutation
from paretopress.spaces.pooling import with_pooled_means
from paretopress.spaces.recurrent import traced_by_shape
from paretopress.spaces.time_limit import OutOfTime, time_limit

TIME_LIMIT = 120.0   # seconds that a capture may take; models of 100M parameters take a few


@dataclass(frozen=True)
class Capture:
    """A captured model.

    Attributes:
        graph: The forward pass as plain data.
        output_spec: How the flat outputs are nested in what the model returns.
        outputs: Node of every flat output, `""` where the model returns None there.
        keywords: Names of the inputs that are passed by keyword, in the order of the capture.
        aliases: State name to the first name of the same tensor, for tied weights.
        constants: Tensors that the model's code creates, by name.
    """

    graph: Graph
    output_spec: pytree.TreeSpec
    outputs: tuple[str, ...]
    keywords: tuple[str, ...]
    aliases: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]


def capture(
    model: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: Mapping[str, torch.Tensor] | None = None,
    *,
    seconds: float = TIME_LIMIT,
) -> Capture:
    """Capture `model` in eval mode at the batch size of the example inputs (at least 2).

    The model itself is not changed: the capture runs on a deep copy.

    Args:
        model: Any module that `torch.export` can trace.
        args: Positional example inputs, the first dimension of each is the batch.
        kwargs: Keyword example inputs.
        seconds: The longest it may take: half for a batch of any size (a long loop that the code unrolls can
            take minutes so), half for the batch of the example.

    Raises:
        UnsupportedModelError: The model cannot be copied, traced or traced in time; the message names the line
            of the user's code where there is one.
        DataError: An example input is not a tensor, or has no batch dimension, or fewer than 2 samples.
    """
    kwargs = dict(kwargs or {})
    batch = _batch_size({**{f"input {index}": value for index, value in enumerate(args)}, **kwargs})
    _check_floats(model, [*args, *kwargs.values()])
    frozen = _copy(model).eval().requires_grad_(False)
    notes: list[str] = []
    program, why = _attempt(frozen, args, kwargs, dynamic=True, seconds=seconds / 2)
    if program is None:
        notes.append(f"the batch dimension is fixed at {batch}: {why}")
        program, why = _attempt(frozen, args, kwargs, dynamic=False, seconds=seconds / 2)
    if program is None:
        hint = differing_types(model, [*args, *kwargs.values()])
        raise UnsupportedModelError(f"the model cannot be captured: {why}{hint}")
    aliases = _aliases(frozen)
    graph = _to_graph(program, batch, notes, aliases)
    constants = {name: value for name, value in program.constants.items() if isinstance(value, torch.Tensor)}
    outputs = _output_names(next(node for node in program.graph.nodes if node.op == "output"))
    return Capture(graph, program.call_spec.out_spec, outputs, tuple(kwargs), aliases, constants)


def differing_types(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> str:
    """A hint where inputs are floats of another type than the model's, as NumPy makes them by default; else nothing."""
    own, given = (sorted(str(kind).removeprefix("torch.") for kind in _float_types(tensors))
                  for tensors in (model.state_dict().values(), inputs))
    if not own or not given or own == given:
        return ""
    return f" (the model's tensors are {' and '.join(own)}, its inputs {' and '.join(given)})"


def _float_types(tensors: Iterable[Any]) -> set[torch.dtype]:
    """The types of floats among tensors; the state of a model may hold other things too."""
    return {one.dtype for one in tensors if isinstance(one, torch.Tensor) and one.is_floating_point()}


def _attempt(
    model: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    *,
    dynamic: bool,
    seconds: float,
) -> tuple[torch.export.ExportedProgram | None, str]:
    """The traced model, or None and the reason in one line."""
    try:
        with time_limit(seconds):
            return _export(model, args, kwargs, dynamic=dynamic), ""
    except OutOfTime as late:
        own = [place for place in _frames(late) if _is_users_file(place[0])]
        where = f"; it was at {own[-1][0]}:{own[-1][1]}" if own else ""
        return None, f"tracing takes longer than {seconds:g} s{where}"
    except Exception as error:  # noqa: BLE001 - torch.export raises whatever the user's code raises
        return None, _explain(error)


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    """A deep copy; what cannot be copied could not be realised either."""
    for path, module in model.named_modules():
        held_tensors = {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
        computed = [name for name, value in held_tensors.items() if not value.is_leaf]
        if computed:
            held = f"{path or 'the root module'} holds {computed[0]!r}, a tensor computed from its parameters"
            remedy = "use torch.nn.utils.parametrizations, or remove_weight_norm before"
            raise UnsupportedModelError(f"the model cannot be copied: {held} ({remedy})")
    try:
        return copy.deepcopy(model)
    except Exception as error:  # noqa: BLE001 - attributes of the user's classes raise anything
        reason = next(iter(str(error).splitlines()), "")
        what = f"{_uncopyable(model)}{type(error).__name__}: {reason}"
        raise UnsupportedModelError(f"the model cannot be copied: {what}") from None


def _uncopyable(model: torch.nn.Module) -> str:
    """`ATTRIBUTE of MODULE: ` of the first attribute that cannot be copied, `""` where none is to blame alone."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                if not name.startswith("_"):
                    copy.deepcopy(value)
            except Exception:  # noqa: BLE001
                return f"attribute {name!r} of {path or 'the root module'}: "
    return ""


def _check_floats(model: torch.nn.Module, inputs: list[torch.Tensor]) -> None:
    """Refuse half precision where model and inputs agree on it; where they do not, running the model says so."""
    own, given = _float_types(model.state_dict().values()), _float_types(inputs)
    narrow = own & {torch.float16, torch.bfloat16}
    if narrow and given <= own:
        names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in narrow))
        raise UnsupportedModelError(f"the model's tensors are {names} (allowed: float32; convert with model.float())")


def _output_names(output: torch.fx.Node) -> tuple[str, ...]:
    """Node of every flat output, `""` for None."""
    leaves = pytree.tree_leaves(output.args[0])
    constant = next((leaf for leaf in leaves if leaf is not None and not isinstance(leaf, torch.fx.Node)), None)
    if constant is not None:
        raise UnsupportedModelError(f"the model returns {constant!r}, which is not a tensor")
    return tuple("" if leaf is None else leaf.name for leaf in leaves)


def _batch_size(inputs: Mapping[str, torch.Tensor]) -> int:
    if not inputs:
        raise DataError("the example has no inputs")
    for name, tensor in inputs.items():
        if not isinstance(tensor, torch.Tensor):
            allowed = "allowed: tensors, by position or keyword; wrap the model in one that takes its tensors singly"
            raise DataError(f"{name} of the example is of type {type(tensor).__name__} ({allowed})")
        if tensor.ndim == 0:
            raise DataError("every model input needs a batch dimension, got a 0-dimensional tensor")
    batch = int(next(iter(inputs.values())).shape[0])
    if batch < 2:
        raise DataError(f"capturing needs an example batch of at least 2 samples, got {batch}")
    return batch


def _export(
    model: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor], *, dynamic: bool
) -> torch.export.ExportedProgram:
    shapes: Any = None
    if dynamic:
        shapes = _named_shapes(model, args, kwargs) if kwargs else _positional_shapes(model, len(args))
    # Tensors of its own for every attempt: torch marks their sizes as dynamic, and an interrupted one leaves the marks.
    own = tuple(tensor.detach() for tensor in args)
    named = {name: tensor.detach() for name, tensor in kwargs.items()}
    with warnings.catch_warnings(), torch.no_grad(), _quiet_torch(), traced_by_shape():
        warnings.simplefilter("ignore")
        return torch.export.export(model, own, named, dynamic_shapes=shapes, strict=False)


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep torch.export's many-line diagnostics off the user's screen: the error says it in one line."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _positional_shapes(model: torch.nn.Module, count: int) -> tuple[Any, ...]:
    """A dynamic first dimension for every positional input; those of a `*args` stand in a tuple of their own."""
    auto = {0: torch.export.Dim.AUTO}
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    star = inspect.Parameter.VAR_POSITIONAL
    named = min(count, kinds.index(star)) if star in kinds else count
    return (*(auto for _ in range(named)), *([(auto,) * (count - named)] if named < count else []))


def _named_shapes(
    model: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
) -> dict[str, Any]:
    names = [name for name in inspect.signature(model.forward).parameters if name not in kwargs]
    auto = {0: torch.export.Dim.AUTO}
    return dict.fromkeys((*names[: len(args)], *kwargs), auto)


def _explain(error: BaseException) -> str:
    """Return one line: the reason and the place in the user's code, from torch.export's long message."""
    text = str(error)
    places = re.findall(r'File "([^"]+)", line (\d+)', text) or _frames(error)
    own = [place for place in places if _is_users_file(place[0])]
    where = f" at {own[-1][0]}:{own[-1][1]}" if own else ""
    unknown = re.match(r"Found <class '([^']+)'> in output, which is not a known type", text)
    if unknown:
        kind = unknown[1].rpartition(".")[2]
        return f"it returns a {kind} (allowed: tensors, and tuples, lists and dicts of tensors)"
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {reason[:300]}{where}" if reason else f"{type(error).__name__}{where}"


def _frames(error: BaseException) -> list[tuple[str, str]]:
    """File and line of every frame an error passed through, outermost first."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, str(trace.tb_lineno)))
        trace = trace.tb_next
    return frames


def _is_users_file(path: str) -> bool:
    ours = pathlib.Path(path).parent == pathlib.Path(__file__).parent
    return "/torch/" not in path and not path.startswith("torch/") and "<" not in path and not ours


def _place(fx_node: torch.fx.Node) -> str:
    """`FILE:LINE` of the user's code that made a node, `""` where it is not known."""
    places = re.findall(r'File "([^"]+)", line (\d+)', fx_node.meta.get("stack_trace") or "")
    return next((f"{file}:{line}" for file, line in reversed(places) if _is_users_file(file)), "")


def _aliases(model: torch.nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        aliases[name] = first.setdefault(id(tensor), name)
    return aliases


def _to_graph(
    program: torch.export.ExportedProgram, batch: int, notes: list[str], aliases: Mapping[str, str]
) -> Graph:
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    targets = {name: aliases.get(target, target) for name, target in targets.items()}
    constants = dict(signature.inputs_to_lifted_tensor_constants)
    nodes: list[Node] = []
    places: dict[str, str] = {}
    dynamic = True
    for fx_node in program.graph.nodes:
        if fx_node.op == "placeholder":
            node = _placeholder(fx_node, targets, constants, batch)
            if node.op == "input" and isinstance(fx_node.meta["val"], torch.Tensor):
                dynamic &= not is_concrete_int(fx_node.meta["val"].shape[0])
        elif fx_node.op == "output":
            outputs = tuple(name for name in _output_names(fx_node) if name)
            node = Node("output", "output", outputs)
        elif fx_node.op == "call_function":
            node = _operator(fx_node, batch)
            places[node.name] = _place(fx_node)
        else:
            raise UnsupportedModelError(f"the model uses a {fx_node.op} node, which is not supported")
        nodes.append(node)
    if not dynamic and not notes:
        notes.append(f"the batch dimension is fixed at {batch} by the model's own code")
    written_once = without_dead_code(without_mutation(nodes, places))
    return Graph(with_pooled_means(written_once), batch, dynamic, tuple(notes))


def _placeholder(
    fx_node: torch.fx.Node, targets: Mapping[str, str], constants: Mapping[str, str], batch: int
) -> Node:
    shape, dtype = _shape_of(fx_node.meta.get("val"), batch)
    if fx_node.name in targets:
        return Node(fx_node.name, "parameter", shape=shape, dtype=dtype, target=targets[fx_node.name])
    if fx_node.name in constants:
        return Node(fx_node.name, "constant", shape=shape, dtype=dtype, target=constants[fx_node.name])
    if not isinstance(fx_node.meta.get("val"), torch.Tensor):
        raise UnsupportedModelError(f"input {fx_node.name!r} is not a tensor (allowed: tensors only)")
    return Node(fx_node.name, "input", shape=shape, dtype=dtype)


def _operator(fx_node: torch.fx.Node, batch: int) -> Node:
    target = fx_node.target
    if isinstance(target, torch._ops.OpOverload):
        op = str(target)
        arguments = _schema_arguments(target, fx_node)
    elif getattr(target, "__module__", "") in ("_operator", "operator", "math"):
        op = f"python.{target.__module__.lstrip('_')}.{target.__name__}"  # type: ignore[union-attr]
        arguments = {f"arg{index}": _plain(value) for index, value in enumerate(fx_node.args)}
    else:
        raise UnsupportedModelError(f"the model calls {target}, which cannot be captured as one operator")
    shape, dtype = _shape_of(fx_node.meta.get("val"), batch)
    inputs = tuple(value.name for value in fx_node.all_input_nodes)
    return Node(fx_node.name, op, inputs, arguments, shape, dtype, _module_path(fx_node))


def _schema_arguments(target: torch._ops.OpOverload, fx_node: torch.fx.Node) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for index, argument in enumerate(target._schema.arguments):
        if index < len(fx_node.args) and not argument.kwarg_only:
            arguments[argument.name] = _plain(fx_node.args[index])
        elif argument.name in fx_node.kwargs:
            arguments[argument.name] = _plain(fx_node.kwargs[argument.name])
        else:
            arguments[argument.name] = argument.default_value
    return arguments


def _plain(value: Any) -> Any:  # noqa: ANN401 - arguments have any type
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _shape_of(value: Any, batch: int) -> tuple[tuple[int, ...], str]:  # noqa: ANN401
    """Return shape and dtype of a traced value; symbolic sizes are resolved at the example batch."""
    if not isinstance(value, torch.Tensor):
        return (), ""
    sizes = tuple(_resolve(size, batch) for size in value.shape)
    return sizes, str(value.dtype).removeprefix("torch.")


def _resolve(size: Any, batch: int) -> int:  # noqa: ANN401
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    return int(hint) if hint is not None else batch


def _module_path(fx_node: torch.fx.Node) -> str:
    stack = fx_node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    return re.sub(r"@\d+", "", path)
