"""The cost card of a pruned network: dense, baked, compact, and as ONNX files, counted and measured side by side."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rgplug.copying import copy_network
from rgplug.errors import RgplugError
from rgplug.export.arguments import Arguments, refuse_attached
from rgplug.export.compact import Compact, compact
from rgplug.export.compact_file import save_compact
from rgplug.export.forms import CostCard, Form
from rgplug.export.measure import alternating_medians, machine, peak_activations, torch_threads
from rgplug.export.onnx_file import require_onnx, save_onnx
from rgplug.export.onnx_run import session
from rgplug.export.sparse_file import save_sparse
from rgplug.metrics import evaluation_mode, layer_macs, preserved_buffers, preserved_rng
from rgplug.wrappers import unwrap

IN_ONNX = ", ONNX"  # after the name of a form
TRACED = 8  # latents that compact is given, where inputs are not guessed
FILL = 0.01  # what stands in for zeros, in standard deviations of the weight: outputs stay close to the baked network's


@dataclass
class _Candidate:
    """A form on its way: what is counted, and how to run it at a batch."""

    name: str
    network: nn.Module  # the network it is, or was made from
    file: str
    bytes: int
    calls: Mapping[int, Callable[[], object]]
    given: Mapping[int, tuple[Any, ...]] = field(default_factory=dict)  # where its activations can be followed


def cost_card(
    baked: nn.Module,
    inputs: tuple[Any, ...] | None = None,  # what forward takes, see Arguments; guessed when None
    compacted: Compact | None = None,  # what compact(baked) gave; made here when None
    onnx: bool | None = None,  # ONNX rows; None: where onnx, onnxscript and onnxruntime are installed
    batches: Sequence[int] = (1, 16),  # images per call
    rounds: int = 20,  # timed calls of each form and batch
    threads: int | None = None,  # of torch and of onnxruntime; None: torch's number
) -> CostCard:
    """What a baked network (`rg.export()`) costs beside the dense one and in its other forms.

    dense is a copy with values in place of the zeros: that zeros are no faster shows in its own row. Rows that cannot
    be made are left out, and a note says why. Time is that of forward alone, on the device of the network, which is
    left as it was. RgplugError for a network under masks, inputs that cannot be guessed, and, when onnx is True,
    whatever `save_onnx` says.
    """
    module = unwrap(baked)
    refuse_attached(module)
    if rounds < 1 or not batches or min(batches) < 1:
        raise RgplugError(f"a cost card needs rounds and batches of at least 1, not {rounds} and {list(batches)}")
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder, torch_threads(threads) as used, preserved_rng(seed=0):
        work = _Work(Path(folder), Arguments(module, inputs), sorted(set(batches)), used)
        with evaluation_mode(module), preserved_buffers(module), torch.no_grad():
            candidates = _in_torch(module, compacted, work, notes)
            candidates += _in_onnxruntime(candidates, onnx, work, notes)
            forms = _measured(candidates, work, rounds)
        card = CostCard(type(module).__name__, forms, work.batches, rounds, machine(), ())
    return CostCard(card.network, forms, card.batches, rounds, card.machine, [*_in_words(card), *notes])


@dataclass
class _Work:
    folder: Path
    arguments: Arguments
    batches: list[int]
    threads: int

    def __post_init__(self) -> None:
        self.given = {batch: self.arguments(batch) for batch in self.batches}

    @property
    def device(self) -> torch.device:
        return next((x.device for x in self.given[self.batches[0]] if isinstance(x, Tensor)), torch.device("cpu"))

    def candidate(self, name: str, network: nn.Module, file: str, size: int) -> _Candidate:
        calls = {batch: functools.partial(network, *given) for batch, given in self.given.items()}
        return _Candidate(name, network, file, size, calls, self.given)


def _in_torch(module: nn.Module, compacted: Compact | None, work: _Work, notes: list[str]) -> list[_Candidate]:
    filled = with_zeros_filled(module)
    dense, sparse, small = (work.folder / name for name in ("dense.pt", "sparse.safetensors", "compact.safetensors"))
    torch.save(filled.state_dict(), dense)
    save_sparse(sparse, module.state_dict())
    found = [
        work.candidate("dense", filled, "state dict", dense.stat().st_size),
        work.candidate("baked", module, "sparse file", sparse.stat().st_size),
    ]
    try:
        result = compacted or compact(module, None if work.arguments.guessed else work.arguments(TRACED))
        save_compact(small, result)
    except RgplugError as error:
        notes.append(f"There is no compact form: {error}.")
        return found
    notes.append(f"compact: {result.report.splitlines()[0]}.")
    if _norms(module) != _norms(result.network):
        notes.append("compact has its norms of weights folded: a part of its measured speed is that, and no pruning.")
    return [*found, work.candidate("compact", result.network, "compact file", small.stat().st_size)]


def _norms(network: nn.Module) -> int:
    """Weights that are computed anew in each forward (spectral norm, weight norm)."""
    return sum(1 for name in network.state_dict() if name.endswith(("_orig", "_g", ".original", ".original0")))


def _in_onnxruntime(
    candidates: Sequence[_Candidate], onnx: bool | None, work: _Work, notes: list[str]
) -> list[_Candidate]:
    """ONNX forms of the others; none, with a note, where onnx is None and they cannot be made."""
    if onnx is False:
        return []
    try:
        require_onnx()
        return [_as_onnx(candidate, work) for candidate in candidates]
    except RgplugError as error:
        if onnx:
            raise
        notes.append(f"There are no ONNX forms: {error}.")
        return []


def _as_onnx(candidate: _Candidate, work: _Work) -> _Candidate:
    calls: dict[int, Callable[[], object]] = {}
    check = None
    for batch, given in work.given.items():
        path = work.folder / f"{candidate.name}-{batch}.onnx"
        if check is None or not check.dynamic:  # a fixed batch needs a file for each
            made = save_onnx(path, candidate.network, given)
            check, run = check or made, session(str(path), work.threads, _providers(work.device))
        names = [i.name for i in run.get_inputs()]
        feed = dict(zip(names, (x.cpu().numpy() for x in given if isinstance(x, Tensor)), strict=True))
        calls[batch] = functools.partial(run.run, None, feed)
    assert check is not None
    return _Candidate(f"{candidate.name}{IN_ONNX}", candidate.network, "ONNX file", check.bytes, calls)


def _providers(device: torch.device) -> list[str]:
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    return [p for p in [*wanted, "CPUExecutionProvider"] if p in onnxruntime.get_available_providers()]


def _measured(candidates: Sequence[_Candidate], work: _Work, rounds: int) -> list[Form]:
    times = {
        batch: alternating_medians({c.name: c.calls[batch] for c in candidates}, rounds, work.device)
        for batch in work.batches
    }
    counts = {c.network: _counted(c.network, work.given[work.batches[0]]) for c in candidates}
    return [
        Form(
            name=c.name,
            dense=candidates[0].name if c.given else f"{candidates[0].name}{IN_ONNX}",
            file=c.file,
            bytes=c.bytes,
            **counts[c.network],
            milliseconds={batch: times[batch][c.name] for batch in work.batches},
            activations={batch: peak_activations(c.network, given) for batch, given in c.given.items()},
        )
        for c in candidates
    ]


def _counted(network: nn.Module, given: tuple[Any, ...]) -> dict[str, Any]:
    """The fields of a Form that are the same in torch and in onnxruntime."""
    macs = layer_macs(network, given)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "nonzeros": sum(int(torch.count_nonzero(p)) for p in network.parameters()),
        "macs": macs.total,
        "macs_of_nonzeros": macs.flops(layer_density(network, macs.layers)) / 2,
    }


def with_zeros_filled(network: nn.Module) -> nn.Module:
    """A copy with small normal values wherever a weight is exactly zero.

    They are small so that the network stays what it is: a spectral norm's vectors, e.g., belong to the weight they were
    found for. Only parameters of two dimensions or more: biases and gains may be zero without having been pruned.
    """
    dense = copy_network(network)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in dense.parameters():
            pruned = p == 0
            if p.dim() < 2 or not p.is_floating_point() or not pruned.any():
                continue
            kept = p[~pruned]
            scale = kept.float().std().item() if kept.numel() > 1 else 1.0
            p[pruned] = (FILL * scale * torch.randn(int(pruned.sum()), generator=random)).to(p)
    return dense


def layer_density(network: nn.Module, layers: Mapping[str, float]) -> dict[str, float]:
    """Share of non-zeros in the largest parameter of each of these modules, by module name (see LayerMacs.layers)."""
    largest: dict[str, Tensor] = {}
    for name, p in network.named_parameters():
        owner = name.rpartition(".parametrizations.")[0] or name.rpartition(".")[0]
        if owner in layers and p.numel() > (largest[owner].numel() if owner in largest else 0):
            largest[owner] = p
    return {owner: int(torch.count_nonzero(p)) / p.numel() for owner, p in largest.items()}


def _in_words(card: CostCard) -> list[str]:
    """What the tables say about zeros, with the numbers."""
    baked = card["baked"]
    measured = " and ".join(f"{card.measured_speed(baked, b):.2f} at batch {b}" for b in card.batches)
    return [
        "dense is a copy of the baked network with values in place of its zeros. Measured speeds are relative to it, "
        "those of ONNX files to its ONNX file, so that what another runtime gains is not taken for pruning.",
        "baked computes every MAC that dense computes, zeros included, and is no faster: its measured speed of "
        f"{measured}, where arithmetic says 1, shows how far to trust the others. {card.theoretical_speed(baked):.2f} "
        "would take kernels that leave zeros out.",
        "Peak activations: on a CPU bytes of tensors that operators returned and that were alive at the same time, "
        "weights that a norm computes among them, without workspaces inside an operator; on a GPU "
        "torch.cuda.max_memory_allocated. Not followed in onnxruntime.",
    ]
