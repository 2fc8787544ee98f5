"""Test ``lightning_gradwatch.callback`` in two real processes (gloo, on the CPU)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from models import RecordingSink, deep_net, module_in, trainer_in
from torch import nn

from lightning_gradwatch import GradWatch

# Lightning forks after torch has made its threads; each process has one here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork", "ignore:.*DistributedSampler")


class Keeps(GradWatch):
    """Writes down, in each process, what it measured and told: the parent's own callback stays empty."""

    def __init__(self, directory: Path) -> None:
        super().__init__(sinks=[RecordingSink()], stop_on=["vanishing"])
        self.directory = directory

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        logging.getLogger("lightning_gradwatch").addHandler(logging.FileHandler(self.directory / "log.txt"))
        super().on_train_start(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_end(trainer, pl_module)
        record = {
            "norms": self.history.norms.tolist(),
            "diagnoses": [d.rule for d in self.diagnoses],
            "reports": len(self.settings.sinks[0].reports),
            "steps": trainer.global_step,
            "disabled": self.disabled_reason,
        }
        (self.directory / f"rank{trainer.global_rank}.json").write_text(json.dumps(record))


def test_ranks_measure_the_same_and_one_of_them_tells(pl, tmp_path, data):
    """Both ranks read the averaged gradients and stop at the same step; only rank zero writes and logs."""
    trainer = trainer_in(pl, tmp_path, Keeps(tmp_path), strategy="ddp_fork", devices=2, max_steps=30)
    trainer.fit(module_in(pl, deep_net(nn.Sigmoid, 12)), data)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["norms"] == second["norms"]
    assert first["diagnoses"] == second["diagnoses"] == ["vanishing.depth"]
    assert first["steps"] == second["steps"] < 8
    assert first["disabled"] is second["disabled"] is None
    assert (first["reports"], second["reports"]) == (len(first["norms"]), 0)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("GradWatch  watching 13 layers") == 1
    assert log.count("  VANISHING: ") == 1 + log.count("GradWatch  stop_on    VANISHING: training ends here") == 2
    assert (tmp_path / "gradwatch" / "diagnoses.jsonl").read_text().count("\n") == 1
