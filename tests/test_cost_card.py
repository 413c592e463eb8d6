"""The cost card: counts, bytes and MACs that are known by hand; its tables. Times are only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import rgplug
from rgplug import RgplugError
from rgplug.export import cost_card, save_sparse
from rgplug.export.card import layer_density, with_zeros_filled
from rgplug.export.forms import COUNTED
from rgplug.export.measure import alternating_medians, peak_activations

MACS = 5 * 32 + 64 * 8 * 8 * 9 + 64 * 8 * 3  # Linear; 3x3 on 8x8; 1x1 on 8x8


def generator() -> nn.Sequential:
    """Latents [N, 5] to images [N, 3, 8, 8]; half of the middle weight is zero, four whole filters of it."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(5, 32),
        nn.Unflatten(1, (8, 2, 2)),
        nn.Upsample(scale_factor=4),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    )
    with torch.no_grad():
        network[3].weight[::2] = 0
        network[5].bias.zero_()
    return network.eval().requires_grad_(False)


def test_what_can_be_counted(tmp_path: Path) -> None:
    network = generator()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    card = cost_card(network, onnx=False, batches=(2, 1), rounds=1)
    assert [form.name for form in card.forms] == ["dense", "baked", "compact"]
    dense, baked, compact = card.forms
    entries = 5 * 32 + 32 + 8 * 8 * 9 + 8 * 3 + 3
    assert (dense.parameters, dense.nonzeros) == (entries, entries - 3)  # a bias of zeros was not pruned
    assert (baked.parameters, baked.nonzeros) == (entries, entries - 3 - 288)
    assert (compact.parameters, compact.nonzeros) == (entries - 288 - 12, entries - 3 - 288 - 12)
    assert (dense.macs, dense.macs_of_nonzeros) == (MACS, MACS)
    assert (baked.macs, baked.macs_of_nonzeros) == (MACS, MACS - 64 * 8 * 8 * 9 / 2)
    assert compact.macs == compact.macs_of_nonzeros == MACS - 64 * 8 * 8 * 9 / 2 - 64 * 4 * 3
    assert baked.bytes == save_sparse(tmp_path / "G.safetensors", network.state_dict())
    torch.save(network.state_dict(), tmp_path / "dense.pt")  # it holds its own name
    assert dense.bytes == (tmp_path / "dense.pt").stat().st_size
    assert card.theoretical_speed(baked, zeros_are_free=False) == 1
    assert card.theoretical_speed(baked) == MACS / baked.macs_of_nonzeros
    assert card.batches == [1, 2]
    assert all(sorted(form.milliseconds) == [1, 2] for form in card.forms)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_peak_activations_of_a_network() -> None:
    """Two convolutions' outputs and the upsampled input at most are alive at once: the latter two, here."""
    network = generator()
    card = cost_card(network, onnx=False, batches=(1, 3), rounds=1)
    image = 8 * 8 * 4  # bytes of a channel
    assert card["dense"].activations == {1: 16 * image, 3: 3 * 16 * image}
    in_place = nn.Sequential(nn.Linear(4, 8), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(8, 2))
    assert peak_activations(in_place, (torch.randn(3, 4),)) == 3 * (8 + 2) * 4  # not the view, nor in place


def test_the_tables() -> None:
    card = cost_card(generator(), onnx=False, rounds=1)
    lines = card.to_markdown().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    assert [cell.strip() for cell in rows[0]] == list(COUNTED)
    assert [len(row) for row in rows] == [len(COUNTED)] * 5 + [1 + 3 * 2] * 5
    assert [row[0].strip() for row in rows[2:5]] == ["dense", "baked", "compact"]
    assert [cell.strip() for cell in rows[3][1:3]] == ["795", "504"]
    assert sum(line.startswith("Machine: ") and torch.__version__ in line for line in lines) == 1
    number = f"{card.measured_speed(card['baked'], 16):.2f} at batch 16"
    assert any("is no faster" in line and number in line for line in lines)
    held = json.loads(json.dumps(card.to_dict()))
    assert held["forms"]["baked"]["nonzeros"] == 504
    assert held["forms"]["dense"]["measured_speed"] == {"1": 1.0, "16": 1.0}
    assert held["forms"]["baked"]["theoretical_speed"]["macs_computed"] == 1


def test_onnx_files_are_compared_with_onnx_files(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    card = cost_card(generator(), batches=(1,), rounds=1, threads=1)
    names = ["dense", "baked", "compact"]
    assert [form.name for form in card.forms] == [*names, *(f"{name}, ONNX" for name in names)]
    form = card["compact, ONNX"]
    assert form.dense == "dense, ONNX"
    assert card.measured_speed(form, 1) == card["dense, ONNX"].milliseconds[1] / form.milliseconds[1]
    assert (form.parameters, form.macs) == (card["compact"].parameters, card["compact"].macs)
    assert form.bytes < card["dense, ONNX"].bytes
    assert form.activations == {}


def test_what_cannot_be_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    network = generator().requires_grad_(True)
    rg = rgplug.attach(network, None, "sparse")
    with pytest.raises(RgplugError, match="is under a mask"):
        cost_card(network)
    rg.detach()
    with pytest.raises(RgplugError, match=r"rounds and batches of at least 1, not 0 and \[1\]"):
        cost_card(network, batches=(1,), rounds=0)

    def missing() -> None:
        raise RgplugError("no onnxruntime here")

    monkeypatch.setattr("rgplug.export.card.require_onnx", missing)
    card = cost_card(network, batches=(1,), rounds=1)
    assert "There are no ONNX forms: no onnxruntime here." in card.notes
    with pytest.raises(RgplugError, match="no onnxruntime here"):
        cost_card(network, onnx=True, batches=(1,), rounds=1)


def test_what_folded_norms_save_is_told() -> None:
    network = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 12)), nn.Unflatten(1, (3, 2, 2)))
    with_norm = cost_card(network, onnx=False, batches=(1,), rounds=1)
    without = cost_card(generator(), onnx=False, batches=(1,), rounds=1)
    told = [any("weights folded" in note for note in card.notes) for card in (with_norm, without)]
    assert told == [True, False]


def test_zeros_filled() -> None:
    network = generator()
    dense = with_zeros_filled(network)
    kept = network[3].weight != 0
    assert torch.equal(dense[3].weight[kept], network[3].weight[kept])
    assert dense[3].weight.all()
    assert 0.005 < dense[3].weight[~kept].std() / network[3].weight[kept].std() < 0.02
    assert not dense[5].bias.any()
    assert layer_density(network, {"3": 1.0, "5": 1.0}) == {"3": 0.5, "5": 1.0}


def test_calls_take_turns() -> None:
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    medians = alternating_medians(calls, rounds=3)
    assert seen == ["a", "b"] * 5  # two of them to warm up
    assert medians.keys() == {"a", "b"}
