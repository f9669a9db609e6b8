"""On a GPU: what it computes is what a CPU computes, and the host never waits for it. Skipped where there is none."""

import json

import pytest
import torch
from test_scripts import METHODS, check_run, photos, printed

import bench
import evaluate
import pairs

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("size", [32, 64])
def test_views_are_those_of_a_cpu(size):
    images = bench.photographs(300, size)  # more than one part of them on a CPU
    view = pairs.Augmentation(p_blur=0.5, p_solarize=0.2)
    there = pairs.augment(images.to(DEVICE), view, pairs.stream("gpu")).cpu()
    here = pairs.augment(images, view, pairs.stream("gpu"))
    flipped = ((there - here).abs() > 1e-3).float().mean()  # a value at solarisation's threshold may fall to either side
    assert flipped < 1e-3 and here.std() > 0.5


def test_streamed_batches_are_those_of_images_in_memory():
    source = pairs.make_pairs("semantic", pairs.ImageSet("", bench.photographs(64, 32), torch.arange(64) % 4, ["a", "b", "c", "d"]), 0)
    anchor, partner = source.epoch(0)
    index = list(zip(anchor.split(16), partner.split(16)))
    for (a, b), (x, y) in zip(index, pairs.streamed(source.pool.images, index, DEVICE), strict=True):
        assert x.device.type == DEVICE
        assert torch.equal(source.pool.images[a], x.cpu()) and torch.equal(source.pool.images[b], y.cpu())


@pytest.mark.parametrize("method", METHODS)
def test_the_host_does_not_wait_between_lines_of_the_log(method):
    assert bench.host_waits_per_step(method, "convnet", 64, DEVICE) == 0


def test_heads_judge_as_on_a_cpu():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 5
    x = torch.randn(5, 16, generator=generator)[y] + 1.5 * torch.randn(400, 16, generator=generator)
    split = x[:300], y[:300], x[300:], y[300:]
    there = [part.to(DEVICE) for part in split]
    assert evaluate.knn(*there) == pytest.approx(evaluate.knn(*split), abs=0.011)  # one image of a hundred
    assert evaluate.linear_probe(*there, 5)["accuracy"] == pytest.approx(evaluate.linear_probe(*split, 5)["accuracy"], abs=0.021)
    assert 0.5 < evaluate.knn(*split) < 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_compiles_and_resumes(method, photos, tmp_path):
    small = ["--queue-size", "32", "--bn-splits", "2"] if method == "moco" else []
    common = ["--data", photos, "--backbone", "convnet", "--batch-size", "16", "--device", DEVICE, *small]
    printed(f"{method}.py", "--pairs", "semantic", *common, "--epochs", "2", "--compile", "--out", tmp_path / "compiled")
    check_run(tmp_path / "compiled", {"method": method, "device": DEVICE})
    printed(f"{method}.py", *common, "--epochs", "2", "--out", tmp_path / "run")
    before = (tmp_path / "run" / "backbone.pt").read_bytes()
    said = printed(f"{method}.py", *common, "--epochs", "2", "--out", tmp_path / "run", "--resume")  # nothing is left to do
    assert (tmp_path / "run" / "backbone.pt").read_bytes() == before and "this run" in said
    assert 0 <= json.loads((tmp_path / "run" / "result.json").read_text())["linear"][photos.name]["accuracy"] <= 1
