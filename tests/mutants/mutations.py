"""Small mistakes in a module: a flipped sign, a neighbouring comparison, swapped arguments, a constant off by one."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import CodeType

BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
PAIRS = (
    ("min", "max"),
    ("minimum", "maximum"),
    ("amin", "amax"),
    ("mean", "sum"),
    ("any", "all"),
    ("exp", "expm1"),
    ("better", "worse"),
    ("chosen", "rejected"),
    ("left", "right"),
    ("token_mean", "response_mean"),
    ("group_mean", "response_mean"),
    ("group_mean", "leave_one_out_mean"),
)
NAMES = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
NOT_SWAPPED = {"isinstance", "zip", "cast", "TypeVar", "min", "max", "minimum", "maximum", "logaddexp", "promote_types"}
"""Calls whose arguments have no order, or no meaning in another one."""
SKIPPED_STATEMENTS = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "bases"}


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake.

    Attributes:
        module: its dotted name. where: `module:function`, or `module:` of its top level.
        lines: of the statement that is changed; none where it runs when the module is imported.
        change: the expression before and after.
        code: of the whole module.
    """

    module: str
    where: str
    lines: range
    change: str
    code: CodeType


@dataclass(frozen=True)
class _Place:
    """A node, its statement, the expression around it, its class or function, whether in a body, how to replace it."""

    node: ast.AST
    statement: ast.stmt
    around: ast.AST
    function: str
    inside: bool
    put: Callable[[ast.AST], None]


def mutants_of(path: Path, module: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    seen = {ast.unparse(tree)}
    for place in list(_places(tree, tree, tree, "", inside=False)):
        before = ast.unparse(place.around)
        for replacement in _replacements(place.node):
            place.put(ast.fix_missing_locations(ast.copy_location(replacement, place.node)))
            after = ast.unparse(tree)
            if after not in seen:
                seen.add(after)
                where = f"{module}:{place.function}"
                # an expression at the top of its statement is replaced itself, so that `around` still shows the old one
                now = ast.unparse(replacement if place.around is place.node else place.around)
                code = compile(tree, str(path), "exec")
                yield Mutant(module, where, _lines(place), f"{before} -> {now}", code)
            place.put(place.node)


def unchanged(path: Path, module: str) -> Mutant:
    """The module as it is, to see that the tests pass on it where a mutant would be."""
    return Mutant(module, f"{module}:", range(0), "", compile(path.read_text(encoding="utf-8"), str(path), "exec"))


def _lines(place: _Place) -> range:
    """Of a simple statement all lines, of one with a body those of the expression."""
    if not place.inside:
        return range(0)
    has_body = hasattr(place.statement, "body")
    spanning: Any = place.node if has_body and hasattr(place.node, "lineno") else place.statement
    return range(spanning.lineno, (spanning.end_lineno or spanning.lineno) + 1)


def _places(node: ast.AST, statement: Any, around: ast.AST, function: str, *, inside: bool) -> Iterator[_Place]:
    """The expressions below a node, and it itself."""
    for name, value in ast.iter_fields(node):
        if name in SKIPPED_FIELDS:
            continue
        within = inside or (name == "body" and isinstance(node, ast.FunctionDef))
        for number, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or _is_skipped(child):
                continue
            where = function
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                where = f"{function}.{child.name}".lstrip(".")
            below = child if isinstance(child, ast.stmt) else statement
            context = around if isinstance(around, ast.expr) and isinstance(child, ast.expr) else child
            yield _Place(child, below, context, where, within, _putter(node, name, value, number))
            yield from _places(child, below, _context(around, child), where, inside=within)


def _context(around: ast.AST, child: ast.AST) -> ast.AST:
    """What is shown of the mutants below a node: the expression itself, or the one that a keyword stands in."""
    return around if isinstance(child, ast.keyword) and isinstance(around, ast.expr) else child


def _putter(node: ast.AST, name: str, value: Any, number: int) -> Callable[[ast.AST], None]:
    def put(replacement: ast.AST) -> None:
        if isinstance(value, list):
            value[number] = replacement
        else:
            setattr(node, name, replacement)

    return put


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if isinstance(node, ast.keyword):
        return node.arg in ("strict", "output_size")
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("log", "warnings")
    return isinstance(node, (*SKIPPED_STATEMENTS, ast.JoinedStr))


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.UnaryOp | ast.Compare | ast.BoolOp):
        yield from _other_operators(node)
    elif isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Slice):
        yield from _shifted_slices(node)
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node)
    elif isinstance(node, ast.Call):
        yield from _swapped_arguments(node)
    else:
        yield from _renamed(node)


def _other_operators(node: ast.BinOp | ast.AugAssign | ast.UnaryOp | ast.Compare | ast.BoolOp) -> Iterator[ast.AST]:
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Compare):
        for kind in COMPARISONS[type(node.ops[0])]:
            yield _with(node, ops=[kind(), *node.ops[1:]])
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif type(node.op) in BINARY:
        yield _with(node, op=BINARY[type(node.op)]())
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            yield _with(node, left=node.right, right=node.left)


def _other_constants(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield _with(node, value=not node.value)
    elif isinstance(node.value, int | float):
        yield _with(node, value=node.value + 1)


def _shifted_slices(node: ast.Slice) -> Iterator[ast.AST]:
    for name in ("lower", "upper"):
        bound = getattr(node, name)
        if bound is not None and not isinstance(bound, ast.Constant):
            yield _with(node, **{name: ast.BinOp(bound, ast.Add(), ast.Constant(1))})


def _renamed(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        yield _with(node, id=NAMES[node.id])
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in NAMES:
        yield _with(node, attr=NAMES[node.attr])
    elif isinstance(node, ast.keyword) and node.arg in NAMES:
        yield _with(node, arg=NAMES[node.arg])


def _swapped_arguments(node: ast.Call) -> Iterator[ast.AST]:
    name = ast.unparse(node.func).rpartition(".")[2]
    if len(node.args) < 2 or name in NOT_SWAPPED or any(isinstance(x, ast.Starred) for x in node.args[:2]):
        return
    yield _with(node, args=[node.args[1], node.args[0], *node.args[2:]])


def _with(node: Any, **changes: Any) -> Any:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed
