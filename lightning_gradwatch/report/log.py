"""The lines that a person reads in the training log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from tqdm import tqdm

from lightning_gradwatch.detect.diagnosis import Diagnosis
from lightning_gradwatch.measure.snapshot import LayerDescription
from lightning_gradwatch.report.step_report import StepReport
from lightning_gradwatch.report.visible import VisibleLetters, visible
from lightning_gradwatch.report.ways_out import ways_out

LOGGER_NAME = "lightning_gradwatch"
_INDENT = "\n  "
# A row's key takes nine places, and two divide it from its text.
_BREAK = _INDENT + " " * 11
_NAMED_LAYERS = 3
# Karpathy, CS231n (Stanford, 2016): a step should move the weights by about 1e-3. Ours: in their first steps under Adam
# healthy networks move by 0.4% to 4%.
_USUAL_UPDATES = (1e-4, 0.05)


class TrainingLogHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Write to standard error above any progress bar, unless a handler further up takes the record as well.

    Python's own last resort prints warnings only, and a plain script configures nothing; a notebook, Hydra or pytest
    bring handlers of their own, perhaps after training has begun. So that is asked anew for each record.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record once."""
        if _handled_above(logging.getLogger(record.name), record.levelno):
            return
        try:
            # tqdm clears its bars and draws them again; rich replaces sys.stderr while its bars are shown.
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def _takes(handler: logging.Handler, level: int) -> bool:
    return not isinstance(handler, (TrainingLogHandler, logging.NullHandler)) and level >= handler.level


def _handled_above(logger: logging.Logger, level: int) -> bool:
    current: logging.Logger | None = logger
    while current is not None:
        if any(_takes(handler, level) for handler in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False


def training_logger() -> logging.Logger:
    """Return the logger of GradWatch, ready to be heard.

    It gets its handler once, and a filter that keeps the name of a layer from steering a terminal. Its level becomes
    INFO where nobody has set one, as Lightning does with its own logger; a root logger that was set above WARNING is a
    wish for silence and is obeyed.
    """
    logger = logging.getLogger(LOGGER_NAME)
    if not any(isinstance(handler, TrainingLogHandler) for handler in logger.handlers):
        logger.addHandler(TrainingLogHandler())
    if not any(isinstance(filtering, VisibleLetters) for filtering in logger.filters):
        logger.addFilter(VisibleLetters())
    # logging.config.dictConfig switches off, by default, every logger that it does not name.
    logger.disabled = False
    if logger.level == logging.NOTSET and logging.getLogger().level <= logging.WARNING:
        logger.setLevel(logging.INFO)
    return logger


class LogSink:
    """Tell onsets and recoveries in the training log.

    Args:
        more: Where the person finds more, such as a command.
    """

    def __init__(self, more: str = "") -> None:
        self._more = more
        self._logger = training_logger()

    def write(self, report: StepReport) -> None:
        """Write a block for each onset and a line for each recovery."""
        for diagnosis in report.onsets:
            level = logging.WARNING if diagnosis.severity == "warning" else logging.INFO
            # A layer without any gradient is one of those that are meant, too.
            seen = {report.history.layers[column] for column in np.flatnonzero(report.snapshot.present)}
            present = len(seen.union(diagnosis.layers))
            self._logger.log(level, onset_text(diagnosis, present, report.optimizer_label, self._more))
        for diagnosis in report.recoveries:
            self._logger.info(recovery_text(diagnosis, report.optimizer_label))

    def close(self) -> None:
        """Do nothing: the log is not ours to close."""


def onset_text(diagnosis: Diagnosis, num_present: int, optimizer_label: str = "", more: str = "") -> str:
    """Say what is wrong: plain words first, numbers after, a way out last.

    Args:
        diagnosis: What is wrong.
        num_present: How many layers had a gradient.
        optimizer_label: Name of the optimizer where there are several.
        more: Where to find more.

    Returns:
        A few lines.

    Example:
        >>> from lightning_gradwatch.detect.diagnosis import Symptom
        >>> sick = Diagnosis("spike", Symptom.SPIKE, layers=("0",), step=7, message="the gradient jumped")
        >>> print(onset_text(sick, 2))
        GradWatch  step 7  SPIKE: the gradient jumped (1 of 2 layers: 0)
          rule       spike
    """
    word = _word(diagnosis)
    if diagnosis.severity == "notice":
        word = f"notice, {word.lower()}"
    where = f" [{optimizer_label}]" if optimizer_label else ""
    again = f"; onset number {diagnosis.count}" if diagnosis.count > 1 else ""
    head = (
        f"GradWatch  step {diagnosis.step}{where}  {word}: {visible(diagnosis.message)} "
        f"({len(diagnosis.layers)} of {num_present} {plural('layer', num_present)}: {named(diagnosis.layers)}{again})"
    )
    remedy = diagnosis.remedies[0] if diagnosis.remedies else None
    rows = [
        ("measured", visible(diagnosis.measured)),
        ("why", visible(diagnosis.cause)),
        *ways_out(diagnosis.remedies, str(diagnosis.evidence.get("rehearsal", ""))),
        ("more", f"lines to paste and all numbers: {more}" if more and remedy and remedy.code else more),
        ("rule", diagnosis.rule),
    ]
    return block(head, rows)


def stop_text(diagnoses: Sequence[Diagnosis], then: str) -> str:
    """Say that a fault ends training.

    Args:
        diagnoses: Why; nothing where it began in another process.
        then: What happens next.

    Returns:
        A line.

    Example:
        >>> stop_text([], "training ends here")
        'GradWatch  stop_on    a fault in another process: training ends here'
    """
    why = ", ".join(dict.fromkeys(_word(diagnosis) for diagnosis in diagnoses)) or "a fault in another process"
    return f"GradWatch  stop_on    {why}: {then}"


def block(head: str, rows: Iterable[tuple[str, str]]) -> str:
    r"""Set rows of a key and a text below a head; what is empty is left out, and further lines are set in.

    Example:
        >>> print(block("Tea", [("when", "four"), ("why", ""), ("how", "hot\nand strong")]))
        Tea
          when       four
          how        hot
                     and strong
    """
    return _INDENT.join([head, *(f"{key:<9}  {_BREAK.join(text.splitlines())}" for key, text in rows if text)])


def named(layers: Sequence[str]) -> str:
    """Name the first layers and count the others.

    Example:
        >>> named(["net.0", "net.2", "net.4", "net.6", "net.8"])
        'net.0, net.2, net.4 and 2 more'
    """
    rest = len(layers) - _NAMED_LAYERS
    shown = ", ".join(map(visible, layers[:_NAMED_LAYERS]))
    return shown + (f" and {rest} more" if rest > 0 else "")


def recovery_text(diagnosis: Diagnosis, optimizer_label: str = "") -> str:
    """Say that a fault is over; what a step has overwritten is not back because the next ones are small."""
    where = f" [{optimizer_label}]" if optimizer_label else ""
    lost = "; steps are small again, what was overwritten stays so" if diagnosis.rule == "exploding.update" else ""
    return (
        f"GradWatch  step {diagnosis.recovered_at}{where}  recovered: {_word(diagnosis)} in {named(diagnosis.layers)} "
        f"(since step {diagnosis.step}){lost}"
    )


def _word(diagnosis: Diagnosis) -> str:
    return diagnosis.symptom.value.upper().replace("_", "-")


def start_text(layers: Sequence[LayerDescription], picture: str) -> str:
    """Say what is watched.

    Args:
        layers: The model's layers.
        picture: Where the picture will be.

    Returns:
        One line.

    Example:
        >>> frozen = LayerDescription("1", "Linear", 4, trainable=False)
        >>> start_text([LayerDescription("0", "Linear", 12), frozen], "x.png")
        'GradWatch  watching 1 layer, 12 parameters (1 layer frozen); picture: x.png'
    """
    trained = [layer for layer in layers if layer.trainable]
    frozen = len(layers) - len(trained)
    aside = f" ({frozen} {plural('layer', frozen)} frozen)" if frozen else ""
    size = sum(layer.num_parameters for layer in trained)
    return (
        f"GradWatch  watching {len(trained)} {plural('layer', len(trained))}, {size:,} parameters{aside}"
        f"; picture: {picture}"
    )


def plural(word: str, count: int) -> str:
    """Return a word as it follows a count."""
    return word if count == 1 else f"{word}s"


def healthy_text(
    report: StepReport, trainable: Collection[str], factor: float | None = None, update_ratio: float | None = None
) -> str:
    """Say that gradients reach every layer, and what to look at if the loss still does not fall.

    Args:
        report: The reading.
        trainable: Names of the layers that ask for a gradient.
        factor: What the gradient is multiplied by from layer to layer, None where that is not known.
        update_ratio: How far a step moves the middle one of the layers, None without a signal probe.

    Returns:
        One line.
    """
    snapshot = report.snapshot
    positive = snapshot.norms[snapshot.present]
    held = ~np.isnan(snapshot.learning_rates) & ~snapshot.present
    missed = [report.history.layers[column] for column in np.flatnonzero(held)]
    missed = [name for name in missed if name in trainable]
    number = int(snapshot.present.sum())
    reached = (
        f"{number} of {number + len(missed)} layers, but not {named(missed)}"
        if missed
        else f"all {number} layers"
        if number > 1
        else "its only layer"
        if len(report.history.layers) > 1
        else "the only layer"
    )
    least, most = f"{np.min(positive):.2g}", f"{np.max(positive):.2g}"
    norms = f"norm {least}" if least == most else f"norms {least} to {most}"
    steady = f", x{factor:.2f} a layer back" if factor is not None else ""
    moved = (
        "; parameter gradients only" if update_ratio is None else f"; a step moves weights by {_percent(update_ratio)}"
    )
    where = f" [{report.optimizer_label}]" if report.optimizer_label else ""
    return (
        f"GradWatch  step {snapshot.step}{where}  gradients reach {reached} ({norms}{steady}{moved}). "
        f"If the loss does not fall, look at {_suspects(update_ratio)}"
    )


def _suspects(update_ratio: float | None) -> str:
    """Say what else keeps a loss from falling, the likeliest first."""
    least, most = _USUAL_UPDATES
    if update_ratio is None or least <= update_ratio < most:
        return "data, labels, loss, learning rate"
    size = "small" if update_ratio < least else "large"
    return f"the learning rate (such steps are {size}: 0.1% to 4% is usual), then data, labels, loss"


def _percent(share: float) -> str:
    """Write a share to two digits, and 10% not as 1e+01%."""
    return f"{float(f'{100 * share:.2g}'):g}%"


def closing_text(
    num_readings: int,
    num_overflows: int,
    diagnoses: Sequence[Diagnosis],
    picture: str,
    cost: str,
    disabled: str | None,
    num_skipped: int = 0,
    unheard: Sequence[str] = (),
) -> str:
    """Say at the end what was seen, where the picture is, and what the watching cost.

    Args:
        num_readings: How many readings were judged.
        num_overflows: How many steps a loss scaler dropped.
        diagnoses: All faults.
        picture: Where the picture is.
        cost: What the watching took.
        disabled: Why GradWatch switched itself off, None where it did not.
        num_skipped: How many steps were dropped because their gradients were not finite.
        unheard: What was not judged or not told, so that silence about it is no health.

    Returns:
        Three lines, four where it switched itself off.

    Example:
        >>> print(closing_text(40, 0, [], "heatmap.png", "0.1 s, 2.0% of the run", None))
        GradWatch  seen       no fault in 40 readings
                   picture    heatmap.png
                   cost       0.1 s, 2.0% of the run
    """
    # Where GradWatch itself has failed, that is why there is nothing.
    seen = "nothing" if disabled is not None and not num_readings else _seen(num_readings, diagnoses)
    if num_overflows:
        seen += f"; {num_overflows} {plural('step', num_overflows)} dropped by the loss scaler"
    if num_skipped:
        seen += f"; {num_skipped} {plural('step', num_skipped)} dropped as not finite"
    seen = "; ".join([seen, *map(visible, unheard)])
    rows = [f"seen       {seen}", f"picture    {picture}", f"cost       {cost}"]
    if disabled is not None:
        rows.insert(0, f"SWITCHED OFF during the run, what follows is incomplete: {disabled}")
    return "GradWatch  " + ("\n" + " " * len("GradWatch  ")).join(rows)


def _seen(num_readings: int, diagnoses: Sequence[Diagnosis]) -> str:
    warnings = [diagnosis for diagnosis in diagnoses if diagnosis.severity == "warning"]
    if not num_readings:
        return (
            "no gradient was ever seen, so nothing can be said about this run (was backward() called before the step? "
            "An optimizer that steps past the Trainer, as with use_pl_optimizer=False, is not seen)"
        )
    if not warnings:
        notices = f", {len(diagnoses)} {plural('notice', len(diagnoses))}" if diagnoses else ""
        return f"no fault in {num_readings} {plural('reading', num_readings)}{notices}"
    lasting = [diagnosis for diagnosis in warnings if diagnosis.recovered_at is None]
    parts = [f"{_word(d)} in {named(d.layers)} since step {d.step}{_again(d)}" for d in lasting[:_NAMED_LAYERS]]
    parts += [f"{len(lasting) - len(parts)} more"] if len(lasting) > len(parts) else []
    # By name: of a fault that comes and goes the list keeps the first onsets and the last one; a count would be wrong.
    over = dict.fromkeys(_word(diagnosis) for diagnosis in warnings if diagnosis.recovered_at is not None)
    parts += [f"recovered: {', '.join(over)}"] if over else []
    num_notices = sum(diagnosis.severity == "notice" and diagnosis.recovered_at is None for diagnosis in diagnoses)
    parts += [f"{num_notices} {plural('notice', num_notices)}"] if num_notices else []
    return f"{'; '.join(parts)} ({num_readings} readings)"


def _again(diagnosis: Diagnosis) -> str:
    return f", onset number {diagnosis.count}" if diagnosis.count > 1 else ""
