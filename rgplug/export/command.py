"""`rgplug export`: what can be made of a checkpoint, and of the network that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from rgplug.errors import RgplugError
from rgplug.export.card import cost_card
from rgplug.export.checkpoint import masked_state_dict, write_sparse
from rgplug.export.compact import compact
from rgplug.export.compact_file import save_compact
from rgplug.export.onnx_file import require_onnx, save_onnx
from rgplug.inspection import build, import_file
from rgplug.select import misfit

STDOUT = Path("-")


def export(
    checkpoint: Path,
    out: Path,  # the sparse file
    key: str = "",  # of the state dict in the checkpoint, dotted
    half: bool = False,  # the sparse file's values as float16
    network: str | None = None,  # FILE.py:EXPRESSION
    compact_to: Path | None = None,
    onnx_to: Path | None = None,  # of the compact network where there is one, else of the network as it is
    card_to: Path | None = None,  # "-": the card is among the lines
    state: Path | None = None,  # rgplug's state file, where the checkpoint holds none
) -> Iterator[str]:
    """Write what is asked for, and say for each in a line or more what became of it.

    What is missing (a network, a package) is found out before anything is written. Raises RgplugError.
    """
    tensors, said = masked_state_dict(checkpoint, key, state)
    wanted = {"--compact": compact_to, "--onnx": onnx_to, "--card": card_to}
    needs = next((option for option, path in wanted.items() if path is not None), None)
    if needs and network is None:
        raise RgplugError(
            f"{needs} needs the network and not only its weights; give --network FILE.py:EXPRESSION, e.g. "
            "--network 'examples/sngan.py:Generator()'"
        )
    if onnx_to is not None:
        require_onnx()
    built = None if network is None else load_network(network, tensors, checkpoint)
    yield said + write_sparse(out, tensors, half)
    if built is None:
        return
    result = None
    if compact_to is not None:
        result = compact(built)
        save_compact(compact_to, result)
        yield f"{compact_to}: {result.report}"
    if onnx_to is not None:
        yield str(save_onnx(onnx_to, built if result is None else result.network))
    if card_to is not None:
        yield _written(card_to, cost_card(built, compacted=result).to_markdown())


def load_network(given: str, tensors: Mapping[str, Tensor], source: Path) -> nn.Module:
    """The network that FILE.py:EXPRESSION builds, in eval mode, with a state dict in it: every key, every shape.

    source: where the state dict is from, for the message. Raises RgplugError.
    """
    stem, colon, expression = given.partition(".py:")
    if not (stem and colon and expression):
        raise RgplugError(f"--network {given!r} is no FILE.py:EXPRESSION, as 'examples/sngan.py:Generator()' is")
    network = build(import_file(Path(f"{stem}.py")), expression, "name a class and its arguments as in training")
    wrong = misfit(tensors, network.state_dict())
    if wrong:
        raise RgplugError(
            f"the state dict of {source} is of another network than {expression}: {wrong}; build the network as in "
            "training, and name its state dict with --key"
        )
    network.load_state_dict(tensors, strict=True)
    return network.eval().requires_grad_(False)


def _written(path: Path, card: str) -> str:
    if path == STDOUT:
        return card
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(card, encoding="utf-8")
    except OSError as error:
        raise RgplugError(f"the cost card could not be written to {path}: {error}") from error
    return f"{path}: what each form costs, counted and measured"
