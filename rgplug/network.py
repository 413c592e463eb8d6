"""Network: the managed weights of G or of D, and the work around one step of the optimizer that owns them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rgplug import fused, kernels
from rgplug.errors import RgplugError
from rgplug.host_loss import HostLoss
from rgplug.masking import MaskedWeight
from rgplug.methods import Method, Step
from rgplug.policy import Policy, TargetPolicy
from rgplug.schedule import scheduled_density, steering_interval

_COUNTERS = ("kept", "regrown", "pruned", "written", "density_steps")
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
SAMPLES_PER_STEP, SAMPLES_PER_EPOCH = 2**16, 2**22  # entries that a target density is solved on


class Network:
    """One network under the policy. `sparse` is False while it trains dense (augmented regeneration)."""

    def __init__(self, label: str, module: nn.Module, weights: list[MaskedWeight], policy: Policy, method: Method):
        self.label = label
        self.module = module
        self.weights = weights
        self.method = method
        self.recurrent = method.recurrent
        self.guard = method.guard
        self.reset_moments = policy.optimizer_state == "reset"
        self.host_loss = None if policy.regularization == "hook" else HostLoss(weights)
        self.target: TargetPolicy | None = policy.target if getattr(policy.target, label, None) is not None else None
        self.sparse = method.prunes
        self.auxiliary = False  # the coming steps are lazy-regularisation phases, not iterations of their own
        self.iteration = 0
        device = weights[0].param.device if weights else torch.device("cpu")
        self.numel = torch.tensor([w.numel for w in weights], dtype=torch.float64, device=device)
        self.kept = self.numel.clone()  # kept entries of each weight, counted on the device
        self.regrown = torch.zeros_like(self.kept)  # pruned -> kept, summed over all steps
        self.pruned = torch.zeros_like(self.kept)  # kept -> pruned, summed over all steps
        self.written = torch.zeros_like(self.kept)  # non-zeros that the host wrote at pruned positions (adopted)
        self.density_steps = torch.zeros_like(self.kept)  # density of each weight, summed over iterations
        self.kernels = policy.kernels
        self._met = False  # the target density was met, and nothing has changed since
        if method.prunes:
            self._load_loops()
            with torch.no_grad():
                for w in weights:
                    method.attach(w)
                method.begin(weights)
                counts = [torch.count_nonzero(w.mask) for w in weights]
                self.kept = torch.stack(counts).to(self.kept) if counts else self.kept

    # ---- around a step -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def before_step(self, weights: Iterable[MaskedWeight], grad_scale: Tensor | None = None) -> None:
        """Gradients of the thresholds from A = dL/d(theta * M), then the mask on A. Once per weight and step.

        grad_scale: factor that is still in the gradients (fused optimizers unscale in the kernel).
        """
        seen: list[tuple[MaskedWeight, Tensor]] = []
        scratch = kernels.Scratch()
        for w in weights:
            if w.is_prepared:
                continue
            w.set_prepared()
            w.threshold_grad = None
            if w.follow():
                self._follow(w)
            if not self.sparse:
                continue
            if w.fresh:
                self.start(w)
            grad = w.param.grad
            if grad is not None and grad.is_sparse:
                raise RgplugError(f"{self.label}.{w.name} has a sparse gradient; exclude it in the policy")
            seen.append((w, self._before(w, grad, scratch)))
            if grad_scale is not None and w.threshold_grad is not None:
                w.threshold_grad.div_(grad_scale.to(w.threshold_grad.device))
        if seen:
            self._count_written([w for w, _ in seen], [zeros for _, zeros in seen])

    @torch.no_grad()
    def start(self, w: MaskedWeight) -> None:
        """The host has loaded its weights: the method's units, and the masks that some methods draw then."""
        self.method.start(w)
        w.fresh = False
        i = self.weights.index(w)
        kept = torch.count_nonzero(w.mask).to(self.kept)
        self.pruned[i] += self.kept[i] - kept
        self.kept[i] = kept

    def _before(self, w: MaskedWeight, grad: Tensor | None, scratch: kernels.Scratch) -> Tensor:
        """One weight's share of `before_step`; returns the zeros in the weight."""
        rule = self.method.gradient_rule(w, None if self.auxiliary else w.steps + 1)
        loops = None if rule is None else w.fused(grad)
        if loops is not None and rule is not None:
            w.merged = False
            w.threshold_grad, zeros = loops.before(w.layout, w.data, w.dormant, w.mask, grad, rule)
            return zeros
        theta, zeros, bits = w.merge(scratch)
        if grad is not None:
            self.method.on_gradient(w, grad, theta, scratch)
            kernels.keep_(grad, bits if grad.dtype == w.param.dtype else kernels.bits_of_mask(w.mask, grad.dtype))
        return zeros

    @torch.no_grad()
    def after_step(self, weights: list[MaskedWeight], step: Step) -> None:
        """Pruned entries exactly 0 again; thresholds step; masks are drawn anew."""
        for w in weights:
            w.prepared = None
            w.steps += not self.auxiliary
            if step.optimizer is not None:
                w.optimizer = weakref.ref(step.optimizer)
        self._met = False
        self.iteration = max(w.steps for w in self.weights)
        step.iteration, step.auxiliary = self.iteration, self.auxiliary
        if self.sparse:
            scratch = kernels.Scratch()
            for w in weights:
                w.restore(scratch)
            drawn = self._with_tied(weights)
            self.method.update(weights, step)
            keep = self.scheduled()
            if keep is None or self.iteration % steering_interval(self.target):
                self._refresh(drawn)
            else:  # a common level for all weights, those that another optimizer steps included
                self._shift(keep, SAMPLES_PER_STEP)
        if not self.auxiliary:
            at = self._index(weights)
            self.density_steps[at] += self.kept[at] / self.numel[at]

    def scheduled(self) -> float | None:
        """Density that the policy's target asks for at this iteration."""
        return None if self.target is None else scheduled_density(self.target, self.label, self.iteration)

    @torch.no_grad()
    def meet_target(self) -> None:
        """Bring the density onto the schedule outside of a step, from (nearly) all entries."""
        keep = self.scheduled()
        if keep is not None and self.sparse and not self._met:
            self._shift(keep, SAMPLES_PER_EPOCH)
            self._met = True

    @torch.no_grad()
    def refresh_all(self) -> None:
        """Draw all masks anew from theta, outside of a step."""
        self._gather()
        self._refresh(self.weights)

    def _shift(self, keep: float, samples: int) -> None:
        self._gather()
        self.method.shift(self.weights, keep, samples, self.iteration)
        self._refresh(self.weights)

    def _gather(self) -> None:
        """Put theta together for every weight that is not inside a step, with what the host wrote."""
        self._bring_along()
        self._join([w for w in self.weights if not w.merged])

    def _join(self, weights: list[MaskedWeight]) -> None:
        if weights:
            self._count_written(weights, [w.gather() for w in weights])
            for w in weights:
                self.method.measure(w)

    def _with_tied(self, weights: list[MaskedWeight]) -> list[MaskedWeight]:
        """`weights`, and those that did not step but are decided with them, in the network's order; all hold theta."""
        tied = self.method.tied(weights)
        if not tied:
            return weights
        self._bring_along()
        for w in tied:
            if w.fresh:
                self.start(w)
        self._join(tied)
        here = {id(w) for w in (*weights, *tied)}
        return [w for w in self.weights if id(w) in here]

    def _refresh(self, weights: list[MaskedWeight]) -> None:
        self.method.decide(weights)
        counts, newly = [], []
        scratch = kernels.Scratch()
        for w in weights:
            before = w.mask.clone() if self.reset_moments else None
            count, lost = self._draw(w, scratch)
            counts.append(count)
            newly.append(lost)
            if before is not None:
                self._reset_moments(w, before.logical_xor_(w.mask))
        self._count(weights, counts, newly)

    def _draw(self, w: MaskedWeight, scratch: kernels.Scratch) -> tuple[Tensor, Tensor]:
        """A new mask for one weight, whose `dormant` holds theta; returns the entries pruned and the newly pruned."""
        limit = (1 - self.guard) * w.numel  # a layer that would lose as many keeps all
        rule = self.method.rule(w, None if self.auxiliary else w.steps)
        loops = None if rule is None or w.norm_dims is not None else w.fused()
        if loops is not None and rule is not None:
            count, newly, keep = loops.refresh(
                w.layout,
                w.data,
                w.dormant,
                w.mask,
                rule,
                recurrent=self.recurrent,
                limit=limit,
            )
            w.merged = False
            self.method.on_guard(w, keep)
            return count, newly
        pruned = self.method.pruned(w, scratch)
        if not self.recurrent:
            pruned = torch.maximum(pruned, torch.logical_not(w.mask).view(torch.int8).to(pruned.dtype))
        if w.norm_dims is not None:
            _keep_largest(w, w.norm_dims, pruned)
        count = pruned.sum(dtype=torch.float32 if w.numel < 2**24 else torch.float64)
        keep = (count < limit).to(count.dtype)
        pruned.mul_(keep)
        self.method.on_guard(w, keep)
        return count * keep, w.split(pruned, scratch)

    def _load_loops(self) -> None:
        """Compiled loops for the weights that they cover, as the policy's `kernels` says."""
        for w in self.weights:
            w.loops = None if self.kernels == "eager" or w.param.device.type != "cpu" else fused.load(w.param.dtype)
            if self.kernels == "fused" and w.loops is None:
                device = w.param.device.type
                reason = fused.why_not(w.param.dtype) if device == "cpu" else f"there are none for {device}"
                raise RgplugError(
                    f"policy.kernels is fused, but {self.label}.{w.name} can have no fused loops: {reason}; set "
                    "kernels: auto to use tensor operations instead"
                )

    def _count(self, weights: list[MaskedWeight], counts: list[Tensor], newly: list[Tensor]) -> None:
        device = self.kept.device
        at = self._index(weights)
        kept = self.numel[at] - torch.stack([c.to(device, torch.float64) for c in counts])
        lost = torch.stack([n.to(device, torch.float64) for n in newly])
        self.regrown[at] += kept - self.kept[at] + lost
        self.pruned[at] += lost
        self.kept[at] = kept

    def _index(self, weights: list[MaskedWeight]) -> Any:
        return slice(None) if len(weights) == len(self.weights) else [self.weights.index(w) for w in weights]

    def _reset_moments(self, w: MaskedWeight, changed: Tensor) -> None:
        """optimizer_state: reset. Moments of entries that were pruned or regrown at this step become 0."""
        optimizer = w.optimizer() if w.optimizer is not None else None
        if optimizer is None:
            return
        state = optimizer.state.get(w.param, {})
        for key in _MOMENTS:
            moment = state.get(key)
            if isinstance(moment, Tensor) and moment.shape == changed.shape:
                kernels.keep_(moment, kernels.bits_of_mask(torch.logical_not(changed), moment.dtype))

    def _count_written(self, weights: list[MaskedWeight], zeros: list[Tensor]) -> None:
        """More non-zeros than kept entries: the host wrote at pruned positions."""
        at = self._index(weights)
        found = torch.stack([z.to(self.kept.device, torch.float64) for z in zeros])
        self.written[at] += (self.numel[at] - found - self.kept[at]).clamp_min_(0)

    def _bring_along(self) -> None:
        """Follow the host's Parameters to another device or dtype."""
        for w in self.weights:
            if w.follow():
                self._follow(w)

    def _follow(self, w: MaskedWeight) -> None:
        self.method.follow(w)
        self._load_loops()
        device = w.param.device
        for counter in ("numel", *_COUNTERS):
            setattr(self, counter, getattr(self, counter).to(device))

    # ---- the regularizer ---------------------------------------------------------------------------------------------

    def regularization_loss(self, host_loss: HostLoss) -> Tensor:
        """lambda * sum exp(-t) as a differentiable scalar for the host's loss; 0 while dense."""
        with torch.no_grad():
            value = self.method.regularizer(self.weights) if self.sparse else None
        if value is None:
            value = torch.zeros((), device=self.weights[0].param.device)
        return host_loss.counted(value)

    def take_regularizer(self, weights: list[MaskedWeight], scale: Tensor | None) -> Tensor | float | None:
        """How often the regularizer counts at this step: 1 in hook mode, what the host's backward says otherwise."""
        if self.host_loss is None:
            return None if self.auxiliary else 1.0
        return self.host_loss.take(weights, scale)

    # ---- phases, numbers -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def go_dense(self) -> None:
        """Every pruned weight comes back with its old value (augmented regeneration); gradients are not masked."""
        if not self.sparse:
            return
        self._gather()
        for w in self.weights:
            before = w.mask.clone() if self.reset_moments else None
            w.split(torch.zeros_like(w.param))
            if before is not None:
                self._reset_moments(w, torch.logical_not(before))
        self.regrown += self.numel - self.kept
        self.kept.copy_(self.numel)
        self.sparse = self._met = False

    @torch.no_grad()
    def go_sparse(self) -> None:
        """Thresholds, which stood still while dense, prune again."""
        if self.sparse or not self.method.prunes:
            return
        self.sparse = True
        if self.scheduled() is None:
            self.refresh_all()
        else:
            self.meet_target()

    @torch.no_grad()
    def settle(self) -> None:
        """Zeros where the mask has them, whatever the host wrote since the last step (which becomes dormant)."""
        if self.sparse:
            self._gather()
            for w in self.weights:
                w.split(torch.logical_not(w.mask).to(w.param.dtype))

    @torch.no_grad()
    def take_written(self) -> int:
        """Non-zeros that the host wrote at pruned positions since it was last asked. Reads the device."""
        waiting = torch.zeros_like(self.written)  # written since the last step, taken over at the next one
        if self.sparse:
            self._bring_along()
            waiting = torch.stack(
                [torch.count_nonzero(w.data.masked_fill(w.mask, 0)).to(self.written) for w in self.weights]
            )
        total = int((self.written + waiting).sum())
        self.written = -waiting
        return total

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that have stepped its weights and are there still."""
        found = [w.optimizer() for w in self.weights if w.optimizer is not None]
        return list({id(o): o for o in found if o is not None}.values())

    def density(self) -> float:
        """Share of all managed weights that is kept. Reads the device."""
        return (self.kept.sum() / self.numel.sum()).item() if self.weights else 1.0

    def layer_density(self) -> dict[str, float]:
        return dict(zip((w.name for w in self.weights), (self.kept / self.numel).tolist()))

    def state_dict(self) -> dict[str, Any]:
        counters = {k: getattr(self, k).clone() for k in _COUNTERS}
        weights = {}
        for w in self.weights:
            state: dict[str, Any] = {"mask": w.mask.clone(), "dormant": w.dormant.clone(), "steps": w.steps}
            if w.threshold is not None:
                state["threshold"] = w.threshold.clone()
            weights[w.name] = {**state, **{f"method.{k}": v for k, v in self.method.state_of(w).items()}}
        return {"sparse": self.sparse, "iteration": self.iteration, "counters": counters, "weights": weights}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state whose names and shapes were checked."""
        for w in self.weights:
            own = state["weights"][w.name]
            w.steps = int(own["steps"])
            w.prepared, w.threshold_grad, w.fresh = None, None, False
            if self.method.prunes:
                self.method.load(w, {k[7:]: v for k, v in own.items() if k.startswith("method.")})
                w.load(own["mask"], own["dormant"], own.get("threshold"))
        self.sparse, self.iteration, self._met = bool(state["sparse"]), int(state["iteration"]), False
        for key, value in state["counters"].items():
            getattr(self, key).copy_(value)


def _keep_largest(w: MaskedWeight, dims: tuple[int, ...], pruned: Tensor) -> None:
    """Weight norm divides each filter by its own norm: a filter that would be empty keeps its largest weight."""
    size = w.dormant.abs()
    empty = pruned.amin(dims, keepdim=True) > 0
    largest = size >= size.amax(dims, keepdim=True)
    pruned.mul_((~(largest & empty)).to(pruned.dtype))
