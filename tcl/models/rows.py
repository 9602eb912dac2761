"""Taking rows of a batch, some of them several times and some not at all."""

from __future__ import annotations

from torch import Tensor


def take_rows(states: Tensor, rows: Tensor) -> Tensor:
    """`states[rows]` for int64 `rows`, with a gradient that does not change from one run to the next.

    A row that is taken several times gets the sum of what comes back. On a CPU, the threads that compute the gradient
    of `states[rows]` add to it as they come by, and so the last bits of the sum depend on which was first; that of
    `index_select` is added in the order of `rows`. On a GPU it is `index_select` that adds as it comes, and indexing
    that sorts first.
    """
    return states.index_select(0, rows) if states.device.type == "cpu" else states[rows]
