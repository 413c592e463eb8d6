"""A dry run of a few seconds: does everything a GAN host does to its networks still work under attach?"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rgplug.attach import attach
from rgplug.controller import Controller
from rgplug.copying import copy_network
from rgplug.errors import RgplugError
from rgplug.layers import original_class
from rgplug.metrics import default_sample_fn
from rgplug.metrics.isolation import preserved_rng
from rgplug.metrics.sampling import further_arguments
from rgplug.processes import alone
from rgplug.wrappers import unwrap

Inputs = tuple[Any, ...]
GIVE = "give make_batch, a function that returns (inputs of G, inputs of D), each a tuple where forward takes several"
HALF = {"G": 0.5, "D": 0.5, "start": 0, "by": 0, "shape": "constant"}


@dataclass(frozen=True)
class Line:
    name: str
    ok: bool
    detail: str = ""

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name}" + (f": {self.detail}" if self.detail else "")


@dataclass
class CheckReport:
    """Lines of a dry run; `ok` when none failed. Prints as one line each."""

    lines: list[Line] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(line.ok for line in self.lines)

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))


def check(
    G: nn.Module,
    D: nn.Module | None = None,
    make_batch: Callable[[], tuple[Any, Any]] | None = None,
) -> CheckReport:
    """Try on copies what hosts do to networks, pruned to half their weights, and say line by line what would fail.

    make_batch() returns (inputs of G, inputs of D): tensors, or tuples of what forward takes. Without it a latent is
    guessed from G, and D gets G's output. Networks, optimizers and random state stay as they were. Raises RgplugError
    when nothing can be tried: networks that cannot be copied, or run.
    """
    with alone(), preserved_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Trial(G, D, make_batch).run()


class _Trial:
    def __init__(self, G: nn.Module, D: nn.Module | None, make_batch: Callable[[], tuple[Any, Any]] | None):
        self.source = {"G": unwrap(G)} if D is None else {"G": unwrap(G), "D": unwrap(D)}
        self.batch = make_batch() if make_batch is not None else None
        self.lines: list[Line] = []

    def run(self) -> CheckReport:
        self.stock = self._copies()
        self.live = self._copies()
        g_inputs, d_inputs = self.batch if self.batch is not None else self._guess()
        self.inputs = {"G": _as_tuple(g_inputs), "D": _as_tuple(d_inputs)}
        # stock networks get a step as well: some cannot be copied after one, with or without rgplug
        try:
            _steps(self.stock, self.inputs, {n: _adam(m) for n, m in self.stock.items()})
        except Exception as error:
            inputs = "inputs that were guessed" if self.batch is None else "inputs that make_batch returned"
            raise RgplugError(
                f"{' and '.join(self.stock)} cannot be trained for one step on the {inputs} ({_line(error)}); {GIVE}"
            ) from error
        self.rg = _attach(self.live)
        try:
            for name, trial in self._trials():
                self._try(name, trial)
        finally:
            self.rg.detach()
        self._try("detach gives the classes back", self._detached)
        return CheckReport(self.lines)

    def _trials(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("attach", self._attached),
            ("names, order and shapes of parameters and buffers", self._same_names),
            ("two forwards before one backward, then a step", self._train),
            ("pruned weights exactly 0 after steps with momentum", self._zeros),
            ("deepcopy", self._deepcopy),
            ("pickle, loading without rgplug", self._pickle),
            ("state dict, strict, both ways", self._state_dict),
            ("moving average by zip over parameters", self._ema),
            ("save and exact resume", self._resume),
        ]

    def _try(self, name: str, trial: Callable[[], str]) -> None:
        try:
            self.lines.append(Line(name, True, trial()))
        except Exception as error:
            self.lines.append(Line(name, False, _line(error)))

    # ---- what is tried ---------------------------------------------------------------------------------------------

    def _attached(self) -> str:
        return ", ".join(f"{len(self.rg.weights(n))} weights of {n}" for n in self.live)

    def _same_names(self) -> str:
        for n in self.live:
            stock, live = self.stock[n], self.live[n]
            _require(list(stock.state_dict()) == list(live.state_dict()), f"state-dict keys of {n} changed")
            shapes = [(k, p.shape) for k, p in stock.named_parameters()]
            _require(shapes == [(k, p.shape) for k, p in live.named_parameters()], f"parameters of {n} changed")
        return ""

    def _train(self) -> str:
        self.optimizers = {n: _adam(m) for n, m in self.live.items()}
        for _ in range(2):
            _steps(self.live, self.inputs, self.optimizers)
        return "density " + " ".join(f"{n} {d:.2f}" for n, d in self.rg.density().items())

    def _zeros(self) -> str:
        for n in self.live:
            for w in self.rg.weights(n):
                _require(not w.param.detach()[~w.mask].any(), f"{n}.{w.name} is not 0 where pruned")
                _require(bool(w.mask.any()), f"{n}.{w.name} is empty")
        return ""

    def _deepcopy(self) -> str:
        for n, live in self.live.items():
            try:
                stock = copy.deepcopy(self.stock[n])
            except Exception as error:
                return f"fails without rgplug too ({type(error).__name__}), left out"
            copied = copy.deepcopy(live)
            _require(
                [type(m) for m in copied.modules()] == [type(m) for m in stock.modules()], f"classes of {n} changed"
            )
            _equal_parameters(copied, live, n)
        return ""

    def _pickle(self) -> str:
        for n, live in self.live.items():
            try:
                pickle.dumps(self.stock[n])
            except Exception as error:
                return f"fails without rgplug too ({' '.join(str(error).split())[:60]}), left out"
            data = pickle.dumps(live)
            _require(b"rgplug" not in data, f"the pickle of {n} mentions rgplug")
            _equal_parameters(pickle.loads(data), live, n)
        return ""

    def _state_dict(self) -> str:
        for n, live in self.live.items():
            buffer = io.BytesIO()
            torch.save(live.state_dict(), buffer)
            buffer.seek(0)
            self.stock[n].load_state_dict(torch.load(buffer, weights_only=True), strict=True)
            _equal_parameters(self.stock[n], live, n)
            live.load_state_dict(self.stock[n].state_dict(), strict=True)
        return ""

    def _ema(self) -> str:
        average = self.stock["G"]
        with torch.no_grad():
            for e, p in zip(average.parameters(), self.live["G"].parameters()):
                e.lerp_(p, 0.5)
        values = dict(average.named_parameters())
        before = {name: p.detach().clone() for name, p in values.items()}
        with self.rg.masked(average):
            for w in self.rg.weights("G"):
                _require(not values[w.name].detach()[~w.mask].any(), f"{w.name} of the average is not masked")
        for name, value in before.items():
            _require(torch.equal(values[name].detach(), value), f"{name} of the average has changed")
        return ""

    def _resume(self) -> str:
        state = self.rg.state_dict()
        weights = {n: copy.deepcopy(m.state_dict()) for n, m in self.live.items()}
        moments = {n: copy.deepcopy(o.state_dict()) for n, o in self.optimizers.items()}
        random = torch.get_rng_state()
        _steps(self.live, self.inputs, self.optimizers)
        expected = {n: [w.theta for w in self.rg.weights(n)] for n in self.live}
        for n, module in self.live.items():
            module.load_state_dict(weights[n])
            self.optimizers[n].load_state_dict(moments[n])
        self.rg.load_state_dict(state)
        torch.set_rng_state(random)
        _steps(self.live, self.inputs, self.optimizers)
        for n in self.live:
            for w, theta in zip(self.rg.weights(n), expected[n]):
                _require(torch.equal(w.theta, theta), f"{n}.{w.name} differs after a resume")
        return ""

    def _detached(self) -> str:
        for n, live in self.live.items():
            _require(all(type(m) is original_class(m) for m in live.modules()), f"a class of {n} is still masked")
        return ""

    # ---- making it possible ----------------------------------------------------------------------------------------

    def _copies(self) -> dict[str, nn.Module]:
        copies = {}
        for n, module in self.source.items():
            try:
                copies[n] = copy_network(module)
            except Exception as error:
                raise RgplugError(
                    f"{n} ({type(module).__name__}) cannot be copied for a dry run ({_line(error)}); check works on "
                    "copies, attach does not need them: leave check out for this network"
                ) from error
            copies[n].train().requires_grad_(True)
        return copies

    def _guess(self) -> tuple[Any, Any]:
        try:
            sampler = default_sample_fn(self.stock["G"])
            z = sampler.arguments(4)
            if "D" not in self.stock:
                return z, None
            return z, (sampler(4), *further_arguments(self.stock["D"]))
        except RgplugError as error:
            why = str(error).rpartition(";")[0] or str(error)  # what to do is another thing here
            raise RgplugError(f"check cannot guess what to call the networks with: {why}; {GIVE}") from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _attach(nets: dict[str, nn.Module]) -> Controller:
    target = {k: v for k, v in HALF.items() if k in nets or k not in ("G", "D")}
    policy = {"method": "rg-gan", "threshold": {"units": "layer_std"}, "target": target}
    return attach(nets["G"], nets.get("D"), policy)


def _steps(nets: dict[str, nn.Module], inputs: dict[str, Inputs], optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """One iteration of a GAN: D on real and generated images with one backward, then G."""
    if "D" not in nets:
        optimizers["G"].zero_grad()
        _score(nets["G"](*inputs["G"])).backward()
        optimizers["G"].step()
        return
    images, *rest = inputs["D"]
    fake = _like(nets["G"](*inputs["G"]), images)
    optimizers["D"].zero_grad()
    detached = _map(fake, lambda t: t.detach())
    (_score(nets["D"](images, *rest)) - _score(nets["D"](detached, *rest))).backward()
    optimizers["D"].step()
    optimizers["G"].zero_grad()
    _score(nets["D"](fake, *rest)).backward()
    optimizers["G"].step()


def _like(fake: Any, example: Any) -> Any:
    """G's output in the form of D's first input: the first tensor of a tuple where D takes one tensor."""
    while isinstance(fake, (tuple, list)) and isinstance(example, Tensor):
        fake = fake[0]
    return fake


def _map(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    return f(value) if isinstance(value, Tensor) else type(value)(_map(v, f) for v in value)


def _score(output: Any) -> Tensor:
    """A scalar of whatever a network returns: the sum over its floating-point tensors of their means."""
    if isinstance(output, Tensor):
        return output.float().mean() if output.requires_grad else output.new_zeros((), dtype=torch.float32)
    parts = [_score(o) for o in output if isinstance(o, (Tensor, tuple, list))]
    return torch.stack(parts).sum()


def _adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-4, betas=(0.5, 0.999))


def _equal_parameters(a: nn.Module, b: nn.Module, label: str) -> None:
    for (name, x), y in zip(a.named_parameters(), b.parameters()):
        _require(torch.equal(x.detach(), y.detach()), f"{label}.{name} differs")


def _as_tuple(value: Any) -> Inputs:
    return value if isinstance(value, tuple) else (value,)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text)
