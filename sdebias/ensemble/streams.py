"""Random streams: one for each seed block, the same whatever comes after it."""

from __future__ import annotations

import numpy as np
import torch


def block_generators(seed: int, blocks: int, device: torch.device) -> list[torch.Generator]:
    """Return one RNG for each block, spawned from ``numpy.random.SeedSequence(seed)``.

    The first streams of a longer list equal those of a shorter one. torch's CPU RNG keeps only 32 bits of a seed, in
    which ten thousand blocks would share a stream with probability 1 %: a seed that is taken is replaced by the
    next word of its own sequence.
    """
    taken: set[int] = set()
    generators = []
    for child in np.random.SeedSequence(seed).spawn(blocks):
        words = 1
        while (word := int(child.generate_state(words)[-1])) in taken:
            words += 1
        taken.add(word)
        generators.append(torch.Generator(device).manual_seed(word))
    return generators
