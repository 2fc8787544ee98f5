"""Test ``lightning_gradwatch.measure.room``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradwatch.measure import room
from lightning_gradwatch.measure.room import bytes_free, bytes_needed

CPU = torch.device("cpu")


def test_every_tensor_and_array_counts():
    """Parameters, buffers, plain attributes and lists of them: by hand."""
    model = nn.BatchNorm1d(4)
    weights, buffers = 2 * 4 * 4, 2 * 4 * 4 + 8
    assert bytes_needed(model) == {CPU: weights * 4 + buffers}
    model.weight.requires_grad_(False)
    assert bytes_needed(model) == {CPU: weights + 16 * 3 + buffers}
    model.table = [torch.zeros(10, dtype=torch.float64), {"array": np.zeros(5)}]
    assert bytes_needed(model) == {CPU: weights + 16 * 3 + buffers + 80 + 40}


def test_what_lies_behind_a_view_counts_once():
    """A deepcopy has the whole storage of a slice, and shares it among several slices."""
    model = nn.Module()
    whole = torch.zeros(1000)
    model.first, model.second = whole[:1], whole[1:2]
    assert bytes_needed(model) == {CPU: 4000}


def test_tied_parameters_count_once():
    """The same tensor under two names is one."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert bytes_needed(model) == {CPU: 36 * 4}


def test_free_memory_is_what_linux_tells(tmp_path, monkeypatch):
    """The smaller of what the machine and the container have left; unknown bounds do not count."""
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    group.mkdir()
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:      50 kB\n")
    monkeypatch.setattr(room, "_MEMINFO", meminfo)
    monkeypatch.setattr(room, "_CGROUP", group)
    assert bytes_free(CPU) == 50 * 1024
    (group / "memory.max").write_text("max\n")
    assert bytes_free(CPU) == 50 * 1024
    (group / "memory.max").write_text("3000\n")
    (group / "memory.current").write_text("1000\n")
    assert bytes_free(CPU) == 2000
    meminfo.unlink()
    assert bytes_free(CPU) == 2000


def test_a_container_of_the_first_kind_counts_as_well(tmp_path, monkeypatch):
    """Version 1 of cgroup has other names, and a number near 2^63 where there is no bound."""
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    monkeypatch.setattr(room, "_pages", lambda: None)
    group = tmp_path / "memory"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("5000\n")
    (group / "memory.usage_in_bytes").write_text("2000\n")
    assert bytes_free(CPU) == 3000
    (group / "memory.usage_in_bytes").write_text("6000\n")
    assert bytes_free(CPU) == 0
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert bytes_free(CPU) is None


@pytest.mark.parametrize(
    ("bound", "used", "stat", "row"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ],
)
def test_cached_files_are_not_counted_as_used(tmp_path, monkeypatch, bound, used, stat, row):
    """A data set that was read lies in the cache, which gives way; a sum that says more than all is no debt."""
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    monkeypatch.setattr(room, "_pages", lambda: None)
    (tmp_path / "memory").mkdir()
    (tmp_path / bound).write_text("5000\n")
    (tmp_path / used).write_text("4000\n")
    assert bytes_free(CPU) == 1000
    (tmp_path / stat).write_text(f"anon 500\n\nactive_file 7\n{row} 3000\nother 1\n")
    assert bytes_free(CPU) == 4000
    (tmp_path / stat).write_text(f"{row} 9000\n")
    assert bytes_free(CPU) == 5000
    (tmp_path / stat).write_text(f"{row} unknown\n")
    assert bytes_free(CPU) == 1000
