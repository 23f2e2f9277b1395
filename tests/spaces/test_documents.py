"""Documents from outside are data only, and files are written whole or not at all."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.spaces.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    canonical_json,
    fingerprint,
    finite,
    parse_json,
    parse_yaml,
    read_document,
    sha256_file,
    write_json,
    write_text,
    write_yaml,
)
from paretopress.spaces.errors import ConfigError, DiskError

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    ["1e3", "007", "1234567e12345678", "null", "~", "true", "yes", "No", "on", ".inf", ".nan", "-1", "1_000",
     "3:25", "0x1f", "2020-01-01", "<<", "=", "- a", "a: b", "&a", "*a", "!x", "#c", "'", '"', "a\nb",
     " a ", "1e999",
     "\t"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
PLAIN = st.recursive(
    SCALARS, lambda child: st.lists(child, max_size=3) | st.dictionaries(TEXTS, child, max_size=3)
)


def same(one, other):
    """Equality that tells 1 from 1.0 and True."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(st.dictionaries(TEXTS, PLAIN, max_size=4))
def test_yaml_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("documents") / "value.yaml"
    write_yaml(path, value)
    assert same(read_document(path), value)


@given(PLAIN)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("documents") / "value.json"
    write_json(path, value)
    assert same(read_document(path), value)
    assert same(parse_json(canonical_json(value), "text"), value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("a:", {"a": None}),
        ("[yes, no, on, off, Yes, NO]", ["yes", "no", "on", "off", "Yes", "NO"]),
        ("[true, false, null]", [True, False, None]),
        ("[1, -2, +3, 007]", [1, -2, 3, 7]),
        ("[1.5, 1e3, .5, 2., -1E-2]", [1.5, 1000.0, 0.5, 2.0, -0.01]),
        ("[3:25, 1_000, 0x1f, 2020-01-01, 1.2.3]", ["3:25", "1_000", "0x1f", "2020-01-01", "1.2.3"]),
        ("['1', \"true\", '']", ["1", "true", ""]),
        ("\ufeffa: 1", {"a": 1}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("'<<': 1", {"<<": 1}),
    ],
)
def test_yaml_reads_plain_values(text, value):
    assert same(parse_yaml(text, "file.yaml"), value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "file.yaml:2:4: aliases are not allowed"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "file.yaml:1:4: tag 'tag:yaml.org,2002:python/object/apply:os",
        ),
        ("!!str 1", "tag 'tag:yaml.org,2002:str' is not allowed"),
        ("a: !include /etc/passwd", "tag '!include' is not allowed"),
        ("a: 1\nb: 2\na: 3", "file.yaml:3:1: duplicate key 'a'"),
        ("x: {a: 1, a: 2}", "file.yaml:1:11: duplicate key 'a'"),
        ("1: a\n'1': b", "duplicate key '1'"),
        ("a: .inf", "file.yaml:1:4: .inf is not a finite number"),
        ("a: -.Inf", "not a finite number"),
        ("a: .nan", "not a finite number"),
        ("a: 1e999", "1e999 is not a finite number"),
        ("a: [1, 2", "file.yaml:1:9: expected ',' or ']'"),
        ("a: b: c", "file.yaml:1:5: mapping values are not allowed here"),
        ("\ta: 1", "cannot start any token"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: \x00", "not valid YAML"),
        ("? [a, b]\n: 1", "found unhashable key"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH}"),
        ("[" * 20_000, f"nested deeper than {MAX_DEPTH}"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: " + "x" * MAX_BYTES, f"larger than {MAX_BYTES} bytes"),
    ],
)
def test_yaml_refuses_what_is_not_plain(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "file.yaml")
    assert str(caught.value).startswith("file.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_yaml_never_fails_in_another_way(text):
    try:
        value = parse_yaml(text, "file.yaml")
    except ConfigError as error:
        value = str(error).splitlines()
        assert len(value) == 1, value
    canonical_json(json.loads(json.dumps(value)))  # plain and finite


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('{"a": 1\n,}', "file.json:2:"),
        ("", "file.json:1:1"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH}"),
        ("[" * 100_000, "file.json"),
        ('"' + "x" * MAX_BYTES + '"', f"larger than {MAX_BYTES} bytes"),
    ],
)
def test_json_refuses_what_is_not_strict(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_json(text, "file.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_greatest_depth_is_the_same_in_both():
    text = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert parse_yaml(text, "a") == parse_json(text, "a")
    for parse in (parse_yaml, parse_json):
        with pytest.raises(ConfigError, match="nested deeper"):
            parse("[" + text + "]", "a")


def test_unreadable_files_are_one_line(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    (tmp_path / "large.json").write_bytes(b" " * (MAX_BYTES + 1))
    for name, message in [
        ("none.yaml", "No such file"), ("latin.yaml", "not UTF-8"), ("large.json", "larger"),
        (".", "director"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            read_document(tmp_path / name)


def test_canonical_json_and_fingerprint():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null]}'
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    assert fingerprint({}) == hashlib.sha256(b"{}").hexdigest()[:16]
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([math.nan])
    assert [finite(value) for value in (None, math.nan, math.inf, 2)] == [None, None, None, 2.0]


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_write_needs_its_folder(tmp_path):
    with pytest.raises(DiskError, match=r"cannot write .*No such file"):
        write_text(tmp_path / "missing" / "file", "text")


def test_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": math.nan})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert read_document(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["file.json"]  # noqa: PTH208


def run(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_full_disk_leaves_the_old_file_and_no_remains(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    result = run(
        """
        import resource, signal, sys
        from pathlib import Path
        from paretopress.spaces.documents import write_text
        from paretopress.spaces.errors import DiskError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_text(Path(sys.argv[1]), "new" * 10_000)
        except DiskError as error:
            print(error, error.exit_code)
        """,
        path,
    )
    assert result.stdout.strip() == f"cannot write {path}: the disk is full 74", result.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    result = run(
        """
        import os, signal, sys
        from pathlib import Path
        from paretopress.spaces.documents import write_atomic
        def write(stream):
            stream.write(b"half of the new")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomic(Path(sys.argv[1]), write)
        """,
        path,
    )
    assert result.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_readers_never_see_a_part(tmp_path):
    path = tmp_path / "file.json"
    contents = [{"value": str(digit) * 50_000} for digit in range(10)]
    write_json(path, contents[0])
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent("""
            import sys
            from pathlib import Path
            from paretopress.spaces.documents import write_json
            for round in range(60):
                write_json(Path(sys.argv[1]), {"value": str(round % 10) * 50_000})
        """), str(path)]
    )  # fmt: skip
    try:
        while writer.poll() is None:
            assert read_document(path) in contents
    finally:
        writer.kill()
        writer.wait()
    assert writer.returncode == 0
    assert read_document(path) == contents[9]
