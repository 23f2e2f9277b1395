"""Coverage-guided fuzzing of every parser with Atheris (`pip install atheris`).

    python benchmarks/faults/atheris_parsers.py CORPUS -max_total_time=600 -rss_limit_mb=1024

The first byte of an input chooses the parser, the rest is the file. Only one-line errors of the project's own type may
come out; anything else ends the run with the input that caused it, and so does one that takes more than a second of the
process's own time. CORPUS is filled with valid files of every parser where it is empty, from a small run in the folder
`material` beside it; all further arguments are those of libFuzzer.
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import atheris
import material

with atheris.instrument_imports(include=["paretopress", "yaml", "parsers"]):
    parsers = material.parsers()
    import paretopress.compressors.artefact_folder
    import paretopress.compressors.delta
    import paretopress.front_document
    import paretopress.hardware_profiles.catalogue
    import paretopress.hardware_profiles.schema
    import paretopress.search.ledger
    import paretopress.settings
    import paretopress.spaces.policy  # noqa: F401 - imported to be instrumented

LIMIT_SECONDS = 1.0
NAMES = [name for name in parsers.TARGETS if name not in ("onnx_file", "tensors")]   # those are others' parsers


def main() -> None:
    corpus = next((Path(one) for one in sys.argv[1:] if not one.startswith("-")), None)
    temporary = Path(tempfile.mkdtemp(prefix="atheris-"))
    if corpus is not None and not any(corpus.glob("*")):
        corpus.mkdir(parents=True, exist_ok=True)
        base = corpus.parent / "material"   # a small run, made where it is missing
        base.mkdir(exist_ok=True)
        _, content = parsers.seeds(material.small_run(base), temporary)
        for number, name in enumerate(NAMES):
            (corpus / name).write_bytes(bytes([number]) + content[name])

    def one_input(data: bytes) -> None:
        if not data:
            return
        name = NAMES[data[0] % len(NAMES)]
        folder = temporary / name
        folder.mkdir(exist_ok=True)
        start = time.process_time()   # not what others on the machine take
        with contextlib.suppress(parsers.Refused):
            parsers.TARGETS[name](data[1:], folder)
        seconds = time.process_time() - start
        if seconds > LIMIT_SECONDS:
            raise TimeoutError(f"{name}: {seconds:.1f} s")

    for number in range(len(NAMES)):   # imports what the parsers need
        with contextlib.suppress(TimeoutError):
            one_input(bytes([number]) + b"x,y\n")
    defaults = ["-timeout=30", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *defaults, *sys.argv[1:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
