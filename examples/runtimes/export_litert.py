"""Turns a .pt2 file of Paretopress into a LiteRT model (.tflite), and checks and times it here.

Runs in an environment of its own (it brings TensorFlow Lite's converter, about 2 GB); Paretopress is not needed in it:

    python3 -m venv .litert && .litert/bin/pip install litert-torch
    .litert/bin/python examples/runtimes/export_litert.py small.pt2 -o small.tflite
"""

from __future__ import annotations

import sys

from checks import finish, opened, options


def main() -> None:
    given = options("Write a LiteRT model.", ".tflite")
    import litert_torch

    module, args = opened(given.program)
    try:
        converted = litert_torch.convert(module, args)
    except Exception as error:  # noqa: BLE001 - one line for whatever operator it does not know
        sys.exit(f"error: {given.program}: LiteRT cannot convert it: {str(error).strip().splitlines()[0]}")
    converted.export(str(given.output))
    finish(given.output, module, args, lambda: converted(*args))


if __name__ == "__main__":
    main()
