"""``python -m benchmarks.overhead``: measure what watching costs and write the page."""

from __future__ import annotations

import argparse
import logging
import os
import platform
from pathlib import Path

import torch

from benchmarks.overhead.bare import steps_of
from benchmarks.overhead.growth import by_layers, by_parameters
from benchmarks.overhead.memory import by_length
from benchmarks.overhead.page import page
from benchmarks.overhead.parts import by_parts
from benchmarks.overhead.processes import by_processes
from benchmarks.overhead.trainer import fits_of
from benchmarks.overhead.variants import VARIANTS
from benchmarks.overhead.works import WORKS

_PARTS = ("bare", "trainer", "growth", "parts", "processes", "memory")


def main() -> None:
    """Measure, print as it goes, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="forwards and backwards, for single steps")
    parser.add_argument("--fits", type=int, default=2, help="forwards and backwards, for whole fits")
    parser.add_argument("--only", choices=_PARTS, nargs="+", default=_PARTS)
    parser.add_argument("--table", type=Path, default=None, help="where the page goes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning_gradwatch").setLevel(logging.ERROR)
    bare, fits = {}, {}
    for work in WORKS:
        print(f"{work.name} ...", flush=True)
        if "bare" in asked.only:
            bare[work.name] = steps_of(work, asked.rounds)
        if "trainer" in asked.only:
            variants = [variant for variant in VARIANTS if not (variant.dear and work.many_layers)]
            fits[work.name] = fits_of(work, variants, asked.fits)
    grows = "growth" in asked.only
    layers = list(by_layers(asked.rounds)) if grows else []
    parameters = list(by_parameters(asked.rounds)) if grows else []
    processes = by_processes() if "processes" in asked.only else []
    held = by_length() if "memory" in asked.only else []
    parts = by_parts() if "parts" in asked.only else {}
    text = page("make bench", _machine(), 1, bare, parts, fits, layers, parameters, processes, held)
    print(text)
    if asked.table is not None:
        asked.table.write_text(text)


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores of {platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
