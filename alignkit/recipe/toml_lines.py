"""The line of each key in a TOML file, which tomllib does not report."""

from __future__ import annotations

import re
import tomllib

_BARE_OR_QUOTED = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_BARE_OR_QUOTED}(?:\s*\.\s*{_BARE_OR_QUOTED})*"
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]\]?\s*(?:#.*)?$")
_TOKEN = re.compile(r'''"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"""|\'\'\'|"(?:[^"\\]|\\.)*"|'[^']*'|#.*|[\[{]|[\]}]''')


def split_key(dotted: str) -> tuple[str, ...]:
    """The parts of a dotted TOML key. Raises ValueError if it is not one."""
    if not re.fullmatch(_DOTTED, dotted.strip()):
        raise ValueError(f"{dotted!r} is not a dotted key")
    parts: list[str] = []
    table = tomllib.loads(f"{dotted} = 0")
    while isinstance(table, dict):
        ((key, table),) = table.items()
        parts.append(key)
    return tuple(parts)


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Key path -> line, counted from 1, of every table header and key of a valid TOML document.

    An element of an array of tables has its index in the path: `("reward", "sources", "0", "weight")`.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    brackets, open_string = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        rest = line
        if open_string:
            _, closed, rest = line.partition(open_string)
            if not closed:
                continue
            open_string = ""
        elif not brackets:
            if header := _HEADER.match(line):
                table = split_key(header[2])
                if header[1] == "[[":
                    table += (str(sum(key[:-1] == table and key[-1].isdigit() for key in found)),)
                found.setdefault(table, number)
                continue
            if key := _KEY.match(line):
                found.setdefault(table + split_key(key[1]), number)
                rest = line[key.end() :]
        for token in _TOKEN.findall(rest):
            if token in ('"""', "'''"):
                open_string = token
            brackets += (token in "[{") - (token in "]}")
    return found
