"""The native loop over pieces of a device copy (native_ext/device_copy.pyx)."""

import numpy as np
from numpy.typing import NDArray

def enqueue(function: int, pieces: NDArray[np.uint64], kind: int, stream: int) -> tuple[int, int]: ...
