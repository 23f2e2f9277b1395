"""`init`, `schema` and `completion`; the settings' JSON Schema; and the page that documents all JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from paretopress import json_schemas
from paretopress.json_schemas import schema_names, schema_of, settings_schema
from paretopress.settings import Document, read_settings, search_settings
from paretopress.settings_words import WORDS
from paretopress.spaces.documents import parse_yaml
from paretopress.starter import EXAMPLES, starter_text

ROOT = Path(__file__).parent.parent.parent
AGAIN = "write it anew: python -m paretopress.json_schemas"


def uncommented(text):
    """The starter file with every setting switched on."""
    lines = text.splitlines()
    return "\n".join(line.replace("#", "", 1) if line.lstrip().startswith("#") and line.lstrip()[1:2].islower()
                     else line for line in lines)


def test_init_writes_settings_that_search_reads_and_a_schema_beside_them(cli, tmp_path):
    target = tmp_path / "mine.yaml"
    budget = ("--max", "latency=-50%", "--target", "cortex-a76-tflite", "--effort", "quick")
    code, out, err = cli("init", "-o", target, *budget)
    assert code == 0
    assert str(target) in out
    assert f"next: paretopress search {target}" in err
    plain = read_settings(target)
    assert plain == {"version": 1, "targets": ["cortex-a76-tflite"], "budgets": {"latency": "-50%"}, "max_drop": "1pp",
                     "search": {"effort": "quick"}}
    first = target.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=settings.schema.json"
    schema = json.loads((tmp_path / "settings.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(target.read_text()), schema)
    code, _, err = cli("init", "-o", target)
    assert (code, err) == (2, f"error: {target} exists; choose another file or replace it with --force\n")
    assert cli("init", "-o", tmp_path / "other.yaml", "--json")[0] == 0   # the schema there is the same
    assert cli("init", "-o", target, "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-o", "a.json"), "settings are YAML"),
        (("-o", "no/a.yaml"), "the folder no does not exist"),
        (("--set", "search.trails=3"), "did you mean 'trials'?"),
        (("--max", "latencies=3ms"), "did you mean 'latency'?"),
    ],
)
def test_init_refuses_what_search_would_refuse(cli, tmp_path, monkeypatch, arguments, text):
    code, out, err = cli("init", *arguments)
    assert (code, out) == (2, "")
    assert text in err


def test_the_starter_explains_every_key_and_all_of_it_is_valid():
    text = starter_text("settings.yaml", "settings.schema.json")
    plain = parse_yaml(uncommented(text), "starter")
    settings = search_settings(plain, "starter")
    assert settings.trials == 300
    assert set(plain) == set(Document.model_fields)
    for name in ("search", "space", "distillation", "timing"):
        assert set(plain[name]) == set(Document.model_fields[name].annotation.model_fields)
    jsonschema.validate(plain, settings_schema())


def test_the_starter_s_defaults_are_the_defaults():
    plain = parse_yaml(uncommented(starter_text("a.yaml", "b.json")), "starter")
    document = Document()
    for section in ("search", "space", "timing"):
        for key, value in plain[section].items():
            if f"{section}.{key}" not in EXAMPLES:
                assert getattr(getattr(document, section), key) == value
    from paretopress.compressors.distillation import DistillationSettings

    own = DistillationSettings()
    for key, value in plain["distillation"].items():
        found = getattr(own, key)
        assert value == ({name: getattr(found, name) for name in value} if isinstance(value, dict) else found)


def test_every_key_of_the_settings_has_words():
    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            yield f"{prefix}{name}"
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from keys(field.annotation, f"{prefix}{name}.")

    assert [key for key in keys(Document) if key not in WORDS] == [], "say what it means in settings_words.py"


def test_the_shipped_schema_is_the_generated_one():
    assert json_schemas.shipped_settings_schema() == json_schemas.schema_text(settings_schema()), AGAIN


def test_the_schema_agrees_with_the_settings_about_what_is_wrong():
    schema = settings_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for plain in ({"serch": {}}, {"search": {"trials": 0}}, {"search": {"sampler": "best"}}, {"space": {"bits": [5]}},
                  {"targets": []}, {"version": 2}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(plain, schema)
        with pytest.raises(ValueError, match="settings"):
            search_settings(plain)


def test_the_page_on_json_is_written_from_the_schemas():
    assert (ROOT / "docs" / "json.md").read_text() == json_schemas.json_page(), AGAIN


def test_every_verb_that_prints_json_has_a_schema_that_is_one(cli):
    import click

    from paretopress.cli import command

    names = []
    for name in command.list_commands(None):
        verb = command.get_command(None, name)
        inner = {f"{name}-{own}": one for own, one in verb.commands.items()} if isinstance(verb, click.Group) else {
            name: verb}
        names += [key for key, one in inner.items() if any("--json" in option.opts for option in one.params)]
    assert [name for name in names if name not in schema_names()] == [], "add paretopress/schemas/VERB.yaml"
    for name in schema_names():
        jsonschema.Draft202012Validator.check_schema(schema_of(name))


def test_schema_prints_a_schema_and_refuses_unknown_names(cli):
    code, out, _ = cli("schema", "device-list")
    assert code == 0
    assert json.loads(out)["type"] == "array"
    assert json.loads(cli("schema", "--json")[1]) == schema_names()
    assert cli("schema")[1].splitlines() == schema_names()
    code, _, err = cli("schema", "frnt")
    assert code == 2
    assert "did you mean 'front'?" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_back_and_words_come(cli, shell):
    code, out, err = cli("completion", shell)
    assert code == 0
    assert "_PARETOPRESS_COMPLETE" in out
    assert shell in err
    assert cli("completion", "tcsh")[0] == 2


def test_completion_answers_with_verbs_options_and_devices():
    def words(line, position):
        environment = {**os.environ, "_PARETOPRESS_COMPLETE": "bash_complete", "COMP_WORDS": line,
                       "COMP_CWORD": str(position)}
        code = "import sys; sys.argv = ['paretopress']; from paretopress.cli import main; main()"
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60, check=False)
        assert ended.stderr == ""
        return [row.partition(",")[2] for row in ended.stdout.splitlines()]

    assert {"search", "sensitivity", "schema"} <= set(words("paretopress s", 1))
    assert "--target" in words("paretopress search --t", 2)
    assert "cortex-a76-tflite" in words("paretopress search --target cortex", 3)
    assert words("paretopress serch --", 2) == []
