"""Test ``lightning_gradwatch.viewer.plugin`` and ``lightning_gradwatch.viewer.provided``."""

from __future__ import annotations

import gzip
import json
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
from tensorboard import errors
from tensorboard.data import provider
from viewer.hosts import TensorBoard
from viewer.planted import planted_logdir, planted_run
from werkzeug.test import Client

from lightning_gradwatch.viewer import provided
from lightning_gradwatch.viewer.events import read_runs
from lightning_gradwatch.viewer.metadata import EventsMetadata, SeriesMetadata
from lightning_gradwatch.viewer.plugin import FILES, GradWatchPlugin
from lightning_gradwatch.viewer.run import Run
from lightning_gradwatch.viewer.windows import pack
from lightning_gradwatch.viewer.wire import describe, encode

# TensorBoard's own parts warn when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

HOME = "data/plugin/gradwatch"


class Provider:
    """A data provider over runs in memory that counts what it is asked for."""

    def __init__(self, *runs: Run) -> None:
        self.tags: dict[str, dict[str, tuple[bytes, list[provider.TensorDatum]]]] = {}
        self.reads: Counter[str] = Counter()
        self.downsampled_to: list[int] = []
        for run in runs:
            self.add(run)

    def add(self, run: Run) -> None:
        """Put what a run has written beside what is there."""
        tags = self.tags.setdefault(run.name, {})
        for series in run.series:
            records = pack(series.windows.columns(np.argsort(series.about.order)))
            steps = series.windows.steps.tolist()
            tags[series.about.tag] = (
                series.about.content(),
                [provider.TensorDatum(step, float(step), record) for step, record in zip(steps, records, strict=True)],
            )
        about = EventsMetadata(run.series[0].about.session, run.series[0].about.started)
        tags[about.tag] = (
            about.content(),
            [
                provider.TensorDatum(number, float(number), np.array(json.dumps(event).encode(), dtype=object))
                for number, event in enumerate(run.events)
            ],
        )

    def list_tensors(self, ctx: Any, *, experiment_id: str, plugin_name: str, run_tag_filter: Any) -> Any:
        """List tags."""
        assert plugin_name == "gradwatch"
        runs = None if run_tag_filter is None else run_tag_filter.runs
        return {
            run: {
                tag: SimpleNamespace(plugin_content=content, max_step=data[-1].step, max_wall_time=data[-1].wall_time)
                for tag, (content, data) in tags.items()
            }
            for run, tags in self.tags.items()
            if runs is None or run in runs
        }

    def read_tensors(
        self, ctx: Any, *, experiment_id: str, plugin_name: str, run_tag_filter: Any, downsample: int
    ) -> Any:
        """Read one tag of one run; an answer with more could become too long."""
        (run,), (tag,) = run_tag_filter.runs, run_tag_filter.tags
        self.reads[tag.split("/")[1]] += 1
        self.downsampled_to.append(downsample)
        return {run: {tag: self.tags[run][tag][1]}}


def client_of(data: Provider) -> Client:
    """Return what speaks to a plugin as a browser does."""
    routes = GradWatchPlugin(SimpleNamespace(data_provider=data)).get_plugin_apps()
    return Client(lambda environ, start: routes[environ["PATH_INFO"]](environ, start))


def series_of(client: Client, **query: str | int) -> bytes:
    """Return the bytes of a series."""
    answer = client.get("/series", query_string=query, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    return gzip.decompress(answer.data)


class TestRoutes:
    """Over a provider in memory."""

    def test_runs_are_described_without_reading_a_series(self) -> None:
        """A page that opens, or asks for news, costs the reading of events alone, and of them only new ones."""
        data = Provider(planted_run("a", kind="mixed"), planted_run("b", kind="recurrent"))
        client = client_of(data)
        told = [client.get("/runs").json for _ in range(3)]
        assert told[0] == told[1] == told[2]
        assert [run["name"] for run in told[0]["runs"]] == ["a", "b"]
        assert data.reads == {"events": 2}

    def test_runs_and_recurrent_layers_are_counted_and_not_spelled(self) -> None:
        """In the list of runs the tenth comes behind the second, and layers come as they run."""
        data = Provider(*(planted_run(f"version_{number}", kind="recurrent", num_columns=4) for number in (10, 2)))
        told = client_of(data).get("/runs").json["runs"]
        assert [run["name"] for run in told] == ["version_2", "version_10"]
        names = [one["name"] for one in told[0]["series"]]
        assert names[-3:] == [f"time/0/encoder.lstm.{row}" for row in range(3)]
        assert names == [one["name"] for one in describe(planted_run(kind="recurrent", num_columns=4))["series"]]

    @pytest.mark.parametrize(("fits", "times"), [(True, 1), (False, 3)])
    def test_what_stands_in_metadata_is_read_once_where_it_fits(
        self, monkeypatch: pytest.MonkeyPatch, fits: bool, times: int
    ) -> None:
        """The bound is one of bytes: names of thousands of layers are large. Beyond it they are read each time."""
        monkeypatch.setattr(provided, "_KEPT_CONTENT_BYTES", 10**7 if fits else 1)
        read: Counter[bytes] = Counter()
        from_content = SeriesMetadata.from_content
        counting = staticmethod(lambda content: (read.update([content]), from_content(content))[1])
        monkeypatch.setattr(SeriesMetadata, "from_content", counting)
        finder = provided.Provided(Provider(planted_run("a", num_columns=2)))
        for _ in range(3):
            finder.find(None, "", "a", "norms/0")
        assert set(read.values()) == {times}

    def test_they_are_described_as_everywhere_else(self) -> None:
        """What a standalone page says of a run, the tab says too, but for the number of columns."""
        run = planted_run("a", kind="recurrent", hostile=True)
        (told,) = client_of(Provider(run)).get("/runs").json["runs"]
        expected = json.loads(json.dumps(describe(run)))
        by_name = (sorted(each.pop("series"), key=lambda one: one["name"]) for each in (told, expected))
        for one, other in zip(*by_name, strict=True):
            assert {**one, "version": "", "num_columns": 0} == {**other, "version": "", "num_columns": 0}
        assert told == expected

    def test_a_series_is_read_once(self) -> None:
        """A second look, also in other columns, costs no reading; when the run has grown, one."""
        data = Provider(planted_run("a"))
        client = client_of(data)
        blocks = [series_of(client, run="a", name="norms/0", most=most) for most in (500, 500, 50)]
        assert blocks[0] == blocks[1] == encode(read_back(planted_run("a")), 500)
        assert (len(blocks[2]) < len(blocks[1]), data.reads["norms"]) == (True, 1)
        data.add(planted_run("a", num_columns=201))
        assert len(series_of(client, run="a", name="norms/0", most=500)) > len(blocks[1])
        assert data.reads == {"norms": 2}

    def test_the_version_tells_that_a_series_has_grown(self) -> None:
        """Those that have not grown keep theirs."""
        data = Provider(planted_run("a"))
        client = client_of(data)
        before = versions(client)
        data.add(replace(planted_run("a", num_columns=203), series=planted_run("a", num_columns=203).series[:1]))
        after = versions(client)
        assert [name for name in before if before[name] != after[name]] == ["norms/0"]

    def test_sessions_are_put_one_behind_the_other(self) -> None:
        """What was told and drawn of steps that were trained again is left out."""
        data = Provider(planted_run("a", num_columns=10))
        data.add(planted_run("a", num_columns=5, first_step=2, session="b", started=2e9))
        client = client_of(data)
        (run,) = client.get("/runs").json["runs"]
        assert [diagnosis["step"] for diagnosis in run["diagnoses"]] == [5]
        block = series_of(client, run="a", name="norms/0")
        assert head_of(block)["num_columns"] == 7
        assert data.reads == {"events": 2, "norms": 2}

    @pytest.mark.parametrize(
        ("query", "error"),
        [
            ({"run": "b", "name": "norms/0"}, errors.NotFoundError),
            ({"run": "a", "name": "norms/1"}, errors.NotFoundError),
            ({"run": "a", "name": "<script>"}, errors.NotFoundError),
            ({"run": "a"}, errors.InvalidArgumentError),
            ({"name": "norms/0"}, errors.InvalidArgumentError),
            *(
                ({"run": "a", "name": "norms/0", "most": most}, errors.InvalidArgumentError)
                for most in ("abc", "", "0", "-1", "1e3", "1.5", "٣", "9" * 5000)
            ),
        ],
    )
    def test_what_is_unknown_or_no_number_is_refused(self, query: Mapping[str, str], error: type[Exception]) -> None:
        """404 and 400, of which TensorBoard makes plain text."""
        with pytest.raises(error):
            client_of(Provider(planted_run("a", num_columns=2))).get("/series", query_string=query)

    def test_an_answer_of_grpc_stays_below_its_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So many records are asked for as fit into the limit, counting the rows of each; one in any case."""
        data = Provider(planted_run("a", num_layers=100, num_columns=2))
        for limit, most in ((100 * (128 + 8 * 100), 100), (5, 1)):
            monkeypatch.setattr(provided, "_MOST_BYTES", limit)
            series_of(client_of(data), run="a", name="norms/0")
            assert data.downsampled_to.pop() == most

    def test_records_that_fit_nothing_are_an_empty_series(self) -> None:
        """No error: another program has written under our name."""
        data = Provider(planted_run("a", num_columns=2))
        for content, rows in data.tags["a"].values():
            if b"norms" in content:
                rows[:] = [provider.TensorDatum(0, 0.0, np.ones(3))]
        assert head_of(series_of(client_of(data), run="a", name="norms/0"))["num_columns"] == 0

    def test_without_data_there_are_no_runs(self) -> None:
        """A provider may answer with nothing at all."""
        silent = SimpleNamespace(list_tensors=lambda *_, **__: None)
        assert client_of(silent).get("/runs").json == {"format_version": 1, "runs": []}

    def test_static_files_are_listed_and_no_other_is_served(self) -> None:
        """Each file that the page needs has a route of its own; there is no route with a variable part."""
        routes = GradWatchPlugin(SimpleNamespace(data_provider=None)).get_plugin_apps()
        assert set(routes) == {"/runs", "/series", *(f"/static/{name}" for name in FILES)}
        assert set(FILES) == {"index.js", "style.css"}

    def test_the_script_has_all_modules_in_it(self) -> None:
        """Forty modules that import each other would take a second to arrive one by one."""
        script = client_of(Provider()).get("/static/index.js").text
        assert "class Heatmap" in script
        assert "\nimport " not in script
        assert script.endswith("export { render };\n")

    @pytest.mark.parametrize("name", ["index.js", "style.css"])
    def test_a_file_that_is_gone_is_not_found(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """An update under a running TensorBoard may have renamed it."""

        def gone(*_: Any, **__: Any) -> None:
            raise FileNotFoundError(2, "gone")

        monkeypatch.setattr(Path, "read_bytes", gone)
        monkeypatch.setattr(Path, "read_text", gone)
        with pytest.raises(errors.NotFoundError):
            client_of(Provider()).get(f"/static/{name}")

    def test_tensorboard_itself_decides_whether_the_tab_is_shown(self) -> None:
        """It shows the tab of a plugin that a run has data of, without asking the plugin."""
        plugin = GradWatchPlugin(SimpleNamespace(data_provider=None))
        metadata = plugin.frontend_metadata()
        assert (plugin.is_active(), metadata.tab_name, metadata.es_module_path) == (
            False,
            "Gradients",
            "/static/index.js",
        )


def read_back(run: Run) -> Any:
    """Return the norms as they are after a journey through ``float16``."""
    series = run.series[0]
    tables = pack(series.windows)[:, :3].astype(np.float32)
    windows = replace(series.windows, median=tables[:, 0], low=tables[:, 1], high=tables[:, 2])
    return replace(series, windows=windows)


def versions(client: Client) -> dict[str, str]:
    """Return the version of each series of the one run."""
    (run,) = client.get("/runs").json["runs"]
    return {series["name"]: series["version"] for series in run["series"]}


def head_of(block: bytes) -> Any:
    """Return the head of a block."""
    return json.loads(block[4 : 4 + int.from_bytes(block[:4], "little")])


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a log directory with more records than TensorBoard keeps by default, and a run that was resumed."""
    path = tmp_path_factory.mktemp("logs")
    planted_logdir(path, [planted_run("deep/er", kind="mixed", num_columns=600, hostile=True)])
    planted_logdir(path, [planted_run("resumed", num_columns=150, ended=False)])
    planted_logdir(path, [planted_run("resumed", num_columns=60, first_step=120, session="b2", started=2e9)])
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def real(request: pytest.FixtureRequest, logdir: Path) -> Iterator[TensorBoard]:
    """Start a real TensorBoard with each of its two loaders, below a path."""
    with TensorBoard(logdir, fast=request.param, flags=["--path_prefix=/deep/down"]) as tensorboard:
        tensorboard.wait_for_runs("deep/er", "resumed")
        yield tensorboard


class TestTensorBoard:
    """A real one, with each of its loaders, below a path."""

    def test_it_shows_every_record_of_every_run(self, real: TensorBoard, logdir: Path) -> None:
        """What a browser gets is, byte for byte, what is read from the event files themselves."""
        for run in read_runs(logdir):
            for series in run.series:
                query = urlencode({"run": run.name, "name": series.name, "most": 5000})
                block = wait_for(real, f"{HOME}/series?{query}", encode(series))
                assert head_of(block)["num_columns"] == len(series.windows) > 40

    def test_it_tells_what_was_diagnosed(self, real: TensorBoard, logdir: Path) -> None:
        """The same events, sessions cut at the same step."""
        told = {run["name"]: run for run in json.loads(real.get(f"{HOME}/runs"))["runs"]}
        for run in read_runs(logdir):
            assert told[run.name]["diagnoses"] == describe(run)["diagnoses"]
            assert told[run.name]["ended"] == describe(run)["ended"]

    def test_the_tab_is_there(self, real: TensorBoard) -> None:
        """TensorBoard lists it as a page of its own."""
        listed = json.loads(real.get("data/plugins_listing"))["gradwatch"]
        assert (listed["enabled"], listed["tab_name"]) == (True, "Gradients")
        assert b"render" in real.get(f"{HOME}/static/index.js")

    @pytest.mark.parametrize(
        ("path", "status", "kind"),
        [
            ("runs", 200, "application/json"),
            ("series?run=resumed&name=norms/0", 200, "application/octet-stream"),
            ("static/index.js", 200, "text/javascript; charset=utf-8"),
            ("static/style.css", 200, "text/css; charset=utf-8"),
            ("series?run=unknown&name=norms/0", 404, "text/plain; charset=utf-8"),
            ("series?run=resumed&name=%00", 404, "text/plain; charset=utf-8"),
            ("series?run=resumed&name=norms/0&most=abc", 400, "text/plain; charset=utf-8"),
            ("static/plugin.py", 404, "text/plain; charset=utf-8"),
            ("static/../plugin.py", 404, "text/plain; charset=utf-8"),
            ("static/..%2fplugin.py", 404, "text/plain; charset=utf-8"),
            ("static/%2e%2e/plugin.py", 404, "text/plain; charset=utf-8"),
            ("static/", 404, "text/plain; charset=utf-8"),
        ],
    )
    def test_each_answer_has_its_type_and_forbids_guesses(
        self, real: TensorBoard, path: str, status: int, kind: str
    ) -> None:
        """Also those to what is unknown; and no path of a URL reaches the disk."""
        found, headers = answer_of(Request(f"{real.url}{HOME}/{path}"))
        assert (found, headers["Content-Type"], headers["X-Content-Type-Options"]) == (status, kind, "nosniff")

    def test_a_browser_that_cannot_unpack_gets_the_plain_bytes(self, real: TensorBoard) -> None:
        """Packed only for those that ask for it."""
        url = f"{real.url}{HOME}/series?run=resumed&name=norms/0"
        plain = answer_of(Request(url, headers={"Accept-Encoding": "identity"}))[1]
        packed = answer_of(Request(url, headers={"Accept-Encoding": "gzip"}))[1]
        assert plain["Content-Encoding"] is None
        assert packed["Content-Encoding"] == "gzip"
        assert int(packed["Content-Length"]) < int(plain["Content-Length"])


def answer_of(request: Request) -> tuple[int, Any]:
    """Return status and headers, also of an error."""
    try:
        with urlopen(request) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers


def wait_for(real: TensorBoard, path: str, expected: bytes) -> bytes:
    """Ask until the answer is the one that is expected, or for long enough; the loader may still be reading."""
    block = real.get(path)
    for _ in range(100):
        if block == expected:
            break
        time.sleep(0.1)
        block = real.get(path)
    assert block == expected
    return block
