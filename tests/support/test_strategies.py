"""Rows of docs/support.md about several processes: DDP, FSDP2, tensor parallelism, and what they tell each other.

All of it happens in real processes, in one launch of ``several_processes.py``; the tests here read what it wrote.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import trainer_in
from oracle import assert_same
from support.several_processes import FAILING_STEPS, FAILS_AT, NUM_PROCESSES, OFTEN, POISONED_BATCH, STEPS
from support.spawned import Keeps, Plain

from lightning_gradwatch.agreement import EVERY_N_BATCHES
from lightning_gradwatch.detect.progress import loss_has_fallen


def records_of(played: Path, name: str) -> list[dict[str, Any]]:
    """Return what each process wrote of a scenario."""
    records = []
    for rank in range(NUM_PROCESSES[name]):
        path = played / f"{name}-{rank}.json"
        assert path.exists(), f"{name} did not come back"
        records.append(json.loads(path.read_text()))
        failed = records[-1].get("failed", "")
        assert not failed, failed.splitlines()[-1]
    return records


def log_of(played: Path, name: str) -> str:
    """Return what all processes of a scenario wrote to standard error."""
    return "".join((played / f"{name}-{rank}.err").read_text() for rank in range(NUM_PROCESSES[name]))


def assert_alike(records: list[dict[str, Any]]) -> None:
    """Hold what every process measured, told and did against the first one."""
    for record in records[1:]:
        for key in ("layers", "diagnoses", "skipped", "global_step", "error", "health"):
            assert record[key] == records[0][key], key
        for key in ("norms", "clipped_norms", "weight_norms", "losses"):
            np.testing.assert_array_equal(record[key], records[0][key], err_msg=key)


def assert_right(record: dict[str, Any]) -> None:
    """Hold every norm before clipping and after it against the gradients at that moment."""
    assert_same(SimpleNamespace(**record), SimpleNamespace(steps=record["before"]))
    # Of a step that was dropped nothing was used: what is known of it are the gradients that it would have used.
    used = [used or before for used, before in zip(record["used"], record["before"], strict=True)]
    assert_same(SimpleNamespace(**record), SimpleNamespace(steps=used), "clipped_norms")


def global_norms(rows: Any) -> Any:
    """Return the norm of all layers of each row."""
    return np.sqrt(np.nansum(np.square(np.array(rows)), axis=1))


HEALTHY = [
    pytest.param("ddp_plain", marks=pytest.mark.supports("DDP")),
    pytest.param("ddp_accumulation", marks=pytest.mark.supports("DDP with accumulate_grad_batches (no_sync)")),
    pytest.param("ddp_unused", marks=pytest.mark.supports("DDP with find_unused_parameters")),
    pytest.param("ddp_trainer_clip", marks=pytest.mark.supports("DDP with Trainer(gradient_clip_val)")),
    pytest.param("ddp_clip_by_norm", marks=pytest.mark.supports("clippers under DDP")),
    pytest.param("ddp_clip_by_value", marks=pytest.mark.supports("clippers under DDP")),
    pytest.param("ddp_adaptive_clip", marks=pytest.mark.supports("clippers under DDP")),
    pytest.param("fsdp2_each", marks=pytest.mark.supports("FSDP2 (ModelParallelStrategy, fully_shard)")),
    pytest.param("fsdp2_accumulation", marks=pytest.mark.supports("FSDP2 with accumulate_grad_batches")),
    pytest.param("fsdp2_trainer_clip", marks=pytest.mark.supports("FSDP2 with Trainer(gradient_clip_val)")),
    pytest.param("fsdp2_clip_by_norm", marks=pytest.mark.supports("clippers under FSDP2")),
    pytest.param("fsdp2_clip_by_value", marks=pytest.mark.supports("clippers under FSDP2")),
    pytest.param("fsdp2_adaptive_clip", marks=pytest.mark.supports("clippers under FSDP2")),
    pytest.param("fsdp2_clip_by_layer_norm", marks=pytest.mark.supports("clippers under FSDP2")),
    pytest.param("fsdp2_clip_by_quantile", marks=pytest.mark.supports("clippers under FSDP2")),
    pytest.param("fsdp2_partly_sharded", marks=pytest.mark.supports("FSDP2 with a part that is not sharded")),
    pytest.param("fsdp2_partly_sharded_clip", marks=pytest.mark.supports("FSDP2 with a part that is not sharded")),
    pytest.param("tensor_parallelism", marks=pytest.mark.supports("tensor parallelism")),
    pytest.param("tensor_parallelism_clip", marks=pytest.mark.supports("tensor parallelism")),
    pytest.param("two_dimensions", marks=pytest.mark.supports("FSDP2 and tensor parallelism together (2-D)")),
]


@pytest.mark.parametrize("name", HEALTHY)
def test_every_process_measures_the_whole_gradient(played, name):
    """Norms before and after clipping are those of the whole gradients, and the same in every process."""
    records = records_of(played, name)
    for record in records:
        assert_right(record)
        assert record["disabled"] is None
        assert record["global_step"] == len(record["norms"]) == STEPS
        assert (record["diagnoses"], record["health"], record["error"]) == ([], "", "")
    assert_alike(records)
    log = log_of(played, name)
    assert log.count("GradWatch  watching") == log.count("GradWatch  seen") == 1


@pytest.mark.parametrize(
    "name",
    [
        "ddp_plain",
        "ddp_accumulation",
        "ddp_unused",
        "ddp_trainer_clip",
        "fsdp2_each",
        "fsdp2_accumulation",
        "fsdp2_trainer_clip",
        "fsdp2_partly_sharded",
        "tensor_parallelism",
        "two_dimensions",
        "fsdp2_extremes",
    ],
)
def test_watching_changes_no_weight_in_any_process(played, name):
    """The weights, or the part of them that a process holds, end as without GradWatch to the last bit."""
    for record in records_of(played, name):
        assert record["weights"] == record["unwatched_weights"]


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("ddp_trainer_clip", 0.05),
        ("ddp_clip_by_norm", 0.05),
        ("fsdp2_trainer_clip", 0.05),
        ("fsdp2_clip_by_norm", 0.05),
        ("fsdp2_partly_sharded_clip", 0.05),
        ("tensor_parallelism_clip", 0.05),
        ("fsdp2_extremes_clip", 1.0),
    ],
)
def test_clipping_bounds_the_norm_of_the_whole_gradient(played, name, bound):
    """Every step ends at the bound that the Trainer or the clipper was given, and not each process at its own."""
    for record in records_of(played, name):
        assert global_norms(record["norms"]).min() > 1.5 * bound
        assert global_norms([list(step.values()) for step in record["used"]]) == pytest.approx(bound, rel=1e-4)


@pytest.mark.supports("every clipper on gradients sharded by rows or by columns")
def test_a_shard_is_clipped_as_the_whole_would_be(played):
    """Global, layer and unit norms are those of whole gradients, whichever dimension is spread over the processes."""
    for record in records_of(played, "clippers_on_shards"):
        assert len(record["ends"]) == 6
        for name, ends in record["ends"].items():
            assert len(ends) == 9
            for place, gradients, norms, _ in ends:
                assert (gradients, norms) == (True, True), (name, place)
            assert any(changed for *_, changed in ends), name


@pytest.mark.parametrize("name", ["ddp_clip_by_value", "fsdp2_clip_by_value"])
def test_clipping_by_value_bounds_every_element(played, name):
    """Of 105 or 77 elements none is above 0.01, so their norm is not above its root times that."""
    for record in records_of(played, name):
        after = global_norms(record["clipped_norms"])
        assert after.max() <= 0.01 * np.sqrt(105) * (1 + 1e-6)
        assert (after < global_norms(record["norms"])).all()


@pytest.mark.supports("FSDP2 with uneven and empty shards")
def test_shards_are_uneven_and_one_process_has_none_of_a_layer(played):
    """What the norms above were measured from: 7 rows in parts of 4 and 3, and a layer of one row in one process."""
    first, second = records_of(played, "fsdp2_each")
    assert first["kinds"] == second["kinds"] == ["DTensor"]
    assert (first["elements"], second["elements"]) == ([32, 4, 7, 1, 2, 2], [24, 3, 0, 0, 1, 1])


@pytest.mark.parametrize("name", ["fsdp2_partly_sharded", "tensor_parallelism"])
def test_sharded_and_plain_tensors_stand_side_by_side(played, name):
    """The scenario holds what it says: DTensors and plain tensors in one optimizer."""
    for record in records_of(played, name):
        assert record["kinds"] == ["DTensor", "Tensor"]


@pytest.mark.supports("DDP with find_unused_parameters")
def test_unused_layers_are_the_same_in_every_process(played):
    """A layer that one process uses has a gradient in all; one that nobody uses has none and is no fault."""
    for record in records_of(played, "ddp_unused"):
        norms = dict(zip(record["layers"], np.array(record["norms"]).T, strict=True))
        assert (norms["net.sometimes"] > 0).all()
        assert np.isnan(norms["net.never"]).all()
        assert all("net.sometimes" in step and "net.never" not in step for step in record["used"])


@pytest.mark.supports("sharded gradients too large or too small for float32 squares, and exact zeros")
@pytest.mark.parametrize("name", ["fsdp2_extremes", "fsdp2_extremes_clip"])
def test_sharded_extremes_are_measured_in_double(played, name):
    """Sharded gradients of 1e30, 1e-30 and 0 are right in every process: the second look is a collective, too."""
    records = records_of(played, name)
    for record in records:
        assert_right(record)
        assert record["disabled"] is None
        norms = dict(zip(record["layers"], np.array(record["norms"]).T, strict=True))
        assert (norms["net.large"] > 1e29).all()
        assert ((norms["net.small"] > 0) & (norms["net.small"] < 1e-29)).all()
        assert (norms["net.zero"] == 0).all()
    assert_alike(records)


POISONED = [
    pytest.param("ddp", marks=pytest.mark.supports("a loss that is NaN in one process of DDP")),
    pytest.param("fsdp2", marks=pytest.mark.supports("a loss that is NaN in one process of FSDP2")),
    pytest.param("fsdp2_shard", marks=pytest.mark.supports("a NaN in one shard of FSDP2")),
    pytest.param("fsdp2_partly_sharded", marks=pytest.mark.supports("a NaN in one process that nobody averages")),
]


def poisoned_name(case: str, action: str) -> str:
    if case == "fsdp2_partly_sharded":
        return f"{case}_{action}"
    strategy, _, shard = case.partition("_")
    return "_".join(part for part in (strategy, action, shard) if part)


# In the second process alone: a loss that is NaN, or a gradient that nobody averages.
LOSS = f"rank 1 (HOST, cpu) batch {POISONED_BATCH}: loss nan; 1 other finite"
GRADIENT = (
    f"batch {POISONED_BATCH}: the loss was finite in 2 of 2 processes; the gradient broke in rank 1 (HOST, cpu) in "
)
SHARD = (
    f"batch {POISONED_BATCH}: the loss was finite in 2 of 2 processes: it began after the loss, in the backward pass"
)
ORIGINS = {"ddp": LOSS, "fsdp2": LOSS, "fsdp2_shard": SHARD, "fsdp2_partly_sharded": GRADIENT + "net.2"}


def inquests_of(played: Path, name: str) -> list[dict[str, Any]]:
    """Return the files that poisoned steps of a scenario have left, by step."""
    paths = (played / name / "gradwatch").glob("nonfinite-*.json")
    return sorted((json.loads(path.read_text()) for path in paths), key=lambda record: record["step"])


def assert_asked(played: Path, name: str, origin: str, step: int = POISONED_BATCH) -> dict[str, Any]:
    """Hold what the first process wrote down, and what it told, against where the fault was put."""
    record = next(record for record in inquests_of(played, name) if record["step"] == step)
    origin = origin.replace("HOST", socket.gethostname())
    assert record["origin"] == origin
    assert [row["rank"] for row in record["processes"]] == [0, 1]
    assert {row["step"] for row in record["processes"]} <= {step, None}
    assert log_of(played, name).count(origin) >= 1
    return record


@pytest.mark.parametrize("case", POISONED)
def test_all_processes_skip_the_same_step(played, case):
    """NaN in one process: the step is dropped in all of them, told once, and the next ones are taken."""
    name = poisoned_name(case, "skip")
    records = records_of(played, name)
    alone = case == "fsdp2_partly_sharded"
    for rank, record in enumerate(records):
        assert_right(record)
        assert record["disabled"] is None
        assert (record["skipped"], record["global_step"], record["error"]) == (1, STEPS, "")
        assert np.isfinite(np.delete(record["norms"], POISONED_BATCH, axis=0)).all()
        assert [len(step) > 0 for step in record["used"]] == [step != POISONED_BATCH for step in range(STEPS)]
        assert np.isfinite(np.concatenate(record["weights"])).all()
        if alone and rank == 0:
            # It is the other process's gradient: this one is only told of it.
            assert record["diagnoses"] == []
            continue
        assert [(d[0], d[1], d[2], d[4]) for d in record["diagnoses"]] == [
            ("non_finite", "non_finite", "warning", POISONED_BATCH)
        ]
        assert (record["diagnoses"][0][3] == ["net.0"]) is (case == "fsdp2_shard")
    if not alone:
        assert_alike(records)
        assert log_of(played, name).count("NON-FINITE: ") == 1
    assert_asked(played, name, ORIGINS[case])
    assert log_of(played, name).count("not finite: where it came from") == 1


@pytest.mark.parametrize("case", POISONED)
def test_all_processes_raise_at_the_same_step(played, case):
    """NaN in one process: training ends in all of them with the same words, and none waits for another."""
    name = poisoned_name(case, "raise")
    records = records_of(played, name)
    alone = case == "fsdp2_partly_sharded"
    origin = ORIGINS[case].replace("HOST", socket.gethostname())
    for rank, record in enumerate(records):
        layer = ("a layer that this process does not see" if rank == 0 else "net.2") if alone else "net.0"
        start = f"GradientFault: step {POISONED_BATCH}: gradients are not finite in {layer}"
        assert record["error"].startswith(start)
        assert record["error"].endswith(f"Where it began: {origin}")
        assert (record["disabled"], record["global_step"]) == (None, POISONED_BATCH)
        assert [d[0] for d in record["diagnoses"]] == ([] if alone and rank == 0 else ["non_finite"])
    if not alone:
        assert_alike(records)
        assert log_of(played, name).count("NON-FINITE: ") == 1
    assert assert_asked(played, name, ORIGINS[case])["weights"]["finite"]


@pytest.mark.supports("which process a step that is not finite came from")
def test_layers_that_ddp_leaves_alone_are_agreed_on(played):
    """A gradient that DDP does not average is NaN in one process: both drop the step, and who it was is told."""
    records = records_of(played, "ddp_ignored_skip")
    for record in records:
        assert (record["skipped"], record["disabled"], record["error"]) == (1, None, "")
        assert [len(step) > 0 for step in record["used"]] == [step != POISONED_BATCH for step in range(STEPS)]
    assert_asked(played, "ddp_ignored_skip", GRADIENT + "net.own")


@pytest.mark.supports("a layer that DDP does not average, unfrozen during training")
def test_a_layer_that_was_frozen_when_ddp_began_is_agreed_on(played):
    """Its gradient is each process's own: NaN in one of them drops the step in both, and neither waits for ever."""
    first, second = records_of(played, "ddp_unfrozen_skip")
    for record in (first, second):
        assert (record["skipped"], record["disabled"], record["error"], record["global_step"]) == (1, None, "", STEPS)
        assert [len(step) > 0 for step in record["used"]] == [step != POISONED_BATCH for step in range(STEPS)]
    assert (first["diagnoses"], [d[3] for d in second["diagnoses"]]) == ([], [["net.0"]])
    assert_asked(played, "ddp_unfrozen_skip", GRADIENT + "net.0")


@pytest.mark.supports("a failure of GradWatch in one process only")
@pytest.mark.parametrize("name", ["ddp_skip_and_cannot_look", "fsdp2_skip_and_numbers_fail"])
def test_a_process_that_sees_nothing_drops_the_step_with_the_others(played, name):
    """It can neither measure nor look, or its numbers do not arrive: it is told by the other one, which sees them."""
    for record in records_of(played, name):
        assert (record["skipped"], record["error"], record["global_step"]) == (1, "", STEPS)
        assert [len(step) > 0 for step in record["used"]] == [step != POISONED_BATCH for step in range(STEPS)]
        assert np.isfinite(np.concatenate(record["weights"])).all()
    record = assert_asked(played, name, SHARD if name.startswith("fsdp2") else LOSS)
    assert record["weights"]["finite"]


@pytest.mark.supports("a failure of GradWatch in one process only")
def test_a_failure_between_the_decision_and_the_end_ends_all(played):
    """All processes have agreed to end training: the one that cannot write it down ends with the others."""
    first, second = records_of(played, "ddp_raise_and_disk_fails")
    assert first["disabled"] == "PermissionError: broken on purpose"
    assert second["disabled"] is None
    for record in (first, second):
        assert record["error"].startswith(f"GradientFault: step {POISONED_BATCH}: ")
        assert record["error"].endswith(LOSS.replace("HOST", socket.gethostname()))


@pytest.mark.supports("a failure of GradWatch in one process only")
def test_a_disk_that_fails_when_the_answers_come_ends_nothing(played):
    """Training goes on in both, and the answers are told without the checkpoint."""
    name = "ddp_warn_and_disk_fails"
    for record in records_of(played, name):
        assert (record["disabled"], record["error"], record["global_step"]) == (None, "", FAILING_STEPS)
    assert assert_asked(played, name, LOSS)["last_clean_checkpoint"] is None
    assert log_of(played, name).count("cannot find the last clean checkpoint: PermissionError: broken on purpose") == 1


@pytest.mark.supports("which process a step that is not finite came from")
def test_steps_of_two_optimizers_are_asked_about_one_after_the_other(played):
    """Both break in the same batch: an exchange for each, and each file has its own answer."""
    for record in records_of(played, "ddp_two_optimizers_warn"):
        assert (record["disabled"], record["error"], record["global_step"]) == (None, "", 2 * FAILING_STEPS)
    for step in (2 * POISONED_BATCH, 2 * POISONED_BATCH + 1):
        record = assert_asked(played, "ddp_two_optimizers_warn", LOSS, step)
        assert {row["step"] for row in record["processes"]} == {step}
    # The same batch of the next epoch breaks again; what no exchange was left for is asked when training ends.
    assert len(inquests_of(played, "ddp_two_optimizers_warn")) == 4
    known = LOSS.replace("HOST", socket.gethostname())
    # Batches are counted anew in each epoch, which is named from the second on.
    again = known.replace("batch", "epoch 1, batch")
    origins = [record["origin"] for record in inquests_of(played, "ddp_two_optimizers_warn")]
    assert sorted(origins) == [known] * 2 + [again] * 2


@pytest.mark.supports("which process a step that is not finite came from")
@pytest.mark.parametrize("name", ["ddp_warn", "ddp_manual_skip", "ddp_stops_on_nonfinite", "ddp_warn_and_ends"])
def test_where_processes_may_not_wait_they_ask_at_their_exchange(played, name):
    """By default, and by hand: told at once of this process, and of all after the exchange, or when all stop."""
    records = records_of(played, name)
    stops = name in ("ddp_stops_on_nonfinite", "ddp_warn_and_ends")
    for record in records:
        assert (record["disabled"], record["error"]) == (None, "")
        assert record["global_step"] == (POISONED_BATCH + 1 if stops else FAILING_STEPS)
    assert_alike(records)
    record = assert_asked(played, name, LOSS)
    assert record["weights"]["finite"] is (name == "ddp_manual_skip")
    log = log_of(played, name)
    first, last = log.index("the other processes are asked within the next batches"), log.index("it came from rank 1")
    assert first < last


@pytest.mark.supports("a failure of GradWatch in one process only")
def test_a_process_that_is_off_is_asked_all_the_same(played):
    """The first process sees nothing any more when the second one's loss is NaN; it answers, tells, and goes on."""
    first, second = records_of(played, "ddp_warn_and_fails")
    assert (first["global_step"], second["global_step"]) == (FAILING_STEPS, FAILING_STEPS)
    assert first["disabled"] == "RuntimeError: broken on purpose"
    words = f"step {POISONED_BATCH}  not finite, it came from rank 1 ({socket.gethostname()}, cpu)"
    assert log_of(played, "ddp_warn_and_fails").count(words) == 1


@pytest.mark.supports("a failure of GradWatch in one process only")
def test_a_process_that_is_off_decides_with_the_others(played):
    """It still ends training together with them, and knows its loss."""
    first, second = records_of(played, "ddp_raise_and_fails")
    assert second["disabled"] == "RuntimeError: broken on purpose"
    for record in (first, second):
        assert record["error"].endswith(LOSS.replace("HOST", socket.gethostname()))


@pytest.mark.supports("a failure of GradWatch in one process only")
@pytest.mark.parametrize("name", ["fsdp2_partly_sharded_skip_and_fails", "ddp_ignored_cannot_begin"])
def test_a_failure_before_a_decision_stops_none(played, name):
    """One fails between measuring a step and deciding about it, or before it began: nobody waits for it for ever."""
    for record in records_of(played, name):
        assert (record["error"], record["global_step"]) == ("", FAILING_STEPS)
        assert record["skipped"] == (name == "fsdp2_partly_sharded_skip_and_fails")
        assert record["disabled"] is not None


@pytest.mark.supports("diagnoses, stop_on and one log in several processes")
@pytest.mark.parametrize("name", ["ddp_vanishing", "fsdp2_vanishing", "fsdp2_stop_on"])
def test_a_fault_is_the_same_everywhere_and_told_once(played, name):
    """All processes diagnose the same, one of them tells it, and ``stop_on`` stops all at the same step."""
    records = records_of(played, name)
    for record in records:
        assert_right(record)
        assert record["disabled"] is None
        assert [d[:3] + d[4:] for d in record["diagnoses"]] == [["vanishing.depth", "vanishing", "warning", 3]]
        assert record["diagnoses"][0][3][0] == "net.0"
        assert record["health"]
        assert record["global_step"] == (4 if name == "fsdp2_stop_on" else STEPS)
    assert_alike(records)
    log = log_of(played, name)
    assert log.count("VANISHING: ") - log.count("GradWatch  stop_on    VANISHING: ") == 1
    assert (played / name / "gradwatch" / "diagnoses.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("name", ["ddp_vanishing", "fsdp2_vanishing"])
def test_what_is_told_of_weights_is_a_number(played, name):
    """No process can see a whole sharded weight, yet their size was measured: a person never reads of "std nan"."""
    assert "std " in log_of(played, name)
    assert "std nan" not in log_of(played, name)


@pytest.mark.supports("losses that differ between processes")
def test_the_loss_is_the_mean_of_all_processes_and_decides_alike(played):
    """One process's loss falls, the other's rises: both judge by the mean, which they exchange every 20 batches."""
    records = records_of(played, "ddp_losses_differ")
    own = np.array([record["own_losses"] for record in records])
    assert [loss_has_fallen(losses[:40], 30) for losses in own] == [True, False]
    known = len(own[0]) // EVERY_N_BATCHES * EVERY_N_BATCHES
    assert known < len(own[0])
    for record in records:
        assert record["disabled"] is None
        # Those behind the last exchange are known when training ends, and decide nothing any more.
        assert record["losses"] == pytest.approx(own.mean(axis=0).tolist(), rel=1e-5)
        assert [(d[0], d[2], d[4]) for d in record["diagnoses"]] == [("vanishing.depth", "warning", known)]
    assert_alike(records)
    assert log_of(played, "ddp_losses_differ").count("  VANISHING: ") == 1


# How many collectives a reading takes.


@pytest.mark.parametrize(
    "name",
    [
        "count_fsdp2_of_2_layers",
        "count_fsdp2_of_20_layers",
        "count_fsdp2_clip_by_norm",
        "count_fsdp2_skip",
        "count_fsdp2_every_third_step",
    ],
)
def test_a_reading_of_shards_takes_one_collective(played, name):
    """One a reading, whatever the number of layers, with and without the weights, clipped or held back; else none."""
    for record in records_of(played, name):
        batches, readings = record["global_step"], len(record["norms"])
        every = 3 if name == "count_fsdp2_every_third_step" else 1
        assert readings == -(-batches // every)
        agreement = ["barrier", "allreduce_"] if name == "count_fsdp2_skip" else []
        reading = ["all_reduce", *agreement]
        assert record["of_readings"] == [[] if batch % every else reading for batch in range(batches)]
        exchanges = batches // EVERY_N_BATCHES
        # Where steps may be dropped all processes tell each other at the start that they can, and agree on each step.
        starts = 1 + batches if name == "count_fsdp2_skip" else 0
        assert [batch for batch, names in enumerate(record["of_batches"]) if names] == [
            EVERY_N_BATCHES * (number + 1) - 1 for number in range(exchanges)
        ]
        # Lightning puts a barrier before its reduction, and agrees on the directory of the log at the start. What is
        # open is exchanged at the end.
        meetings = exchanges + starts + 1
        expected = {"all_reduce": readings, "broadcast_": 2, "allreduce_": meetings, "barrier": meetings}
        assert record["more"] == {name: count for name, count in expected.items() if count}
        assert record["fewer"] == {}
        assert record["disabled"] is None


def test_a_second_look_takes_one_more_collective(played):
    """What float32 cannot hold is measured again by all at once; a layer that stays zero only every tenth time."""
    for record in records_of(played, "count_fsdp2_extremes"):
        assert record["of_readings"] == [["all_reduce"] * 2] * 12
    for record in records_of(played, "count_fsdp2_zeros"):
        assert [len(names) for names in record["of_readings"]] == [2] + 9 * [1] + [2, 1]


def test_ddp_takes_no_collective_but_the_exchange(played):
    """Averaged gradients need none; every 20 batches, and at the end, all processes exchange their losses."""
    for record in records_of(played, "count_ddp"):
        assert record["of_readings"] == [[]] * 45
        assert [batch for batch, names in enumerate(record["of_batches"]) if names] == [19, 39]
        assert record["more"] == {"broadcast_": 2, "allreduce_": 3, "barrier": 3}
        assert record["fewer"] == {}
        assert record["disabled"] is None


@pytest.mark.supports("which process a step that is not finite came from")
@pytest.mark.parametrize("name", ["count_ddp_poisoned_skip", "count_ddp_poisoned_warn", "count_fsdp2_poisoned_skip"])
def test_an_onset_takes_one_more_collective(played, name):
    """Where a step is dropped at once, and by default at the next exchange; beside what every step takes."""
    for record in records_of(played, name):
        of_readings = [names.count("allgather_") for names in record["of_readings"]]
        of_batches = [names.count("allgather_") for names in record["of_batches"]]
        later = name == "count_ddp_poisoned_warn"
        assert np.flatnonzero(of_readings).tolist() == ([] if later else [POISONED_BATCH])
        assert np.flatnonzero(of_batches).tolist() == ([EVERY_N_BATCHES - 1] if later else [])
        assert record["more"]["allgather_"] == 1
        # A sharded gradient that is not finite is looked at once more in float64.
        sharded = name == "count_fsdp2_poisoned_skip"
        assert record["more"].get("all_reduce", 0) == (record["global_step"] + 1 if sharded else 0)
        # At the end they exchange once more; where steps may be dropped they meet at the start and in each of them.
        meetings = record["global_step"] // EVERY_N_BATCHES + 1 + (0 if later else 1 + record["global_step"])
        assert record["more"]["allreduce_"] == record["more"]["barrier"] == meetings
        assert record["disabled"] is None


# A GradWatch that fails in one process only.

JUDGING_FAILS = ["ddp_judging_fails", "fsdp2_judging_fails", "fsdp2_judging_fails_and_clips"]
JUDGING_FAILS += ["fsdp2_judging_fails_every_third_step"]


def assert_all_off(played: Path, name: str, failed: int, steps: int = FAILING_STEPS) -> None:
    """Training went through in all processes, all are switched off, and the log says why."""
    records = records_of(played, name)
    for rank, record in enumerate(records):
        assert (record["error"], record["global_step"]) == ("", steps)
        reason = "RuntimeError: broken on purpose" if rank == failed else "it failed in another process"
        assert record["disabled"].startswith(reason)
        assert "switched off" in record["health"]
        assert record["diagnoses"] == []
    log = log_of(played, name)
    assert "is switched off, training goes on unwatched" in log
    assert "SWITCHED OFF during the run" in log
    assert "broken on purpose" in log


@pytest.mark.supports("a failure of GradWatch in one process only")
@pytest.mark.parametrize("name", JUDGING_FAILS)
def test_a_process_that_fails_switches_all_off_and_stops_none(played, name):
    """The second process fails alone: it goes on measuring with the others until the next exchange, then all stop."""
    assert_all_off(played, name, failed=1)
    first, second = records_of(played, name)
    every = 3 if name == "fsdp2_judging_fails_every_third_step" else 1
    assert len(second["norms"]) == -(-(FAILS_AT + 1) // every)
    assert len(first["norms"]) == -(-OFTEN // every)
    measured = SimpleNamespace(steps=first["before"][:OFTEN:every])
    assert_same(SimpleNamespace(**first), measured)


@pytest.mark.supports("a failure of GradWatch in one process only")
def test_a_clipper_outlives_a_failure_in_one_process(played):
    """Where clipping was asked for, every step is clipped by the norm of the whole gradient, switched off or not."""
    for record in records_of(played, "fsdp2_judging_fails_and_clips"):
        assert len(record["used"]) == FAILING_STEPS
        assert global_norms([list(step.values()) for step in record["used"]]) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.supports("a failure of GradWatch in one process only")
def test_a_clipper_that_fails_in_one_process_stops_none(played):
    """It fails after the gradients were measured, so all go on measuring; after the next exchange none clips."""
    first, second = records_of(played, "fsdp2_clipper_fails")
    for record in (first, second):
        assert (record["error"], record["global_step"], record["disabled"]) == ("", FAILING_STEPS, None)
        assert_same(SimpleNamespace(**record), SimpleNamespace(steps=record["before"]))
    assert first["norms"] == second["norms"]
    unclipped = global_norms([list(step.values()) for step in first["used"]])[OFTEN:]
    assert unclipped == pytest.approx(global_norms([list(step.values()) for step in first["before"]])[OFTEN:], rel=1e-5)
    log = log_of(played, "fsdp2_clipper_fails")
    assert log.count("clipper failed in another process, training goes on unclipped in all") == 1
    assert log.count("failed in one of several processes: clipper Breaks: RuntimeError: broken on purpose") == 1


@pytest.mark.supports("a failure of GradWatch in one process only")
@pytest.mark.parametrize("name", ["ddp_start_fails", "fsdp2_start_fails"])
def test_a_start_that_fails_in_one_process_switches_all_off(played, name):
    """The first process never begins to watch; it still measures together with the others until they know."""
    assert_all_off(played, name, failed=0)


@pytest.mark.supports("a failure of GradWatch in one process only")
def test_a_sink_that_fails_leaves_all_processes_watching(played):
    """Sinks are called in the first process only; one that fails is named once and nothing else changes."""
    records = records_of(played, "fsdp2_sink_fails")
    for record in records:
        assert_right(record)
        assert record["disabled"] is None
        assert record["global_step"] == len(record["norms"]) == FAILING_STEPS
    assert_alike(records)
    assert log_of(played, "fsdp2_sink_fails").count("sink BrokenSink failed and is switched off") == 1


@pytest.mark.supports("a failure of GradWatch in one process only")
@pytest.mark.parametrize("name", ["ddp_fitted_again", "fsdp2_fitted_again"])
def test_a_second_fit_after_a_failure_in_one_process_goes_through(played, name):
    """One process failed in the first fit, too late for an exchange: the second fit hangs in no process."""
    for record in records_of(played, name):
        assert record["global_step"] == FAILING_STEPS
        assert record["disabled"] is not None


# Loops without a Trainer.


def mean_losses(records: list[dict[str, Any]]) -> Any:
    """Return the mean over all processes of each step's loss."""
    return np.mean([record["own_losses"] for record in records], axis=0)


@pytest.mark.supports("attach: DDP")
def test_an_attached_loop_measures_the_averaged_gradient_in_every_process(played):
    """Each process has batches of its own, and all have the same norms and mean losses; only the first one tells."""
    records = records_of(played, "loop_plain")
    assert records[0]["own_losses"] != records[1]["own_losses"]
    for record in records:
        assert_right(record)
        assert record["disabled"] is None
        assert record["global_step"] == len(record["norms"]) == STEPS
        assert record["weights"] == record["unwatched_weights"]
        assert (record["diagnoses"], record["health"], record["error"]) == ([], "", "")
        np.testing.assert_allclose(record["losses"], mean_losses(records), rtol=1e-6)
    assert_alike(records)
    log = log_of(played, "loop_plain")
    assert log.count("GradWatch  watching") == log.count("GradWatch  seen") == 1


@pytest.mark.supports("attach: DDP")
def test_an_attached_loop_skips_in_all_processes(played):
    """The loss of one process is NaN: no process uses the step, and the weights end the same."""
    records = records_of(played, "loop_skip")
    for record in records:
        assert_right(record)
        assert (record["skipped"], record["error"], record["global_step"]) == (1, "", STEPS)
        assert record["used"][POISONED_BATCH] == {}
        assert np.isfinite(np.concatenate(record["weights"])).all()
    assert records[0]["weights"] == records[1]["weights"]
    assert_alike(records)
    assert "rank 1 (" in log_of(played, "loop_skip")


@pytest.mark.supports("attach: DDP")
def test_an_attached_loop_ends_in_all_processes_with_the_same_error(played):
    """With `on_nonfinite="raise"` every process leaves its block at the same step."""
    for record in records_of(played, "loop_raise"):
        assert record["error"].startswith("GradientFault")
        assert record["global_step"] == POISONED_BATCH


@pytest.mark.supports("attach: DDP")
def test_should_stop_is_true_in_all_processes_at_once(played):
    """All processes leave the loop after the same step, and all that was open was exchanged."""
    records = records_of(played, "loop_stop_on")
    assert_alike(records)
    assert records[0]["global_step"] == 4
    assert [rule for rule, *_ in records[0]["diagnoses"]] == ["vanishing.depth"]
    np.testing.assert_allclose(records[0]["losses"], mean_losses(records), rtol=1e-6)


@pytest.mark.supports("attach: DDP")
def test_an_attached_loop_that_fails_in_one_process_makes_no_other_wait(played):
    """One process raises and is gone; the other one learns it from torch, and leaves its block without an exchange."""
    first, second = records_of(played, "loop_with_one_that_fails")
    assert second["error"] == "RuntimeError: broken on purpose"
    assert first["error"] != ""
    assert "imed out" not in first["error"]
    for record in (first, second):
        assert (len(record["norms"]), record["disabled"]) == (2, None)
    assert log_of(played, "loop_with_one_that_fails").count("GradWatch  seen") == 1


# Processes that Lightning starts itself.


@pytest.mark.supports("ddp_spawn and ddp_fork")
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
# Lightning forks after torch has made its threads; each process has one here.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork", "ignore:.*DistributedSampler")
def test_processes_that_end_keep_what_they_saw(pl, tmp_path, data, strategy):
    """The processes that train watch; the one that started them saw nothing and says so instead of "healthy"."""
    watch = Keeps(tmp_path)
    trainer_in(pl, tmp_path, watch, strategy=strategy, devices=2, max_steps=3).fit(Plain(), data)
    records = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert records[0]["norms"] == records[1]["norms"]
    assert len(records[0]["norms"]) == 3
    assert [record["disabled"] for record in records] == [None, None]
    assert len(watch.history) == 0
    with pytest.raises(AssertionError, match=r"saw no gradient.*ddp_spawn and ddp_fork what was seen stays"):
        watch.assert_healthy()
