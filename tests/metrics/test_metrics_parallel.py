"""Two processes: one value, the one that a single process finds."""

import logging
import math
import traceback
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from rgplug import meetings
from rgplug.errors import RgplugError
from rgplug.metrics import parallel
from rgplug.metrics.evaluator import Evaluator
from rgplug.metrics.features import Features
from rgplug.metrics.generator import evaluate_generator


def coarse(images: torch.Tensor) -> Features:
    pooled = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
    return Features(pooled, 20 * pooled)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z_dim = 6
        self.body = nn.Linear(6, 192)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.body(z).reshape(-1, 3, 8, 8).tanh()


def generator() -> Generator:
    torch.manual_seed(0)
    return Generator()


def evaluator(samples: int, distance: str | tuple[str, ...] = "frechet", real=None) -> Evaluator:
    given = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1 if real is None else real
    return Evaluator(given, coarse, distance, samples, batch=8, cache=False, progress=False, device="cpu")


# "is" depends on the order of the images; 5 images are one batch, and rank 1 has nothing to do
CASES = [(44, "frechet"), (44, "kid"), (44, "is"), (16, "frechet"), (5, "frechet"), (44, ("is", "kid", "frechet"))]


def measured() -> list[float]:
    return [v.value for n, distance in CASES for v in evaluate_generator(generator(), evaluator(n, distance)).all]


def on_global_state(n: int) -> torch.Tensor:
    """A sample_fn that knows nothing of ranks."""
    on_global_state.made.append(torch.rand(n, 3, 8, 8) * 2 - 1)
    return on_global_state.made[-1]


def work(rank: int, folder: str) -> None:
    """What each process does; the findings go into a file, an unexpected error too."""
    logging.disable()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, object] = {}
    try:
        found["values"] = measured()
        on_global_state.made = []
        found["global"] = evaluator(32)(on_global_state).value
        found["made"] = torch.cat(on_global_state.made)

        def poisoned(n: int) -> torch.Tensor:
            return torch.full((n, 3, 8, 8), math.nan if dist.get_rank() == 1 else 0.5)

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found["nan"] = evaluator(32)(poisoned).value
        found["said"] = [str(w.message) for w in said]

        def broken(n: int) -> torch.Tensor:
            if dist.get_rank() == 1:
                raise KeyError("mine")
            return torch.zeros(n, 3, 8, 8)

        for name, sample_fn, real in (("rank 1", broken, None), ("rank 0", lambda n: torch.zeros(n, 3, 8, 8), "one")):
            try:
                evaluator(32, real=None if real is None else torch.zeros(1, 3, 8, 8))(sample_fn)
            except RgplugError as error:
                found[name] = str(error)
        meetings.PATIENCE = 1.0
        if rank == 0:  # the other one goes on
            try:
                evaluator(32)(on_global_state)
            except RgplugError as error:
                found["alone"] = str(error)
    except Exception:
        found["unexpected"] = traceback.format_exc()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=2)
    both = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    assert [f.get("unexpected") for f in both] == [None, None]
    return both


def test_both_ranks_have_the_value_of_a_single_process(findings):
    assert findings[0]["values"] == findings[1]["values"]
    assert findings[0]["values"] == pytest.approx(measured(), rel=1e-9)


def test_a_sample_fn_on_the_global_state_makes_other_images_on_every_rank(findings):
    assert findings[0]["global"] == findings[1]["global"]
    made = torch.cat([f["made"] for f in findings]).flatten(1)
    assert len(made) == 32
    assert len(made.unique(dim=0)) == 32


def test_images_that_are_not_finite_on_one_rank_are_nan_on_both(findings):
    assert all(math.isnan(f["nan"]) for f in findings)
    assert all("not finite" in f["said"][0] for f in findings)


def test_an_error_on_one_rank_is_an_error_on_both_and_nobody_waits_for_ever(findings):
    assert findings[0]["rank 1"] == findings[1]["rank 1"] == "the evaluation failed on rank 1: 'mine'"
    assert findings[0]["rank 0"] == findings[1]["rank 0"] == "statistics need at least two images, not 1"


def test_an_evaluation_on_one_rank_alone_is_told_before_it_hangs(findings):
    assert "at the evaluator on rank 0, and rank 1 did not come; every rank has to call" in findings[0]["alone"]


def test_a_single_process_needs_no_process_group():
    assert (parallel.rank(), parallel.world(), parallel.active()) == (0, 1, False)
    assert parallel.broadcast("x") == "x"
    assert parallel.gather(3) == [3]
    assert torch.equal(parallel.gather_rows(torch.ones(2, 3), [2])[0], torch.ones(2, 3))
