"""The formulas of learned thresholds (RG-GAN, AAAI 2024; dynamic sparse training, ICLR 2020), on plain tensors.

`theta` is the dense weight, `threshold` one value per output filter, broadcast against it. Where the policy measures
weights in units of their layer, `scale` is that unit (0-dim) and |theta| / scale takes the place of |theta|.
"""

from __future__ import annotations

import torch
from torch import Tensor


def surrogate_derivative_(x: Tensor, inside: Tensor | None = None) -> Tensor:
    """H'(x), the long-tailed estimate of the derivative of the unit step (Xu & Cheung 2020), in place.

    2 - 4|x| for |x| <= 0.4; 0.4 for 0.4 < |x| <= 1; 0 beyond. inside: memory to work in, like x.
    """
    x.abs_()
    inside = (torch.empty_like(x) if inside is None else inside).copy_(x)
    inside.le_(1)  # in place: 1.0 / 0.0 in x's dtype, which is vectorized on a CPU
    return x.mul_(-4).add_(2).clamp_min_(0.4).mul_(inside)


def margin(theta: Tensor, threshold: Tensor, scale: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """|theta| / scale - t: positive where a weight is kept (RG-GAN, Eq. 1). Shapes as theta."""
    return _size(theta, scale, out).sub_(threshold)


def threshold_gradient(product: Tensor, derivative: Tensor) -> Tensor:
    """Summand of the task gradient of a threshold; the sum over a filter and a sign are the caller's.

    dL/dt_i = -sum_j A_ij theta_ij H'(|theta_ij| / scale - t_i)        (RG-GAN, Eq. 1 and 3)

    product: A * theta, with A the gradient w.r.t. the masked weight. derivative: H'. Both weight-shaped.
    """
    return product.mul_(derivative)


def surrogate_weight_term(theta: Tensor, derivative: Tensor, scale: Tensor | None = None) -> Tensor:
    """Factor 1 + |theta| H' / scale of A, for `weight_gradient: full`: the mask's own dependence on the weight.

    dL/dtheta_ij = A_ij (M_ij + theta_ij H'(|theta_ij| - t_i) sign(theta_ij)), then times M   (methods of DST, RG-GAN)
    """
    term = theta.abs().mul_(derivative)
    return (term if scale is None else term.div_(scale)).add_(1)


def pruned_entries(theta: Tensor, threshold: Tensor, scale: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """1.0 where |theta| / scale <= t, else 0.0 (Eq. 1: kept iff strictly above). NaN is kept, and so stays visible."""
    return _size(theta, scale, out).le_(threshold)


def _size(theta: Tensor, scale: Tensor | None, out: Tensor | None) -> Tensor:
    size = torch.abs(theta) if out is None else torch.abs(theta, out=out)
    return size if scale is None else size.div_(scale)


def regularizer(threshold: Tensor) -> Tensor:
    """R = sum_i exp(-t_i) (RG-GAN, Eq. 3), a scalar."""
    return torch.exp(-threshold).sum()


def regularizer_gradient(threshold: Tensor, weight: float | Tensor) -> Tensor:
    """d(weight * R)/dt_i = -weight * exp(-t_i). Shape as threshold."""
    return torch.exp(-threshold).mul_(weight).neg_()


def layer_std(theta: Tensor) -> Tensor:
    """Unit `layer_std`: the standard deviation of the layer's dense weight, 0-dim, never 0."""
    return theta.std(correction=0).clamp_min_(torch.finfo(theta.dtype).tiny)


def spectral_norm(theta: Tensor, left: Tensor, iterations: int = 1) -> Tensor:
    """Unit `spectral`: largest singular value of theta as [filters, rest], by power iteration on `left` (in place).

    theta: [filters, rest]. left: [filters], the running left singular vector. 0-dim, never 0.
    """
    tiny = torch.finfo(theta.dtype).tiny
    for _ in range(iterations):
        right = torch.nn.functional.normalize(theta.t().mv(left), dim=0, eps=tiny)
        image = theta.mv(right)
        norm = torch.linalg.vector_norm(image)
        # a layer of zeros (or one that is not finite) leaves the vector as it was, or it would never recover
        left.copy_(torch.where((norm > 0) & torch.isfinite(norm), image / norm.clamp_min(tiny), left))
    return torch.dot(left, image).clamp_min_(tiny)
