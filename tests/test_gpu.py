"""On a GPU: what it computes is what a CPU computes, and the host never waits for it. Skipped where there is none."""

import copy
import json

import pytest
import torch
import torch.nn as nn
from test_scripts import METHODS, check_run, cut, photos, printed

import bench
import evaluate
import moco
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


@pytest.mark.parametrize("view2", [pairs.Augmentation(), pairs.Augmentation(p_gray=0.5)])
def test_batches_augmented_together_are_those_of_a_cpu(view2):
    source = pairs.make_pairs("semantic", pairs.ImageSet("", bench.photographs(96, 32), torch.arange(96) % 4, list("abcd")), 0)
    here, there = (list(pairs.batches(source, 0, 16, pairs.Augmentation(), view2, device, at_once=4 * 32 * 3 * 32**2)) for device in ("cpu", DEVICE))
    assert len(here) == len(there) == 6  # on the GPU 1, then 4 together, then 1
    for x, y in zip(map(torch.cat, here), map(torch.cat, there)):
        assert ((x - y.cpu()).abs() > 1e-3).float().mean() < 1e-3 and x.std() > 0.5


def test_streamed_batches_are_those_of_images_in_memory():
    images, index = bench.photographs(64, 32), torch.randperm(64).split(16)
    for rows, x in zip(index, pairs.streamed(images, index, DEVICE), strict=True):
        assert x.device.type == DEVICE
        assert torch.equal(images[rows], x.cpu())


@pytest.mark.parametrize("options", [[], ["--compile"]])
@pytest.mark.parametrize("method", METHODS)
def test_the_host_does_not_wait_between_lines_of_the_log(method, options):
    torch.compiler.reset()
    assert bench.host_waits_per_step(method, "convnet", 64, DEVICE, ["--blur", "0.5", "0.5", "--solarize", "0.2", "0.2", *options]) == 0


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_split_batchnorm_is_that_of_a_cpu(precision, parts):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32)]  # mixes the channels: else each one's scale would have no gradient but rounding
    ours = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), *head)
    moco.SplitBatchNorm.convert(ours, parts)
    torch.manual_seed(0)  # at a ReLU's 0 rounding decides over a gradient: with some draws it moves the sum by 1 %
    x, up, found = 1 + torch.randn(32, 3, 8, 8), torch.randn(32, 32), []  # running means of nothing but noise would differ by more
    for device in (evaluate.pick_device("cpu"), evaluate.pick_device(DEVICE)):
        network = copy.deepcopy(ours).to(device, memory_format=torch.channels_last)
        given = x.to(device, memory_format=torch.channels_last).requires_grad_()
        with evaluate.autocast(device, precision):
            y = network(given)
        y.float().backward(up.to(device))
        found.append([y, given.grad, *(p.grad for p in network.parameters()), *network.buffers()])
    for here, there in zip(*found, strict=True):  # running statistics: all parts count equally on a GPU, here later ones more
        here, there = here.detach().double(), there.detach().cpu().double()
        assert (here - there).norm() <= (0.2 if precision == "bfloat16" else 0.01) * here.norm()


def test_float32_is_float32():
    x, w = torch.randn(8, 64, 16, 16), torch.randn(64, 64, 3, 3)
    there = torch.nn.functional.conv2d(x.to(evaluate.pick_device(DEVICE)), w.to(DEVICE)).cpu()
    assert torch.allclose(there.double(), torch.nn.functional.conv2d(x.double(), w.double()), rtol=0, atol=1e-3)  # with TF32's 10 bits some are 0.03 apart


def test_heads_judge_as_on_a_cpu():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 5
    x = torch.randn(5, 16, generator=generator)[y] + 1.5 * torch.randn(400, 16, generator=generator)
    split = x[:300], y[:300], x[300:], y[300:]
    there = [part.to(DEVICE) for part in split]
    assert evaluate.knn(*there) == pytest.approx(evaluate.knn(*split), abs=0.011)  # one image of a hundred
    assert evaluate.linear_probe(*there, 5)["accuracy"] == pytest.approx(evaluate.linear_probe(*split, 5)["accuracy"], abs=0.021)
    assert 0.5 < evaluate.knn(*split) < 1


def small(method, photos, out):
    """A command for three short epochs on a GPU."""
    parts = ["--queue-size", "32", "--bn-splits", "2"] if method == "moco" else []
    return [f"{method}.py", "--pairs", "semantic", "--data", photos, "--backbone", "convnet", "--batch-size", "16", "--epochs", "3", "--device", DEVICE, "--out", out, *parts]


def loss_of(run):
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])["loss"]


def alike(run):
    return pytest.approx(loss_of(run), rel=0.05, abs=0.05)  # bf16, and sums in any order


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_streams_and_resumes(method, photos, tmp_path, monkeypatch):
    printed(*small(method, photos, tmp_path / "run"))
    assert 0 <= json.loads((tmp_path / "run" / "result.json").read_text())["linear"][photos.name]["accuracy"] <= 1

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "to_device", lambda images, device: images)  # as if they did not fit
        printed(*small(method, photos, tmp_path / "streamed"))
    assert loss_of(tmp_path / "streamed") == alike(tmp_path / "run")

    assert cut(*small(method, photos, tmp_path / "cut"))[0] == 130
    assert "resumed after epoch 1" in printed(*small(method, photos, tmp_path / "cut"), "--resume")
    assert loss_of(tmp_path / "cut") == alike(tmp_path / "run")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the second with CUDA graphs
@pytest.mark.parametrize("method", METHODS)
def test_every_method_compiles(method, mode, photos, tmp_path, monkeypatch):  # up to a minute each, or several: pytest -k "not compiles" goes without
    models, parameters, save = {}, set(), evaluate.Run.save  # models at the start and the end of the two runs

    def keep(run, epoch):
        save(run, epoch)
        models[run.folder.name, epoch] = {name: value.to("cpu", copy=True) for name, value in run.model.state_dict().items()}
        parameters.update(name for name, _ in run.model.named_parameters())

    monkeypatch.setattr(evaluate.Run, "save", keep)
    torch.compiler.reset()  # the other methods' compiled networks count too, and of more than eight torch compiles no more
    counters = torch._dynamo.utils.counters
    counters.clear()
    printed(*small(method, photos, tmp_path / "run"))
    printed(*small(method, photos, tmp_path / "compiled"), "--compile", mode)
    check_run(tmp_path / "compiled", {"method": method, "device": DEVICE})
    assert loss_of(tmp_path / "compiled") == alike(tmp_path / "run")
    start, here, there = models["run", 0], models["run", 3], models["compiled", 3]
    for name in start:  # what the loss does not see, or sees late
        if not start[name].is_floating_point():  # counts of batches, the queue's pointer
            assert torch.equal(there[name], here[name]), name
        elif name not in parameters:  # statistics, the queue; a head's means after a BatchNorm are rounding alone
            rounding = 0.0 if name.startswith("backbone.") else 0.01
            assert (there[name] - here[name]).norm() <= 0.2 * here[name].norm() + rounding, name
    for part in {name.split(".")[0] for name in parameters}:  # of the change, bf16 moves a sixth; networks that stayed would miss it all
        change = lambda model: torch.cat([(model[name] - start[name]).flatten() for name in parameters if name.startswith(f"{part}.")])
        assert (change(there) - change(here)).norm() <= 0.5 * change(here).norm() > 0, part
    if mode == "reduce-overhead":  # torch falls back to launches without a word
        assert counters["inductor"]["cudagraph_skips"] == 0 < counters["inductor"]["cudagraph_recorded_non_static_inputs"]


def test_a_resnet_with_lars_is_trained_tuned_and_detects(photos, tmp_path):
    run = tmp_path / "run"
    printed("simclr.py", "--data", photos, "--backbone", "resnet18", "--batch-size", "16", "--epochs", "2", "--optimizer", "lars", "--lr", "0.3", "--weight-decay", "1e-4", "--device", DEVICE, "--out", run)
    assert "fine-tuned" in printed("evaluate.py", "finetune", run, "--steps", "3", "--batch-size", "8", "--device", DEVICE)
    for detector in ("c4", "fpn"):
        said = printed("evaluate.py", "detect", run, "--data", "scenes", "--detector", detector, "--size", "64", "--steps", "3", "--batch-size", "2", "--device", DEVICE)
        assert f"scenes, {detector}, init run, seed 0: AP " in said
    assert "background" in printed("evaluate.py", "invariance", run, "--device", DEVICE)
