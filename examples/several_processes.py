"""Train in several processes, with DDP or with sharded parameters (FSDP2); GradWatch needs no other line for it.

All processes read the norms of the averaged gradients and judge alike; rank zero tells. Under FSDP2 each process holds
a shard of every layer, and the norms are those of the whole. Both run on CPUs, so try the launch line there first:

    python examples/several_processes.py --strategy ddp --devices 2
    python examples/several_processes.py --strategy fsdp2 --devices 2
    python examples/several_processes.py --strategy ddp --devices 8 --accelerator gpu
    torchrun --nproc_per_node 2 examples/several_processes.py --strategy ddp --devices 2

"""

import argparse
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradwatch import GradWatch

WIDTH, CLASSES, DEPTH = 32, 4, 12


class DeepClassifier(pl.LightningModule):
    """A deep sigmoid network, so that there is something to tell."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        hidden = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())]
        self.net = nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))

    def configure_model(self) -> None:
        """Shard each layer where the strategy shards; Lightning calls this in every process."""
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415  (torch 2.6 or newer)

        mesh = self.device_mesh["data_parallel"]
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of this process's part of the batch."""
        points, labels = batch
        return nn.functional.cross_entropy(self.net(points), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


def strategy_of(name: str, devices: int) -> Strategy:
    """Return the strategy of that name."""
    if name == "ddp":
        return DDPStrategy()
    return ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)


def main() -> None:
    """Train, and let rank zero say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=["ddp", "fsdp2"], default="ddp", help="how the processes share the work")
    parser.add_argument("--devices", type=int, default=2, help="processes")
    parser.add_argument("--accelerator", default="cpu", help="cpu or gpu")
    parser.add_argument("--max_steps", type=int, default=20, help="optimizer steps")
    parser.add_argument("--directory", type=Path, default=Path("runs/several_processes"), help="where the logs go")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="The '.*dataloader' does not have many workers")
    points = torch.randn(4096, WIDTH, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(points, points[:, :CLASSES].argmax(dim=1))
    watch = GradWatch()
    trainer = pl.Trainer(
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        strategy=strategy_of(arguments.strategy, arguments.devices),
        max_steps=arguments.max_steps,
        callbacks=[watch],
        default_root_dir=arguments.directory,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(DeepClassifier(), DataLoader(data, batch_size=32, shuffle=True))
    if trainer.is_global_zero:
        found = ", ".join(f"{d.rule} in {len(d.layers)} layers since step {d.step}" for d in watch.diagnoses) or "quiet"
        print(f"\n{arguments.strategy}, {trainer.world_size} processes: {found}")
        first, last = watch.history.norms[0, [0, -1]]
        print(f"norm of the first layer's gradient {first:.3g}, of the last one's {last:.3g}")


if __name__ == "__main__":
    main()
