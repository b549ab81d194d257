"""Short digests of texts, the same in every process and on every machine."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def row_key(text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def first_of(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each key the place of the first that equals it; its own where there is no earlier one."""
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found: NDArray[np.int64] = firsts[inverse.reshape(-1)]
    return found
