"""Documents and files with anything in them: accepted, or refused in one line of the project's own type."""

import contextlib
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsers import STRUCTURED, TARGETS, Refused, encode, fuzzed, seeds

EXAMPLES = 24            # of each target; `benchmarks/faults/fuzz.py` runs 50,000 of them
DAMAGED = 60
TEXTS = st.text(max_size=60) | st.sampled_from(["../../x", "a\x00b", "\x1b[2J", "x" * 5000, "1e999", "__class__"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just(10**400)
TREES = st.recursive(LEAVES, lambda child: st.lists(child, max_size=4) | st.dictionaries(TEXTS, child, max_size=4))


@pytest.fixture(scope="module")
def material(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    documents, content = seeds(tiny_run.path, folder)
    return SimpleNamespace(documents=documents, content=content, artefact=folder / "artefact")


def place(material, target, folder):
    """A folder for a parser; the manifest's has the artefact's other files."""
    if target == "manifest":
        shutil.copytree(material.artefact, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("target", [*STRUCTURED, "override", "tensors", "onnx_file"])
def test_what_is_not_damaged_is_read(material, target, tmp_path):
    TARGETS[target](material.content[target], place(material, target, tmp_path))


@pytest.mark.parametrize("target", TARGETS)
def test_changed_documents_and_damaged_bytes_are_read_or_refused(material, target, tmp_path):
    folder = place(material, target, tmp_path)
    accepted = sum(
        fuzzed(target, material.documents, material.content, number, folder) for number in range(DAMAGED)
    )
    assert accepted < DAMAGED


@pytest.mark.parametrize("target", STRUCTURED)
def test_any_tree_in_place_of_any_part_is_read_or_refused(material, target, tmp_path):
    folder = place(material, target, tmp_path)
    whole = material.documents[target]

    @settings(max_examples=EXAMPLES)
    @given(st.data())
    def examples(data):
        keys = sorted(whole) if isinstance(whole, dict) else range(len(whole))
        changed = dict(whole) if isinstance(whole, dict) else list(whole)
        changed[data.draw(st.sampled_from(keys))] = data.draw(TREES)
        with contextlib.suppress(Refused):
            TARGETS[target](encode(target, changed), folder)

    examples()
