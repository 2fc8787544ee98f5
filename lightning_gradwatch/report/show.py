"""Where a person sees the page: inside a notebook, or as a file."""

from __future__ import annotations

import html
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning_gradwatch.viewer.markdown import to_markdown
from lightning_gradwatch.viewer.metadata import FORMAT_VERSION
from lightning_gradwatch.viewer.outfile import is_ours, put
from lightning_gradwatch.viewer.page import MARK, finite, html_page
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.values import run_values

# Pixels: the heatmap of 20 layers with its controls and the diagnoses below, in the window of a laptop.
FRAME_HEIGHT = 820
# Ours: what stays quick to open, and to save with the notebook that holds it.
FRAME_BYTES = 5_000_000
_KINDS = (".html", ".md", ".json")
_MARKS = {".html": MARK, ".md": "### GradWatch: ", ".json": '"generator": "gradwatch"'}


def show_run(run: Run, directory: Path | None = None) -> Path | None:
    """Display a run where the person looks: the page itself in a notebook, else a file.

    Args:
        run: The run.
        directory: Where the file goes, as ``gradwatch/report.html``; None for the system's temporary directory.

    Returns:
        The file; None in a notebook, where the page is on the screen.
    """
    if in_notebook():
        notebook: Any = importlib.import_module("IPython.display")
        notebook.display(notebook.HTML(frame(run)))
        return None
    if directory is None:
        path = Path(tempfile.mkdtemp(prefix="gradwatch-")) / "report.html"
    else:
        path = directory / "gradwatch" / "report.html"
    return save_run(run, path)


def in_notebook() -> bool:
    """Tell whether this is a notebook (Jupyter, Colab, VS Code), which can show HTML.

    Example:
        >>> in_notebook()
        False
    """
    # Where nobody has imported IPython there is no notebook; importing it here would cost half a second.
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    # The IPython of a terminal has no kernel.
    return getattr(shell, "kernel", None) is not None


def frame(run: Run, height: int = FRAME_HEIGHT) -> str:
    """Write a run's page as a frame: its styles and the notebook's do not touch each other.

    Args:
        run: The run.
        height: Pixels.

    Returns:
        HTML; the page is inside.
    """
    page = html.escape(page_of(run), quote=True)
    # Scripts, and nothing else: no access to the notebook around it.
    rules = 'sandbox="allow-scripts allow-downloads" allow="clipboard-write"'
    style = f"width:100%;height:{height}px;border:0"
    # IPython takes HTML that begins with a frame for a mistake, and warns.
    title = f"GradWatch: {html.escape(run.name)}"
    return f'<div><iframe title="{title}" {rules} style="{style}" srcdoc="{page}"></iframe></div>'


def page_of(run: Run) -> str:
    """Write a run's page, of at most ``FRAME_BYTES`` of numbers: to be kept in a notebook, or sent to a service.

    Args:
        run: The run.

    Returns:
        HTML. Where there is more, neighboring columns are merged, and the page says so.
    """
    return html_page([run], run.name, max_bytes=FRAME_BYTES)


def save_run(run: Run, path: str | Path) -> Path:
    """Write a run as a page, as Markdown or as JSON, as the suffix says.

    Args:
        run: The run.
        path: Ends in ``.html``, ``.md`` or ``.json``. Folders are made; a file that GradWatch has written is replaced.

    Returns:
        The path.

    Raises:
        FileExistsError: If there is something that GradWatch has not written.
        ValueError: If the suffix is another one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_run(Run("version_0"), f"{folder}/new/report.md")
        ...     path.name, path.read_text().startswith("### GradWatch: `version_0`")
        ('report.md', True)
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise ValueError(f"`path` must end in .html (a page), .md (for an issue or a chat) or .json. Got {str(path)!r}")
    if path.is_dir() or (path.exists() and not is_ours(path, _MARKS[kind])):
        raise FileExistsError(
            f"`path` holds something that GradWatch has not written, so it is left alone: {path}. Choose another name, "
            "or remove it"
        )
    put(path.resolve(), _written(run, kind))
    return path


def _written(run: Run, kind: str) -> str:
    if kind == ".html":
        return html_page([run], run.name)
    if kind == ".md":
        return to_markdown(run)
    found = {"generator": "gradwatch", "format_version": FORMAT_VERSION, "runs": [run_values(run)]}
    return json.dumps(finite(found), indent=1, allow_nan=False) + "\n"
