"""Granularity 2:4: of every four consecutive entries along the input channels two are kept. Functions on [..., 4]."""

from __future__ import annotations

import torch
from torch import Tensor


def two_of_four(score: Tensor) -> Tensor:
    """bool [..., 4], True at the two largest scores of each four; of equal ones the lower index. NaN counts as largest.

    Each of the four is kept iff it beats at least two of the other three.
    """
    a, b, c, d = torch.nan_to_num(score, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).unbind(-1)
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
    kept = (_two(ab, ac, ad), _two(~ab, bc, bd), _two(~ac, ~bc, cd), _two(~ad, ~bd, ~cd))
    return torch.stack(kept, -1)


def _two(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Whether at least two of three hold."""
    return (a & b) | (c & (a | b))


def exchange(size: Tensor, kept: Tensor, score: Tensor, drop: int) -> Tensor:
    """New `kept` (bool [..., 4]): `drop` fours exchange their weaker weight for the best scored of the three not kept.

    Those whose weaker weight, of the two that are kept, is smallest; of equal ones in a four the higher index is the
    weaker. What was dropped may come back. size: |theta|; score: >= 0, e.g. |gradient|; both [..., 4].
    """
    sizes, old, scores = (x.reshape(-1, 4) for x in (size, kept, score))
    weaker, from_the_end = sizes.masked_fill(~old, torch.inf).flip(-1).min(-1)
    chosen = weaker.topk(min(drop, len(weaker)), largest=False).indices
    rest = old[chosen].scatter(-1, 3 - from_the_end[chosen].unsqueeze(-1), False)
    best = scores[chosen].masked_fill(rest, -torch.inf).argmax(-1, keepdim=True)
    new = old.clone()
    new[chosen] = rest.scatter(-1, best, True)
    return new.view(kept.shape)
