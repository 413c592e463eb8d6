"""Figures from made-up histories."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rgplug.history import read_history
from rgplug.report.figures import image_grid, training_figure


def made_up_history(epochs=20, layers=60, networks=("G", "D")):
    """What a run of `epochs` epochs with `layers` managed layers per network could have written."""
    rng = np.random.default_rng(0)
    lines, values, phase = [], [], "sparse"
    for epoch in range(1, epochs + 1):
        dense_now = epoch in (7, 12, 13)
        values.append(220 * np.exp(-epoch / 6) + 40 + rng.normal() * 4)
        next_phase = "dense" if epoch + 1 in (7, 12, 13) else "sparse"
        kept = {n: 1.0 if dense_now else max(0.3, 1 - 0.05 * epoch) + 0.1 * (n == "D") for n in networks}
        lines.append(
            {
                "epoch": epoch,
                "steps": {n: 200 * epoch for n in networks},
                "metric": float(values[-1]),
                "metric_name": "fd_efficientnet_lite0",
                "average": float(np.mean(values[-5:])) if epoch >= 5 else None,
                "phase_before": phase,
                "phase": next_phase,
                "density": {n: min(1.0, kept[n]) for n in networks},
                "layers": {
                    n: {
                        f"blocks.{i}.conv.weight": float(
                            np.clip(kept[n] - 0.3 * i / layers + rng.normal() * 0.03, 0, 1)
                        )
                        for i in range(layers)
                    }
                    for n in networks
                },
                "regenerated": {n: int(rng.integers(0, 3000)) * (10 if dense_now else 1) for n in networks},
                "pruned": {n: int(rng.integers(3000, 16000)) for n in networks},
                "real_images": 3200 * epoch,
                "flops": 1.2e12 * epoch,
                "seconds": 20.0,
            }
        )
        phase = next_phase
    return lines


def size_of(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 10  # something was drawn
        return image.size


def write_jsonl(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_twenty_epochs_with_sixty_layers(tmp_path):
    path = training_figure(write_jsonl(tmp_path / "history.jsonl", made_up_history()), tmp_path / "a" / "figure.png")
    width, height = size_of(path)
    assert 800 < width < 2000
    assert 1000 < height < 3000


@pytest.mark.parametrize("networks", [("G", "D"), ("G",)])
def test_one_epoch(tmp_path, networks):
    size_of(training_figure(made_up_history(1, 4, networks), tmp_path / "figure.png", title="one epoch"))


def test_nothing_measured_and_no_layers(tmp_path):
    lines = [
        {**line, "metric": None, "metric_name": None, "average": None, "layers": {}, "regenerated": None}
        for line in made_up_history(3, 2)
    ]
    size_of(training_figure(lines, tmp_path / "figure.png"))


def test_dense_epochs_change_the_figure(tmp_path):
    lines = made_up_history(4, 2)
    shaded = [{**line, "phase_before": "dense"} for line in lines]
    a = Image.open(training_figure(lines, tmp_path / "a.png")).convert("RGB")
    b = Image.open(training_figure(shaded, tmp_path / "b.png")).convert("RGB")
    shade = (0xF6, 0xE3, 0xB4)
    assert shade not in {colour for _, colour in a.getcolors(1 << 24)}
    assert shade in {colour for _, colour in b.getcolors(1 << 24)}


def test_restored_weights_are_drawn_apart_and_old_histories_have_none(tmp_path):
    lines = made_up_history(4, 2)
    zero = [{**line, "restored": {"G": 0, "D": 0}} for line in lines]
    restored = [{**line, "restored": {"G": 5000 * (line["epoch"] == 2), "D": 0}} for line in lines]
    drawn = [training_figure(history, tmp_path / f"{i}.png") for i, history in enumerate((lines, zero, restored))]
    old, none, some = (np.asarray(Image.open(path).convert("RGB")) for path in drawn)
    assert np.array_equal(old, none)
    assert not np.array_equal(old, some)


def test_truncated_last_line_is_dropped_and_a_broken_one_is_named(tmp_path):
    lines = made_up_history(4, 2)
    path = write_jsonl(tmp_path / "history.jsonl", lines)
    path.write_text(path.read_text()[:-40])
    assert [line["epoch"] for line in read_history(path)] == [1, 2, 3]
    path.write_text('{"epo\n' + json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_history(path)


def test_a_repeated_epoch_counts_once_and_the_later_line_wins():
    first, second = made_up_history(2, 1)
    again = {**first, "metric": 7.0}
    assert [line["metric"] for line in read_history([first, second, again])] == [7.0, second["metric"]]


def test_no_history(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"history\.jsonl"):
        training_figure(tmp_path / "history.jsonl", tmp_path / "figure.png")
    with pytest.raises(ValueError, match="no epoch"):
        training_figure([], tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install rgplug\[demo\]"):
        training_figure(made_up_history(1, 1), tmp_path / "figure.png")


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, rgplug.report.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_image_grid(tmp_path):
    images = np.zeros((5, 4, 6, 3), dtype=np.uint8)
    images[3] = 200
    with Image.open(image_grid(images, tmp_path / "grid.png", columns=3, gap=1)) as grid:
        pixels = np.asarray(grid)
    assert pixels.shape == (9, 20, 3)
    assert (pixels[5:9, 0:6] == 200).all()
    assert (pixels[4] == 255).all()
    with pytest.raises(ValueError, match="uint8"):
        image_grid(images.astype(np.float32), tmp_path / "grid.png")
