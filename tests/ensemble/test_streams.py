"""Random streams of seed blocks."""

from __future__ import annotations

import numpy as np
import pytest

from sdebias.ensemble.streams import block_seeds


def test_streams_of_a_longer_list_begin_with_those_of_a_shorter() -> None:
    assert block_seeds(7, 20)[:3] == block_seeds(7, 3)


def test_streams_differ_by_block_and_seed() -> None:
    seeds = [word for seed in range(3) for word in block_seeds(seed, 50)]
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
    seeds = block_seeds(0, 12)
    assert len(set(seeds)) == 12
    assert block_seeds(0, 5) == seeds[:5]
