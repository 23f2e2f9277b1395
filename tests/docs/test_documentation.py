"""Every code block of the documentation is executed, every link leads somewhere, every picture is a script's."""

import contextlib
import importlib
import io
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/*/README.md")]
)
FENCE = re.compile(
    r"^(?:<!-- test: (?P<mark>[a-z]+)(?: (?P<why>[^>]*))? -->\n)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.M | re.S,
)
MOST_SKIPPED = 27
# What a reader gives minutes, the tests give a few trials.
SHORTER = (
    (r"--time \d+m", "--trials 3"),
    (r'resume\(time="\d+m"\)', "resume(trials=4)"),
    (r'time="\d+m"', "trials=3, workers=1"),
    (r"--workers 32", "--workers 1"),
    (r'max_latency="-\d+%"', 'max_size="-2%"'),   # a network this small may get no faster
    (r'max_drop="\dpp"', 'max_drop="9pp"'),      # and on few samples
    (r"latency=-\d+%", "latency=-2%"),
)
LONG = re.compile(r"paretopress +(search|sensitivity|solve|verify|apply|policy)|compress\(|study\.optimize")
MEASURING = ("sensitivity", "device", "demo")  # verbs whose --time is no number of trials
# First words of blocks that are made of shell commands.
COMMANDS = ("export", "paretopress", "python", "python3", "pip", "ray", ".ci/run", "mkdocs")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    code: str
    mark: str
    why: str

    @property
    def is_console(self):
        first = next(iter(self.code.split()), "")
        return self.language == "console" or (
            self.language == "" and first.partition("=")[0] in (*COMMANDS, "PYTHONPATH")
        )


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text[: found.start("code")].count("\n") + 1
        mark, why = found["mark"] or "", found["why"] or ""
        yield Block(str(page.relative_to(ROOT)), line, found["language"], found["code"], mark, why)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def takes_long(block):
    """Whether a block searches or builds models, or says that it takes long."""
    return block.mark == "slow" or bool(LONG.search(block.code))


def parameters(wanted):
    for block in BLOCKS:
        if wanted(block) and block.mark != "skip":
            marks = [pytest.mark.slow, pytest.mark.timeout(900)] if takes_long(block) else []
            yield pytest.param(block, id=f"{block.page}:{block.line}", marks=marks)


@pytest.fixture(scope="session")
def material(tiny, tiny_run, tmp_path_factory):
    """A folder with everything that the pages name: modules, a finished run, an artefact, policies, settings."""
    folder = tmp_path_factory.mktemp("documentation")
    aliases = {
        "my_project.py": "from tiny import model, data, samples",
        "pkg/mod.py": "from tiny import model as build, data as load",
        "my_package/models.py": "from tiny import model as build, model as build_my_model",
        "my_package/data.py": "from tiny import data as load",
    }
    for name, text in aliases.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text + "\n")
    shutil.copy(tiny.folder / "tiny.py", folder)   # fresh processes look here
    shutil.copytree(tiny_run.path, folder / "runs" / "NAME")
    for name in ("small", "OUT"):
        run_command(
            ["export", str(tiny_run.path), "--pick", "knee", "--format", "safetensors", "-o", str(folder / name)]
        )
    int8 = "units:\n  second/weights: {weights: 8, activations: 8}\n"
    (folder / "p.yaml").write_text(int8 + "  second/channels: {keep: 0.5}\n")
    every = ("first", "depthwise", "second", "last")
    (folder / "int8.yaml").write_text(
        "units:\n" + "".join(f"  {name}/weights: {{weights: 8, activations: 8}}\n" for name in every)
    )
    (folder / "other.yaml").write_text(int8)
    run_command(["policy", "export", str(folder / "runs" / "NAME"), "-o", str(folder / "mine.recipe.json")])
    (folder / "settings.yaml").write_text("search: {workers: 1, finalists: 1}\ntiming: {runs: 5}\n")
    shutil.copytree(ROOT / "hardware_profiles" / "library", folder / "library")
    return folder


@pytest.fixture
def project(material, tmp_path, monkeypatch):
    """A copy of it to work in, and this machine's profile in the cache, so that nothing is measured for a minute."""
    from paretopress.hardware_profiles.catalogue import load_profile
    from paretopress.hardware_profiles.local import store_profile
    from paretopress.hardware_profiles.profile import DeviceProfile

    folder = tmp_path / "project"
    shutil.copytree(material, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain = {**load_profile("x86-zen4-vnni-onnxruntime").plain, "id": "local"}
    store_profile(DeviceProfile.from_plain(plain, "local"))
    yield folder
    for name in ("my_project", "pkg", "pkg.mod", "my_package", "my_package.models", "my_package.data"):
        sys.modules.pop(name, None)


def run_command(arguments):
    """Run the command line in this process; return what it printed. A search without a point is a result too."""
    from paretopress.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None, 3), f"{shlex.join(arguments)}: exit code {ended.value.code}"
    return out.getvalue()


def make_way(words):
    """Commands replace nothing that is there: remove what the folder has under the names that they write."""
    for option, value in itertools.pairwise(words):
        if option in ("-o", "--onnx"):
            shutil.rmtree(value, ignore_errors=True)
            Path(value).unlink(missing_ok=True)


def shortened(text):
    for pattern, replacement in SHORTER:
        text = re.sub(pattern, replacement, text)
    return text


def commands_of(code):
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            verb = words[1] if len(words) > 1 else ""
            yield words if verb in MEASURING else shlex.split(shortened(line), comments=True)


@pytest.mark.parametrize("block", parameters(lambda block: block.is_console))
def test_commands_run(block, project, monkeypatch):
    if "paretopress init" in block.code:   # it replaces nothing
        (project / "settings.yaml").unlink()
    for words in commands_of(block.code):
        if words[0].startswith("PYTHONPATH=examples/"):   # in the checkout
            monkeypatch.syspath_prepend(str(ROOT / words.pop(0).partition("=")[2]))
        make_way(words)
        if words[1] == "search" and not {"--trials", "--dry-run"} & set(words):
            words += ["--trials", "3"]
        assert words[0] == "paretopress", f"{block.page}:{block.line}: mark what the tests cannot run: {words[0]}"
        run_command(words[1:])


def python_pages():
    """Pages whose Python blocks share their names, from the top of the page on."""
    for page in PAGES:
        blocks = [block for block in blocks_of(page) if block.language == "python" and block.mark != "skip"]
        if blocks:
            slow = page.name == "methods.md" or any(takes_long(block) for block in blocks)
            marks = [pytest.mark.slow, pytest.mark.timeout(900)] if slow else []
            yield pytest.param(blocks, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("blocks", python_pages())
def test_python_blocks_run(blocks, project):
    tiny = importlib.import_module("tiny")
    inputs, labels = tiny.samples(48, 2)
    names = {
        "__name__": "__main__",
        "model": tiny.model(),
        "data": tiny.data(),
        "inputs": inputs,
        "training_inputs": inputs,
        "search_inputs": tiny.samples(64, 3)[0],
        "search_labels": tiny.samples(64, 3)[1],
        "holdout_inputs": tiny.samples(100, 4)[0],
        "holdout_labels": tiny.samples(100, 4)[1],
        "build_my_model": tiny.model,
        "labels": labels,
    }
    if blocks[0].page == "README.md":
        shutil.rmtree(project / "small")
    if blocks[0].page == "docs/exports.md":
        paretopress = importlib.import_module("paretopress")
        names["result"] = paretopress.Result.load("runs/NAME")
        names["compressed"] = paretopress.load("small", tiny.model)
    for block in blocks:
        if block.page == "docs/guide.md":
            names |= {"model": tiny.model(), "data": tiny.data()}
        code = compile("\n" * (block.line - 1) + shortened(block.code), str(ROOT / block.page), "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)
        if block.page == "README.md":
            shutil.rmtree(project / "small", ignore_errors=True)


@pytest.mark.parametrize("block", parameters(lambda block: block.language == "yaml"))
def test_data_blocks_are_accepted(block, tmp_path):
    plain = yaml.safe_load(block.code)
    if "units" in plain:
        from paretopress.spaces.policy import Policy

        assert len(Policy.from_plain(plain)) == len(plain["units"])
    else:
        from paretopress.settings import read_settings, search_settings

        path = tmp_path / "settings.yaml"
        path.write_text(block.code)
        assert search_settings(read_settings(path), name="documentation")


def test_what_is_not_executed_says_why():
    skipped = [block for block in BLOCKS if block.mark == "skip"]
    assert all(len(block.why.split()) > 3 for block in skipped), [block for block in skipped if not block.why]
    assert len(skipped) <= MOST_SKIPPED
    assert {block.mark for block in BLOCKS} <= {"", "skip", "slow"}
    drawn = {"docs/architecture.md"}  # pictures made of characters
    other = [block for block in BLOCKS if not (block.is_console or block.language or block.page in drawn)]
    assert not [f"{block.page}:{block.line}" for block in other if block.mark != "skip"]


def anchors(page):
    """The anchors of a page, as the site and code hosts make them of its headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading)).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{page.name}: {target} (there are {sorted(anchors(there))})"


def test_every_picture_is_used_and_loads_nothing():
    shown = {
        match for page in PAGES for match in re.findall(r"pictures/([\w-]+\.svg)", page.read_text(encoding="utf-8"))
    }
    there = {path.name for path in (ROOT / "docs" / "pictures").glob("*.svg")}
    assert there == shown
    for name in there:
        text = (ROOT / "docs" / "pictures" / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|<script|@font-face", text), name


def test_the_pictures_are_what_the_script_draws(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "pictures" / "draw.py", "--out", tmp_path], check=True)
    made = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert "overview.svg" in made
    for name in made:
        assert (tmp_path / name).read_text() == (ROOT / "docs" / "pictures" / name).read_text(), name
