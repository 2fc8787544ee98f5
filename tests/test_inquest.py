"""Test ``lightning_gradwatch.inquest``: from a poisoned step of a real run to the log and the file."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import healthy_net, module_in, trainer_in
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from lightning_gradwatch import GradientFault, GradWatch
from lightning_gradwatch.checkpoints import SavedCheckpoint
from lightning_gradwatch.inquest import Inquests
from lightning_gradwatch.measure.history import GradientHistory
from lightning_gradwatch.measure.layers import find_layers
from lightning_gradwatch.report import nonfinite
from lightning_gradwatch.report.origin import Witness
from lightning_gradwatch.report.teller import Teller
from lightning_gradwatch.surroundings import Surroundings
from lightning_gradwatch.testimony import PoisonedStep

NAN = float("nan")


def records(directory: Path) -> list[dict[str, Any]]:
    """Return what was written down, by step."""
    found = [json.loads(path.read_text()) for path in (directory / "gradwatch").glob("nonfinite-*.json")]
    return sorted(found, key=lambda record: record["step"])


def poisoned(at: set[int], value: float = NAN) -> Any:
    """Return a training step whose loss is broken in some batches of each epoch."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * value if batch_idx in at else loss

    return training_step


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 0.01)


# In a Trainer.


@pytest.mark.supports("the file that a step that is not finite leaves")
def test_a_poisoned_step_is_written_down(lightning, tmp_path, data, caplog):
    """Step, batch, layers, the steps before it, and that the weights are lost: as a person needs it to go back."""
    watch = GradWatch()
    with caplog.at_level(logging.INFO):
        trainer_in(lightning, tmp_path, watch, max_steps=14, max_epochs=2).fit(
            module_in(lightning, optimizer=adam, training_step=poisoned({5})), data
        )
    (record,) = records(tmp_path)
    assert (record["step"], record["optimizer"], record["on_nonfinite"]) == (5, {"number": 0, "kind": "Adam"}, "warn")
    assert record["origin"] == "batch 5: loss nan"
    (witness,) = record["processes"]
    assert (witness["rank"], witness["device"], witness["epoch"], witness["batches"]) == (0, "cpu", 0, [5, 5])
    assert witness["seed"] == torch.initial_seed()
    assert record["layers"] == [{"name": "net.2", "norm": "nan"}, {"name": "net.0", "norm": "nan"}]
    assert record["diagnosis"]["rule"] == "non_finite"
    assert [row["step"] for row in record["clean_steps"]] == [0, 1, 2, 3, 4]
    kept = watch.history.readings(0).global_norms[:5].tolist()
    assert [row["global_norm"] for row in record["clean_steps"]] == kept
    assert record["weights"] == {"finite": False, "looked_at": "after the step", "broken_in": ["net.0", "net.2"]}
    assert record["last_clean_checkpoint"] is None
    assert caplog.text.count("not finite: where it came from") == 1
    assert "training cannot recover; checkpoints saved from here are poisoned" in caplog.text


def test_the_seed_of_lightning_is_in_the_file(pl, tmp_path, data, monkeypatch):
    """What ``seed_everything`` leaves behind is enough to draw the same batches again."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    trainer_in(pl, tmp_path, GradWatch()).fit(module_in(pl, training_step=poisoned({1})), data)
    assert records(tmp_path)[0]["environment"]["seeds"]["PL_GLOBAL_SEED"] == "17"


@pytest.mark.supports("the file that a step that is not finite leaves")
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_where_the_step_is_not_used_the_weights_are_fine(pl, tmp_path, data, on_nonfinite, caplog):
    """They are looked at before the step; a step that is dropped harms no checkpoint."""
    module = module_in(pl, training_step=poisoned({3}))
    trainer = trainer_in(pl, tmp_path, GradWatch(on_nonfinite=on_nonfinite), max_steps=6)
    if on_nonfinite == "raise":
        with pytest.raises(GradientFault):
            trainer.fit(module, data)
    else:
        trainer.fit(module, data)
    (record,) = records(tmp_path)
    assert record["weights"] == {"finite": True, "looked_at": "before the step", "broken_in": []}
    assert (record["step"], record["on_nonfinite"], record["origin"]) == (3, on_nonfinite, "batch 3: loss nan")
    assert caplog.text.count("where it came from") == 1


def test_one_inquest_a_row_of_poisoned_steps(pl, tmp_path, data, caplog):
    """NaN that lasts is looked into once; NaN that comes back is looked into again."""
    module = module_in(pl, training_step=poisoned({1, 2, 3, 6}))
    trainer_in(pl, tmp_path, GradWatch(on_nonfinite="skip"), max_steps=8).fit(module, data)
    assert [record["step"] for record in records(tmp_path)] == [1, 6]
    assert caplog.text.count("where it came from") == 2


def test_a_backward_pass_that_breaks_is_told_apart(pl, tmp_path, data):
    """Where the loss is finite it was the backward pass, and the weights before it were fine."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if batch_idx == 2:
            # The root of 0 is 0, and its slope is infinite.
            loss = loss + (0.0 * self.net[2].weight).sum().sqrt()
        return loss

    trainer_in(pl, tmp_path, GradWatch(), max_steps=5).fit(module_in(pl, training_step=training_step), data)
    (record,) = records(tmp_path)
    assert record["origin"].endswith("finite: it began after the loss, in the backward pass")
    assert record["diagnosis"]["evidence"]["began_in"] == "gradient"


def test_the_batch_of_a_window_is_named(pl, tmp_path, data):
    """Of accumulated batches those are named whose loss broke."""
    module = module_in(pl, training_step=poisoned({6}))
    trainer = trainer_in(pl, tmp_path, GradWatch(), max_steps=-1, max_epochs=1, accumulate_grad_batches=4)
    trainer.fit(module, data)
    (record,) = records(tmp_path)
    assert record["origin"] == "batches 4 to 7: loss nan, broken in batch 6"


def test_two_optimizers_have_inquests_of_their_own(pl, tmp_path, data, caplog):
    """By hand: the one that breaks is named, and the clean steps are its own."""

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[0].parameters(), 0.1), adam(self.net[2].parameters())]

    def training_step(self, batch, batch_idx):
        for number, optimizer in enumerate(self.optimizers()):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss * NAN if (batch_idx, number) == (2, 1) else loss)
            optimizer.step()

    module = module_in(pl, training_step=training_step, configure_optimizers=configure_optimizers)
    module.automatic_optimization = False
    trainer_in(pl, tmp_path, GradWatch(on_nonfinite="skip"), max_steps=12).fit(module, data)
    (record,) = records(tmp_path)
    assert (record["step"], record["optimizer"]) == (5, {"number": 1, "kind": "Adam"})
    assert [row["step"] for row in record["clean_steps"]] == [1, 3]
    assert "step 5 [optimizer_1]  not finite: where it came from" in caplog.text


@pytest.mark.parametrize("on_nonfinite", ["warn", "skip", "raise"])
def test_what_a_loss_scaler_drops_is_not_looked_into(pl, tmp_path, data, on_nonfinite, caplog):
    """Overflows while the scale is found are no poisoned steps, and leave neither file nor block."""
    plugin = pl.plugins.precision.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**120))
    watch = GradWatch(on_nonfinite=on_nonfinite, max_consecutive_skips=1)
    with torch.autocast("cpu", enabled=False):
        trainer_in(pl, tmp_path, watch, max_steps=6, plugins=[plugin]).fit(module_in(pl), data)
    assert watch.overflowed_steps == 6
    assert (watch.skipped_steps, watch.diagnoses, records(tmp_path)) == (0, [], [])
    assert "where it came from" not in caplog.text


# The last clean checkpoint.


def checkpointed(pl: Any, directory: Path, watch: GradWatch, module: Any, data: Any, **settings: Any) -> Any:
    """Train with a checkpoint after every second step."""
    saves = ModelCheckpoint(dirpath=directory / "saves", every_n_train_steps=2, **settings)
    trainer = trainer_in(
        pl, directory, watch, saves, max_steps=16, max_epochs=2, enable_checkpointing=True, accelerator="cpu"
    )
    trainer.fit(module, data)
    return trainer


def step_in(path: str) -> int:
    """Return the step that a checkpoint really has, and make sure that its weights are finite."""
    saved = torch.load(path, weights_only=True)
    assert all(bool(torch.isfinite(weight).all()) for weight in saved["state_dict"].values())
    return int(saved["global_step"])


@pytest.mark.supports("the last clean checkpoint before a step that is not finite")
@pytest.mark.parametrize("at", [3, 4, 5])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_the_checkpoint_that_is_named_is_clean(pl, tmp_path, data, at, value):
    """It is read back: finite weights, of the step that was told, and none that was saved later is clean."""
    module = module_in(pl, optimizer=adam, training_step=poisoned({at}, value))
    checkpointed(pl, tmp_path, GradWatch(), module, data, save_top_k=-1)
    (record,) = records(tmp_path)
    named = record["last_clean_checkpoint"]
    assert step_in(named["path"]) == named["step"]
    # Right before step 4 one was saved; that its weights were finite nobody has seen: the loss was not.
    assert named["step"] == {3: 2, 4: 2, 5: 4}[at]
    later = [path for path in (tmp_path / "saves").iterdir() if "step=1" in path.name or "step=8" in path.name]
    assert later
    for path in later:
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert not all(bool(torch.isfinite(weight).all()) for weight in weights)


def test_where_the_step_is_dropped_the_newest_checkpoint_is_clean(pl, tmp_path, data):
    """The weights were looked at before the step, so the one that was saved right before it counts."""
    module = module_in(pl, training_step=poisoned({4}))
    checkpointed(pl, tmp_path, GradWatch(on_nonfinite="skip"), module, data, save_top_k=-1)
    named = records(tmp_path)[0]["last_clean_checkpoint"]
    assert step_in(named["path"]) == named["step"] == 4


@pytest.mark.supports("the last clean checkpoint before a step that is not finite")
def test_a_checkpoint_that_is_written_over_and_over_is_of_its_last_save(pl, tmp_path, data):
    """``save_top_k=1`` and ``save_last``: names that stay, or files that go, never stand for what was in them once."""
    module = module_in(pl, training_step=poisoned({5}))
    checkpointed(pl, tmp_path, GradWatch(on_nonfinite="skip"), module, data, save_top_k=1, save_last=True)
    first, second = records(tmp_path)
    assert (first["step"], second["step"]) == (5, 13)
    # At the first one it had been written at step 4; by now the file holds a later step.
    assert (first["last_clean_checkpoint"]["step"], second["last_clean_checkpoint"]["step"]) == (4, 12)


def test_the_checkpoint_that_a_run_was_resumed_from_is_the_way_back(pl, tmp_path, data):
    """Where nothing was saved since."""
    trainer = trainer_in(pl, tmp_path, max_steps=-1, max_epochs=1)
    trainer.fit(module_in(pl), data)
    trainer.save_checkpoint(tmp_path / "from.ckpt")
    trainer_in(pl, tmp_path, GradWatch(), max_steps=-1, max_epochs=2).fit(
        module_in(pl, training_step=poisoned({6})), data, ckpt_path=str(tmp_path / "from.ckpt")
    )
    assert records(tmp_path)[0]["last_clean_checkpoint"] == {"path": str(tmp_path / "from.ckpt"), "step": 8}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_numbers_that_arrive_late_tell_the_same(pl, tmp_path, data, every, monkeypatch):
    """As on CUDA: found a batch later, or by the checkpoint that is being saved, which is none of the clean ones."""
    for module in ("norms", "reading"):
        monkeypatch.setattr(f"lightning_gradwatch.measure.{module}.sums_in_double", lambda _: True)
    saves = ModelCheckpoint(dirpath=tmp_path / "saves", every_n_train_steps=every, save_top_k=-1)
    trainer = trainer_in(pl, tmp_path, GradWatch(), saves, max_steps=8, enable_checkpointing=True)
    trainer.fit(module_in(pl, optimizer=adam, training_step=poisoned({5})), data)
    (record,) = records(tmp_path)
    assert (record["step"], record["origin"], record["processes"][0]["epoch"]) == (5, "batch 5: loss nan", 0)
    named = record["last_clean_checkpoint"]
    assert step_in(named["path"]) == named["step"] == {1: 4, 2: 4, 3: 3}[every]
    assert not record["weights"]["finite"]


def test_a_checkpoint_of_another_run_is_no_way_back(pl, tmp_path, data):
    """A second fit from the start with the same callback knows nothing of what the first one saved."""
    watch = GradWatch()
    checkpointed(pl, tmp_path / "first", watch, module_in(pl), data)
    trainer_in(pl, tmp_path, watch).fit(module_in(pl, training_step=poisoned({3})), data)
    assert records(tmp_path)[0]["last_clean_checkpoint"] is None


# Nothing of it ends training.


def test_a_disk_that_is_full_costs_the_file_only(pl, tmp_path, data, monkeypatch, caplog):
    """It is told, and everything else goes on."""

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(nonfinite.NonFiniteFiles, "write", fail)
    watch = GradWatch()
    trainer = trainer_in(pl, tmp_path, watch, max_steps=6)
    trainer.fit(module_in(pl, training_step=poisoned({2})), data)
    assert (trainer.global_step, watch.disabled_reason) == (6, None)
    assert "cannot write down the step that is not finite: OSError: disk full" in caplog.text
    assert "where it came from" in caplog.text


@pytest.mark.parametrize("error", [PermissionError("not yours"), OSError(116, "Stale file handle")])
def test_checkpoints_that_cannot_be_found_cost_that_line_only(pl, tmp_path, data, monkeypatch, error, caplog):
    """A network disk that is gone for a while is told, and GradWatch goes on."""
    from lightning_gradwatch.checkpoints import Checkpoints

    def fail(self, until):
        raise error

    monkeypatch.setattr(Checkpoints, "last_clean", fail)
    watch = GradWatch()
    trainer_in(pl, tmp_path, watch, max_steps=6).fit(module_in(pl, training_step=poisoned({2})), data)
    assert watch.disabled_reason is None
    assert records(tmp_path)[0]["last_clean_checkpoint"] is None
    assert f"cannot find the last clean checkpoint: {type(error).__name__}" in caplog.text


def test_raising_was_asked_for_and_happens_whatever_fails_before_it(pl, tmp_path, data, monkeypatch):
    """Other processes have agreed to end: an inquest that cannot be closed does not keep this one going."""

    def fail(self, *args):
        if self._open:
            raise ZeroDivisionError("ours")

    monkeypatch.setattr(Inquests, "close", fail)
    watch = GradWatch(on_nonfinite="raise")
    with pytest.raises(GradientFault, match=r"step 3: .*Where it began: batch 3: loss nan"):
        trainer_in(pl, tmp_path, watch, max_steps=6).fit(module_in(pl, training_step=poisoned({3})), data)
    assert watch.disabled_reason == "ZeroDivisionError: ours"


def test_weights_that_cannot_be_looked_at_cost_that_line_only(pl, tmp_path, data, monkeypatch, caplog):
    """The step is dropped, and the file says that it is not known."""
    from lightning_gradwatch import testimony

    def fail(*args):
        raise NotImplementedError("no norm of this type")

    monkeypatch.setattr(testimony, "layers_not_finite", fail)
    watch = GradWatch(on_nonfinite="skip")
    trainer_in(pl, tmp_path, watch, max_steps=6).fit(module_in(pl, training_step=poisoned({2})), data)
    assert (watch.skipped_steps, watch.disabled_reason) == (1, None)
    assert records(tmp_path)[0]["weights"]["finite"] is None
    assert "cannot look into the step that is not finite: NotImplementedError" in caplog.text


def test_fast_dev_run_leaves_no_file(pl, tmp_path, data, caplog):
    """What came out is told in the log alone."""
    trainer_in(pl, tmp_path, GradWatch(), fast_dev_run=True).fit(module_in(pl, training_step=poisoned({0})), data)
    assert not (tmp_path / "gradwatch").exists()
    assert "where it came from" in caplog.text


def test_a_switched_off_watch_still_says_where_the_end_came_from(pl, tmp_path, data, monkeypatch):
    """Raising was asked for by name, and so was the reason."""
    from lightning_gradwatch.judging import Judge

    def fail(self, *args):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Judge, "judge", fail)
    watch = GradWatch(on_nonfinite="raise")
    with pytest.raises(GradientFault, match=r"step 3: .*net\.0, net\.2.*Where it began: batch 3: loss nan") as caught:
        trainer_in(pl, tmp_path, watch, max_steps=6).fit(module_in(pl, training_step=poisoned({3})), data)
    assert watch.disabled_reason == "ZeroDivisionError: ours"
    assert [(d.symptom.value, d.step) for d in caught.value.diagnoses] == [("non_finite", 3)]
    assert [record["step"] for record in records(tmp_path)] == [3]


def test_a_watch_can_be_pickled_in_the_middle(pl, tmp_path, data):
    """Lightning pickles callbacks that are hyperparameters; what hangs on the Trainer stays behind."""
    copies = []

    def on_train_batch_end(self, outputs, batch, batch_idx):
        copies.append(pickle.dumps(self.trainer.callbacks[0]))

    module = module_in(pl, training_step=poisoned({1}), on_train_batch_end=on_train_batch_end)
    trainer_in(pl, tmp_path, GradWatch(), max_steps=4).fit(module, data)
    assert len(pickle.loads(copies[-1]).diagnoses) == 1


# Several processes, without any: each is an object here.


class Told(Teller):
    """Keeps what it is told."""

    def __init__(self, speaks: bool) -> None:
        super().__init__()
        self.speaks, self.lines = speaks, []

    def warn(self, text: str) -> None:
        if self.speaks:
            self.lines.append(text)


def processes(tmp_path: Path, number: int) -> tuple[list[Inquests], list[Told], list[bytes]]:
    """Return inquests of several processes whose gather returns what was put into a list."""
    lines: list[bytes] = []
    tellers = [Told(rank == 0) for rank in range(number)]
    inquests = [Inquests(teller, "warn") for teller in tellers]
    for rank, each in enumerate(inquests):
        each.begin(
            Surroundings(
                rank,
                number,
                "cpu",
                tmp_path,
                lambda _: lines,
                lambda until: SavedCheckpoint("a.ckpt", until) if until >= 0 else None,
            )
        )
    return inquests, tellers, lines


def found(step: int, loss: float, optimizer: int = 0) -> PoisonedStep:
    return PoisonedStep(step, optimizer, "SGD", None, losses=((9, torch.tensor(loss)),))


def exchange(inquests: list[Inquests], lines: list[bytes]) -> None:
    """Let processes ask each other once: a first round only to hear what each of them sends."""
    for inquest in inquests:
        inquest._surroundings = replace(inquest._surroundings, gather=lambda mine: (lines.append(mine), [mine])[1])
        inquest.ask()
    sent, lines[:] = lines[:], []
    for inquest in inquests:
        inquest._surroundings = replace(inquest._surroundings, gather=lambda _: sent)
        inquest.answer(inquest.ask())


def tell(inquest: Inquests, number: int = 0) -> None:
    inquest.close(number, ["0", "2"], GradientHistory(["0", "2"]), None)


def test_a_question_waits_for_the_exchange_and_completes_the_file(tmp_path):
    """The file is there at once with what this process knows, and knows the others after they were asked."""
    (first, second), (told, silent), lines = processes(tmp_path, 2)
    layers = find_layers(healthy_net())
    assert (first.begins(0), first.begins(0), second.begins(0)) == (True, False, True)
    for inquest, loss in ((first, 1.5), (second, NAN)):
        inquest.open(found(4, loss), layers, at_once=False)
        inquest.close(0, ["0", "2"], GradientHistory(["0", "2"]), None)
        assert inquest.has_question
    before = records(tmp_path)[0]
    assert [row["rank"] for row in before["processes"]] == [0]
    assert "the other processes are asked within the next batches" in before["origin"]
    lines[:] = [
        Witness(0, "a", "cpu", 4, None, (9, 9), 1.5).encode(),
        Witness(1, "b", "cpu", 4, None, (9, 9), NAN).encode(),
    ]
    first.answer(first.ask())
    second.answer(second.ask())
    assert not first.has_question
    assert not second.has_question
    (record,) = records(tmp_path)
    assert record["origin"] == "rank 1 (b, cpu) batch 9: loss nan; 1 other finite"
    # The other process's loss was finite, so the weights were before the step.
    assert record["last_clean_checkpoint"] == {"path": "a.ckpt", "step": 4}
    assert [line.partition(";")[0] for line in told.lines] == [
        "step 4  not finite, it came from rank 1 (b, cpu) batch 9: loss nan"
    ]
    assert silent.lines == []


def test_who_has_seen_nothing_answers_and_tells(tmp_path):
    """The process that writes the log may be switched off; what another one has seen is told all the same."""
    (first, _), (told, _), lines = processes(tmp_path, 2)
    lines[:] = [Witness(0).encode(), Witness(1, "b", "cpu", 7, loss=NAN).encode()]
    first.answer(first.ask())
    assert told.lines == ["step 7  not finite, it came from rank 1 (b, cpu): loss nan; 1 not known"]


def test_each_step_is_asked_about_and_no_answer_is_mixed_up(tmp_path):
    """Both optimizers break between two exchanges, the second one in one process only: one step an exchange."""
    inquests, (told, _), lines = processes(tmp_path, 2)
    first, second = inquests
    layers = find_layers(healthy_net())
    for inquest, number, step, loss in ((first, 0, 4, NAN), (first, 1, 5, 1.5), (second, 1, 5, NAN)):
        inquest.open(found(step, loss, number), layers, at_once=False)
        tell(inquest, number)
    exchange(inquests, lines)
    assert (first.has_question, second.has_question) == (True, True)
    (early, late) = records(tmp_path)
    # The second process has seen nothing of step 4: its NaN was of another step.
    assert [(row["rank"], row["step"]) for row in early["processes"]] == [(0, 4), (1, None)]
    assert early["origin"].endswith("batch 9: loss nan; 1 not known")
    assert "the other processes are asked within the next batches" in late["origin"]
    exchange(inquests, lines)
    assert (first.has_question, second.has_question) == (False, False)
    assert records(tmp_path)[0] == early
    late = records(tmp_path)[1]
    assert [(row["rank"], row["step"], row["optimizer"]) for row in late["processes"]] == [(0, 5, 1), (1, 5, 1)]
    assert "rank 1" in late["origin"]
    assert late["origin"].endswith("1 other finite")
    assert [line.partition("  ")[0] for line in told.lines] == ["step 4", "step 5"]


def test_answers_that_come_before_it_was_told_are_told_with_it(tmp_path, caplog):
    """Nothing stays behind for another step: the block has all processes in it, and the next one its own."""
    inquests, (told, _), lines = processes(tmp_path, 2)
    layers = find_layers(healthy_net())
    for inquest, loss in zip(inquests, (1.5, NAN), strict=True):
        inquest.begins(0)
        inquest.open(found(4, loss), layers, at_once=False)
    assert inquests[0].origin(0) == ""
    exchange(inquests, lines)
    assert told.lines == []
    assert inquests[0].origin(0).endswith("1 other finite")
    tell(inquests[0])
    assert records(tmp_path)[0]["origin"].endswith("batch 9: loss nan; 1 other finite")
    inquests[0].finite(0)
    assert inquests[0].origin(0) == ""
    inquests[0].begins(0)
    inquests[0].open(found(8, NAN), layers, at_once=False)
    tell(inquests[0])
    assert [row["rank"] for row in records(tmp_path)[1]["processes"]] == [0]


def test_a_question_that_does_not_arrive_is_given_up(tmp_path):
    """Bytes that nobody can read would be asked about for ever."""
    (first, _), (told, _), lines = processes(tmp_path, 2)
    first.open(found(4, NAN), find_layers(healthy_net()), at_once=False)
    lines[:] = [b"garbage", b""]
    first.answer(first.ask())
    assert not first.has_question
    assert told.lines == []


def test_where_the_exchanges_have_ended_nothing_is_promised(tmp_path):
    """What waits is given up, in the file as well, and what comes later says so at once."""
    (first, _), _, _ = processes(tmp_path, 2)
    layers = find_layers(healthy_net())
    for step in (4, 8):
        first.open(found(step, NAN), layers, at_once=False)
        tell(first)
        first.end_exchanges()
        assert not first.has_question
    for record in records(tmp_path):
        assert record["origin"].endswith("cannot be asked any more: GradWatch is switched off")


def test_a_copy_knows_nothing_of_the_fit_under_way(tmp_path):
    """From it nobody can be asked: the way to the other processes stays behind, and so does what is open."""
    (first, _), _, _ = processes(tmp_path, 2)
    first.begins(0)
    first.open(found(4, NAN), find_layers(healthy_net()), at_once=False)
    other = pickle.loads(pickle.dumps(first))
    assert (first.has_question, first.is_open(0), first.begins(0)) == (True, True, False)
    assert (other.has_question, other.is_open(0), other.begins(0)) == (False, False, True)


def test_inquests_are_counted_for_each_optimizer_by_itself(tmp_path):
    """One that steps in this process only does not keep another one's answers from processes that wait for them."""
    (inquest,), _, _ = processes(tmp_path, 1)
    for _ in range(12):
        inquest.begins(1)
        inquest.finite(1)
    assert (inquest.begins(1), inquest.begins(0)) == (False, True)


def test_there_are_at_most_ten_inquests(tmp_path):
    """A run that breaks again and again is told by its diagnoses, and asks nobody any more."""
    (inquest,), _, _ = processes(tmp_path, 1)
    begun = []
    for _ in range(15):
        begun.append(inquest.begins(0))
        inquest.finite(0)
    assert begun == [True] * 10 + [False] * 5
    inquest.begin(Surroundings())
    assert inquest.begins(0)
