"""Mutated configurations and files: each is refused in one line, or gives what it says. Seeds are fixed.

``make fuzz`` takes 2,000 configurations and 500 files; here are fewer of both.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from campaign import configurations, damaged
from configurations import check
from files import originals
from outcomes import RIGHT
from tables import bases, to_toml, write_data

import sdebias as sb
from sdebias.errors import DataError


@pytest.mark.parametrize("table", bases(), ids=lambda table: table["problem"]["model"])
def test_what_is_mutated_is_right(table: dict[str, dict[str, object]], tmp_path: Path) -> None:
    write_data(tmp_path)
    assert check(to_toml(table), tmp_path, whole=False) == RIGHT


def test_configurations(tmp_path: Path) -> None:
    tally = configurations(50, tmp_path)
    assert tally.bugs == []
    assert tally.counts.total() == 50


@pytest.mark.slow
def test_many_configurations(tmp_path: Path) -> None:
    tally = configurations(500, tmp_path)
    assert tally.bugs == []


def test_files(tmp_path: Path) -> None:
    tally = damaged(range(20), tmp_path)
    assert tally.bugs == []
    assert tally.counts.total() == 20


@pytest.mark.slow
def test_many_files(tmp_path: Path) -> None:
    assert damaged(range(10_000, 10_120), tmp_path).bugs == []


def test_every_byte_of_a_file_counts(tmp_path: Path) -> None:
    file = originals(tmp_path)[0]
    written = file.read_bytes()
    for at in range(0, len(written) - 80, 997):
        file.write_bytes(written[:at] + bytes([written[at] ^ 1]) + written[at + 1 :])
        with pytest.raises(DataError, match="the file is damaged"):
            sb.open(file)
    file.write_bytes(written)
    sb.open(file).close()
