"""The reference of the Python API: every public name with its signature and docstring, read from the source."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING

from docs.generate.text import NOTE, ROOT, docstring, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGES = {
    "alignkit": "records, runs, options, errors and what components are built of",
    "alignkit.ops": "the mathematics",
    "alignkit.algorithms": "what algorithms are composed of",
    "alignkit.preferences": "annotations, agreement and rankings",
    "alignkit.commands": "what a plugin's command needs",
    "alignkit.testing": "contract tests and tiny components",
}
ROLES_ARE_IN = ("interfaces", "samplers", "components", "batch", "outputs", "companions", "footprint", "hookspecs")
"""Modules of `alignkit` whose names stand on the page of the interfaces."""
FIRST = ("runs.api", "runs.results", "records", "options", "plugins")
"""Modules of `alignkit` whose names come first on its page."""
TITLES = {"alignkit.runs.api": "Running", "alignkit.hookspecs": "Registration"}
WIDTH = 100
HIDDEN = ("overload", "override")


@dataclass(frozen=True)
class Found:
    """A public name where it is defined: the statement, and the docstring below it if it is an assignment."""

    name: str
    module: str
    node: ast.stmt
    below: str = ""


def api_pages() -> dict[str, str]:
    """Path under docs/ -> page: the interfaces, and one page a package."""
    found = {package: public_names(package) for package in PACKAGES}
    roles = [name for home in ROLES_ARE_IN for name in found["alignkit"] if _home(name) == home]
    others = [name for name in found["alignkit"] if name not in roles]
    others.sort(key=lambda name: FIRST.index(_home(name)) if _home(name) in FIRST else len(FIRST))
    rest = {**found, "alignkit": others}
    pages = {f"reference/api/{package.rpartition('.')[2]}.md": _package(package, rest[package]) for package in PACKAGES}
    return {"reference/interfaces.md": _interfaces(roles), "reference/api/index.md": _index(), **pages}


def public_names(package: str) -> list[Found]:
    """The names of `__all__`, where they are defined."""
    names = [name for node in _imports(package) for name in (alias.name for alias in node.names)]
    public = _listed(package) or names
    return [_find(package, name) for name in sorted(set(names), key=str.lower) if name in public]


def _listed(package: str) -> list[str]:
    """`__all__` where the package writes it out."""
    for node in _tree(package).body:
        match node:
            case ast.Assign(targets=[ast.Name("__all__")], value=ast.List() as value):
                return list(ast.literal_eval(value))
    return []


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _path(module: str) -> Path:
    base = ROOT / module.replace(".", "/")
    choices = (base / "__init__.pyi", base / "__init__.py", base.with_suffix(".py"))
    return next(path for path in choices if path.is_file())


def _imports(module: str) -> Iterator[ast.ImportFrom]:
    """The imports from the project in a module, absolute, those for typing included."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            if source.startswith("alignkit"):
                yield ast.ImportFrom(source, node.names, 0)


def _find(module: str, name: str) -> Found:
    """Follows the imports of a name to its definition."""
    body = _tree(module).body
    for node, below in zip_longest(body, body[1:]):
        if name in _defined(node):
            return Found(name, module, node, _text(below))
    source = next(node.module for node in _imports(module) if any(alias.name == name for alias in node.names))
    return _find(str(source), name)


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(name)):
            return [name]
        case ast.Assign():
            return [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return []


def _text(node: ast.stmt | None) -> str:
    """The text of a docstring below an assignment."""
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return " ".join(text.split())
    return ""


def _home(found: Found) -> str:
    return found.module.removeprefix("alignkit.")


def _interfaces(names: list[Found]) -> str:
    head = "# Interfaces\n"
    text = "The roles that plugins fill, and what passes between them; all of it is imported from `alignkit`.\n"
    return "\n".join([NOTE, head, text, *_by_module(names)])


def _index() -> str:
    rows = [[f"[`{name}`]({name.rpartition('.')[2]}.md)", text] for name, text in PACKAGES.items()]
    text = (
        "Plugins and scripts import from these six packages; everything else is private and changes without notice."
        " [In Python](../../how-to/python.md) shows how to run and train;"
        " [Interfaces](../interfaces.md) has the roles.\n"
    )
    return "\n".join([NOTE, "# Python API\n", text, *table(["package", "what it has"], rows)])


def _package(package: str, names: list[Found]) -> str:
    about = ast.get_docstring(ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")))
    more = "The roles and their batches: [Interfaces](../interfaces.md).\n" if package == "alignkit" else ""
    return "\n".join([NOTE, f"# `{package}`\n", docstring(about or ""), more, *_by_module(names)])


def _by_module(names: list[Found]) -> Iterator[str]:
    """The names below a heading for each module, which says what they have in common."""
    for module in dict.fromkeys(found.module for found in names):
        tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
        yield f"## {TITLES.get(module, module.rpartition('.')[2].replace('_', ' ').capitalize())}\n"
        yield docstring(ast.get_docstring(tree) or "")
        for found in names:
            if found.module == module:
                yield from _entry(found)


def _entry(found: Found) -> Iterator[str]:
    """A name's heading, signature, docstring and members."""
    yield f"### `{found.name}`\n"
    match found.node:
        case ast.ClassDef() as node:
            fields = list(_fields(node))
            yield _code([f"class {node.name}{_bases(node)}", *(f"    {field}" for field, text in fields if not text)])
            yield from _docs(node)
            yield from (f"- `{field}`: {docstring(text).strip()}" for field, text in fields if text)
            yield ""
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and _is_public(method):
                    yield _code([*_decorators(method), _signature(method)])
                    yield from _docs(method)
        case ast.FunctionDef() as node:
            yield _code([*_decorators(node), _signature(node)])
            yield from _docs(node)
        case node:
            yield _code([ast.unparse(node)])
            if found.below:
                yield docstring(found.below)


def _is_public(method: ast.FunctionDef) -> bool:
    return not method.name.startswith("_") or method.name == "__call__"


def _docs(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    if text := ast.get_docstring(node):
        yield docstring(text)


def _bases(node: ast.ClassDef) -> str:
    bases = [ast.unparse(base) for base in node.bases]
    return f"({', '.join(bases)})" if bases else ""


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The annotated fields, each with the docstring below it."""
    for statement, below in zip_longest(node.body, node.body[1:]):
        match statement:
            case ast.AnnAssign(target=ast.Name(name)) if not name.startswith("_"):
                yield ast.unparse(statement), _text(below)


def _decorators(node: ast.FunctionDef) -> list[str]:
    return [f"@{ast.unparse(one)}" for one in node.decorator_list if ast.unparse(one) not in HIDDEN]


def _signature(node: ast.FunctionDef) -> str:
    """`def name(...) -> ...`; an argument a line where it is long."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = list(_arguments(node.args))
    line = f"def {node.name}({', '.join(arguments)}){result}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"def {node.name}(", *(f"    {argument}," for argument in arguments), f"){result}"])


def _arguments(found: ast.arguments) -> Iterator[str]:
    places = [*found.posonlyargs, *found.args]
    defaults = [None] * (len(places) - len(found.defaults)) + list(found.defaults)
    for number, (argument, default) in enumerate(zip(places, defaults, strict=True), start=1):
        yield _argument(argument, default)
        if number == len(found.posonlyargs):
            yield "/"
    if found.vararg:
        yield f"*{_argument(found.vararg, None)}"
    elif found.kwonlyargs:
        yield "*"
    for argument, default in zip(found.kwonlyargs, found.kw_defaults, strict=True):
        yield _argument(argument, default)
    if found.kwarg:
        yield f"**{_argument(found.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    if default is None:
        return ast.unparse(argument)
    equals = " = " if argument.annotation else "="
    return f"{ast.unparse(argument)}{equals}{ast.unparse(default)}"


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```\n"])
