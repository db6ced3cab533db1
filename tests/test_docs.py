"""The documentation: it builds, loads nothing from the network, and says what is true."""

import ast
import html.parser
import json
import pathlib
import re
import textwrap
from collections.abc import Iterator

import nbformat
import pytest
from mkdocs.commands import build
from mkdocs.config import load_config
from nbclient import NotebookClient

from usfm import command, main
from usfm.tasks import TYPES

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/tutorial.ipynb"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}

# One process of a parallel run builds the site, for all tests of it.
of_the_site = pytest.mark.xdist_group("site")
each_page = pytest.mark.parametrize("page", TEXTS)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """The pages, built strictly: a dead link, anchor or name in the API ends it."""
    folder = tmp_path_factory.mktemp("site")
    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


class Loaded(html.parser.HTMLParser):
    """Collects what a page loads by itself, which links that a reader clicks are not."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "a":
            self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def loaded(page: pathlib.Path) -> list[str]:
    parser = Loaded()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


@of_the_site
def test_pages_load_nothing_from_the_network(site):
    pages = list(site.rglob("*.html"))
    found = [address for page in pages for address in loaded(page)]
    assert any(address.endswith(".css") for address in found)
    assert [address for address in found if re.match(r"(\w+:)?//", address)] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8"))


@of_the_site
def test_every_page_and_every_field_of_a_config_is_in_the_site(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists()
    text = (site / "config.html").read_text(encoding="utf-8")
    shown = set(re.findall(r"<td><code>([\w.]+)</code></td>", text))
    for field in command._fields():
        # A mapping is one line of the page.
        assert any(field == name or field.startswith(f"{name}.") for name in shown), field
    assert "a multiple of 16" in text  # from behind a field
    assert "whatever the share" in text


@of_the_site
def test_the_api_page_has_the_docstrings(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("usfm.tasks.task.Task", "usfm.objectives.surgery.weights"):
        assert f'id="{name}"' in text
    assert "Absent tasks get weight 0" in text


@each_page
def test_links_between_files_lead_somewhere(page):
    # mkdocs checks those of docs/; those of README.md and out of docs/ are checked here.
    here = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", TEXTS[page])
    local = [link for link in links if not re.match(r"\w+:", link)]
    assert [link for link in local if not (here / link).exists()] == []


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The file and the arguments of every command line of ours, continued lines joined."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for match in re.finditer(r"(-m usfm\.main|tools/\w+\.py)\b([^`#\"]*)", line):
            yield match[1].replace("-m usfm.main", "usfm/main.py"), match[2]


def flags_of(file: str) -> set[str]:
    sources = [ROOT / file]
    if file == "tools/benchmark.py":
        sources += (ROOT / "tools/benchmarks").glob("*.py")
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    return set(re.findall(r"(?:DEFINE_\w+|add_argument)\(\s*\"(?:--)?(\w+)\"", text))


@each_page
def test_command_lines_have_files_and_flags_that_exist(page):
    for file, arguments in commands(TEXTS[page]):
        assert (ROOT / file).is_file(), file
        given = re.findall(r"(?<!\S)--(\w+)(?![\w.])", arguments)
        assert set(given) <= flags_of(file) | {"help"}, (file, arguments)
    experiments = re.findall(r"--config=(configs/\w+\.py)", TEXTS[page])
    named = [path for path in experiments if path != "configs/NAME.py"]
    assert [path for path in named if not (ROOT / path).is_file()] == []
    modes = re.findall(r"--mode=(\w+)", TEXTS[page])
    assert [mode for mode in modes if mode not in (*main.MODES, "MODE")] == []


@each_page
def test_config_fields_that_are_named_exist(page):
    fields = command._fields()
    groups = {name[: dot.start()] for name in fields for dot in re.finditer(r"\.", name)}
    known = {*fields, *groups, "FIELD", "a.b"}
    flags = re.findall(r"--config\.([\w.]*\w)", TEXTS[page])
    assert [name for name in flags if name not in known] == []
    spans = re.findall(r"`([a-z_]+\.[a-z_.]*[a-z_])(?:=[^`]*)?`", TEXTS[page])
    files = (".py", ".md", ".html", ".json", ".jsonl", ".csv", ".safetensors")
    named = [name for name in spans if name.split(".")[0] in groups and not name.endswith(files)]
    assert [name for name in named if name not in known] == []


@each_page
def test_python_in_the_pages_can_be_read(page):
    for code in re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL):
        ast.parse(textwrap.dedent(code))


def texts_of(source: pathlib.Path) -> Iterator[str]:
    """The texts of a file, with … for what is put into them."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
            )


def test_every_error_in_the_pages_is_said_by_the_program():
    sources = [*(ROOT / "usfm").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    said = [text for source in sources for text in texts_of(source)]
    quoted = re.findall(r"^\| `([^`]+)` \|", TEXTS["docs/errors.md"], re.MULTILINE)
    assert len(quoted) > 50
    for message in quoted:
        parts = re.compile(".*?".join(map(re.escape, message.strip("…").split("…"))), re.DOTALL)
        assert any(parts.search(text) for text in said), message


def opened() -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert isinstance(notebook, nbformat.NotebookNode)
    return notebook


def code_cells() -> list[nbformat.NotebookNode]:
    return [cell for cell in opened().cells if cell.cell_type == "code"]


def test_the_notebook_is_kept_without_outputs():
    assert [cell for cell in code_cells() if cell.outputs or cell.execution_count] == []


def test_the_notebook_and_the_tutorial_write_the_same_folder():
    page = re.findall(r"```python\n(.*?)```", TEXTS["docs/tutorial.md"], re.DOTALL)
    written = page[-1].partition('my_data")\n\n')[2].strip()
    assert len(written) > 500
    assert sum(written in cell.source for cell in code_cells()) == 1


def test_the_notebook_runs_and_shows_what_it_promises(tmp_path, session_dir, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(session_dir / "programs"))
    changes = {
        "data.cache_dir": str(session_dir / "stores"),
        "data.image_size": 32,
        "data.augment": 0.0,
        "model.decoder_width": dict.fromkeys(TYPES, 8),
        "train.steps": 4,
        "train.slots": 2,
    }
    notebook = opened()
    (settings,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    settings.source = (
        f"work = pathlib.Path({str(tmp_path)!r})\nnumber_of_images = 24\nchanges = {changes!r}"
    )
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": NOTEBOOK.parent}},
    )
    client.execute()
    shown = json.dumps(notebook)
    assert "trivial" in shown
    assert re.search(r"lesion \{[^}]*'dsc': ", shown)
    assert "8 rows answered" in shown  # four new images, two tasks
    assert notebook.cells[-2].outputs[0].data["image/png"]
    assert (tmp_path / "run/report.html").exists()
    assert len(list((tmp_path / "run/predictions/lesion").glob("*.png"))) == 4
