"""What the tests share: both Lightning packages, learnable data, a seed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from models import CLASSES, WIDTH, RecordingSink
from torch.utils.data import DataLoader, TensorDataset

# They train whole networks. To trace each line would take as long again, and the tests of single modules reach the same
# lines.
UNTRACED = [Path(__file__).with_name(name) for name in ("benchmarks", "support")]
# A deadline would be a timing, and machines are noisy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none, and run what takes long without measuring coverage."""
    for item in items:
        if any(folder in item.path.parents for folder in UNTRACED):
            item.add_marker(pytest.mark.no_cover)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def lightning(request: pytest.FixtureRequest) -> Any:
    """Return each of the two packages that hold the same Trainer."""
    return importlib.import_module(request.param)


@pytest.fixture
def pl() -> Any:
    """Return the package that GradWatch depends on."""
    return importlib.import_module("pytorch_lightning")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def data() -> DataLoader[Any]:
    """Return eight batches of four samples whose labels can be learned."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, WIDTH, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :CLASSES].argmax(dim=1)), batch_size=4)


@pytest.fixture
def sink() -> RecordingSink:
    """Return a sink that keeps every report."""
    return RecordingSink()
