"""MaskedWeight: one host Parameter, its mask, its dormant values and its thresholds."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rgplug import expected, kernels
from rgplug.errors import RgplugError
from rgplug.fused import Fused, Shape
from rgplug.gradients import GradientWatch
from rgplug.layout import FilterLayout

if TYPE_CHECKING:
    from rgplug.methods import Rule

ROUNDED = {"own": None, "float16": torch.float16, "bfloat16": torch.bfloat16}  # policy.dormant -> dtype


class MaskedWeight:
    """A managed weight. The host's Parameter holds theta * mask; what is pruned waits in `dormant`.

    name: qualified name of the Parameter in its network, wrappers (DDP, compile) left out.
    dormant: the weight's shape and dtype; +0 where kept, theta where pruned, a theta of 0 as -0: its bits say the mask.
    Between `restore` and `split` it holds all of theta, and the mask lies beside it. With `rounded` it has that dtype
    outside of steps, where the weight's is wider: what waits is rounded to it, live weights never are.
    threshold: [filters], at least float32, or None for methods without thresholds.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        param: nn.Parameter,
        layout: FilterLayout,
        norm_dims: tuple[int, ...] | None = None,
        stored: bool = True,  # False: for methods that never prune; dormant values take no memory
        rounded: torch.dtype | None = None,  # of dormant values, where they shall take less memory than the weight
    ):
        self.name = name
        self._module = weakref.ref(module)  # weakly: networks are not kept alive by what is attached to them
        self.param = param
        self.gradient = GradientWatch(param)  # since the work before the coming step was done
        self.layout = layout
        self.norm_dims = norm_dims  # weight norm divides by norms over these dims
        self.stored = stored
        self.rounded = rounded
        self.dormant = self._all_kept()
        self._window: Tensor | None = None  # the mask (bool) while `dormant` holds all of theta
        self._waiting: Tensor | None = None  # the tensor that is `dormant` outside of the window, if it is rounded
        self.loops: Fused | None = None  # compiled loops for this weight's dtype, where they may be used
        self.rows = Shape.of(layout)  # for them
        self.threshold: Tensor | None = None
        self.scale: Tensor | None = None  # what |theta| is divided by (0-dim); None: units absolute
        self.scale_vectors: Tensor | None = None  # left singular vector of the power iteration, units: spectral
        self.optimizer: Any = None  # weak reference to the optimizer that last stepped the weight
        self.continues = False  # whether that optimizer brought a state of its own to its first step
        self.steps = 0  # iterations in which the owning optimizer stepped
        self.fresh = True  # until its first step, or until a state is loaded
        self.waits = False  # for its first gradient: until then it is not known whether the weight trains
        self.looked_at = False  # whether zeros were counted for the coming step
        self.broken_off = False  # the optimizer's last step raised, and may have moved pruned entries
        self.threshold_grad: Tensor | None = None  # task gradient of the thresholds for the coming step, [filters]
        self.removed: Tensor | None = None  # what the work before the step took from the gradient, if it may be needed
        self.returning: Tensor | None = None  # old values that came back outside of a step, until the next one

    def __repr__(self) -> str:
        return f"MaskedWeight({self.name}, {tuple(self.param.shape)})"

    @property
    def module(self) -> nn.Module:
        """The module that holds the Parameter. Raises RgplugError once the network is gone."""
        module = self._module()
        if module is None:
            raise RgplugError(f"the network of {self.name} does not exist any more; keep it as long as its controller")
        return module

    @property
    def numel(self) -> int:
        return self.param.numel()

    @property
    def data(self) -> Tensor:
        """The host's Parameter without its graph; writing to it counts as an in-place change of the Parameter."""
        return self.param.detach()

    @property
    def mask(self) -> Tensor:
        """bool, the weight's shape, True where kept (outside of a step: a new tensor)."""
        if self._window is not None:
            return self._window
        if not self.stored:
            return torch.ones((), dtype=torch.bool, device=self.dormant.device).expand(self.param.shape)
        return kernels.mask_of(self.dormant)

    @property
    def is_rounded(self) -> bool:
        """Whether dormant values have a dtype of their own."""
        return self._dormant_dtype != self.param.dtype

    @property
    def _dormant_dtype(self) -> torch.dtype:
        own = self.param.dtype
        return own if self.rounded is None or self.rounded.itemsize >= own.itemsize else self.rounded

    @property
    def merged(self) -> bool:
        """Between `restore` and `split`, where `dormant` holds all of theta."""
        return self._window is not None

    def bits(self, scratch: kernels.Scratch | None = None) -> Tensor:
        """The mask as `kernels` applies it: integers of the weight's size, all ones where kept, else 0."""
        if self._window is not None:
            return kernels.bits_of_mask(self._window, self.dormant.dtype, scratch)
        if self.is_rounded:
            return kernels.bits_of_mask(self.mask, self.param.dtype, scratch)
        return kernels.bits_of_dormant(self.dormant, scratch)

    @property
    def theta(self) -> Tensor:
        """The dense weight behind the mask: live values where kept, dormant ones where pruned (a new tensor)."""
        if self.merged:
            return self.dormant.clone()
        return torch.where(self.mask | (self.data != 0), self.data, self.dormant)

    @property
    def density(self) -> float:
        """Share of the weight that is kept. Reads the device."""
        return torch.count_nonzero(self.mask).item() / self.numel

    def owned_by(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before each step: note who steps the weight, and whether a new optimizer goes on from an old state."""
        if self.optimizer is None or self.optimizer() is not optimizer:
            self.optimizer = weakref.ref(optimizer)
            self.continues = bool(optimizer.state.get(self.param))

    def remember(self) -> None:
        """Masks are about to change outside of a step: keep the pruned values until the next one (see `bring_back`)."""
        if self.stored and self.returning is None:
            self.returning = self.dormant.clone()

    def bring_back(self) -> None:
        """Old values that came back since the last step, and were overwritten with exact zeros since.

        That is what a training script does that had an average swapped in while masks changed, and puts its own copy
        of the weights back, with zeros where they were pruned. One that zeroes the whole weight means it.
        """
        if self.returning is not None:
            old, data = self.returning.to(self.param), self.data
            lost = (data == 0) & (old != 0) & self.mask & ((data != 0) & (old == 0)).any()
            data.copy_(torch.where(lost, old, data))

    def hide_broken_step(self) -> None:
        """Zeros at pruned places again, after a step of the optimizer that raised."""
        if self.broken_off:
            kernels.keep_(self.data, self.bits())
            self.broken_off = False

    def stepped(self) -> None:
        """The step is over: what was prepared for it is of no more use."""
        self.gradient.forget()
        self.removed = self.returning = None
        self.looked_at = self.broken_off = False

    def follow(self) -> bool:
        """Move the dormant values to where the host has moved its Parameter (device, dtype); True if it had."""
        p = self.param
        if p.device == self.dormant.device and self._dormant_dtype == self.dormant.dtype:
            return False
        self.close()
        mask, dormant = self.mask.to(p.device), self.dormant
        self.dormant = self._all_kept()
        if self.stored:
            _wait(self.dormant, dormant, mask)
        return True

    def _all_kept(self) -> Tensor:
        """Dormant values of a weight without pruned entries."""
        p, dtype = self.data, self._dormant_dtype
        return torch.zeros_like(p, dtype=dtype) if self.stored else p.new_zeros((), dtype=dtype).expand(p.shape)

    def forget(self) -> None:
        """Outside of a step: what waits becomes 0, and so what regrows begins there; the mask stays."""
        kernels.forget_(self.dormant)

    def close(self) -> None:
        """Leave a window that an interrupt between `restore` and `split` left open; the mask is what it was."""
        if self._window is not None:
            kernels.wait_(self.dormant, self.bits().bitwise_not_())
            self._leave_window()

    def _leave_window(self) -> None:
        """`dormant` holds what is pruned by the window's mask, no longer all of theta."""
        if self._waiting is not None and self._window is not None:
            _wait(self._waiting, self.dormant, self._window)
            self.dormant, self._waiting = self._waiting, None
        self._window = None

    def fused(self, grad: Tensor | None = None) -> Fused | None:
        """The compiled loops, if they cover the weight, its dormant values and `grad` as they are now."""
        loops = self.loops
        if loops is None or torch.compiler.is_compiling():  # a compiled optimizer.step fuses the tensor operations
            return None
        if (  # as nearly always; the long way round for the rest
            type(self.param) is nn.Parameter
            and self.param.is_cpu
            and self.layout.dim < 2
            and self.param.is_contiguous()
            and self.dormant.is_contiguous()
            and (grad is None or (type(grad) is Tensor and grad.dtype is loops.dtype and grad.is_contiguous()))
        ):
            return loops
        tensors = (self.data, self.dormant, *(() if grad is None else (grad,)))
        return loops if loops.covers(self.layout, *tensors) else None

    def merge(self, scratch: kernels.Scratch) -> tuple[Tensor, Tensor, Tensor]:
        """(theta, zeros in the weight, mask bits) before the step; host writes at pruned positions are adopted."""
        self.close()
        bits = self.bits(scratch)
        if not self.is_rounded:
            return *kernels.merge_(self.data, self.dormant, bits, scratch), bits
        mask, exact = self.mask, self.dormant.to(self.param.dtype)
        merged = kernels.merge_(self.data, exact, bits, scratch)
        _wait(self.dormant, exact, mask)
        return *merged, bits

    def restore(self, scratch: kernels.Scratch | None = None) -> None:
        """Undo what the optimizer's step did to pruned entries; `dormant` holds theta until `split`."""
        if self._window is not None:
            return
        loops = self.fused()
        self._window = self.mask  # first of all: an interrupt may come at any time
        if loops is not None:
            loops.restore(self.rows, self.param, self.dormant)
            return
        if self.is_rounded:
            self._waiting, self.dormant = self.dormant, self.dormant.to(self.param.dtype)
        kernels.restore_(self.data, self.dormant, self.bits(scratch))

    def gather(self) -> Tensor:
        """`merge` and `restore` outside of a step: `dormant` holds theta until `split`. Returns the zeros found."""
        scratch = kernels.Scratch()
        _, zeros, _ = self.merge(scratch)
        self.restore(scratch)
        return zeros

    def split(self, pruned: Tensor, scratch: kernels.Scratch | None = None) -> Tensor:
        """Install a new mask; `pruned` is 1.0 / 0.0, weight-shaped. Returns the number of kept -> pruned entries."""
        assert self._window is not None
        newly = kernels.split_(self.dormant, self.data, pruned, self._window, scratch)
        self._leave_window()
        return newly

    def before(self, loops: Fused, grad: Tensor | None, rule: Rule, zeros: Tensor) -> None:
        """The work before the host's step, by the compiled loops (`Fused.before`)."""
        self.close()
        self.threshold_grad = loops.before(self.rows, self.param, self.dormant, grad, rule, zeros)

    def after(self, loops: Fused, rule: Rule, counts: Tensor, *, recurrent: bool, limit: float) -> bool:
        """A new mask by the rule, by the compiled loops (`Fused.after`, or `Fused.refresh` where theta was looked at);
        True where the guard kept all."""
        options: Any = {"recurrent": recurrent, "limit": limit}
        if self._window is None:
            return loops.after(self.rows, self.param, self.dormant, rule, counts, **options)
        tripped = loops.refresh(self.rows, self.param, self.dormant, self._window, rule, counts, **options)
        self._leave_window()
        return tripped

    def variance(self) -> Tensor | None:
        """Variance of theta (0-dim, float64) after the host's step, by the compiled loops; None where they are not."""
        loops = self.fused()
        if loops is None:
            return None
        return loops.variance(self.rows, self.param, self.dormant, gathered=self.merged)

    def set_mask(self, mask: Tensor) -> None:
        """Install a given bool mask outside of a step; newly kept entries take their dormant value."""
        self.gather()
        self.split(torch.logical_not(mask).to(self.param.dtype))

    def misfit(self, state: Any) -> str:
        """What is wrong with a state of this weight, as half a sentence; "" if nothing is. What the method keeps of the
        weight, under names that begin with `method.`, is the method's to judge."""
        shape = self.param.shape
        needed = {"mask": expected.tensor(shape, torch.bool), "dormant": expected.tensor(shape)}
        needed["steps"] = expected.whole()
        if self.threshold is not None:
            needed["threshold"] = expected.tensor(self.threshold.shape)
        own = {k: v for k, v in state.items() if not str(k).startswith("method.")} if isinstance(state, dict) else state
        return expected.keys(own, needed, {"waits": expected.flag})

    def load(self, mask: Tensor, dormant: Tensor, threshold: Tensor | None, *, live: bool = False) -> None:
        """Take over saved state. The host's values are the host's to load, before or after; what was pruned here since
        and is kept in the saved mask comes back first. live: the host has loaded them, they stay to the bit."""
        if tuple(mask.shape) != tuple(self.param.shape):
            raise RgplugError(
                f"the saved state of {self.name} has shape {list(mask.shape)}, this network's has "
                f"{list(self.param.shape)}; load a state of the same network"
            )
        theta = self.data if live else self.theta
        self.close()
        mask = mask.to(self.dormant.device)
        _wait(self.dormant, dormant, mask)
        if not live:
            self.data.copy_(torch.where(mask, theta, self.data))
        if threshold is not None and self.threshold is not None:
            self.threshold.copy_(threshold)


def _wait(store: Tensor, values: Tensor, mask: Tensor) -> None:
    """`store` becomes the dormant values where `mask` (bool) is False; one that is 0 in its dtype waits as -0."""
    kernels.wait_(store.copy_(values), kernels.bits_of_mask(mask, store.dtype).bitwise_not_())
