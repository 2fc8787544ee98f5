"""Test ``lightning_gradwatch.viewer.records``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from lightning_gradwatch.viewer import records
from lightning_gradwatch.viewer.records import RecordFile, checksums


def written(path: Path, datas: list[bytes]) -> RecordFile:
    """Write records as TensorBoard does and return the file."""
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for data in datas:
            writer.write(data)
    return RecordFile(path)


@pytest.fixture
def datas() -> list[bytes]:
    """Return records of several lengths, all with the mark."""
    return [bytes([number]) * (5 + 37 * number) + b"mark" for number in range(20)]


class TestChecksums:
    """Many checksums at once."""

    @given(st.lists(st.binary(min_size=4, max_size=70), min_size=1, max_size=8))
    def test_they_are_those_of_tensorboard(self, datas: list[bytes]) -> None:
        """Whatever the bytes and however their lengths differ."""
        assert checksums(datas).tolist() == [masked_crc32c(data) for data in datas]


class TestRecordFile:
    """Records of a file in any state."""

    def test_it_reads_what_tensorboard_writes(self, tmp_path: Path, datas: list[bytes]) -> None:
        """All records, in order, byte for byte."""
        file = written(tmp_path / "f", datas)
        assert list(file.read(b"mark")) == datas
        assert (file.num_damaged, file.is_lost, file.offset) == (0, False, file.path.stat().st_size)

    def test_records_without_the_mark_are_skipped(self, tmp_path: Path, datas: list[bytes]) -> None:
        """An event file has much that is not ours."""
        assert list(written(tmp_path / "f", [b"other data", *datas]).read(b"mark")) == datas

    def test_batches_are_read_one_after_the_other(
        self, tmp_path: Path, datas: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The size of a batch changes nothing."""
        monkeypatch.setattr(records, "_BATCH", 500)
        assert list(written(tmp_path / "f", datas).read(b"mark")) == datas

    def test_wherever_a_file_is_cut_off_the_whole_records_are_read_and_the_rest_later(
        self, tmp_path: Path, datas: list[bytes]
    ) -> None:
        """At each of its bytes: first what is complete, then, when the rest has come, the others."""
        whole = written(tmp_path / "whole", datas[:4]).path.read_bytes()
        ends = [sum(len(data) + 16 for data in datas[:count]) for count in range(5)]
        for cut in range(len(whole)):
            file = RecordFile(tmp_path / "growing")
            file.path.write_bytes(whole[:cut])
            num_complete = max(count for count, end in enumerate(ends) if end <= cut)
            assert list(file.read(b"mark")) == datas[:num_complete]
            assert not file.is_lost
            file.path.write_bytes(whole)
            assert list(file.read(b"mark")) == datas[num_complete:4]

    def test_whichever_byte_is_flipped_no_wrong_data_comes_out(self, tmp_path: Path, datas: list[bytes]) -> None:
        """A damaged record is left out and those behind it are read, unless its length is damaged."""
        whole = written(tmp_path / "whole", datas[:3]).path.read_bytes()
        second = len(datas[0]) + 16
        for place in range(second, second + len(datas[1]) + 16):
            file = RecordFile(tmp_path / "damaged")
            file.path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            in_length = place < second + 12
            in_mark = second + 12 + len(datas[1]) - 4 <= place < second + 12 + len(datas[1])
            assert list(file.read(b"mark")) == (datas[:1] if in_length else [datas[0], datas[2]])
            assert (file.is_lost, file.num_damaged) == (in_length, 0 if in_length or in_mark else 1)

    def test_an_empty_file_has_nothing(self, tmp_path: Path) -> None:
        """It is made before anything is written into it."""
        assert list(written(tmp_path / "f", []).read(b"")) == []

    def test_a_file_of_zeros_ends_at_once(self, tmp_path: Path) -> None:
        """A crash of the machine may leave zeros behind."""
        (tmp_path / "f").write_bytes(bytes(1000))
        file = RecordFile(tmp_path / "f")
        assert list(file.read(b"")) == []
        assert file.is_lost

    def test_a_file_that_has_become_smaller_is_read_from_its_beginning(
        self, tmp_path: Path, datas: list[bytes]
    ) -> None:
        """Another one has taken its place."""
        file = written(tmp_path / "f", datas)
        assert len(list(file.read(b"mark"))) == 20
        written(tmp_path / "f", datas[:2])
        assert list(file.read(b"mark")) == datas[:2]
