"""Random streams: one for each seed block, the same whatever comes after it."""

from __future__ import annotations

import numpy as np


def block_seeds(seed: int, blocks: int) -> list[int]:
    """Return the seed of the RNG of each block, spawned from ``numpy.random.SeedSequence(seed)``.

    The first seeds of a longer list equal those of a shorter one. torch's CPU RNG keeps only 32 bits of a seed, in
    which ten thousand blocks would share a stream with probability 1 %: a seed that is taken is replaced by the
    next word of its own sequence.
    """
    seeds: dict[int, None] = {}
    for child in np.random.SeedSequence(seed).spawn(blocks):
        words = 1
        while (word := int(child.generate_state(words)[-1])) in seeds:
            words += 1
        seeds[word] = None
    return list(seeds)
