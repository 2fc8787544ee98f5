"""Test ``lightning_gradwatch.surroundings``."""

from __future__ import annotations

from lightning_gradwatch.surroundings import Surroundings


def test_a_process_alone_hears_itself_and_knows_no_checkpoint():
    """What is asked where nobody else trains comes back, and nothing is written."""
    alone = Surroundings()
    assert list(alone.gather(b"mine")) == [b"mine"]
    assert alone.last_clean(100) is None
    assert (alone.rank, alone.num_processes, alone.directory) == (0, 1, None)
