"""What an attached run had at certain moments, and evaluations with given values."""

from __future__ import annotations

import os


def witness(folder: str) -> None:
    """Writes into `folder`: resumed.safetensors and resumed.npz (G's weights), the state right after a resume;
    rank<r>.txt, a line with a digest of masks and thresholds at each look at the densities."""
    import hashlib

    import numpy as np

    from rgplug import state
    from rgplug.adapters.run import Run
    from rgplug.processes import rank

    resume_ema, numbers = Run.resume_ema, Run.numbers

    def after_resume(self):
        if self._resumed_ema is not None and self.controller.epoch:
            state.save(os.path.join(folder, "resumed.safetensors"), self.controller.state_dict())
            weights = {w.name: w.data.numpy() for w in self.generator.weights}
            np.savez(os.path.join(folder, "resumed.npz"), **weights)
        resume_ema(self)

    def looked(self, *args):
        digest = hashlib.sha256()
        for net in self.controller.networks.values():
            for w in net.weights:
                for x in (x for x in (w.mask, w.threshold, w.dormant, w.data) if x is not None):
                    digest.update(x.contiguous().numpy().tobytes())
        with open(os.path.join(folder, f"rank{rank()}.txt"), "a") as file:
            file.write(digest.hexdigest() + "\n")
        return numbers(self, *args)

    Run.resume_ema, Run.numbers = after_resume, looked


def averages(folder: str) -> None:
    """Writes into `folder`: step<n>.npz before each step of G that is an iteration of its own, with G's parameters
    (live/NAME) and the host's moving average of them (average/NAME), both as the iteration before left them."""
    import numpy as np
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from rgplug.adapters.run import Run
    from rgplug.wrappers import tensors_of

    runs, count = [], iter(range(100000))
    init = Run.__init__

    def started(self, *args, **kwargs):
        init(self, *args, **kwargs)
        runs.append(self)

    def before(optimizer, args, kwargs):
        run = next((r for r in runs if r.rg is not None), None)
        if run is None or run.generator.auxiliary:
            return
        G = run.networks["G"]
        live = dict(G.named_parameters())
        if not {id(p) for g in optimizer.param_groups for p in g["params"]} & {id(p) for p in live.values()}:
            return
        average = tensors_of(run._average(), G)
        arrays = {f"live/{n}": p.detach().numpy() for n, p in live.items()}
        arrays |= {f"average/{n}": average[n].detach().numpy() for n in live}
        arrays |= {f"mask/{w.name}": w.mask.numpy() for w in run.generator.weights}
        np.savez(os.path.join(folder, f"step{next(count):04d}.npz"), **arrays)

    Run.__init__ = started
    register_optimizer_step_pre_hook(before)


def given_values():
    """The values of RGPLUG_TEST_FID, one each time."""
    path = os.environ.get("RGPLUG_TEST_FID")
    if path is None:
        return None
    with open(path) as file:
        values = [float(x) for x in file.read().split()]
    state = {"next": 0}

    def following():
        value = values[min(state["next"], len(values) - 1)]
        state["next"] += 1
        return value

    return following
