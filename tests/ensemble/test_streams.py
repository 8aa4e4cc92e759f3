"""Random streams of seed blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdebias.ensemble.streams import block_generators

CPU = torch.device("cpu")


def test_streams_of_a_longer_list_begin_with_those_of_a_shorter() -> None:
    short, long = (block_generators(7, blocks, CPU) for blocks in (3, 20))
    for one, two in zip(short, long, strict=False):
        assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=two))


def test_streams_differ_by_block_and_seed() -> None:
    seeds = [g.initial_seed() for seed in range(3) for g in block_generators(seed, 50, CPU)]
    assert len(set(seeds)) == 150


def test_a_seed_that_is_taken_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With seeds of four bits, twelve blocks collide surely; they must still differ, and keep their order."""
    whole = np.random.SeedSequence

    class Short(whole):  # type: ignore[misc, valid-type]
        def spawn(self, n_children: int) -> list[Short]:
            return [Short(entropy=self.entropy, spawn_key=(i,)) for i in range(n_children)]

        def generate_state(self, n_words: int, dtype: type = np.uint32) -> np.ndarray:
            return super().generate_state(n_words, dtype) % 16

    monkeypatch.setattr(np.random, "SeedSequence", Short)
    seeds = [g.initial_seed() for g in block_generators(0, 12, CPU)]
    assert len(set(seeds)) == 12
    assert [g.initial_seed() for g in block_generators(0, 5, CPU)] == seeds[:5]
