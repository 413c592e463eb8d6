"""Presets: policies with a name, from the papers' settings."""

from __future__ import annotations

from typing import Any

_WITHOUT_AR: dict[str, Any] = {"recurrent": True, "augmented": False}


def _sparse(**keys: Any) -> dict[str, Any]:
    return {"method": "sparse", **keys, "regeneration": _WITHOUT_AR}


def _stu_gan(*networks: str) -> dict[str, Any]:
    return _sparse(
        masks={"density": {"G": 0.1, "D": 0.3}},
        exploration={"networks": list(networks), "every": 1000, "fraction": 0.5, "grow": "gradient"},
    )


def _ablation(recurrent: bool, augmented: bool, *networks: str) -> dict[str, Any]:
    """RG-GAN, Figure 5: a part of the method on some of the networks."""
    return {
        "method": "rg-gan",
        "threshold": {"networks": list(networks)},
        "regeneration": {"recurrent": recurrent, "augmented": {"networks": list(networks)} if augmented else False},
    }


def _adapt(highest: float, exchange: bool, every: int) -> dict[str, Any]:
    """ADAPT on SNGAN: runs of 100,000 iterations of G (released scripts adapt_relax.sh and adapt_strict.sh)."""
    return _sparse(
        masks={"density": {"G": 0.1, "D": 0.1}},
        exploration={"networks": ["G"], "every": 500, "fraction": 0.5, "end": 100_000, "grow": "gradient"},
        balance={"highest": highest, "exchange": exchange, "every": every},
    )


def _pf_filters(criterion: str) -> dict[str, Any]:
    """Prune and fine-tune by a criterion of torch-pruning: whole filters of G, ranked over its layers."""
    masks = {"density": {"G": 0.1, "D": 1.0}, "criterion": f"torch-pruning:{criterion}", "distribution": "global"}
    return _sparse(granularity={"G": "filter"}, masks=masks)


PRESETS: dict[str, dict[str, Any]] = {
    "rg-gan": {"method": "rg-gan"},
    "rg-gan-released": {
        "method": "rg-gan",
        "sparsity_weight": 1.0e-12,
        "threshold": {"task_gradient": False, "units": {"G": "absolute", "D": "spectral"}},
    },
    "rg-gan-dp": _ablation(False, False, "G", "D"),
    "rg-gan-dp-g": _ablation(False, False, "G"),
    "rg-gan-dp-d": _ablation(False, False, "D"),
    "rg-gan-rr": _ablation(True, False, "G", "D"),
    "rg-gan-rr-g": _ablation(True, False, "G"),
    "rg-gan-rr-d": _ablation(True, False, "D"),
    "rg-gan-ar-g": _ablation(True, True, "G"),
    "rg-gan-ar-d": _ablation(True, True, "D"),
    "dense": {"method": "dense", "regeneration": _WITHOUT_AR},
    "sparse": _sparse(),
    "sparse-er": _sparse(masks={"distribution": "er"}),
    "sparse-uniform": _sparse(masks={"distribution": "uniform"}),
    "sparse-global": _sparse(masks={"distribution": "global"}),
    "pf-global": _sparse(
        masks={"density": {"G": 0.1, "D": 1.0}, "criterion": "magnitude", "distribution": "global"},
    ),
    "pf-uniform": _sparse(
        masks={"density": {"G": 0.1, "D": 1.0}, "criterion": "magnitude", "distribution": "uniform"},
    ),
    "pf-taylor": _pf_filters("TaylorImportance"),
    "pf-hessian": _pf_filters("HessianImportance"),
    "pf-lamp": _pf_filters("LAMPImportance"),
    "pf-fpgm": _pf_filters("FPGMImportance"),
    "pf-bnscale": _pf_filters("BNScaleImportance"),
    "small-dense": _sparse(granularity="filter", masks={"distribution": "uniform", "channels": True}),
    "re-gan": {"method": "re-gan", "regeneration": _WITHOUT_AR},
    "stu-gan": _stu_gan("G"),
    "stu-gan-d": _stu_gan("D"),
    "stu-gan-b": _stu_gan("G", "D"),
    "adapt": _adapt(highest=1.0, exchange=False, every=1000),
    "adapt-strict": _adapt(highest=0.5, exchange=True, every=2000),
    "set": _sparse(
        exploration={"networks": ["G", "D"], "fraction": 0.3, "final": 0.3, "grow": "random"},
        optimizer_state="reset",
    ),
    "rigl": _sparse(
        exploration={"networks": ["G", "D"], "every": 100, "fraction": 0.3, "final": 0.0, "grow": "gradient"},
        optimizer_state="reset",
    ),
}
