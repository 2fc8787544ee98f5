"""The modules of ``static/`` as one script: a page that is opened from disk cannot import from its neighbors.

No tool is needed for that, because the modules keep to what is checked here: one form of import, one of export, and
names that no two of them share.
"""

from __future__ import annotations

import re
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_IMPORT = re.compile(r'^import \{([^{}]*)\} from "\./([\w-]+\.js)";[ \t]*$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function\b|class\b|const\b)", re.MULTILINE)
_DECLARED = re.compile(
    r"^(export )?(?:async )?(?:function\b\s*\*?|class\b|const\b|let\b|var\b)\s*([\w$]+|\S)", re.MULTILINE
)
# Where a line of code begins with one of these, or has the last of them anywhere, the bundle would be wrong.
_LEFT_OVER = re.compile(r"^\s*(import|export)\b|\bimport\s*\(|\bimport\.meta\b")
_COMMENT = re.compile(r"^\s*(//|/?\*)")


def bundle(entry: str, directory: Path = STATIC) -> str:
    """Put a module and all that it imports into one script, each after those that it needs.

    Args:
        entry: Name of the module, such as ``"report.js"``.
        directory: Where the modules are.

    Returns:
        JavaScript without imports and exports.

    Raises:
        ValueError: If a module is missing, imports or exports in another form, imports what is not exported or what
            imports it in turn, or if two modules declare the same name.
    """
    sources: dict[str, str] = {}
    _collect(entry, directory, sources, ())
    _check_names(sources)
    parts = [f"// {name}\n{_stripped(name, source)}" for name, source in sources.items()]
    return "\n".join(parts)


def _collect(name: str, directory: Path, sources: dict[str, str], above: tuple[str, ...]) -> None:
    """Read a module after those that it imports."""
    if name in above:
        circle = " -> ".join([*above[above.index(name) :], name])
        raise ValueError(f"modules must not import each other in a circle: {circle}")
    if name in sources:
        return
    path = directory / name
    if not path.is_file():
        raise ValueError(f"{name}, imported by {above[-1] if above else 'nobody'}, is not in {directory}")
    source = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    for names, other in _IMPORT.findall(source):
        _collect(other, directory, sources, (*above, name))
        missing = _words(name, names) - _exported(sources[other])
        if missing:
            raise ValueError(f"{name} imports {', '.join(sorted(missing))} from {other}, which does not export it")
    sources[name] = source


def _words(name: str, names: str) -> set[str]:
    """Return the names of an import's list; a renamed one would be lost when the import is dropped."""
    words = {word.strip() for word in names.split(",")} - {""}
    odd = [word for word in words if not re.fullmatch(r"[\w$]+", word)]
    if odd:
        raise ValueError(f'{name} imports "{odd[0]}": expected a plain name, without "as"')
    return words


def _exported(source: str) -> set[str]:
    return {name for export, name in _DECLARED.findall(source) if export}


def _check_names(sources: dict[str, str]) -> None:
    """Refuse two modules that declare the same name, and declarations whose names cannot be read off."""
    homes: dict[str, str] = {}
    for module, source in sources.items():
        for _, name in _DECLARED.findall(source):
            if not re.fullmatch(r"[\w$]+", name):
                raise ValueError(f"{module} takes apart a value at top level: expected one name a declaration")
            if name in homes:
                raise ValueError(f"{name} is declared at top level in {homes[name]} and in {module}: rename one")
            homes[name] = module


def _stripped(name: str, source: str) -> str:
    """Drop imports and the word ``export``; refuse what is left of either."""
    # Blank lines in place of an import keep the numbers of the lines that follow.
    source = _IMPORT.sub(lambda found: "\n" * found[0].count("\n"), source)
    source = _EXPORT.sub("", source)
    for number, line in enumerate(source.splitlines(), 1):
        if _LEFT_OVER.search(line) and not _COMMENT.match(line):
            raise ValueError(
                f'{name}:{number} has "{line.strip()}": expected `import {{ a, b }} from "./x.js";` and '
                f"`export function`, `class` or `const`, and nothing loaded later"
            )
    return source
