"""Whole steps of a real Trainer, in every variant, forwards and backwards."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from benchmarks.overhead.abba import Seconds
from benchmarks.overhead.variants import Variant, module_of
from benchmarks.overhead.works import Work

# The first steps measure weights and load what torch loads on first use.
_WARM_UP = 7


class _Clock(pl.Callback):
    """Notes when each step begins; a step is what lies between two beginnings."""

    def __init__(self) -> None:
        self.begins: list[tuple[float, float]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.begins.append((time.process_time(), time.perf_counter()))


class _Batches(torch.utils.data.IterableDataset[Any]):
    def __init__(self, work: Work) -> None:
        self._batch = work.batch()

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self._batch


def fits_of(work: Work, variants: Sequence[Variant], rounds: int) -> dict[str, Seconds]:
    """Train a model in every variant, forwards and backwards.

    Args:
        work: The model.
        variants: How.
        rounds: How many times forwards and backwards.

    Returns:
        The median of a step by the variant's name.
    """
    logging.getLogger("lightning_gradwatch").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    times: dict[str, list[tuple[float, float]]] = {variant.name: [] for variant in variants}
    for _ in range(rounds):
        for variant in (*variants, *reversed(variants)):
            times[variant.name] += _steps(work, variant)
    return {name: Seconds(*map(statistics.median, zip(*pairs, strict=True))) for name, pairs in times.items()}


def _steps(work: Work, variant: Variant) -> list[tuple[float, float]]:
    torch.manual_seed(0)
    module = module_of(work.make(), work.loss, logs_norms=variant.logs_norms)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"logger": False, **variant.trainer}
        if settings["logger"]:
            settings["logger"] = TensorBoardLogger(directory)
        pl.Trainer(
            accelerator="cpu",
            default_root_dir=directory,
            max_steps=work.steps + _WARM_UP + 1,
            callbacks=[*variant.callbacks(module), clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        ).fit(module, torch.utils.data.DataLoader(_Batches(work), batch_size=None))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(clock.begins[_WARM_UP:])]
