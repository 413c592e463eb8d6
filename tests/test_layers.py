"""Masked classes: visible where one looks at a layer, invisible where one copies, saves or compares it."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
from typing import Any

import pytest
import tiny
import torch
from common import linear, pruned_at
from torch import Tensor, nn

import rgplug


def test_print_shows_density_and_the_arguments_of_the_layer() -> None:
    G = nn.Sequential(linear([[1.0, 0.1], [1.0, 1.0]]), nn.ReLU())
    rg = rgplug.attach(G)
    assert "density=1.000" in repr(G)
    pruned_at(rg, "G", 0.5)
    assert "in_features=2, out_features=2, bias=False, density=0.750" in repr(G)
    rg.detach()
    assert "density" not in repr(G)


def test_mask_threshold_and_density_answer_on_the_layer() -> None:
    G = linear([[1.0, 0.1], [1.0, 1.0]])
    rg = rgplug.attach(G)
    pruned_at(rg, "G", 0.5)
    assert G.mask.tolist() == [[True, False], [True, True]]
    assert G.threshold.tolist() == [0.5, 0.5]
    assert G.density == 0.75


def test_isinstance_and_the_class_comes_back() -> None:
    G = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    rg = rgplug.attach(G)
    assert isinstance(G[0], nn.Conv2d)
    assert "Conv" in type(G[0]).__name__  # weights_init of DCGAN looks for this
    assert type(G[0]) is not nn.Conv2d
    rg.detach()
    assert [type(m) for m in G] == [nn.Conv2d, nn.Linear]


def test_keys_order_and_identity_of_parameters_stay() -> None:
    G, D = tiny.build("new_sn")
    before = {n: [(k, id(p)) for k, p in m.named_parameters()] for n, m in (("G", G), ("D", D))}
    keys = {n: list(m.state_dict()) for n, m in (("G", G), ("D", D))}
    rgplug.attach(G, D)
    assert before == {n: [(k, id(p)) for k, p in m.named_parameters()] for n, m in (("G", G), ("D", D))}
    assert keys == {n: list(m.state_dict()) for n, m in (("G", G), ("D", D))}


def classes(module: nn.Module) -> list[type]:
    return [type(m) for m in module.modules()]


@pytest.mark.parametrize("kind", ["plain", "old_sn", "equalized", "grouped"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_holds_the_original_classes_and_no_word_of_rgplug(kind: str, protocol: int) -> None:
    for module in tiny.build(kind):
        stock = classes(module)
        rg = rgplug.attach(module)
        data = pickle.dumps(module, protocol)
        assert b"rgplug" not in data
        assert b"Masked" not in data
        pickletools.dis(data, out=io.StringIO())
        loaded = pickle.loads(data)
        assert classes(loaded) == stock
        for a, b in zip(loaded.parameters(), module.parameters()):
            assert torch.equal(a, b)
        rg.detach()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_deep_and_shallow_copies_are_of_the_original_class(kind: str) -> None:
    for module in tiny.build(kind):
        stock = classes(copy.deepcopy(module))
        rg = rgplug.attach(module)
        copied = copy.deepcopy(module)
        # each copy of a parametrized layer has a class of its own, so names are compared
        assert [c.__name__ for c in classes(copied)] == [c.__name__ for c in stock]
        assert "density" not in repr(copied)
        if kind != "new_sn":  # parametrized layers have no shallow copy with or without rgplug
            assert "Masked" not in type(copy.copy(rg.weights("G")[0].module)).__name__
        with torch.no_grad():
            for p in copied.parameters():
                p.add_(1)
        for a, b in zip(copied.parameters(), module.parameters()):
            torch.testing.assert_close(a - 1, b)
        rg.detach()


def test_a_deepcopy_before_attach_is_no_part_of_it() -> None:
    G = nn.Sequential(nn.Linear(4, 4))
    ema = copy.deepcopy(G)
    rgplug.attach(G)
    assert type(ema[0]) is nn.Linear


def test_a_deepcopy_can_be_attached() -> None:
    G = nn.Sequential(nn.Linear(4, 4))
    rgplug.attach(G)
    other = rgplug.attach(copy.deepcopy(G))
    assert len(other.weights("G")) == 1


def test_saving_the_whole_module_with_torch() -> None:
    G, _ = tiny.build("old_sn")
    rgplug.attach(G)
    buffer = io.BytesIO()
    torch.save(G, buffer)
    assert b"rgplug" not in buffer.getvalue()
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    z = torch.randn(3, tiny.Z, dtype=torch.float64)
    assert torch.equal(loaded.eval()(z), G.eval()(z))


def test_a_parametrized_module_can_still_not_be_pickled_and_says_so_itself() -> None:
    D = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(D)
    rgplug.attach(D)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(D)


class HasMask(nn.Linear):
    """A host's layer that has a meaning of its own for our words."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_buffer("mask", torch.full((3,), 7.0))
        self.density = "mine"

    @property
    def threshold(self) -> str:
        return "also mine"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.mask


def test_attributes_of_the_host_are_not_shadowed() -> None:
    layer = HasMask()
    rgplug.attach(layer)
    assert layer.mask.tolist() == [7.0] * 3
    assert layer.density == "mine"
    assert layer.threshold == "also mine"


class SetsMaskLater(nn.Linear):
    """Partial convolutions and the like keep a mask from one forward to the next."""

    def forward(self, x: Tensor) -> Tensor:
        self.mask = (x > 0).float()
        self.threshold = 0.5
        return super().forward(x) * self.mask.mean()


def test_a_host_may_set_these_attributes_after_attach() -> None:
    layer, x = SetsMaskLater(3, 3), torch.tensor([[1.0, -1.0, 1.0]])
    expected = copy.deepcopy(layer)(x)
    rg = rgplug.attach(layer)
    assert torch.equal(layer(x), expected)
    assert layer.mask.tolist() == [[1, 0, 1]]
    assert layer.threshold == 0.5
    assert layer.density == 1.0
    rg.detach()
    assert layer.mask.tolist() == [[1, 0, 1]]


def test_a_host_may_register_a_buffer_of_that_name_after_attach() -> None:
    layer = nn.Linear(3, 3)
    rgplug.attach(layer)
    layer.register_buffer("mask", torch.ones(3))
    assert layer.mask.tolist() == [1, 1, 1]


def revive(meta: dict[str, Any]) -> Any:
    layer = Persistent.__new__(Persistent)
    nn.Module.__init__(layer)
    layer.__dict__.update(meta["state"])
    layer.revived = True
    return layer


class Persistent(nn.Module):
    """Pickles through a __reduce__ of its own, as StyleGAN2's persistent classes do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def __reduce__(self) -> Any:
        fields = list(super().__reduce__())
        return revive, ({"class": type(self).__name__, "state": fields[2]},), None


def test_a_class_with_a_reduce_of_its_own() -> None:
    G = nn.Sequential(Persistent(), nn.Linear(3, 3))
    rgplug.attach(G)
    assert isinstance(G[0], Persistent)
    assert "Masked" in type(G[0]).__name__
    for copied in (copy.deepcopy(G), pickle.loads(pickle.dumps(G))):
        assert classes(copied) == [nn.Sequential, Persistent, nn.Linear]
        assert copied[0].revived
        assert torch.equal(copied[0].weight, G[0].weight)
    assert b"Masked" not in pickle.dumps(G)


def test_two_managed_weights_in_one_module() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))
            self.other = nn.Parameter(torch.randn(2, 2))

    G = Two()
    rg = rgplug.attach(G, policy={"networks": {"G": {"include": ["*", "other"]}}})
    assert [w.name for w in rg.weights("G")] == ["weight", "other"]
    assert G.mask.shape == (3, 3)
    rg.detach()
    assert type(G) is Two


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["trace", "fx", "script"])
def test_layers_can_be_traced_and_scripted(how: str) -> None:
    G = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(2, 3)
    expected = G(x)
    rgplug.attach(G)
    if how == "trace":
        other = torch.jit.trace(G, x)
    else:
        other = torch.fx.symbolic_trace(G) if how == "fx" else torch.jit.script(G)
    assert torch.equal(other(x), expected)
