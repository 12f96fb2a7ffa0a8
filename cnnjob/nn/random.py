"""Counter-based random numbers: each is a function of its address (seed, purpose, indices).

A resumed run therefore draws the same numbers as an uninterrupted one, and checkpoints store no generator state.
"""

from enum import IntEnum

import numpy as np

from cnnjob.nn.arena import Array

_MASK = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Purpose(IntEnum):
    """The purpose for which a random number is drawn; it is part of the number's address."""

    INIT = 1
    ORDER = 2
    VALIDATION = 3
    SPLIT = 4
    AUGMENTATION = 5
    SALIENCY = 6
    MIXUP = 7
    DROPOUT = 1 << 16
    """Base value, to which the layer's index in the network is added."""


def generator(seed: int, purpose: int, *indices: int) -> np.random.Generator:
    """Return a generator for an address (Philox4x64-10, Salmon et al. 2011).

    Args:
        seed: the job's seed.
        purpose: purpose of the numbers.
        indices: up to two more numbers in the address, such as the epoch.

    Returns:
        A new generator.
    """
    # NumPy counts up from the lowest word: with the indices in the high words, two addresses never share a block.
    counter = np.array([0, 0, *indices, 0, 0][:4], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter))


def permutation(count: int, seed: int, purpose: int, *indices: int) -> Array:
    """Return the numbers 0 … count−1 in random order, int64 (count,)."""
    return generator(seed, purpose, *indices).permutation(count)


class Philox:
    """A generator of 32-bit words from counters and a key, in preallocated memory (Salmon et al. 2011, §3.2).

    It is Philox4x32-10; NumPy's own Philox is the 64-bit variant. The CUDA kernels compute the same words.
    """

    def __init__(self, memory: Array) -> None:
        """Use the array ``memory``, uint64 (6, n), to draw n blocks of four words."""
        # 64 bits per word, because the product of two 32-bit words must fit.
        self._high, self._low = memory[:2]
        self.words: Array = memory[2:]
        """The counters, uint64 (4, n) with values below 2³²; :meth:`rounds` turns them into the random words."""

    def draw(self, seed: int, purpose: int, *counter: Array | int) -> None:
        """Draw the words with key (seed, purpose) and a counter of up to four words."""
        for word, value in zip(self.words, [*counter, 0, 0, 0, 0], strict=False):
            np.copyto(word, value, casting="unsafe")
        self.rounds(seed, purpose)

    def rounds(self, key0: int, key1: int) -> None:
        """Turn the counters into random words in place, given the two words of the key."""
        for number in range(_ROUNDS):
            keys = [(key + number * weyl) & 0xFFFFFFFF for key, weyl in zip((key0, key1), _WEYL, strict=True)]
            self._round(*(np.uint64(key) for key in keys))

    def _round(self, key0: np.uint64, key1: np.uint64) -> None:
        """Compute (c0, c1, c2, c3) ← (hi(M1·c2)^c1^k0, lo(M1·c2), hi(M0·c0)^c3^k1, lo(M0·c0))."""
        c0, c1, c2, c3 = self.words
        # Compute both products first, because the outputs overwrite the words from which they are computed.
        np.multiply(c0, _MULTIPLIERS[0], out=self._low)
        np.multiply(c2, _MULTIPLIERS[1], out=self._high)
        np.right_shift(self._high, np.uint64(32), out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, key0, out=c0)
        np.bitwise_and(self._high, _MASK, out=c1)
        np.right_shift(self._low, np.uint64(32), out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, key1, out=c2)
        np.bitwise_and(self._low, _MASK, out=c3)


class Uniform:
    """Uniform numbers in [0, 1), addressed by (seed, purpose, step, element), in preallocated memory.

    Element i of step t is word i mod 4 of the :class:`Philox` block with counter (i div 4, t, t div 2³², 0) and key
    (seed, purpose). Each number is made from the 24 highest bits of its word, which a float32 represents exactly.
    """

    def __init__(self, memory: Array, values: Array, first: int = 0) -> None:
        """Use this memory for n numbers.

        Args:
            memory: uint64 (6, ⌈n/4⌉), overwritten.
            values: float32 (⌈n/4⌉, 4), receives the numbers.
            first: index of the block that contains the first number (the number's index div 4).
        """
        self._philox = Philox(memory)
        self.values = values
        self._first = first

    def draw(self, seed: int, purpose: int, step: int) -> None:
        """Write the numbers of a step to ``values``."""
        words = self._philox.words
        # Compute block numbers first, first + 1, … as a running sum of ones, since np.arange would allocate.
        words[0], words[0, 0] = 1, self._first
        np.cumsum(words[0], out=words[0])
        self._philox.draw(seed, purpose, words[0], step & 0xFFFFFFFF, step >> 32)
        np.right_shift(words, np.uint64(8), out=words)
        np.multiply(words.T, np.float32(2.0**-24), out=self.values, casting="unsafe")
