"""Huffman coding of an artefact that is already stored, without its model."""

from __future__ import annotations

from dataclasses import replace

from paretopress.compressors.artefact_folder import read_tensors
from paretopress.compressors.delta import Delta
from paretopress.compressors.entropy_coding import encoded, packed_widths
from paretopress.spaces.documents import canonical_json, parse_json


def huffman_coded(delta: bytes, tensors: bytes, where: str) -> tuple[bytes, bytes]:
    """Code the tensors of an artefact where that takes fewer bytes.

    Args:
        delta: Its JSON delta.
        tensors: Its safetensors file.
        where: Its folder, for errors.

    Returns:
        Both files anew; those of an artefact that is coded already as they are.

    Raises:
        ArtifactError: The delta or the tensors are malformed.
    """
    import safetensors.torch

    read = Delta.from_plain(parse_json(delta.decode(), where), where)
    if read.coded:
        return delta, tensors
    stored = read_tensors(tensors, where)
    found, coded = encoded(stored, packed_widths(read.edits, stored))
    text = canonical_json(replace(read, coded=coded).to_plain()) + "\n"
    ordered = {name: found[name].contiguous() for name in sorted(found)}
    return text.encode(), safetensors.torch.save(ordered)
