"""Makes the page of all config fields, config.md, from usfm/config.py and its comments.

mkdocs.yml names this file as a hook; the page is built with the others, and kept nowhere else.
"""

import ast
import functools
import io
import operator
import pathlib
import sys
import tokenize

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from usfm import config as usfm_config

SOURCE = pathlib.Path(usfm_config.__file__)
HEAD = """# Every field

Any field is set on the command line, after `--config=FILE`: `--config.train.steps=500`; a tuple as
`"(0.1, 1.0)"`, a mapping as `"{'my_task': 0.5}"`. A wrong name or type is an error that suggests
the right one. `.venv/bin/python tools/print_config.py configs/NAME.py` prints the fields of an
experiment with what it changes. This page is made from the comments of `usfm/config.py`; its
defaults are those of `configs/fm_uia.py`.
"""
# What would be markup in a table of Markdown.
ESCAPED = {ord(sign): f"&#{ord(sign)};" for sign in "<>&*|"}


def meanings(source: str) -> dict[str, str]:
    """What the comments say of each field and group of fields that `base` and `study` set.

    A comment stands in the lines right above a field, behind it, or both.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    rooms = {"base": "", "study": "study."}
    found = {}
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef) or function.name not in rooms:
            continue
        for line in function.body:
            if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Attribute):
                continue
            said, number = [], line.lineno - 1
            while number in comments and comments[number].line.lstrip().startswith("#"):
                said.insert(0, comments[number].string)
                number -= 1
            if line.end_lineno in comments:
                said.append(comments[line.end_lineno].string)
            name = rooms[function.name] + ast.unparse(line.targets[0]).partition(".")[2]
            found[name] = " ".join(text.removeprefix("#").strip() for text in said)
    return found


def page() -> str:
    """The page in Markdown: a table for each group of fields at the top, in the file's order."""
    values = usfm_config.to_dict(usfm_config.study(usfm_config.base()))
    said = meanings(SOURCE.read_text(encoding="utf-8"))
    groups = {name.rpartition(".")[0] for name in said}
    lines, room = [HEAD], None
    for name, meaning in said.items():
        if name in groups and not meaning:
            continue
        if name.partition(".")[0] != room:
            room = name.partition(".")[0]
            lines += ["", f"## {room}", "", "| field | default | |", "| --- | --- | --- |"]
        default = functools.reduce(operator.getitem, name.split("."), values)
        shown = "" if name in groups else f"`{default!r}`"
        lines.append(f"| `{name}` | {shown} | {meaning.translate(ESCAPED)} |")
    return "\n".join(lines) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page; mkdocs calls this."""
    files.append(File.generated(config, "config.md", content=page()))
    return files
