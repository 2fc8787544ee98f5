"""The Gradients tab of TensorBoard, the side of the server: runs and series over HTTP, and the page's own files."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from typing import Any

from tensorboard import errors
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from lightning_gradwatch.viewer.bundle import STATIC, bundle
from lightning_gradwatch.viewer.metadata import FORMAT_VERSION, PLUGIN_NAME
from lightning_gradwatch.viewer.provided import Provided
from lightning_gradwatch.viewer.shelf import Shelf
from lightning_gradwatch.viewer.wire import encode

Route = Callable[..., Any]


def _script() -> bytes:
    """Return the modules in one file: forty that import each other, five deep, take a second to load one by one."""
    return f"{bundle('index.js')}\nexport {{ render }};\n".encode()


def _style() -> bytes:
    return (STATIC / "style.css").read_bytes()


# A URL is looked up here, and never becomes a path.
FILES: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "index.js": ("text/javascript", _script),
    "style.css": ("text/css", _style),
}

# Ours: a picture of 500 layers and 2,048 columns has 7 MB, 2 MB when packed; several runs are looked at side by side.
_KEPT_BYTES = 64 * 2**20
# Ours: level 1 takes a third of the time of level 6, for a tenth more bytes.
_GZIP_LEVEL = 1


class GradWatchPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Serves the Gradients tab.

    Nothing is read but through TensorBoard's own data provider, one tag of one run at a time.

    Args:
        context: What TensorBoard gives its plugins.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        super().__init__(context)
        self._provided = Provided(context.data_provider)
        self._blocks: Shelf[bytes] = Shelf(_KEPT_BYTES, len)

    def is_active(self) -> bool:
        """Return False: TensorBoard itself shows the tab as soon as a run has data of this plugin."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Tell the name of the tab and where its page begins."""
        return base_plugin.FrontendMetadata(
            es_module_path="/static/index.js", tab_name="Gradients", disable_reload=False
        )

    def get_plugin_apps(self) -> dict[str, Route]:
        """Return the routes, all of them exact."""
        static = {f"/static/{name}": _serves(name, *file) for name, file in FILES.items()}
        return {"/runs": self._serve_runs, "/series": self._serve_series, **static}

    # It takes methods as well as functions.
    @wrappers.Request.application  # type: ignore[arg-type]
    def _serve_runs(self, request: wrappers.Request) -> wrappers.Response:
        """Answer with what ``wire.describe`` tells of each run."""
        runs = self._provided.describe_runs(*_of(request))
        return _answer(request, {"format_version": FORMAT_VERSION, "runs": runs}, "application/json")

    @wrappers.Request.application  # type: ignore[arg-type]
    def _serve_series(self, request: wrappers.Request) -> wrappers.Response:
        """Answer with what ``wire.encode`` makes of a series."""
        context, experiment = _of(request)
        run, name, most = _asked(request, "run"), _asked(request, "name"), _number(request, "most")
        found = self._provided.find(context, experiment, run, name)
        if found is None:
            raise errors.NotFoundError(f"run {run[:200]!r} has no series {name[:200]!r}")

        def make() -> bytes:
            return gzip.compress(encode(found.read(), most), _GZIP_LEVEL, mtime=0)

        block = self._blocks.get((experiment, run, name, most), found.version, make)
        return _answer(request, block, "application/octet-stream", content_encoding="gzip")


def _of(request: wrappers.Request) -> tuple[Any, str]:
    # Its import warns of what it imports in turn, which ends every program that takes warnings for errors.
    from tensorboard import plugin_util  # noqa: PLC0415

    return plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)


def _answer(request: wrappers.Request, content: Any, kind: str, **more: Any) -> wrappers.Response:
    # It forbids caches, so that an update is seen at once, and a browser's own guesses at the type.
    response: wrappers.Response = http_util.Respond(request, content, kind, **more)
    return response


def _serves(name: str, kind: str, read: Callable[[], bytes]) -> Route:
    """Return a route that answers with one file, as it stands on disk now."""

    @wrappers.Request.application
    def serve(request: wrappers.Request) -> wrappers.Response:
        try:
            content = read()
        except (OSError, ValueError) as reason:
            raise errors.NotFoundError(f"{name}: {reason}") from None
        return _answer(request, content, kind)

    return serve


def _asked(request: wrappers.Request, name: str) -> str:
    value = request.args.get(name)
    if value is None:
        raise errors.InvalidArgumentError(f"{name} is missing: expected ?run=RUN&name=SERIES&most=COLUMNS")
    return value


def _number(request: wrappers.Request, name: str) -> int | None:
    """Return a number of columns, None where none is asked for."""
    text = request.args.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise errors.InvalidArgumentError(f"{name} must be a whole number from 1 to 999999999, got {text[:50]!r}")
    return int(text)
