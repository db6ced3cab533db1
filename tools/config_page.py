"""Fills docs/config.md with all fields, from usfm/config.py and its comments.

mkdocs.yml names this file as a hook: the tables are made when pages are built, and kept nowhere.
"""

import ast
import functools
import io
import operator
import pathlib
import sys
import tokenize
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from usfm import config as usfm_config

SOURCE = pathlib.Path(usfm_config.__file__)
PLACE = "<!-- fields -->"
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


def tables() -> str:
    """A table in Markdown for each group of fields at the top, in the file's order."""
    values = usfm_config.to_dict(usfm_config.study(usfm_config.base()))
    said = meanings(SOURCE.read_text(encoding="utf-8"))
    groups = {name.rpartition(".")[0] for name in said}
    lines, room = [], None
    for name, meaning in said.items():
        if name in groups and not meaning:
            continue
        if name.partition(".")[0] != room:
            room = name.partition(".")[0]
            lines += ["", f"## {room}", "", "| field | default | |", "| --- | --- | --- |"]
        default = functools.reduce(operator.getitem, name.split("."), values)
        shown = "" if name in groups else f"`{default!r}`"
        lines.append(f"| `{name}` | {shown} | {meaning.translate(ESCAPED)} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the tables in their place; mkdocs calls this for each page."""
    return markdown.replace(PLACE, tables()) if PLACE in markdown else markdown
