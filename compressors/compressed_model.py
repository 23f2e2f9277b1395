"""CompressedModel: the user's own class with really smaller tensors, saved and loaded without loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paretopress.compressors.apply_edits import apply_edits, load_tensors, stored_tensors
from paretopress.compressors.artefact_folder import MANIFEST, new_folder, read_folder, read_tensors
from paretopress.compressors.delta import Delta, Input, module_edits
from paretopress.compressors.entropy_coding import Coded, decoded, encoded, packed_widths
from paretopress.compressors.folding import remaining_state
from paretopress.compressors.network import (
    Network,
    Range,
    dense_network,
    forward,
)
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.stored_parts import read_parts
from paretopress.spaces.documents import (
    MAX_BYTES,
    canonical_json,
    parse_json,
    write_atomic,
    write_text,
    write_yaml,
)
from paretopress.spaces.errors import ArtifactError, ConfigError, ParetopressError, UnsupportedModelError
from paretopress.spaces.left_dense import untouched
from paretopress.spaces.methods import Assignment
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    from paretopress.compressors.exports import Exported

TENSORS, DELTA, POLICY = "model.safetensors", "delta.json", "policy.yaml"
RANGES = ("activation_scale", "activation_zero_point")

_MISFITS = (AttributeError, TypeError, ValueError, LookupError, RuntimeError, ArithmeticError, AssertionError)

ModelFactory = nn.Module | Callable[[], nn.Module]


class CompressedModel(nn.Module):
    """A realised model.

    Attributes:
        network: An instance of the user's class, smaller; it computes in floats on (dequantised) weights.
        delta: All that is not tensors.
        activation_scale: `(n,)` float32, scales of the tensors `delta.ranges`.
        activation_zero_point: `(n,)` uint8.
        tier: Which build it is: `"dense"`, `"entries"`, `"refit"` or `"distilled"`; `""` where it was loaded.
        assignment: What the method decided that it was made by, None where it was made from a policy.
    """

    activation_scale: Tensor
    activation_zero_point: Tensor

    def __init__(
        self, network: nn.Module, delta: Delta, ranges: Mapping[str, Range], source: Program | ModelFactory
    ) -> None:
        """Put a realised model together.

        Args:
            network: The user's class after edits, filled.
            delta: What was done to it.
            ranges: Range of every tensor in `delta.ranges`.
            source: The captured dense model, or what makes the dense model when it is needed.
        """
        super().__init__()
        self.network = network
        self.delta = delta
        settled = [ranges[name] for name in delta.ranges]
        self.register_buffer(RANGES[0], torch.tensor([scale for scale, _ in settled], dtype=torch.float32))
        self.register_buffer(RANGES[1], torch.tensor([point for _, point in settled], dtype=torch.uint8))
        self._source = (source,)   # inside a tuple: the dense model is no submodule
        self._plan: Plan | None = None
        self._executable: Network | None = None
        self.tier = ""
        self.assignment: Assignment | None = None
        self.eval()

    @property
    def policy(self) -> Policy:
        """The policy that it realises."""
        return self.delta.policy

    @property
    def program(self) -> Program:
        """The captured dense model; a loaded artefact captures it on first use.

        Raises:
            ArtifactError: The factory's model is not the one the artefact was made from.
        """
        (source,) = self._source
        if not isinstance(source, Program):
            source = _capture(source, self.delta)
            self._source = (source,)
        return source

    @property
    def plan(self) -> Plan:
        """The plan that it realises. Raises as `program`."""
        if self._plan is None:
            planned = plan(self.program.structure, self.policy)
            if module_edits(planned) != self.delta.edits or planned.arithmetic.ranges != self.delta.ranges:
                raise ArtifactError(f"the plan of policy {self.policy.hash} is not the one that was stored")
            self._plan = planned
        return self._plan

    @property
    def size_bytes(self) -> int:
        """Bytes of its stored tensors: weights, scales, zero points, biases, buffers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in artefact_tensors(self).values())

    @property
    def left_dense(self) -> tuple[tuple[str, str], ...]:
        """What was left as it is, `(unit, reason)`. Raises as `program`."""
        return tuple(untouched(self.plan)) if self.assignment is None else self.assignment.left_dense

    @property
    def adjusted(self) -> tuple[tuple[str, str], ...]:
        """What got another choice than the method was asked for, `(unit, reason)`."""
        return () if self.assignment is None else self.assignment.adjusted

    @property
    def equalised(self) -> int:
        """Pairs of layers that were rescaled against each other first; 0 where that was not asked or none could be."""
        return self.delta.equalised

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:  # noqa: ANN401 - whatever the user's model returns
        """Compute what the artefact computes: in 8-bit steps where its activations are quantised.

        Then, and where sizes are written in the user's code, the captured graph is run on the user's tensors.
        """
        if not self.delta.ranges and not self.delta.graph:
            return self.network(*args, **kwargs)
        keywords = [entry.keyword for entry in self.delta.inputs if entry.keyword]
        positional = len(self.delta.inputs) - len(keywords)
        if len(args) != positional or set(kwargs) != set(keywords):
            names = f" and the keywords {', '.join(keywords)}" if keywords else ""
            raise ConfigError(f"the model was captured with {positional} positional inputs{names}")
        if self._executable is None:
            self._executable = network_of(self)
        return run_batches(self.program, self._executable, self.program.flatten_inputs(args, kwargs))

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        huffman: bool = False,
        extra: Mapping[str, Callable[[Path], object]] | None = None,
    ) -> dict[str, int]:
        """Write the artefact: all of the folder or nothing.

        Args:
            folder: Must not exist or be empty.
            overwrite: Whether an earlier artefact there is replaced.
            huffman: Whether packed tensors are Huffman-coded where that takes fewer bytes. Loading decodes them.
            extra: Further files that the manifest covers, such as `model.onnx`: name to a function that
                writes the path it is given.

        Returns:
            `size_bytes` of the tensors that are written and `disk_bytes` of all files except the extra ones.

        Raises:
            ConfigError: The folder is in use.
            DiskError: Writing failed; nothing half-written is left.
        """
        tensors, coded = artefact_tensors(self), Coded()
        if huffman:
            tensors, coded = encoded(tensors, packed_widths(self.delta.edits, tensors))
        delta = canonical_json(replace(self.delta, coded=coded).to_plain()) + "\n"
        if len(delta) > MAX_BYTES:
            raise ArtifactError(f"{DELTA} would be larger than {MAX_BYTES} bytes: too many channels")
        content = _serialise(tensors)
        with new_folder(Path(folder), overwrite=overwrite) as temporary:
            write_atomic(temporary / TENSORS, lambda stream: stream.write(content))
            write_text(temporary / DELTA, delta)
            write_yaml(temporary / POLICY, self.policy.to_plain())
            for name, write in (extra or {}).items():
                write(temporary / name)
        files = (Path(folder) / name for name in (TENSORS, DELTA, POLICY, MANIFEST))
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return {"size_bytes": size, "disk_bytes": sum(path.stat().st_size for path in files)}

    def forget_network(self) -> None:
        """Build what quantised activations run on anew when it is needed: the tensors have changed."""
        self._executable = None

    def export_onnx(self, path: str | Path) -> Path:
        """Write it as one ONNX file, which replaces what is there. Raises `DiskError`."""
        from paretopress.compressors.export_onnx import export_onnx

        export_onnx(self.program, network_of(self), Path(path))
        return Path(path)

    def export(
        self, path: str | Path, format: str | None = None, inputs: Any = None, *, runs: int = 50,  # noqa: A002, ANN401
        overwrite: bool = False, packed: bool = False, values: bool = False,
    ) -> Exported:
        """Write it in a format, run what was written, compare it with this model, and time it.

        Args:
            path: A new file, or a new folder for `safetensors`.
            format: `onnx`, `pt2` (`torch.export`), `openvino` (IR: `.xml` and `.bin`) or `safetensors` (a folder with a
                model card); by default what the suffix says.
            inputs: What to compare and time on: a tensor, a tuple of tensors (positional) or a mapping (keywords),
                samples on dimension 0; by default drawn.
            runs: Counted runs of the timing, 0 for none.
            overwrite: Whether an earlier export there is replaced.
            packed: For `pt2`, whether integer weights are stored packed and unpacked by every call; otherwise as the
                floats they stand for, which is faster and larger.
            values: Whether the outputs are embeddings or values rather than scores of classes: where activations are
                rounded, they may then differ by a quarter of their length, instead of 2% unless the same one is first.

        Raises:
            ArtifactError: What was written does not compute what this model computes; nothing is left of it.
            ParetopressError: Others as `exports.export_checked`.
        """
        from paretopress.compressors.exports import as_inputs, export_checked  # they know this module

        given = None if inputs is None else as_inputs(inputs)
        return export_checked(
            self, Path(path), format, given, runs=runs, overwrite=overwrite, packed=packed, values=values
        )

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False, huffman: bool = False) -> dict[str, int]:
        """`save` with a model card, `README.md`, among the files. Arguments, result and errors are those of `save`."""
        from paretopress.compressors.model_card import CARD, card_of

        extra = {CARD: lambda path: write_text(path, card_of(self))}
        return self.save(folder, overwrite=overwrite, huffman=huffman, extra=extra)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompressedModel:
        self.forget_network()
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


def _serialise(tensors: Mapping[str, Tensor]) -> bytes:
    import safetensors.torch

    own = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    return safetensors.torch.save(own)


def artefact_tensors(compressed: CompressedModel) -> dict[str, Tensor]:
    """Return everything an artefact stores: the network's state under its own names, and the ranges."""
    tensors = stored_tensors(compressed.network)
    if not compressed.delta.ranges:
        return tensors
    if taken := tensors.keys() & set(RANGES):
        raise UnsupportedModelError(f"the model has a tensor of its own named {min(taken)!r}; rename it")
    return {**tensors, **{name: getattr(compressed, name) for name in RANGES}}


def delta_of(program: Program, network: Network) -> Delta:
    """Return all of an artefact that is not tensors."""
    realised = network.plan
    return Delta(
        edits=module_edits(realised),
        policy=realised.policy,
        inputs=_inputs_of(program),
        structure=program.structure.fingerprint,
        state={name: shape for name, (shape, _) in program.structure.state.items()},
        ranges=realised.arithmetic.ranges,
        kept={name: tuple(index.tolist()) for name, index in network.selection.items()},
        versions={"paretopress": metadata.version("paretopress"), "torch": str(torch.__version__)},
        equalised=network.equalised,
    )


def _inputs_of(program: Program) -> tuple[Input, ...]:
    keywords = program.capture.keywords
    nodes = [program.graph.by_name[name] for name in program.graph.inputs]
    names = ("",) * (len(nodes) - len(keywords)) + tuple(keywords)
    return tuple(Input(node.shape, node.dtype, name) for node, name in zip(nodes, names, strict=True))


def run_batches(program: Program, network: Network, inputs: Sequence[Tensor]) -> Any:  # noqa: ANN401
    """Run a network; where the graph's batch size is fixed, batches are cut, filled up and joined again."""
    size, count = program.graph.batch, len(inputs[0])
    if program.graph.dynamic_batch or count == size:
        return forward(program, network, inputs)
    starts = range(0, max(count, 1), size)
    batches = ([_rows(tensor, start, size) for tensor in inputs] for start in starts)
    outputs = [forward(program, network, batch) for batch in batches]

    def join(*pieces: Any) -> Any:  # noqa: ANN401
        first = pieces[0]
        batched = isinstance(first, Tensor) and first.ndim > 0 and len(first) == size
        return torch.cat(pieces)[:count] if batched else first

    return pytree.tree_map(join, *outputs)


def _rows(tensor: Tensor, start: int, size: int) -> Tensor:
    piece = tensor[start : start + size]
    return torch.cat([piece, tensor[-1:].expand(size - len(piece), *tensor.shape[1:])])


def network_of(compressed: CompressedModel) -> Network:
    """Return the network of a realised or loaded artefact, integers, scales and ranges included."""
    program, planned, module = compressed.program, compressed.plan, compressed.network
    buffers, parameters = (
        named(remove_duplicate=False) for named in (module.named_buffers, module.named_parameters)
    )
    tensors = {name: tensor.detach() for name, tensor in (*buffers, *parameters)}
    if planned.policy.is_dense:
        return dense_network(replace(program, state={**program.state, **tensors}), planned)
    parts = {layer.layer.node: read_parts(layer, tensors) for layer in planned.layers}
    dense = remaining_state(program.under(planned.structure), folded=True)
    state = {name: tensors.get(name, tensor) for name, tensor in dense.items()}
    scales, zero_points = compressed.activation_scale.tolist(), compressed.activation_zero_point.tolist()
    ranges = dict(zip(compressed.delta.ranges, zip(scales, zero_points, strict=True), strict=True))
    selection = {name: torch.tensor(channels) for name, channels in compressed.delta.kept.items()}
    return Network(planned, parts, state, ranges, selection, folded=True, equalised=compressed.delta.equalised)


def load(
    folder: str | Path, model_factory: ModelFactory, program: Program | None = None, *, packed: bool = False
) -> CompressedModel:
    """Read an artefact back onto the user's own class.

    Args:
        folder: What `CompressedModel.save` wrote.
        model_factory: Returns the dense model, or is one; its weights do not matter, it is not changed.
        program: An earlier capture of the same dense model; used where it is the artefact's, else captured anew.
        packed: Whether float weights are computed from the stored ones on every access, which is slower and keeps
            the memory as small as the artefact.

    Returns:
        The compressed model, in eval mode on the CPU, equal to the saved one bit for bit.

    Raises:
        ArtifactError: A file is missing, extra, truncated or altered, or the model is another one.
    """
    # Inside `torch.inference_mode()` nothing could be captured, and the tensors could never be changed again.
    with torch.inference_mode(mode=False):
        loaded = _load(Path(folder), model_factory, program)
    if packed:
        from paretopress.compressors.packed_memory import keep_packed  # it knows this module

        keep_packed(loaded)
    return loaded


def _load(folder: Path, model_factory: ModelFactory, program: Program | None) -> CompressedModel:
    contents = read_folder(folder, (TENSORS, DELTA, POLICY))
    delta = _read_delta(contents[DELTA], str(folder / DELTA))
    tensors = decoded(read_tensors(contents[TENSORS], str(folder / TENSORS)), delta.coded, str(folder / TENSORS))
    delta = replace(delta, coded={})
    model = copy.deepcopy(make_model(model_factory)).cpu().eval().requires_grad_(False)
    _check_state(model, delta)
    source: Program | ModelFactory = model_factory
    if program is not None and _is_capture_of(program, delta):
        source = program
    elif delta.ranges or delta.graph:
        source = _capture(model, delta)
    ranges = _take_ranges(tensors, delta, str(folder / TENSORS))
    try:
        apply_edits(model, delta.edits)
        load_tensors(model, tensors, delta.edits)
    except ParetopressError:
        raise
    except _MISFITS as error:   # nothing of the user's code runs in there: whoever wrote the artefact is to blame
        what = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{folder / DELTA}: its edits do not fit the model: {what}") from None
    return CompressedModel(model, delta, ranges, source)


def _is_capture_of(program: Program, delta: Delta) -> bool:
    """Whether a capture is the one that an artefact was made from: same operators, inputs and batch size."""
    return program.structure.fingerprint == delta.structure and _inputs_of(program) == tuple(delta.inputs)


def make_model(model_factory: ModelFactory) -> nn.Module:
    """Return the dense model. Raises `ConfigError` where the factory makes something else."""
    model = model_factory if isinstance(model_factory, nn.Module) else model_factory()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model factory returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _read_delta(content: bytes, where: str) -> Delta:
    try:
        return Delta.from_plain(parse_json(content.decode(), where), where)
    except (ConfigError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{where}: {error}") from None


def _take_ranges(tensors: dict[str, Tensor], delta: Delta, where: str) -> dict[str, Range]:
    """Remove the ranges from the tensors of a file and return them by tensor name."""
    if not delta.ranges:
        return {}
    scales, zero_points = (tensors.pop(name, None) for name in RANGES)
    shape = (len(delta.ranges),)
    for name, tensor, dtype in zip(RANGES, (scales, zero_points), (torch.float32, torch.uint8), strict=True):
        if tensor is None or tensor.shape != shape or tensor.dtype != dtype:
            raise ArtifactError(f"{where}: {name!r} is not a tensor of {shape[0]} {dtype}")
    assert scales is not None
    assert zero_points is not None
    return dict(zip(delta.ranges, zip(scales.tolist(), zero_points.tolist(), strict=True), strict=True))


def _check_state(model: nn.Module, delta: Delta) -> None:
    """Refuse a model whose tensors are not those of the artefact's dense model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in (*delta.state, *shapes):
        one, other = delta.state.get(name, "none"), shapes.get(name, "none")
        if one != other:
            found = f"{name!r} is {other} in this model and {one} in the artefact's"
            raise ArtifactError(f"the artefact belongs to another model: {found}")


def _capture(source: ModelFactory, delta: Delta) -> Program:
    """Capture the dense model of an artefact. Raises `ArtifactError` where it is another model."""
    model = make_model(source)
    zeros = [torch.zeros(entry.shape, dtype=_dtype(entry.dtype)) for entry in delta.inputs]
    examples = [(entry.keyword, tensor) for entry, tensor in zip(delta.inputs, zeros, strict=True)]
    positional = tuple(tensor for keyword, tensor in examples if not keyword)
    program = build_program(model, positional, {keyword: tensor for keyword, tensor in examples if keyword})
    found = program.structure.fingerprint
    if found != delta.structure:
        difference = f"the fingerprint of its operators is {found}, the artefact's {delta.structure}"
        raise ArtifactError(f"the artefact belongs to another model: {difference}")
    return program


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ArtifactError(f"{DELTA}: {name!r} is not a type of tensor elements")
    return dtype
