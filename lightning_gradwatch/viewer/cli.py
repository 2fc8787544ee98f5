"""``gradwatch``: the diagnoses and the picture without TensorBoard, and a gate for continuous integration.

Only what a command needs is imported, when it needs it: the help has to be there at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

_FINE, _UNUSABLE = 0, 2

_EPILOG = """\
examples:
  gradwatch report lightning_logs                     what was diagnosed, and the picture as an HTML file
  gradwatch report lightning_logs --run version_3     one run of several
  gradwatch report lightning_logs --fail-on any       in a CI job: exit status 1 where there is a warning
  gradwatch report lightning_logs --markdown          for an issue or a chat
  gradwatch compare lightning_logs/version_0 lightning_logs/version_1
"""

_REPORT_EPILOG = """\
examples:
  gradwatch report lightning_logs
  gradwatch report lightning_logs --run 'version_1?' --out report.html
  gradwatch report lightning_logs --json --fail-on vanishing,non_finite

exit status:
  0  fine
  1  a run has a warning of a symptom named by --fail-on, be it over or not; never a notice or a muted rule
  2  the call is wrong, a file cannot be written, or nothing was measured; with --fail-on also where a single
     one of the runs was not measured or GradWatch switched itself off in it: a gate must not pass on silence
"""

_COMPARE_EPILOG = """\
examples:
  gradwatch compare lightning_logs/version_0 lightning_logs/version_1
  gradwatch compare sigmoid relu --logdir runs

exit status: 0 where both were read, 2 otherwise
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows the command's name; those of this process by default.

    Returns:
        The exit status.
    """
    _write_any_letter()
    options = _parser().parse_args(arguments)
    try:
        # The commands read event files; what they need is not loaded for the help.
        from lightning_gradwatch.viewer import commands  # noqa: PLC0415

        status: int = getattr(commands, options.command)(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has gone; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A gate that could not say what it found has not passed.
        return _UNUSABLE if getattr(options, "fail_on", ()) else _FINE
    except KeyboardInterrupt:
        return 130
    return status


def _write_any_letter() -> None:
    """Write what the terminal has no letter for as an escape: a layer's name must not end a report."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = _a_parser(argparse.ArgumentParser, "gradwatch", _EPILOG, "Show what GradWatch has seen in training runs.")
    parser.add_argument("--version", action=_Version, help="print the version and leave")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = _a_parser(
        commands.add_parser,
        "report",
        _REPORT_EPILOG,
        "Print each run's diagnoses with numbers and ways out, and write the interactive picture as one HTML file.",
        help="print the diagnoses of runs and write the picture as an HTML file",
    )
    _add_report(report)
    compare = _a_parser(
        commands.add_parser,
        "compare",
        _COMPARE_EPILOG,
        "Print two runs' verdicts side by side and by what factor the gradient norms of their layers differ, over the "
        "steps that both have; write the picture with both.",
        help="set two runs side by side",
    )
    _add_compare(compare)
    return parser


def _a_parser(make: Any, name: str, epilog: str, description: str, **more: Any) -> argparse.ArgumentParser:
    key = "prog" if make is argparse.ArgumentParser else "name"
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser: argparse.ArgumentParser = make(**{key: name}, epilog=epilog, description=description, **shape, **more)
    return parser


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logdir", metavar="LOGDIR", help="a log directory: of one run, or of many")
    parser.add_argument(
        "--run",
        action="append",
        metavar="PATTERN",
        help='only runs of this name, or whose path ends with it; "*", "?" and "[...]" match; may be repeated',
    )
    _add_output(parser, "LOGDIR/gradwatch/report.html")
    parser.add_argument(
        "--fail-on",
        type=_symptoms,
        default=(),
        metavar="SYMPTOMS",
        help='exit with 1 where a run has a warning of these symptoms, such as "vanishing,exploding", or "any"',
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, metavar="RUN", help="a log directory of one run, or a run's name below --logdir")
    parser.add_argument("--logdir", default="lightning_logs", help="where names are looked up (default: %(default)s)")
    _add_output(parser, "gradwatch-compare.html")


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"where the HTML file goes (default: {default}; with --json or --markdown it is only written where "
        "this is given)",
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print everything as JSON, for a program")
    forms.add_argument("--markdown", action="store_true", help="print Markdown, for an issue or a chat")
    parser.add_argument("--no-page", action="store_true", help="write no HTML file")


def _symptoms(text: str) -> tuple[str, ...]:
    """Read a list of symptoms; what is mistyped would let a sick run pass."""
    from lightning_gradwatch.viewer.symptoms import SYMPTOMS  # noqa: PLC0415

    words = [word.strip().lower().replace("-", "_") for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in (*SYMPTOMS, "any")]
    if unknown or not words:
        raise argparse.ArgumentTypeError(
            f'expected some of {", ".join(SYMPTOMS)}, or any, with commas between. Got "{", ".join(unknown)}"'
        )
    return SYMPTOMS if "any" in words else tuple(words)


class _Version(argparse.Action):
    """Print the version; it is looked up only where it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "nargs": 0, "default": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version  # noqa: PLC0415

        sys.stdout.write(f"gradwatch {version('lightning-gradwatch')}\n")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
