"""Turns a .pt2 file of Paretopress into an ExecuTorch program (.pte) for XNNPACK, and checks and times it here.

Runs in an environment of its own; Paretopress is not needed in it:

    python3 -m venv .executorch && .executorch/bin/pip install executorch
    .executorch/bin/python examples/runtimes/export_executorch.py small.pt2 -o small.pte
"""

from __future__ import annotations

import sys

import torch
from checks import finish, opened, options


def main() -> None:
    given = options("Write an ExecuTorch program for XNNPACK.", ".pte")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    module, args = opened(given.program)
    try:
        with torch.no_grad():
            exported = torch.export.export(module, args)   # batch 1: ExecuTorch plans its memory ahead
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:  # noqa: BLE001 - one line for whatever operator it does not know
        sys.exit(f"error: {given.program}: ExecuTorch cannot lower it: {str(error).strip().splitlines()[0]}")
    given.output.write_bytes(lowered.buffer)
    method = Runtime.get().load_program(given.output).load_method("forward")
    finish(given.output, module, args, lambda: method.execute(list(args)))


if __name__ == "__main__":
    main()
