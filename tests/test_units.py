"""Units: what a kernel, a filter and a four are, for every layout of a weight, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rgplug.masking import FilterLayout
from rgplug.methods.magnitude import add_largest, drop_smallest, keep_largest, prune_remaining
from rgplug.methods.threshold_shift import weighted_quantile
from rgplug.methods.two_of_four import exchange, two_of_four
from rgplug.policy import NetworkPolicy
from rgplug.select import select
from rgplug.units import Entries, Filters, Fours, Geometry, Kernels, Units, connected, spared, spread

CPU = torch.device("cpu")


def counted(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Linear(3, 2), 1),
        (nn.Conv2d(3, 2, 3), 1),
        (nn.ConvTranspose2d(3, 2, 3), 0),
        (nn.ConvTranspose3d(1, 2, 3), 0),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), 0),
        (nn.Conv3d(1, 2, 3), 1),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_input_channels(module: nn.Module, inputs: int) -> None:
    (found,) = select(module, NetworkPolicy(), "G")
    assert found.inputs == inputs


def test_input_channels_of_a_modulated_convolution() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(1, 2, 3, 5, 5))
    (found,) = select(module, NetworkPolicy(), "G")
    assert (found.layout.dim, found.inputs) == (1, 2)
    block = Kernels("w", Geometry(found.layout, found.inputs))
    assert (block.shape, block.size) == ((1, 2, 3, 1, 1), 25)
    named = select(nn.Conv2d(3, 2, 3), NetworkPolicy(filter_dim={"weight": 2}), "G")[0]
    assert named.inputs is None  # the policy names an output dim of which nothing is known


def test_kernels() -> None:
    x = counted(2, 2, 1, 3)
    block = Kernels("w", Geometry(FilterLayout((2, 2, 1, 3)), 1))
    assert block.scores({"w": x}).view(-1).tolist() == [1, 4, 7, 10]
    assert block.sums(x).view(-1).tolist() == [3, 12, 21, 30]
    assert block.sizes(CPU).tolist() == [[[[3]], [[3]]], [[[3]], [[3]]]]
    kept = torch.tensor([[1, 0], [0, 1]], dtype=torch.bool).view(2, 2, 1, 1)
    mask = block.masks(kept)["w"]
    assert mask.view(4, 3).tolist() == [[True] * 3, [False] * 3, [False] * 3, [True] * 3]
    assert torch.equal(block.kept({"w": mask}), kept)


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_kernels_of_linear_layers_and_vectors_are_entries(shape: tuple[int, ...]) -> None:
    block = Kernels("w", Geometry(FilterLayout(shape), 1 if len(shape) > 1 else None))
    assert torch.equal(block.scores({"w": counted(*shape)}), counted(*shape))
    assert torch.equal(block.sums(counted(*shape)), counted(*shape))
    assert block.sizes(CPU).sum() == block.numel


def test_filters_that_are_tied() -> None:
    """A linear layer viewed as [2, 2], whose first channel is also made by one filter of a convolution."""
    layouts = {"linear": FilterLayout((4, 1)), "conv": FilterLayout((2, 3, 1, 1))}
    of = {"linear": torch.tensor([7, 7, 9, 9]), "conv": torch.tensor([7, 5])}
    block = Filters(layouts, of)
    assert block.of["linear"].tolist() == [1, 1, 2, 2]
    assert block.of["conv"].tolist() == [1, 0]
    assert block.voters.tolist() == [1, 3, 2]
    assert block.sizes(CPU).tolist() == [3, 2 + 3, 2]
    x = {"linear": torch.tensor([[1.0], [3.0], [5.0], [7.0]]), "conv": counted(2, 3, 1, 1)}
    assert block.scores(x).tolist() == pytest.approx([4.0, (1 + 3 + 1) / 3, 6.0])
    assert block.scores({"conv": x["conv"]}).tolist() == pytest.approx([4.0, 1 / 3, 0.0])
    masks = block.masks(torch.tensor([True, False, True]))
    assert masks["linear"].view(-1).tolist() == [False, False, True, True]
    assert masks["conv"].view(2, 3).tolist() == [[False] * 3, [True] * 3]
    assert block.kept(masks).tolist() == [True, False, True]
    assert [(own.tolist(), sizes.tolist()) for own, sizes in block.layers(CPU)] == [([1, 2], [2, 2]), ([0, 1], [3, 3])]


def test_gains_and_biases_go_with_their_channel_without_a_say() -> None:
    layouts = {"conv": FilterLayout((2, 1, 1, 1)), "gain": FilterLayout((2,)), "alone": FilterLayout((3,))}
    of = {"conv": torch.tensor([0, 1]), "gain": torch.tensor([0, 1]), "alone": torch.tensor([1, 2, 3])}
    block = Filters(layouts, of)
    x = {"conv": torch.tensor([0.1, 0.2]).view(2, 1, 1, 1), "gain": torch.ones(2), "alone": torch.tensor([5.0, 6, 7])}
    assert block.scores(x).tolist() == pytest.approx([0.1, 0.2, 6, 7])  # where a channel has nothing else, they count
    assert block.sizes(CPU).tolist() == [2, 3, 1, 1]
    masks = block.masks(torch.tensor([False, True, True, False]))
    assert masks["conv"].flatten().tolist() == masks["gain"].tolist() == [False, True]
    assert masks["alone"].tolist() == [True, True, False]


@pytest.mark.parametrize("layout", [FilterLayout((4, 3, 2, 2), 1, 2), FilterLayout((4, 3, 2, 2), 1)])
def test_filters_of_transposed_convolutions(layout: FilterLayout) -> None:
    """A filter's index is that of the channel it makes: a group's filters follow those of the group before."""
    index = torch.arange(48)
    block = Filters({"w": layout}, {"w": torch.arange(layout.filters)})
    of_entry = layout.filter_of(index).view(layout.shape)
    assert torch.equal(spread(layout, torch.arange(layout.filters)), of_entry)
    x = torch.randn(layout.shape).abs()
    expected = [x[of_entry == i].mean().item() for i in range(layout.filters)]
    assert block.scores({"w": x}).tolist() == pytest.approx(expected)


def test_filters_of_vectors() -> None:
    block = Filters(
        {"gain": FilterLayout((3,)), "w": FilterLayout((3, 2))}, dict.fromkeys(("gain", "w"), torch.arange(3))
    )
    gain = torch.tensor([1.0, 2.0, 3.0])
    assert block.scores({"gain": gain, "w": torch.ones(3, 2)}).tolist() == [1.0, 1.0, 1.0]  # gains have no say
    assert gain.tolist() == [1.0, 2.0, 3.0]
    assert block.masks(torch.tensor([True, False, True]))["gain"].tolist() == [True, False, True]


def test_blocks_are_what_ties_connect() -> None:
    of = {"a": [0, 1], "b": [2, 3], "c": [4, 5], "d": [3, 0], "e": [6]}
    found = connected({name: torch.tensor(ids) for name, ids in of.items()})
    assert found == [["a", "b", "d"], ["c"], ["e"]]


@pytest.mark.parametrize(
    ("shape", "dim", "groups", "inputs"),
    [((2, 8), 0, 1, 1), ((2, 4, 3, 3), 0, 1, 1), ((8, 3, 2, 2), 1, 2, 0), ((1, 2, 4, 3, 3), 1, 1, 2)],
)
def test_fours(shape: tuple[int, ...], dim: int, groups: int, inputs: int) -> None:
    block = Fours("w", Geometry(FilterLayout(shape, dim, groups), inputs))
    x = torch.randn(shape)
    fours = block.scores({"w": x})
    assert fours.shape == block.shape
    first = x.movedim(inputs, 0)[:4]
    assert torch.equal(fours.select(inputs, 0), first.movedim(0, -1))
    assert torch.equal(block.masks(fours)["w"], x)


def test_two_of_four() -> None:
    rows = {
        (1, 2, 3, 4): (0, 0, 1, 1),
        (4, 1, 2, 3): (1, 0, 0, 1),
        (0, 0, 0, 0): (1, 1, 0, 0),
        (1, 2, 2, 2): (0, 1, 1, 0),
        (3, 1, 3, 3): (1, 0, 1, 0),
        (0, float("nan"), 5, 9): (0, 1, 0, 1),
    }
    found = two_of_four(torch.tensor(list(rows), dtype=torch.float32))
    assert found.int().tolist() == [list(x) for x in rows.values()]
    x = torch.randn(500, 4)
    order = x.argsort(dim=-1, descending=True, stable=True)[:, :2]
    assert torch.equal(two_of_four(x), torch.zeros(500, 4, dtype=torch.bool).scatter_(-1, order, True))


def test_exchange_in_fours() -> None:
    size = torch.tensor([[3.0, 1.0, 0.0, 0.0], [9.0, 8.0, 0.0, 0.0], [0.0, 2.0, 2.0, 0.0]])
    kept = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    score = torch.tensor([[9.0, 5.0, 1.0, 2.0], [9.0, 0.0, 1.0, 2.0], [3.0, 0.0, 0.0, 1.0]])
    same, second, third = kept.int().tolist()
    assert exchange(size, kept, score, 0).int().tolist() == [same, second, third]
    assert exchange(size, kept, score, 1).int().tolist() == [same, second, third]  # what was dropped comes back
    assert exchange(size, kept, score, 2).int().tolist() == [
        same,
        second,
        [1, 1, 0, 0],
    ]  # of equal ones the higher goes
    assert exchange(size, kept, score, 9).int().tolist() == [same, [1, 0, 0, 1], [1, 1, 0, 0]]


def test_units_are_kept_until_as_many_entries_are() -> None:
    scores = [torch.tensor([9.0, 8.0, 1.0]), torch.tensor([0.5, 0.4])]
    sizes = [torch.tensor([2, 3, 4]), torch.tensor([10, 1])]

    def bits(masks: list[Tensor]) -> list[list[int]]:
        return [m.int().tolist() for m in masks]

    assert bits(keep_largest(scores, 1, sizes)) == [[1, 0, 0], [1, 0]]  # each keeps its best
    assert bits(keep_largest(scores, 15, sizes)) == [[1, 1, 0], [1, 0]]
    assert bits(keep_largest(scores, 16, sizes)) == [[1, 1, 1], [1, 0]]
    masks = [torch.tensor([True, False, True]), torch.tensor([True, True])]  # 17 entries
    assert bits(add_largest(scores, masks, 2, sizes)) == [[1, 1, 1], [1, 1]]
    assert bits(drop_smallest(scores, masks, 1, sizes)) == [[1, 0, 1], [1, 0]]
    assert bits(drop_smallest(scores, masks, 2, sizes)) == [[1, 0, 1], [1, 0]]
    assert bits(prune_remaining(scores, masks, 0.3, sizes)) == [[1, 0, 0], [1, 0]]


def test_a_quantile_weighted_by_sizes() -> None:
    margins, sizes = torch.tensor([0.3, 0.1, 0.2, 0.9]), torch.tensor([1, 5, 2, 4])

    def value(excess: int, margins: Tensor = margins) -> float:
        return weighted_quantile(margins, sizes, torch.tensor(excess), torch.tensor(0.0)).item()

    assert value(5) == value(6) == pytest.approx(0.15)
    assert value(7) == pytest.approx(0.25)
    assert value(11) == pytest.approx(0.6)
    assert value(4) == pytest.approx(0.1, abs=1e-5)
    assert value(4) < 0.1
    gone = torch.tensor([0.3, -torch.inf, 0.2, 0.9])
    assert 0.19 < value(3, gone) < 0.2
    assert value(7, gone) == pytest.approx(0.25)


def test_a_filter_under_weight_norm_keeps_its_best_kernel() -> None:
    block = Kernels("w", Geometry(FilterLayout((2, 2, 3, 3)), 1, (1, 2, 3)))
    kept = torch.tensor([[0, 0], [1, 0]], dtype=torch.bool).view(2, 2, 1, 1)
    scores = torch.tensor([[1.0, 2.0], [0.0, 9.0]]).view(2, 2, 1, 1)
    assert spared(block, kept, scores).int().view(2, 2).tolist() == [[0, 1], [1, 0]]


def test_a_filter_that_keeps_nothing_but_zeros_is_empty_too() -> None:
    """Single weights: the first filter keeps one that has only just grown, the second one nothing, the third enough."""
    block = Entries("w", Geometry(FilterLayout((3, 3)), 1, (1,)))
    kept = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 4.0, 1.0]])
    assert spared(block, kept, scores).int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert spared(block, kept, scores, zeros_count=False).int().tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]


def test_masks_of_whole_units() -> None:
    units = Units("kernel", {"a": Geometry(FilterLayout((2, 2, 2)), 1), "b": Geometry(FilterLayout((2, 2)), 1)})
    masks = {"a": torch.ones(2, 2, 2, dtype=torch.bool), "b": torch.eye(2, dtype=torch.bool)}
    assert units.hold(masks) == ""
    masks["a"][0, 1, 1] = False
    assert units.hold(masks) == "a"
    fours = Units("2:4", {"a": Geometry(FilterLayout((1, 4)), 1)})
    assert fours.hold({"a": torch.tensor([[True, False, True, False]])}) == ""
    assert fours.hold({"a": torch.tensor([[True, True, True, False]])}) == "a"


def test_units_survive_a_file() -> None:
    parts = {"a": Geometry(FilterLayout((4, 3, 2, 2), 1, 2), 0), "b": Geometry(FilterLayout((6,)))}
    units = Units("filter", parts, {"a": torch.arange(6), "b": torch.arange(6)})
    again = Units.from_dict(units.to_dict())
    x = {"a": torch.rand(4, 3, 2, 2), "b": torch.rand(6)}
    assert len(again.blocks) == 1
    assert torch.equal(units.blocks[0].scores(x), again.blocks[0].scores(x))
