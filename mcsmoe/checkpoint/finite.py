"""Whether all values are finite, without a copy of them."""

import math

from torch import Tensor


def all_finite(value: Tensor) -> bool:
    """True where no value is NaN or infinite; integers always are finite.

    Least and greatest value tell: NaN is passed on by both. `isfinite` would make three temporary tensors.
    """
    if not value.is_floating_point() or not value.numel():
        return True
    return all(math.isfinite(float(extreme)) for extreme in value.aminmax())
