"""Watch Hugging Face's Trainer: make its optimizer beforehand, and attach around ``train()``.

``Trainer.create_optimizer()`` makes the optimizer that ``train()`` then finds and uses. A TrainerCallback could
attach in ``on_train_begin``, which gets model and optimizer, but where training ends with an error no callback is
called, and nothing would be cleaned up; the ``with`` block cleans up always. A callback of three lines stops training
when GradWatch says so.

The Trainer clips (``max_grad_norm``, 1.0 by default) before its optimizer steps, and before every hook: the norms that
are seen are those after clipping. To see them before, give it ``max_grad_norm=0`` and let
``GradWatch(clipper=ClipByGlobalNorm(1.0))`` clip, which is what is done here.

A tiny GPT-2 of random weights (nothing is downloaded) learns to count. With a learning rate of 1 instead of 1e-3, a
slip of the finger, it is stopped after its first step.

Run it: ``pip install transformers accelerate``, then ``python examples/loops/hugging_face_trainer.py``.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from lightning_gradwatch import ClipByGlobalNorm, GradWatch

WORDS, LENGTH = 32, 16


class Counting(Dataset[dict[str, Tensor]]):
    """Sequences that count in steps of one, two or three."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        words = (index + torch.arange(LENGTH) * (1 + index % 3)) % WORDS
        return {"input_ids": words, "labels": words}


class StopsWhenSick(TrainerCallback):
    """Ends training after the step in which a fault begins that ``stop_on`` names."""

    def __init__(self, watch: GradWatch) -> None:
        self.watch = watch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask after each step."""
        control.should_training_stop |= self.watch.should_stop


def network() -> GPT2LMHeadModel:
    """Return a GPT-2 of two small blocks."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH, "vocab_size": WORDS}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))


def train(watch: GradWatch, net: GPT2LMHeadModel, directory: Path, **settings: Any) -> list[float]:
    """Train a network with the Trainer and return the loss of each step."""
    fixed: dict[str, Any] = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(str(directory), **fixed, per_device_train_batch_size=16, logging_steps=1, **settings)
    trainer = Trainer(model=net, args=arguments, train_dataset=Counting(), callbacks=[StopsWhenSick(watch)])
    with watch.attach(net, trainer.create_optimizer(), log_dir=directory):
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def main() -> None:
    """Train with both learning rates and set the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=60, help="optimizer steps for each training")
    parser.add_argument("--directory", type=Path, default=Path("runs/hugging_face"), help="where the logs go")
    arguments = parser.parse_args()
    rows = []
    for name, learning_rate in {"slip": 1.0, "meant": 1e-3}.items():
        watch = GradWatch(clipper=ClipByGlobalNorm(1.0), stop_on=["exploding", "non_finite"])
        settings = {"max_steps": arguments.max_steps, "max_grad_norm": 0.0, "learning_rate": learning_rate}
        losses = train(watch, network(), arguments.directory / name, **settings)
        found = ", ".join(f"{d.rule} at step {d.step}" for d in watch.diagnoses) or "quiet"
        rows.append(f"{name:<6} {len(losses):>3} steps, loss {losses[0]:.2f} -> {losses[-1]:.2f}   {found}")
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
