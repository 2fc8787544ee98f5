"""Test ``lightning_gradwatch.report.log``."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forked import python

from lightning_gradwatch.detect.diagnosis import Diagnosis, Symptom
from lightning_gradwatch.measure.snapshot import LayerDescription
from lightning_gradwatch.remedy.remedy import Remedy
from lightning_gradwatch.report.log import (
    LOGGER_NAME,
    LogSink,
    TrainingLogHandler,
    closing_text,
    healthy_text,
    onset_text,
    recovery_text,
    start_text,
    training_logger,
)

SICK = Diagnosis(
    "vanishing.depth",
    Symptom.VANISHING,
    layers=("net.0", "net.2", "net.4", "net.6", "net.8"),
    step=3,
    message="the first layers get almost no gradient",
    measured="every layer back multiplies the gradient by 0.14",
    cause="20 x sigmoid",
)
UNSEEN = (
    "no gradient was ever seen, so nothing can be said about this run (was backward() called "
    "before the step? An optimizer that steps past the Trainer, as with "
    "use_pl_optimizer=False, is not seen)"
)
LASTING = "VANISHING in net.0, net.2, net.4 and 2 more since step 3"


@pytest.fixture(autouse=True)
def _fresh_logger():
    """Give each test a logger that nobody has touched, and put back the old one."""
    logger = logging.getLogger(LOGGER_NAME)
    kept = logger.handlers[:], logger.level, logger.propagate, logger.filters[:]
    logger.handlers[:], logger.propagate, logger.filters[:] = [], True, []
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers[:], logger.propagate, logger.filters[:] = kept[0], kept[2], kept[3]
    logger.setLevel(kept[1])


def run(
    setup: str = "",
    body: str = 'logger.info("an info")\nlogger.warning("a warning")',
    stderr: int = subprocess.STDOUT,
) -> str:
    """Run a script that makes the logger after ``setup``, and return all that it writes."""
    script = (
        f"import logging, logging.config, sys\n{setup}\n"
        "from lightning_gradwatch.report.log import training_logger\n"
        f"logger = training_logger()\nassert training_logger() is logger\n{body}\n"
    )
    done = python("-c", script, cwd=Path.cwd(), stderr=stderr)
    assert done.returncode == 0, done.stdout
    return done.stdout


HYDRA = """
logging.config.dictConfig({
    "version": 1,
    "formatters": {"simple": {"format": "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "simple", "stream": "ext://sys.stdout"}},
    "root": {"level": "INFO", "handlers": ["console"]},
    "disable_existing_loggers": False,
})
"""


class TestHandler:
    """Each line is heard once, however logging is configured."""

    def test_a_plain_script_gets_each_line_once_on_standard_error(self) -> None:
        """Where nothing is configured lines go to standard error as they are, INFO among them."""
        assert run() == "an info\na warning\n"
        assert run(stderr=subprocess.DEVNULL) == ""

    @pytest.mark.parametrize("setup", ["logging.basicConfig(level=logging.INFO)", HYDRA], ids=["basicConfig", "Hydra"])
    def test_handlers_of_the_root_logger_take_over(self, setup: str) -> None:
        """Where the root logger has handlers they write each line, once, in their format."""
        lines = run(setup).splitlines()
        assert [line.rpartition(" ")[2] for line in lines] == ["info", "warning"]
        assert all(LOGGER_NAME in line for line in lines)

    def test_handlers_that_come_later_take_over(self) -> None:
        """A notebook or Hydra that configures logging after training began is noticed."""
        body = (
            'logger.info("one")\nlogging.basicConfig(level=logging.INFO, format="root %(message)s")\nlogger.info("two")'
        )
        assert run(body=body) == "one\nroot two\n"

    def test_a_handler_that_takes_errors_only_does_not_silence_us(self) -> None:
        """A root handler with a level of its own (an error file, a crash reporter) leaves the rest to us."""
        handler = "handler = logging.StreamHandler()\nhandler.setLevel(logging.ERROR)\n"
        setup = handler + "logging.getLogger().addHandler(handler)"
        assert run(setup) == "an info\na warning\n"

    def test_a_configuration_that_disables_existing_loggers_is_undone_at_the_start(self) -> None:
        """``dictConfig`` switches off, by default, loggers that it does not name; the next start is heard again."""
        body = (
            'logging.config.dictConfig({"version": 1})\nlogger.info("unheard")\ntraining_logger()\nlogger.info("heard")'
        )
        assert run(body=body) == "heard\n"

    def test_a_root_level_above_warning_is_silence(self) -> None:
        """A person who wants errors only gets neither INFO nor WARNING."""
        assert run("logging.basicConfig(level=logging.ERROR)") == ""
        assert run("logging.getLogger().setLevel(logging.ERROR)") == ""

    def test_a_level_that_the_person_has_set_is_kept(self) -> None:
        """With the logger at WARNING the INFO lines are hidden."""
        assert run(f'logging.getLogger("{LOGGER_NAME}").setLevel(logging.WARNING)') == "a warning\n"

    def test_a_handler_of_the_persons_own_is_enough(self) -> None:
        """A handler on the very logger takes over, whether or not records go further up."""
        for propagate in (True, False):
            setup = (
                f'own = logging.getLogger("{LOGGER_NAME}")\nown.propagate = {propagate}\n'
                "handler = logging.StreamHandler(sys.stdout)\n"
                'handler.setFormatter(logging.Formatter("own %(message)s"))\n'
                "own.addHandler(handler)"
            )
            assert run(setup) == "own an info\nown a warning\n"

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_a_progress_bar_is_not_broken(self, stream: str) -> None:
        """The bar is cleared before a line and drawn again after it, wherever it is shown."""
        body = (
            "from tqdm import tqdm\n"
            f"for i in tqdm(range(3), desc='Epoch', file=sys.{stream}, mininterval=0, ascii=True):\n"
            "    logger.info(f'line {i}')\n"
        )
        written = run(body=body)
        lines = [line.rpartition("\r")[2] for line in written.split("\n")]
        assert lines[:3] == ["line 0", "line 1", "line 2"]
        for line in written.split("\n")[:3]:
            before = line.split("\r")
            assert before[-2].strip() == ""  # blanks over the bar, and nothing of it left
        assert "100%" in lines[3]

    def test_pytest_sees_the_records(self, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
        """Caplog's handler takes the records, and standard error stays empty."""
        logger = training_logger()
        logger.info("an info")
        assert caplog.record_tuples == [(LOGGER_NAME, logging.INFO, "an info")]
        assert capsys.readouterr().err == ""

    def test_without_other_handlers_it_writes_itself(self, capsys: pytest.CaptureFixture) -> None:
        """In a process without handlers further up the line is on standard error, that of a child logger too."""
        logger = training_logger()
        logger.propagate = False
        logger.getChild("part").info("a %s", "line")
        assert capsys.readouterr().err == "a line\n"

    def test_it_is_added_once(self) -> None:
        """However often the logger is asked for, it has one handler of ours."""
        handlers = (training_logger(), training_logger(), training_logger())[2].handlers
        assert [type(handler) for handler in handlers] == [TrainingLogHandler]

    def test_a_stream_that_fails_ends_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A broken stream is handled as logging handles it."""
        failed: list[logging.LogRecord] = []
        monkeypatch.setattr(TrainingLogHandler, "handleError", lambda _, record: failed.append(record))
        closed = io.StringIO()
        closed.close()
        monkeypatch.setattr(sys, "stderr", closed)
        logger = training_logger()
        logger.propagate = False
        logger.info("a line")
        assert len(failed) == 1


class TestSink:
    """What is told when."""

    def test_onsets_and_recoveries_are_told_at_their_levels(self, report_of, caplog: pytest.LogCaptureFixture) -> None:
        """Warnings go out at WARNING; notices and recoveries at INFO."""
        notice = replace(SICK, severity="notice")
        report = report_of([[1.0, 1.0]], onsets=(SICK, notice), recoveries=(replace(SICK, recovered_at=9),))
        sink = LogSink("runs/0")
        sink.write(report)
        sink.close()
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO"]
        assert caplog.messages[0].startswith("GradWatch  step 3  VANISHING: ")
        assert "more       runs/0" in caplog.messages[0]

    def test_a_reading_without_change_is_silent(self, report_of, caplog: pytest.LogCaptureFixture) -> None:
        """What only goes on is not told again."""
        LogSink().write(report_of([[1.0]], diagnoses=(SICK,)))
        assert caplog.records == []

    def test_percent_signs_are_text(self, report_of, caplog: pytest.LogCaptureFixture) -> None:
        """A message with a percent sign is written as it is."""
        LogSink().write(report_of([[1.0]], onsets=(replace(SICK, message="down by 5%s"),)))
        assert "down by 5%s" in caplog.messages[0]


class TestOnset:
    """The block of an onset."""

    def test_plain_words_come_first_and_a_way_out_last(self) -> None:
        """A full block has what, measured, why, do, more and the rule, in this order."""
        remedy = Remedy("use relu", "keeps its slope", SICK, code="F.relu(x)")
        second = Remedy("second", "not shown", SICK)
        first = "net.0, net.2, net.4"
        text = onset_text(replace(SICK, remedies=(remedy, second)), 21, "optimizer_1", "see there")
        assert text.split("\n") == [
            f"GradWatch  step 3 [optimizer_1]  VANISHING: {SICK.message} (5 of 21 layers: {first} and 2 more)",
            "  measured   every layer back multiplies the gradient by 0.14",
            "  why        20 x sigmoid",
            "  do         use relu",
            "  more       lines to paste and all numbers: see there",
            "  rule       vanishing.depth",
        ]

    def test_lines_to_paste_are_promised_where_there_are_any(self) -> None:
        """A way out without code, and none at all, point to the place without a promise."""
        for remedies in ((Remedy("wait", "may pass", SICK),), ()):
            text = onset_text(replace(SICK, remedies=remedies), 21, more="see there")
            assert "\n  more       see there\n" in text
        with_code = (Remedy("use relu", "keeps its slope", SICK, code="F.relu(x)"),)
        assert "more " not in onset_text(replace(SICK, remedies=with_code, layers=("a",)), 21)

    def test_what_is_not_known_has_no_line(self) -> None:
        """An onset with nothing but a message is a line and its rule."""
        bare = Diagnosis("non_finite", Symptom.NON_FINITE, layers=("a", "b", "c"), message="gradients are NaN")
        assert onset_text(bare, 3) == (
            "GradWatch  step 0  NON-FINITE: gradients are NaN (3 of 3 layers: a, b, c)\n  rule       non_finite"
        )

    def test_a_notice_is_written_small(self) -> None:
        """A notice does not shout."""
        assert "step 3  notice, vanishing: the first" in onset_text(replace(SICK, severity="notice"), 5)

    def test_a_repeated_onset_says_its_number(self) -> None:
        """The tenth onset of a flapping fault says so, the first one does not."""
        assert "more; onset number 10)" in onset_text(replace(SICK, count=10), 5)
        assert "onset number" not in onset_text(SICK, 5)

    def test_a_recovery_is_one_line(self) -> None:
        """It says when, what, where and since when, and of which optimizer where there are several."""
        over = replace(SICK, recovered_at=412, symptom=Symptom.NON_FINITE)
        words = "recovered: NON-FINITE in net.0, net.2, net.4 and 2 more (since step 3)"
        assert recovery_text(over) == f"GradWatch  step 412  {words}"
        assert recovery_text(over, "optimizer_1") == f"GradWatch  step 412 [optimizer_1]  {words}"
        # A step that has overwritten weights is over at once; the weights are not back.
        assert recovery_text(replace(over, rule="exploding.update")).endswith("what was overwritten stays so")


class TestLines:
    """The lines at the start, of health, and at the end."""

    def test_the_start_counts_what_is_watched(self) -> None:
        """Layers and parameters are counted with thousands apart; without frozen layers none are mentioned."""
        layers = [LayerDescription(str(i), "Linear", 12000) for i in range(2)]
        assert start_text(layers, "x.png") == "GradWatch  watching 2 layers, 24,000 parameters; picture: x.png"
        frozen = [LayerDescription(str(i), "Linear", 5, trainable=False) for i in range(2)]
        assert "2 layers, 24,000 parameters (2 layers frozen)" in start_text(layers + frozen, "x.png")

    def test_health_names_the_range_and_the_factor(self, report_of) -> None:
        """The line tells the least and the largest norm of the present layers, and the factor where it is known."""
        report = report_of([[0.02, 3.0, np.nan]], present=[[True, True, False]], optimizer_label="optimizer_1")
        text = healthy_text(report, ["fc0", "fc1", "fc2"], 0.98)
        assert "step 0 [optimizer_1]  gradients reach all 2 layers" in text
        assert "(norms 0.02 to 3, x0.98 a layer back; parameter gradients only)" in text
        assert "a layer back" not in healthy_text(report, [], None)

    @pytest.mark.parametrize(
        ("ratio", "percent", "named"),
        [
            (0.1, "10%", "large"),
            (0.0501, "5%", "large"),
            (0.0123, "1.2%", ""),
            (0.0499, "5%", ""),
            (1.0, "100%", "large"),
            (1e-4, "0.01%", ""),
            (6.1e-6, "0.00061%", "small"),
        ],
    )
    def test_only_steps_of_an_unusual_size_are_named(self, report_of, ratio: float, percent: str, named: str) -> None:
        """Healthy networks move by up to 4% under Adam; the percent is written as a person writes it."""
        text = healthy_text(report_of([[1.0]]), ["fc0"], None, ratio)
        assert f"a step moves weights by {percent})" in text
        assert ("such steps are" in text) == bool(named)
        assert f"such steps are {named}" in text or not named

    def test_one_layer_of_several_is_not_the_only_one(self, report_of) -> None:
        """An optimizer that holds one of two layers reaches its only layer."""
        assert "gradients reach the only layer (" in healthy_text(report_of([[1.0]]), ["fc0"])
        report = report_of([[1.0, np.nan]], present=[[True, False]], learning_rates=[0.1, np.nan])
        assert "gradients reach its only layer (" in healthy_text(report, ["fc0", "fc1"])

    def test_health_names_layers_that_no_gradient_reached(self, report_of) -> None:
        """Trainable layers that the optimizer holds and that are absent are named; frozen and others' are not."""
        report = report_of(
            [[0.02, 3.0, np.nan, np.nan, np.nan]],
            present=[[True, True, False, False, False]],
            layers=["a", "b", "unused", "frozen", "another's"],
            learning_rates=[0.1, 0.1, 0.1, 0.1, np.nan],
        )
        text = healthy_text(report, {"a", "b", "unused", "another's"}, None)
        assert "gradients reach 2 of 3 layers, but not unused (norms 0.02 to 3;" in text

    def test_a_healthy_run_closes_with_three_lines(self) -> None:
        """What was seen, where the picture is, what it cost."""
        assert closing_text(40, 0, [], "x.png", "1.2 s, 1.2% of the run", None).split("\n") == [
            "GradWatch  seen       no fault in 40 readings",
            "           picture    x.png",
            "           cost       1.2 s, 1.2% of the run",
        ]

    def test_what_failed_before_its_first_reading_has_seen_nothing(self) -> None:
        """The person's backward pass is not to blame."""
        lines = closing_text(0, 0, [], "none", "0.1 s", "OSError: disk full").split("\n")
        assert lines[1] == "           seen       nothing"

    @pytest.mark.parametrize(
        ("num_readings", "faults", "seen"),
        [
            (0, [], UNSEEN),
            (9, ["n"], "no fault in 9 readings, 1 notice"),
            (9, ["n", "n"], "no fault in 9 readings, 2 notices"),
            (9, ["w"], f"{LASTING} (9 readings)"),
            (9, ["w", "r", "n"], f"{LASTING}; recovered: VANISHING; 1 notice (9 readings)"),
            (9, ["w"] * 5, f"{LASTING}; {LASTING}; {LASTING}; 2 more (9 readings)"),
            (9, ["r", "r"], "recovered: VANISHING (9 readings)"),
            (9, ["a"], f"{LASTING}, onset number 4 (9 readings)"),
        ],
    )
    def test_the_end_tells_what_lasts_and_what_is_over(self, num_readings: int, faults: list[str], seen: str) -> None:
        """Warnings are named, notices counted; of a fault that flaps the list has not every onset to count."""
        kinds = {
            "w": SICK,
            "a": replace(SICK, count=4),
            "n": replace(SICK, severity="notice"),
            "r": replace(SICK, recovered_at=5),
        }
        text = closing_text(num_readings, 0, [kinds[fault] for fault in faults], "x.png", "0.0 s", None)
        assert text.split("\n")[0] == f"GradWatch  seen       {seen}"

    @pytest.mark.parametrize(("number", "words"), [(1, "1 step dropped"), (7, "7 steps dropped")])
    def test_steps_that_a_loss_scaler_dropped_are_counted(self, number: int, words: str) -> None:
        """Dropped steps are told beside what was seen, whatever that is."""
        assert f"in 40 readings; {words} by the loss scaler\n" in closing_text(40, number, [], "x.png", "0 s", None)
        assert f"{UNSEEN}; {words} by the loss scaler\n" in closing_text(0, number, [], "x.png", "0 s", None)

    @pytest.mark.parametrize(("number", "words"), [(1, "1 step dropped"), (7, "7 steps dropped")])
    def test_steps_that_were_not_finite_and_dropped_are_counted(self, number: int, words: str) -> None:
        """A run that ends well is told what it has skipped; nothing is said where nothing was."""
        text = closing_text(40, 0, [], "x.png", "0 s", None, number)
        assert f"no fault in 40 readings; {words} as not finite\n" in text
        assert "dropped" not in closing_text(40, 0, [], "x.png", "0 s", None)

    def test_what_nobody_was_told_of_is_no_health(self) -> None:
        """Somebody else reads this log, and does not know what was muted or has failed."""
        text = closing_text(40, 0, [], "x.png", "0 s", None, unheard=["muted: spike", "rule mine failed, see above"])
        assert "seen       no fault in 40 readings; muted: spike; rule mine failed, see above\n" in text

    def test_a_run_that_was_not_watched_to_the_end_says_so_first(self) -> None:
        """A monitor that died must not look like health."""
        lines = closing_text(40, 0, [], "x.png", "0.0 s", "KeyError: 'x'").split("\n")
        assert lines[0].endswith("SWITCHED OFF during the run, what follows is incomplete: KeyError: 'x'")
        assert lines[1] == "           seen       no fault in 40 readings"
        assert len(lines) == 4


STEERING = "a\x1b[2J\nGradWatch  all is well\r\x07\u202e"


def test_names_of_layers_stay_in_their_line_and_do_not_steer_the_terminal():
    """What cannot be printed is written as ``repr`` writes it, wherever a name or a message has it."""
    sick = replace(SICK, layers=(STEERING, "b"), message=f"{STEERING} fades", measured=STEERING, cause=STEERING)
    told = onset_text(sick, 2)
    assert told.count(repr(STEERING)[1:-1]) == 4
    assert len(told.splitlines()) == 4
    recovered = recovery_text(replace(sick, recovered_at=9))
    closed = closing_text(9, 0, [sick], "p.png", "none", None)
    for text in (told, recovered, closed):
        assert all(line.isprintable() for line in text.split("\n"))
        assert not any(line.startswith("GradWatch  all") for line in text.splitlines())


def test_whatever_is_logged_can_be_printed(caplog: pytest.LogCaptureFixture):
    """Reasons of failures and paths come from elsewhere; all handlers get them made visible, with their line breaks."""
    logger = training_logger()
    with caplog.at_level(logging.INFO, LOGGER_NAME):
        logger.warning("failed: %s, %d%%", "a\x1b[31m\nb", 7)
        logger.info("fine %s", "\u5c64")
    assert caplog.messages == ["failed: a\\x1b[31m\nb, 7%", "fine \u5c64"]
    assert caplog.records[1].args == ("\u5c64",)
    assert len(training_logger().filters) == 1
