"""What can stand in the cells of a table: values of a run, how they are written, and which is better."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rgplug.baselines.results import Result
from rgplug.errors import RgplugError
from rgplug.policy import higher_is_better
from rgplug.report.cells import count, duration, metric_text, metric_title, millions, power, thousands
from rgplug.report.comparison import Comparison

Best = Callable[[Iterable[float]], float] | None


@dataclass(frozen=True)
class Quantity:
    """key: in --cells and the CSV. is_metric: its mean is shown with the standard deviation."""

    key: str
    title: str
    value: Callable[[Result], float | None]
    write: Callable[[float], str]
    best: Best = None
    is_metric: bool = False


def quantities(c: Comparison, keys: Sequence[str]) -> list[tuple[Quantity, ...]]:
    """What each column of cells shows. Names of metrics next to each other are one: fid,is is (FID, IS).

    Raises RgplugError, with the nearest ones, for a name that is none.
    """
    known = {q.key: q for q in _known(c)}
    found: list[tuple[Quantity, ...]] = []
    names = _metrics(c)
    before = ""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise RgplugError(f"a table's cells cannot show {key!r}; {hint}")
        if key in names and before in names:
            found[-1] = (*found[-1], known[key])
        else:
            found.append((known[key],))
        before = key
    if not found:
        raise RgplugError(f"a table needs something in its cells; there are {', '.join(known)}")
    return found


def kept(run: Result, network: str = "G") -> float | None:
    return run.parameters_kept.get(network)


def images_unit(values: Iterable[float | None]) -> tuple[str, Callable[[float], str]]:
    """The unit that numbers of images are written in, and how: thousands where none is a million."""
    known = [v for v in values if v is not None]
    return ("thousand", thousands) if known and max(known) < 1e6 else ("million", millions)


def other_metrics(c: Comparison) -> list[Quantity]:
    """The metrics of the runs besides the one that decides, each at the evaluation at which that one was best."""
    return [_metric(c, name) for name in _metrics(c) if name != c.metric]


def _known(c: Comparison) -> list[Quantity]:
    higher = max if c.higher_is_better else min
    name = metric_title(c.metric)
    unit, write_images = images_unit(run.result.images_to_best for run in c.runs)
    shares = [
        Quantity(f"{what}.{net}", f"{what.capitalize()} {net}{unit_}", _share(net, what), write)
        for what, unit_, write in (("density", "", "{:.3f}".format), ("sparsity", ", %", "{:.1f}".format))
        for net in ("G", "D")
    ]
    found = [
        Quantity("best", name, lambda r: r.best, metric_text, higher, True),
        Quantity("last", f"Last {name}", lambda r: r.final, metric_text, higher, True),
        Quantity("ri", f"#RI, {unit}", lambda r: r.images_to_best, write_images, min),
        Quantity("flops", "Training FLOPs", lambda r: r.flops_to_best, power, min),
        Quantity("seconds", "Seconds", lambda r: r.seconds_to_best, duration, min),
        Quantity("density", "Density G", _share("G", "density"), "{:.3f}".format),
        *shares,
        Quantity("parameters", "Parameters G, kept", kept, count, min),
        Quantity("inference", "FLOPs of one image", lambda r: r.inference_flops, power, min),
        Quantity("ever_active", "Ever active G, %", lambda r: percent(r.ever_active.get("G")), "{:.1f}".format),
    ]
    return [*found, *(_metric(c, metric) for metric in _metrics(c))]


def _metrics(c: Comparison) -> list[str]:
    """Names of all metrics of the runs, the deciding one first."""
    known = dict.fromkeys(name for run in c.runs for name in run.result.metrics)
    return list(dict.fromkeys([c.metric, *known]))


def _metric(c: Comparison, name: str) -> Quantity:
    """A metric at the evaluation at which the deciding one was best."""
    if name == c.metric:
        higher, value = c.higher_is_better, lambda r: r.best
    else:
        higher, value = higher_is_better(name), lambda r: r.metrics[name].at_best if name in r.metrics else None
    title = "IS" if name == "is" else metric_title(name)
    return Quantity(name, title, value, metric_text, max if higher else min, True)


def _share(network: str, what: str) -> Callable[[Result], float | None]:
    def share(run: Result) -> float | None:
        density = run.density.get(network)
        return density if density is None or what == "density" else 100 * (1 - density)

    return share


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
