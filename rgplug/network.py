"""Network: the managed weights of G or of D, and the work around one step of the optimizer that owns them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rgplug import expected, fused, kernels
from rgplug.counts import Counts
from rgplug.errors import RgplugError
from rgplug.filter_scores import FilterScores
from rgplug.fingerprint import fingerprint
from rgplug.gradients import Change
from rgplug.host_loss import HostLoss
from rgplug.masking import MaskedWeight
from rgplug.methods import Method, Rule, Step
from rgplug.policy import Policy, TargetPolicy
from rgplug.schedule import scheduled_density, steering_interval
from rgplug.warn import warn

PATIENCE = 16  # iterations of a network by which every optimizer of its weights has stepped (lazy phases: every 16th)
SAMPLES_PER_STEP, SAMPLES_PER_EPOCH = 2**16, 2**22  # entries that a target density is solved on


class Network:
    """One network under the policy. `sparse` is False while it trains dense (augmented regeneration)."""

    def __init__(self, label: str, module: nn.Module, weights: list[MaskedWeight], policy: Policy, method: Method):
        self.label = label
        self._module = weakref.ref(module)
        self.all_weights = list(weights)  # in the network's order
        self.weights = weights  # those that are pruned: not what is set aside
        self.aside: dict[str, str] = {}  # weight -> why it is not managed although its pattern is
        self.method = method
        self.recurrent = method.recurrent
        self.guard = method.guard
        self.reset_moments = policy.optimizer_state == "reset"
        self.host_loss = None if policy.regularization == "hook" else HostLoss(weights)
        self.target: TargetPolicy | None = policy.target if getattr(policy.target, label, None) is not None else None
        self.sparse = method.prunes
        self.auxiliary = False  # the coming steps are lazy-regularisation phases, not iterations of their own
        self.iteration = 0
        self.counts = Counts(weights)
        self.kernels = policy.kernels
        self.scores: FilterScores | None = None  # of its filters, that the policy wants in snapshots
        self.untried = ""  # why the network was not run with empty filters at attach
        self._met = False  # the target density was met, and nothing has changed since
        self._not_reset: set[str] = set()  # entries of optimizer states that were warned of
        frozen = [w for w in weights if not w.param.requires_grad]
        # a training script that switches gradients on for each phase, perhaps; or masks are drawn from the first ones
        if len(frozen) == len(weights) or method.needs_gradients:
            for w in weights:
                w.waits = True
        if method.prunes:
            self._load_loops()
            with torch.no_grad():
                for w in weights:
                    method.attach(w)
        if 0 < len(frozen) < len(weights):
            self.set_aside(frozen, "frozen: requires no gradient")
        if method.prunes:
            with torch.no_grad():
                method.begin(self.weights)
                self.counts.recount()

    @property
    def module(self) -> nn.Module:
        module = self._module()
        if module is None:
            raise RgplugError(f"{self.label} does not exist any more; keep the network as long as its controller")
        return module

    # ---- around a step -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def before_step(
        self, weights: Iterable[MaskedWeight], grad_scale: Tensor | None = None, *, early: bool = False
    ) -> None:
        """Gradients of the thresholds from A = dL/d(theta * M), then the mask on A. Once per weight and step.

        grad_scale: factor that is still in the gradients (fused optimizers unscale in the kernel). early: called by the
        training script, which may yet add to the gradients or clip them before it steps.
        """
        weights = list(weights)
        if (early or grad_scale is not None) and self._may_be_skipped(weights):
            return
        changes = [(w, w.gradient.change()) for w in self.training(weights)]
        self.bring_back(w for w, _ in changes)
        seen = [(w, change) for w, change in changes if change != "none"]
        if not seen:
            return
        for w, _ in seen:
            if w.follow():
                self._follow(w)
        loss = self.host_loss if early and self.host_loss is not None and self.host_loss.is_current else None
        zeros = self.counts.kept.new_empty(len(seen))  # in each weight
        scratch = kernels.Scratch()
        counted = []
        for (w, change), zero in zip(seen, zeros.unbind()):
            counted.append(change == "new" and (early or not w.looked_at))
            self._look(w, change, zero, scratch, grad_scale, early)
            w.gradient.mark(listen=early)
        if loss is not None:
            loss.keep()
        if self.sparse and any(counted):
            at = [i for i, c in enumerate(counted) if c]
            self.counts.found([seen[i][0] for i in at], zeros if len(at) == len(seen) else zeros[at])

    def _look(
        self,
        w: MaskedWeight,
        change: Change,
        zeros: Tensor,  # 0-dim, gets the zeros in the weight
        scratch: kernels.Scratch,
        grad_scale: Tensor | None,
        early: bool,
    ) -> None:
        """One weight's share of `before_step`."""
        grad = w.param.grad
        if not self.sparse:
            w.threshold_grad = None
            return
        if grad is not None and grad.is_sparse:
            raise RgplugError(f"{self.label}.{w.name} has a sparse gradient; exclude it in the policy")
        if change == "written":  # clipped, or the like: nothing was added to it
            w.looked_at = True
            if grad is not None:
                kernels.keep_(grad, kernels.bits_of_mask(w.mask, grad.dtype))
            return
        if change == "accumulated" and w.removed is not None and grad is not None:
            grad.add_(w.removed)  # the whole gradient again
        w.removed = w.threshold_grad = None
        w.hide_broken_step()
        if w.fresh:
            self.start(w)
        step = None if self.auxiliary else w.steps + 1
        rule = self.method.gradient_rule(w, step)
        looks = rule is None or rule.task_gradient or rule.full_weight_gradient
        whole = grad.clone() if early and looks and grad is not None else None
        self._before(w, grad, rule, zeros, scratch)
        if whole is not None and grad is not None:
            w.removed = whole.sub_(grad)
        w.looked_at = True
        if grad_scale is not None and w.threshold_grad is not None:
            w.threshold_grad.div_(grad_scale.to(w.threshold_grad.device))

    # ---- what trains -------------------------------------------------------------------------------------------------

    def training(self, weights: Iterable[MaskedWeight]) -> list[MaskedWeight]:
        """Those of the weights in an optimizer that train, as a gradient shows: masks go onto no others.

        A weight that was frozen at attach is managed from its first gradient on. Where all were frozen then, the first
        step with gradients tells which of them train, and initial masks are drawn for these.
        """
        given = list(weights)
        late = [w for w in given if w.fresh and not w.waits and w.param.grad is None and not w.param.requires_grad]
        late = [w for w in late if w.name not in self.aside]
        if 0 < len(late) < len(self.weights):  # frozen between attach and the first step
            self.set_aside(late, "frozen: requires no gradient")
            self._begin_anew()
        for w in given:
            if w.name in self.aside and w.param.grad is not None:
                self._take_in(w)
        waiting = [w for w in given if w.waits and w.name not in self.aside]
        idle = [w for w in waiting if w.param.grad is None]
        if len(idle) < len(waiting):
            if idle:
                self.set_aside(idle, "frozen: gets no gradient")
            # masks that are made of gradients are drawn once, for all weights that have one by now
            for w in self.weights if self.method.needs_gradients else waiting:
                w.waits = w.waits and w.param.grad is None
            rest = [w for w in self.weights if w.waits]
            if rest and self.method.units.granularity == "filter":  # a channel is decided for those that train alone
                self.set_aside(rest, "waits for its first gradient")
            self._begin_anew()
        return [w for w in given if w.name not in self.aside and not w.waits]

    @torch.no_grad()
    def set_aside(self, weights: list[MaskedWeight], why: str) -> None:
        """These do not train: all of their values are back, and they count no more."""
        for w in weights:
            if w.stored and w.steps == 0:
                w.gather()
                w.split(torch.zeros_like(w.param))
            w.fresh = True
            self.aside[w.name] = why
        self._weights_changed()

    def _begin_anew(self) -> None:
        """Initial masks for the weights that train, if no step was made on others; all values are there still."""
        if self.method.prunes and all(w.fresh for w in self.weights):
            with torch.no_grad():
                self.method.begin(self.weights)
                self.counts.recount()

    def _may_be_skipped(self, weights: list[MaskedWeight]) -> bool:
        """Whether masks are to be drawn from gradients that are not finite, in a step that a GradScaler (or a fused
        optimizer under one) will skip: they wait for the next ones. Reads the device, until there are masks."""
        waiting = [w for w in weights if self.method.needs_gradients and w.waits and w.param.grad is not None]
        return not all(bool(w.param.grad.isfinite().all()) for w in waiting if w.param.grad is not None)

    def set_aside_unstepped(self) -> None:
        """Weights that no optimizer has stepped while others of the network were: pretrained parts, as a rule."""
        resting = [w for w in self.weights if w.steps == 0]
        if resting and len(resting) < len(self.weights):
            self.set_aside(resting, "no optimizer steps it")
            more = f" and {len(resting) - 1} more weights of {self.label}" if len(resting) > 1 else ""
            warn(
                f"no optimizer has stepped {self.label}.{resting[0].name}{more}: not managed any more, all values are "
                f"back. To prune what is meant to train, give it to an optimizer; else exclude it (policy.networks."
                f"{self.label}.exclude)"
            )

    def _take_in(self, w: MaskedWeight) -> None:
        """A weight that was set aside trains after all."""
        del self.aside[w.name]
        w.waits = False
        self._weights_changed()
        self.method.join(w)

    def _weights_changed(self) -> None:
        self.weights = [w for w in self.all_weights if w.name not in self.aside]
        self.counts = self.counts.over(self.weights)
        self.method.units.restrict([w.name for w in self.weights])
        self.method.regrouped(self.weights)
        if self.host_loss is not None:
            self.host_loss.weights = self.weights

    @torch.no_grad()
    def start(self, w: MaskedWeight) -> None:
        """The host has loaded its weights: the method's units, and the masks that some methods draw then."""
        self.method.start(w)
        w.fresh = False
        self.counts.started(w)

    def _before(
        self, w: MaskedWeight, grad: Tensor | None, rule: Rule | None, zeros: Tensor, scratch: kernels.Scratch
    ) -> None:
        """The method looks at the gradient, and the mask goes onto it; `zeros` (0-dim) gets the zeros in the weight."""
        loops = None if rule is None else w.fused(grad)
        if loops is not None and rule is not None:
            w.before(loops, grad, rule, zeros)
            return
        theta, found, bits = w.merge(scratch)
        zeros.copy_(found)
        if grad is not None:
            self.method.on_gradient(w, grad, theta, scratch)
            kernels.keep_(grad, bits if grad.dtype == w.param.dtype else kernels.bits_of_mask(w.mask, grad.dtype))

    @torch.no_grad()
    def after_step(self, weights: list[MaskedWeight], step: Step) -> None:
        """Pruned entries exactly 0 again; thresholds step; masks are drawn anew."""
        weights = [w for w in weights if w.name not in self.aside and not w.waits]
        if not weights:
            return
        for w in weights:
            w.stepped()
            w.steps += not self.auxiliary
        self._met = False
        self.iteration = max(w.steps for w in self.weights)
        step.iteration, step.auxiliary = self.iteration, self.auxiliary
        if self.sparse:
            try:
                self._draw_anew(weights, step)
            except BaseException:
                for w in weights:
                    w.restore()  # or the next step would take what this one did to pruned entries for the host's
                raise
        if not self.auxiliary:
            self.counts.stepped(weights)
            if self.iteration == PATIENCE:
                self.set_aside_unstepped()

    def _draw_anew(self, weights: list[MaskedWeight], step: Step) -> None:
        """The method's update and new masks, in one pass over each weight unless theta is looked at in between."""
        keep = self.scheduled()
        steers = keep is not None and self.iteration % steering_interval(self.target) == 0
        drawn = weights
        if steers or any(self.method.needs_theta(w, self._step_of(w)) for w in weights):
            scratch = kernels.Scratch()
            for w in weights:
                w.restore(scratch)
            drawn = self._with_tied(weights)
        self.method.update(weights, step)
        if keep is not None and steers:  # a common level for all weights, those that another optimizer steps included
            self._shift(keep, SAMPLES_PER_STEP)
        else:
            self._refresh(drawn)

    def _step_of(self, w: MaskedWeight) -> int | None:
        """The iteration that the weight just made, as methods are told it."""
        return None if self.auxiliary else w.steps

    def scheduled(self) -> float | None:
        """Density that the policy's target asks for at this iteration."""
        return None if self.target is None else scheduled_density(self.target, self.label, self.iteration)

    @torch.no_grad()
    def meet_target(self) -> None:
        """Bring the density onto the schedule outside of a step, from (nearly) all entries."""
        keep = self.scheduled()
        if keep is not None and self.sparse and not self._met:
            for w in self._decided:
                w.remember()
            self._shift(keep, SAMPLES_PER_EPOCH)
            self._met = True

    @torch.no_grad()
    def refresh_all(self) -> None:
        """Draw all masks anew from theta, outside of a step."""
        self._gather()
        self._refresh(self._decided)

    @property
    def _decided(self) -> list[MaskedWeight]:
        """The weights that masks may be drawn for: not those that wait for a first gradient."""
        return [w for w in self.weights if not w.waits]

    def _shift(self, keep: float, samples: int) -> None:
        self._gather()
        weights = self._decided
        if weights:
            self.method.shift(weights, keep, samples, self.iteration)
            self._refresh(weights)

    def _gather(self) -> None:
        """Put theta together for every weight that is not inside a step, with what the host wrote."""
        self._bring_along()
        self._join([w for w in self._decided if not w.merged])

    def _join(self, weights: list[MaskedWeight]) -> None:
        if weights:
            self.counts.found(weights, torch.stack([w.gather().to(self.counts.kept) for w in weights]))
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
        counts = self.counts.kept.new_empty(len(weights), 2)  # entries pruned, and those that were kept until now
        scratch = kernels.Scratch()
        for w, count in zip(weights, counts.unbind()):
            before = w.mask.clone() if self.reset_moments else None
            self._draw(w, count, scratch)
            if before is not None:
                self._reset_moments(w, before.logical_xor_(w.mask))
        self.counts.drawn(weights, counts)

    def _draw(self, w: MaskedWeight, counts: Tensor, scratch: kernels.Scratch) -> None:
        """A new mask for one weight; `counts` [2] gets the entries pruned and the newly pruned."""
        limit = (1 - self.guard) * w.numel  # a layer that would lose as many keeps all
        rule = self.method.rule(w, self._step_of(w))
        loops = None if rule is None or w.norm_dims is not None else w.fused()
        if loops is not None and rule is not None:
            if w.after(loops, rule, counts, recurrent=self.recurrent, limit=limit):
                self.method.on_guard(w, counts.new_zeros(()))
            return
        w.restore(scratch)
        pruned = self.method.pruned(w, scratch)
        if not self.recurrent:
            pruned = torch.maximum(pruned, torch.logical_not(w.mask).view(torch.int8).to(pruned.dtype))
        if w.norm_dims is not None:
            _keep_largest(w, w.norm_dims, pruned)
        count = pruned.sum(dtype=kernels.count_dtype(pruned))
        keep = (count < math.ceil(limit)).to(count.dtype)
        pruned.mul_(keep)
        self.method.on_guard(w, keep)
        counts[0].copy_(count * keep)
        counts[1].copy_(w.split(pruned, scratch))
        self.method.drawn(w)

    def _load_loops(self) -> None:
        """Compiled loops for the weights that they cover, as the policy's `kernels` says."""
        for w in self.weights:
            # they count into the network's counters
            device = next((x.device.type for x in (w.param, self.counts.kept) if x.device.type != "cpu"), "cpu")
            uncovered = device if device != "cpu" else f"dormant: {str(w.rounded)[6:]}" if w.is_rounded else ""
            w.loops = fused.load(w.param.dtype) if not uncovered and self.kernels != "eager" else None
            if self.kernels == "fused" and w.loops is None:
                reason = f"there are none for {uncovered}" if uncovered else fused.why_not(w.param.dtype)
                raise RgplugError(
                    f"policy.kernels is fused, but {self.label}.{w.name} can have no fused loops: {reason}; set "
                    "kernels: auto to use tensor operations instead"
                )

    def _reset_moments(self, w: MaskedWeight, changed: Tensor) -> None:
        """optimizer_state: reset. Moments of entries that were pruned or regrown at this step become 0.

        Moments are the optimizer's tensors of the weight's shape, whatever they are called (exp_avg, square_avg, sum,
        momentum_buffer, ...); step sizes (Rprop) are none.
        """
        optimizer = w.optimizer() if w.optimizer is not None else None
        state = {} if optimizer is None else optimizer.state.get(w.param, {})
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.numel() == 1 != changed.numel() or "step" in key:
                continue
            if value.shape == changed.shape and value.is_floating_point():
                kernels.keep_(value, kernels.bits_of_mask(torch.logical_not(changed), value.dtype))
            elif key not in self._not_reset:
                self._not_reset.add(key)
                warn(
                    f"optimizer_state: reset cannot reset {key!r} of {type(optimizer).__name__} ({value.dtype}, shape "
                    f"{list(value.shape)}, {self.label}.{w.name} has {list(changed.shape)}); it stays as it is. Set "
                    "optimizer_state: keep, or take an optimizer whose moments have the weight's shape"
                )

    def _bring_along(self) -> None:
        """Follow the host's Parameters to another device or dtype."""
        for w in self.weights:
            if w.follow():
                self._follow(w)

    def _follow(self, w: MaskedWeight) -> None:
        self.method.follow(w)
        self.counts.follow(w.param.device)
        self._load_loops()

    # ---- the regularizer ---------------------------------------------------------------------------------------------

    def regularization_loss(self, host_loss: HostLoss) -> Tensor:
        """lambda * sum exp(-t) as a differentiable scalar for the host's loss; 0 while dense."""
        with torch.no_grad():
            value = self.method.regularizer(self.weights) if self.sparse else None
        if value is None:
            value = torch.zeros((), device=self.weights[0].param.device)
        return host_loss.counted(value)

    @torch.no_grad()
    def bring_back(self, weights: Iterable[MaskedWeight] | None = None) -> None:
        """Old values that a swap of an average has written zeros over: before each step, and before anything is read,
        saved or decided outside of steps."""
        for w in self.all_weights if weights is None else weights:
            w.bring_back()

    def stop_listening(self) -> None:
        """Take hooks off Parameters."""
        for w in self.all_weights:
            w.gradient.forget()
        if self.host_loss is not None:
            self.host_loss.stop_listening()

    def take_regularizer(self, weights: list[MaskedWeight], scale: Tensor | None) -> Tensor | float | None:
        """How often the regularizer counts at this step: 1 in hook mode, what the host's backward says otherwise."""
        if self.host_loss is None:
            return None if self.auxiliary else 1.0
        own = [w for w in weights if w.name not in self.aside]
        return self.host_loss.take(own, scale) if own else None

    # ---- phases, numbers -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def go_dense(self) -> None:
        """Every pruned weight comes back with its old value (augmented regeneration); gradients are not masked."""
        if not self.sparse:
            return
        for w in self._decided:
            w.remember()
        self._gather()
        for w in self._decided:
            before = w.mask.clone() if self.reset_moments else None
            w.split(torch.zeros_like(w.param))
            if before is not None:
                self._reset_moments(w, torch.logical_not(before))
        self.counts.dense()
        self.sparse = self._met = False

    @torch.no_grad()
    def go_sparse(self) -> None:
        """Thresholds, which stood still while dense, prune again."""
        if self.sparse or not self.method.prunes:
            return
        self.sparse = True
        self._bring_along()
        for w in self.weights:
            self.method.wake(w)
        if self.scheduled() is None:
            self.refresh_all()
        else:
            self.meet_target()

    @torch.no_grad()
    def settle(self) -> None:
        """Zeros where the mask has them, whatever the host wrote since the last step (which becomes dormant)."""
        if self.sparse:
            self._gather()
            for w in self._decided:
                w.split(torch.logical_not(w.mask).to(w.param.dtype))

    @torch.no_grad()
    def take_written(self) -> int:
        """Non-zeros that the host wrote at pruned positions since it was last asked. Reads the device."""
        waiting = torch.zeros_like(self.counts.written)  # written since the last step, taken over at the next one
        if self.sparse:
            self._bring_along()
            waiting = torch.stack(
                [torch.count_nonzero(w.data.masked_fill(w.mask, 0)).to(waiting) for w in self.weights]
            )
        total = int((self.counts.written + waiting).sum())
        self.counts.written = -waiting
        return total

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that have stepped its weights and are there still."""
        found = [w.optimizer() for w in self.weights if w.optimizer is not None]
        return list({id(o): o for o in found if o is not None}.values())

    def density(self) -> float:
        """Share of all managed weights that is kept. Reads the device."""
        return self.counts.density()

    def ever_active(self) -> float:
        """Share of all managed weights that was kept at least once since attach. Reads the device."""
        return self.method.ever_active(self.weights)

    def notes(self) -> dict[str, str]:
        """weight -> why it is not managed (yet), for those that the patterns name."""
        waiting = {w.name: "waits for its first gradient" for w in self.weights if w.waits}
        return waiting | {name: f"not managed: {why}" for name, why in self.aside.items()}

    def layer_density(self) -> dict[str, float]:
        return self.counts.layer_density()

    def state_dict(self) -> dict[str, Any]:
        weights = {}
        for w in self.weights:
            state: dict[str, Any] = {"mask": w.mask.clone(), "dormant": w.dormant.clone(), "steps": w.steps}
            if w.waits:
                state["waits"] = True
            if w.threshold is not None:
                state["threshold"] = w.threshold.clone()
            weights[w.name] = {**state, **{f"method.{k}": v for k, v in self.method.state_of(w).items()}}
        return {
            "sparse": self.sparse,
            "iteration": self.iteration,
            "counters": self.counts.state_dict(),
            "fingerprint": fingerprint(w.data for w in self.weights),
            "weights": weights,
            "aside": dict(self.aside),
        }

    def misfit(self, state: Mapping[str, Any]) -> str:
        """What is wrong with a state whose weights have these names and shapes, as a clause; "" if nothing is."""
        weights = self._of(state)
        if [w.name for w in weights] != [w.name for w in self.weights]:
            units, names = self.method.units, [w.name for w in self.weights]
            units.restrict([w.name for w in weights])
            try:
                return self._misfit(state, weights, Counts(weights))
            finally:
                units.restrict(names)
        return self._misfit(state, weights, self.counts)

    def _of(self, state: Mapping[str, Any]) -> list[MaskedWeight]:
        """The weights that a state manages: what is set aside here may be among them, and the reverse."""
        managed = state.get("weights")
        return self.weights if managed is None else [w for w in self.all_weights if w.name in managed]

    def undecided(self) -> set[str]:
        """Weights of which it is not known whether they train, or which do not as far as is known."""
        return {w.name for w in self.weights if w.waits} | set(self.aside)

    def _misfit(self, state: Mapping[str, Any], weights: list[MaskedWeight], counts: Counts) -> str:
        for w in weights:
            own = state["weights"][w.name]
            kept = {k[7:]: v for k, v in own.items() if str(k).startswith("method.")}
            wrong = w.misfit(own) or self.method.misfit(w, kept)
            if wrong:
                return f"the state of {self.label}.{w.name} {wrong}"
        flag = expected.flag if self.method.prunes else lambda v: "" if v is False else "is not false in a dense run"
        checks = {"sparse": flag, "iteration": expected.whole(), "counters": counts.misfit}
        rest = {key: value for key, value in state.items() if key != "weights"}
        optional = {"fingerprint": expected.whole(-(2**63), 2**63), "aside": _misfit_aside}
        wrong = expected.keys(rest, checks, optional)
        masks = {w.name: state["weights"][w.name]["mask"] for w in weights}
        together = "" if wrong else self.method.misfit_together(state["weights"], masks)
        return f"the state of {self.label} {wrong or together}" if wrong or together else ""

    @torch.no_grad()
    def belongs(self, state: Mapping[str, Any]) -> bool:
        """Whether the live weights are those that a state was saved with. Reads the device."""
        return fingerprint(w.data for w in self._of(state)) == state.get("fingerprint")

    @torch.no_grad()
    def would_belong(self, state: Mapping[str, Any]) -> bool:
        """Whether they are once the state's masks are on them, in place of those that were drawn at attach."""
        weights = self._of(state)
        masks = (state["weights"][w.name]["mask"].to(w.param.device) for w in weights)
        live = (torch.where(mask, w.theta, 0) for mask, w in zip(masks, weights))
        return fingerprint(live) == state.get("fingerprint")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `misfit` finds nothing wrong with: what it manages is managed, all else set aside."""
        managed, gone = state["weights"], "not managed when the state was saved"
        live = self.belongs(state)
        others = [w for w in self.weights if w.name not in managed]
        self.set_aside(others, gone)
        for w in others:  # their values are the training script's to load
            w.load(torch.ones_like(w.mask), torch.zeros_like(w.dormant), None, live=True)
            w.steps = 0
        for w in self.all_weights:
            if w.name in managed:
                self.aside.pop(w.name, None)
                w.waits = bool(managed[w.name].get("waits"))
        self._weights_changed()
        for w in self.weights:
            own = state["weights"][w.name]
            w.steps = int(own["steps"])
            if self.method.prunes:
                self.method.load(w, {k[7:]: v for k, v in own.items() if k.startswith("method.")})
                w.load(own["mask"], own["dormant"], own.get("threshold"), live=live)
            w.stepped()
            w.threshold_grad, w.fresh = None, w.waits
        self.sparse, self.iteration, self._met = bool(state["sparse"]), int(state["iteration"]), False
        self.counts.load_state_dict(state["counters"])


def _misfit_aside(aside: Any) -> str:
    named = isinstance(aside, Mapping) and all(isinstance(x, str) for pair in aside.items() for x in pair)
    return "" if named else "names no weights with reasons"


def _keep_largest(w: MaskedWeight, dims: tuple[int, ...], pruned: Tensor) -> None:
    """Weight norm divides each filter by its own norm: a filter that would be empty keeps its largest weight."""
    size = w.dormant.abs()
    empty = pruned.amin(dims, keepdim=True) > 0
    largest = size >= size.amax(dims, keepdim=True)
    pruned.mul_((~(largest & empty)).to(pruned.dtype))
