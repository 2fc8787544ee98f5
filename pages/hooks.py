"""What mkdocs does not do by itself: formulas without a script, and links that leave ``docs/``."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Pages of the site that lie at the root of the repository.
_AT_THE_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie at the root of the repository."""
    for name, page in _AT_THE_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links into the repository to its address on the web; where it has none, only their words are left."""
    source = page.file.src_uri
    here = ROOT if source in _AT_THE_ROOT.values() else (ROOT / "docs" / source).parent
    return _LINK.sub(lambda link: _led(link, here, source, config.repo_url), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script."""
    return _FORMULA.sub(_mathml, content)


def _led(link: re.Match[str], here: Path, source: str, repository: str | None) -> str:
    """Return a link as it is, or as it can be followed from the site."""
    picture, words, target, anchor = link.groups()
    path = (here / target).resolve()
    if not path.is_relative_to(ROOT):
        return link[0]
    name, up = path.relative_to(ROOT).as_posix(), "../" * source.count("/")
    if name in _AT_THE_ROOT:
        return f"{picture}[{words}]({up}{_AT_THE_ROOT[name]}{anchor or ''})"
    if name.startswith("docs/") and path.exists():
        return f"{picture}[{words}]({up}{name.removeprefix('docs/')}{anchor or ''})"
    if not path.exists():
        # mkdocs names it as broken.
        return link[0]
    return f"[{words}]({repository.rstrip('/')}/blob/main/{name})" if repository else words


def _mathml(found: re.Match[str]) -> str:
    mathml: str = convert(html.unescape(found[3]), display="block" if found[2] == "[" else "inline")
    return mathml
