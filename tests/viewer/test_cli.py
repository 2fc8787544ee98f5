"""Test ``lightning_gradwatch.viewer.cli`` and ``lightning_gradwatch.viewer.commands``, as a person would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from viewer.planted import planted_diagnosis, planted_logdir, planted_run

from lightning_gradwatch.viewer.cli import main
from lightning_gradwatch.viewer.markdown import to_markdown
from lightning_gradwatch.viewer.symptoms import SYMPTOMS

COMMAND = Path(sys.executable).with_name("gradwatch")


@pytest.fixture(autouse=True)
def _plain_screen(monkeypatch):
    """A wide screen without colors, whatever runs the tests."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def logdir(tmp_path, monkeypatch) -> Path:
    """Three runs: a sick one, a healthy one, and one whose faults are over."""
    monkeypatch.chdir(tmp_path)
    kinds = {"version_0": "sigmoid", "version_1": "relu", "version_2": "mixed"}
    return planted_logdir(Path("logs"), [planted_run(name, kind=kind) for name, kind in kinds.items()])


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    variables = {**os.environ, "PYTHONWARNINGS": "error", **environment}
    command = [sys.executable, "-m", "lightning_gradwatch.viewer.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)  # noqa: PLW1510


def loaded_by(statement: str) -> set[str]:
    """Return the packages that a statement loads in a fresh process."""
    program = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in told.stdout.split()}


def test_it_is_installed_as_a_command():
    """And tells its version."""
    told = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"gradwatch {version('lightning-gradwatch')}\n"


@pytest.mark.parametrize("command", [[], ["report"], ["compare"]])
def test_the_help_has_examples_and_says_what_the_exit_status_means(command, capsys):
    """On standard output."""
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert "examples:\n  gradwatch report" in text or "examples:\n  gradwatch compare" in text
    assert "exit status" in text


def test_nothing_heavy_is_loaded():
    """The help needs no numpy; reading needs neither torch nor Lightning, nor the rest of TensorBoard."""
    light = loaded_by("from lightning_gradwatch.viewer.cli import _parser; _parser().format_help()")
    assert not light & {"numpy", "tensorboard", "torch", "google"}
    heavy = {"torch", "pytorch_lightning", "lightning", "PIL", "matplotlib", "werkzeug", "grpc", "tensorflow"}
    assert not loaded_by("import lightning_gradwatch.viewer.commands") & heavy


def test_a_report_tells_each_run_and_where_the_page_is(logdir, capsys):
    """The page goes into our own directory in the log directory."""
    assert main(["report", str(logdir)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("3 runs in logs\n\nversion_0: VANISHING since step 3 (20 layers, steps 0 to 199)\n")
    assert "\nversion_1: no warning (20 layers, steps 0 to 199)\n" in told.out
    page = Path("logs/gradwatch/report.html").resolve()
    assert told.out.endswith(f"\n\npicture: {page}\n")
    assert "<title>GradWatch: logs</title>" in page.read_text()
    assert told.err == ""


def test_a_second_report_does_not_take_the_page_for_a_run(logdir, capsys):
    """And writes it anew."""
    assert main(["report", str(logdir)]) == 0
    first = capsys.readouterr().out
    assert main(["report", str(logdir)]) == 0
    assert capsys.readouterr().out == first


def test_one_run_of_several_is_chosen(logdir, capsys):
    """By a pattern."""
    assert main(["report", str(logdir), "--run", "version_1", "--out", "new/one.html"]) == 0
    told = capsys.readouterr().out
    assert "version_0" not in told + Path("new/one.html").read_text()
    assert main(["report", str(logdir), "--run", "version_7"]) == 2
    assert '"version_7" is none of the runs in logs: version_0, version_1, version_2' in capsys.readouterr().err


def test_somebody_elses_file_is_not_written_over(logdir, capsys):
    """The report was told; the exit status says that the page was not."""
    Path("mine.html").write_text("<p>mine")
    assert main(["report", str(logdir), "--out", "mine.html"]) == 2
    told = capsys.readouterr()
    assert "VANISHING" in told.out
    assert "mine.html was not written by gradwatch and is left as it is" in told.err
    assert Path("mine.html").read_text() == "<p>mine"


def test_json_is_for_programs(logdir, capsys):
    """Nothing else on standard output, and no page unless it is asked for."""
    assert main(["report", str(logdir), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(told["name"], told["measured"], len(told["diagnoses"])) for told in runs] == [
        ("version_0", True, 1),
        ("version_1", True, 0),
        ("version_2", True, 4),
    ]
    planted = planted_run(kind="relu").series[0]
    norms = runs[1]["norms"][0]
    assert list(norms["layers"]) == list(planted.layers)
    # An event file keeps a float16 of the logarithm.
    assert norms["layers"]["head"] == pytest.approx(10.0 ** planted.windows.median[-1, -1], rel=0.01)
    assert not Path("logs/gradwatch").exists()
    assert main(["report", str(logdir), "--json", "--out", "r.html"]) == 0
    told = capsys.readouterr()
    json.loads(told.out)
    assert "picture: " in told.err


def test_markdown_is_that_of_each_run(logdir, capsys):
    """As the page's button copies it."""
    assert main(["report", str(logdir), "--markdown", "--run", "version_0"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("### GradWatch: `version_0`")
    assert text.count("|") == to_markdown(planted_run("version_0")).count("|")


@pytest.mark.parametrize(
    ("pattern", "symptoms", "status"),
    [
        ("version_0", "vanishing", 1),
        ("version_0", "exploding,dead", 0),
        ("version_0", "any", 1),
        ("version_1", "any", 0),
        ("version_2", "non-finite", 1),  # as the log writes it; it is over, and happened
        ("version_2", "spike", 0),  # a notice
        ("version_2", "dead", 0),  # muted
        ("*", " vanishing , spike", 1),
    ],
)
def test_a_gate_fails_on_warnings_of_the_symptoms_asked_for(logdir, capsys, pattern, symptoms, status):
    """And says on standard error which."""
    assert main(["report", str(logdir), "--run", pattern, "--no-page", "--fail-on", symptoms]) == status
    assert ("failed on" in capsys.readouterr().err) == bool(status)


def test_a_mistyped_symptom_is_refused_with_the_list(logdir, capsys):
    """It would let every run pass."""
    for words in ("vanishing,explodin", "", ","):
        with pytest.raises(SystemExit) as left:
            main(["report", str(logdir), "--fail-on", words])
        assert left.value.code == 2
        assert f"expected some of {', '.join(SYMPTOMS)}, or any" in capsys.readouterr().err


def test_a_gate_does_not_pass_where_nothing_was_measured(tmp_path, capsys):
    """Neither in an empty directory, nor where one of the runs saw nothing or was switched off; a reader is told."""
    assert main(["report", str(tmp_path), "--fail-on", "any"]) == 2
    assert "nothing was measured" in capsys.readouterr().err
    healthy = planted_run("healthy", kind="relu")
    silent = replace(healthy, name="silent", series=())
    off = replace(
        healthy, name="off", events=({"event": "end", "reason": "switched off", "disabled": "ValueError: x"},)
    )
    logdir = planted_logdir(tmp_path / "logs", [healthy, silent, off])
    assert main(["report", str(logdir), "--no-page", "--fail-on", "any"]) == 2
    told = capsys.readouterr().err
    assert "gradwatch: silent: nothing was measured\n" in told
    assert "gradwatch: off: GradWatch switched itself off during the run: ValueError: x\n" in told
    assert main(["report", str(logdir), "--no-page"]) == 0
    assert main(["report", str(logdir), "--no-page", "--run", "silent"]) == 2
    assert main(["report", str(logdir), "--no-page", "--run", "healthy", "--fail-on", "any"]) == 0


@pytest.mark.parametrize(
    "arguments", [["report", "gone"], ["report"], [], ["repor", "x"], ["report", "x", "--fail", "any"]]
)
def test_a_bad_call_is_2(arguments):
    """In a process as a shell sees it, in words and not as a traceback."""
    told = run(*arguments)
    assert told.returncode == 2
    assert told.stdout == ""
    assert "gradwatch" in told.stderr
    assert "Traceback" not in told.stderr


def test_two_runs_are_compared(logdir, capsys):
    """On screen, as JSON and as Markdown, and on a page with both."""
    assert main(["compare", "logs/version_0", "logs/version_1"]) == 0
    told = capsys.readouterr().out
    assert "18 of 20 layers differ by more than 10x" in told
    page = Path("gradwatch-compare.html").resolve()
    assert told.endswith(f"picture: {page}\n")
    assert '"logs/version_0"' in page.read_text()
    assert main(["compare", "version_0", "version_1", "--logdir", "logs", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in values["runs"]] == ["version_0", "version_1"]
    assert len(values["compared"][0]["far_apart"]) == 18
    assert main(["compare", "version_0", "version_1", "--logdir", "logs", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("### GradWatch: `version_0` beside `version_1`")
    assert main(["compare", "version_0", "version_0", "--logdir", "logs"]) == 2
    assert "are the same run" in capsys.readouterr().err


def test_hostile_names_do_nothing_to_a_terminal(tmp_path):
    """Not by way of a layer, a message, a run's name or a path, in any of the forms."""
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\r\n\x9b31m"
    events = ({"event": "onset", "diagnosis": {**planted_diagnosis("spike", step=1, layers=[evil]), "message": evil}},)
    series = tuple(replace(s, layers=(evil, *s.layers[1:])) for s in planted_run(num_columns=4).series)
    about = tuple(
        replace(s, about=replace(s.about, layers=(s.about.layers[0], evil, *s.about.layers[2:]))) for s in series
    )
    name = "run\x1b[31m"
    logdir = planted_logdir(tmp_path / "logs\x1b[5m", [replace(planted_run(name), series=about, events=events)])
    (logdir / "other").mkdir()
    planted_logdir(logdir, [planted_run("other")])
    for form in ((), ("--markdown",), ("--json",), ("--run", "\x1b[7m"), ("--fail-on", "any")):
        told = run("report", str(logdir), *form)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", told.stdout + told.stderr)
    told = run("compare", str(logdir / name), str(logdir / "other"), "--out", str(tmp_path / "c.html"))
    assert told.returncode == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", told.stdout + told.stderr)


def test_letters_that_the_terminal_lacks_are_written_out(tmp_path):
    """A layer's name must not end a report."""
    names = {"layers": ["\u5c64.\u00fc"]}
    events = ({"event": "onset", "diagnosis": {**planted_diagnosis("spike", step=1, layers=[]), **names}},)
    logdir = planted_logdir(tmp_path, [replace(planted_run("a", num_columns=4), events=events)])
    told = run("report", str(logdir), "--no-page", PYTHONIOENCODING="ascii")
    assert told.returncode == 0
    assert r"\u5c64.\xfc" in told.stdout
    assert "\u5c64.\u00fc" in run("report", str(logdir), "--no-page", PYTHONIOENCODING="utf-8").stdout


def test_a_reader_that_leaves_is_no_error(logdir):
    """As ``gradwatch report logs | head -1``."""
    program = f"{sys.executable} -m lightning_gradwatch.viewer.cli report {logdir} --json | head -c 10"
    told = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert (len(told.stdout), told.stderr) == (10, "")


def test_a_gate_whose_reader_leaves_does_not_pass(logdir):
    """It could not say what it found: its own status, which ``pipefail`` shows, is that of a call that is of no use."""
    command = f"{sys.executable} -m lightning_gradwatch.viewer.cli report {logdir} --json --fail-on any"
    program = f"{command} | true; echo ${{PIPESTATUS[0]}}"
    told = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "2\n"


def test_two_thousand_layers_are_a_short_report(tmp_path, capsys):
    """Nobody reads two thousand rows."""
    logdir = planted_logdir(tmp_path, [planted_run("a", num_layers=2000, num_columns=8)])
    assert main(["report", str(logdir), "--no-page"]) == 0
    text = capsys.readouterr().out
    assert (
        "layers     encoder.layers.0.linear1, encoder.layers.0.linear2, encoder.layers.1.linear1 and 997 more\n" in text
    )
    assert len(text.splitlines()) < 40


def test_a_page_too_large_is_told(logdir, capsys, monkeypatch):
    """With the way out; the report itself was told."""
    monkeypatch.setattr("lightning_gradwatch.viewer.page.MAX_BYTES", 10)
    monkeypatch.setattr("lightning_gradwatch.viewer.page.html_page.__kwdefaults__", {"max_bytes": 10})
    assert main(["report", str(logdir)]) == 2
    assert "The page was not written: 3 runs" in capsys.readouterr().err


def test_an_interrupt_is_not_a_traceback(logdir, monkeypatch):
    """As a shell expects it."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_gradwatch.viewer.commands.runs_in", interrupted)
    assert main(["report", str(logdir)]) == 130
