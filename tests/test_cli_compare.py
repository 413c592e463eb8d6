"""`rgplug compare` and `rgplug report` from the shell, on examples/sngan.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rgplug.baselines import read_results
from rgplug.cli import main

SNGAN = str(Path(__file__).parent.parent / "examples" / "sngan.py")
METHODS = ("dense", "rg-gan", "stu-gan", "adapt", "tickets")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "real.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), np.uint8))
    return path


def compare(images: Path, out: Path, *more: str, methods: str = ",".join(METHODS), host: str = SNGAN) -> int:
    return main(
        [
            "compare", "--host", host, "--methods", methods, "--out", str(out), "--set", f"metric.real={images}",
            "--set", "metric.samples=8", "--set", "metric.features=efficientnet_lite0", "--set", "batch_size=4",
            "--density", "G=0.3,D=0.5", "--length", "4", "--n-critic", "2", "--rounds", "1", *more,
            "--", "--data", str(images), "--width", "8", "--iterations", "4", "--eval-every", "2", "--batch", "4",
            "--batch-g", "4", "--n-critic", "2",
        ]
    )  # fmt: skip


def test_compare_and_report(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(images, tmp_path) == 0
    assert "stu-gan seed 0: fd_efficientnet_lite0" in capsys.readouterr().out
    results = {r.method: r for r in read_results(tmp_path)}
    assert set(results) == set(METHODS)
    assert {r.evaluations for r in results.values()} == {2}
    assert results["stu-gan"].density == {"G": pytest.approx(0.3, abs=0.01), "D": pytest.approx(0.5, abs=0.01)}
    assert all(r.real_images_total == 4 * 2 * 4 for r in results.values())
    assert all((tmp_path / r.run / "samples.png").is_file() for r in results.values())
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert all(f"{name}, seed 0" in page for name in METHODS)
    assert (tmp_path / "table.csv").is_file()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--density", "much"], "--density is 'much'; give one number, or G=0.1,D=0.5"),
        (["--density", "50"], "the density is 50; it has to lie between 0 and 1; did you mean 0.5?"),
        (["--density", "g=0.5"], "the density names 'g', which is no network"),
        (["--length", "0"], "length is 0"),
        (["--set", "metric.real"], "--set 'metric.real' has no value"),
        (["--set", "batch_size=[1"], "the value of --set 'batch_size=[1' is no valid YAML"),
        (["--set", "metric.smples=3"], "did you mean 'samples'?"),
    ],
)
def test_bad_arguments(
    images: Path, tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(images, tmp_path, *more) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compare", "--methods", "dense", "python", "train.py"], "the command that trains goes after --"),
        (["tickets", "python", "train.py"], "the command that trains goes after --"),
        (["compare", "--methods", "dense", "--seed", "2", "--", "python"], "unrecognized arguments: --seed 2\n"),
    ],
)
def test_words_that_are_no_options(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--seed is no short form of --seeds, which is how many."""
    with pytest.raises(SystemExit):
        main(words)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("x = 1", "can take no arguments after --"),
        ("def host(argv): return 3", "is no host: it has to define host(argv)"),
        ("def host(argv): raise SystemExit('no such option')", "does not take '--data"),
        ("import nowhere_to_be_found", "cannot be imported"),
    ],
)
def test_files_that_are_no_host(
    images: Path, tmp_path: Path, code: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "host.py").write_text(code)
    assert compare(images, tmp_path / "out", host=str(tmp_path / "host.py")) == 2
    assert sentence in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/*"))


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "has neither results.jsonl nor history.jsonl" in capsys.readouterr().err
