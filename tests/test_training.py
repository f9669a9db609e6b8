"""Training: six steps of each script equal a loop written by hand (loss, schedule, optimiser, slow networks, queue), to 1e-9."""

import contextlib
import copy
import importlib
import math
import sys

import pytest
import torch
import torch.nn as nn

import evaluate
import pairs
from test_moco import loops
from test_simclr import algorithm_1

LR, DECAY, STEPS, BATCH, EPOCHS, WARMUP = 0.8, 0.01, 6, 16, 2, 0.5  # three steps an epoch, one and a half of warm-up
OPTIONS = {"simclr": ["--temperature", "0.3", "--warmup-epochs", WARMUP],
           "moco": ["--temperature", "0.3", "--queue-size", "32", "--ema-decay", "0.7", "--bn-splits", "1"],
           "byol": ["--ema-decay", "0.7", "--warmup-epochs", WARMUP],
           "simsiam": []}


class Recorded:
    """In place of evaluate.Run: keeps the weights of the start, what is logged and the epochs saved."""

    def __init__(self, method, args, source, view1, view2, model, optimizer):
        self.model, self.start, self.epoch, self.step, self.lines, self.saved = model, copy.deepcopy(model), 0, 0, [], []
        self.views = view1, view2
        self.slow = set()  # in which precision the slow network computed
        if slow := getattr(model, "target", getattr(model, "key_encoder", None)):
            slow.register_forward_hook(lambda module, x, y: self.slow.add(y.dtype))
        Recorded.last = self

    def log(self, epoch, loss, lr, z):
        self.lines.append((epoch, loss.item(), lr, z.detach()))
        self.step += 1

    def save(self, epoch):
        self.saved.append(epoch)

    def finish(self):
        pass


def trained(method, monkeypatch, options=()):
    """Runs the script and returns its record."""
    monkeypatch.setattr(evaluate, "Run", Recorded)
    monkeypatch.setattr(sys, "argv", [method, *map(str, ["--pairs", "augmented", "--limit", BATCH * STEPS // EPOCHS + 5, "--image-size", 16, "--epochs", EPOCHS,
                                                         "--batch-size", BATCH, "--lr", LR, "--weight-decay", DECAY, "--device", "cpu", *OPTIONS[method], *options])])
    importlib.import_module(method).main()
    return Recorded.last


@pytest.fixture
def float64(monkeypatch):
    """Everything in float64, so that equal means equal."""
    monkeypatch.setattr(evaluate, "autocast", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    pairs.constant.cache_clear()
    yield
    torch.set_default_dtype(torch.float32)
    pairs.constant.cache_clear()


def cosine(a, b):
    return (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)


def half_cosine(step, total):
    return (1 + math.cos(math.pi * step / total)) / 2


@pytest.mark.parametrize("method, optimizer", [("simclr", "sgd"), ("simclr", "lars"), ("moco", "sgd"), ("byol", "sgd"), ("byol", "lars"), ("simsiam", "sgd")])
def test_a_run_equals_a_loop_by_hand(method, optimizer, float64, monkeypatch):
    seen, batches = [], pairs.batches
    monkeypatch.setattr(pairs, "batches", lambda *a: (seen.append((x1.double(), x2.double())) or seen[-1] for x1, x2 in batches(*a)))
    run = trained(method, monkeypatch, ["--optimizer", optimizer] if optimizer == "lars" else [])
    assert len(seen) == STEPS and run.saved == [1, 2] and [epoch for epoch, *_ in run.lines] == [0, 0, 0, 1, 1, 1]

    net = run.start.train()
    online = nn.Sequential(net.backbone, net.projector)
    slow = copy.deepcopy(online) if method in ("moco", "byol") else None
    queue = list(net.queue) if method == "moco" else None
    weights = [p for p in net.parameters() if p.requires_grad]
    predictor = {id(p) for p in net.predictor.parameters()} if method == "simsiam" else set()
    momentum = [torch.zeros_like(w) for w in weights]

    def follow(decay):
        for s, w in zip(slow.parameters(), online.parameters()):
            s.data = decay * s.data + (1 - decay) * w.data

    for step, (x1, x2) in enumerate(seen):
        peak, warmup = LR * BATCH / 256, STEPS / EPOCHS * WARMUP if method in ("simclr", "byol") else 0
        lr = peak * min(1, (step + 1) / warmup) if step < warmup else peak * half_cosine(step - warmup, STEPS - warmup)
        z1 = online(x1)
        if method == "simclr":
            loss = algorithm_1(z1, online(x2), 0.3)
        elif method == "moco":
            follow(0.7)
            with torch.no_grad():
                k = slow(x2)
            loss = loops(z1, k, queue, 0.3)
            queue = (queue + list(k))[-32:]  # the oldest go
        elif method == "byol":
            z2 = online(x2)
            with torch.no_grad():
                t1, t2 = slow(x1), slow(x2)
            loss = (4 - 2 * cosine(net.predictor(z1), t2) - 2 * cosine(net.predictor(z2), t1)).mean()
        elif method == "simsiam":
            z2 = online(x2)
            loss = -(cosine(net.predictor(z1), z2.detach()) + cosine(net.predictor(z2), z1.detach())).mean() / 2

        assert run.lines[step][1:3] == (pytest.approx(loss.item(), abs=1e-9), pytest.approx(lr))
        assert torch.allclose(run.lines[step][3], z1, rtol=0, atol=1e-9)  # whose std and rank the log has
        for w, g, m in zip(weights, torch.autograd.grad(loss, weights), momentum):
            if optimizer == "sgd" or w.ndim > 1:
                g = g + DECAY * w.data
            if optimizer == "lars" and w.ndim > 1:
                g = g * 0.001 * w.data.norm() / g.norm()
            m.mul_(0.9).add_(g)
            w.data = w.data - (peak if id(w) in predictor else lr) * m
        if method == "byol":
            follow(1 - (1 - 0.7) * half_cosine(step, STEPS))

    ours = dict(run.model.named_parameters())
    for name, p in net.named_parameters():
        if p.requires_grad:
            assert torch.allclose(p, ours[name], rtol=1e-9, atol=1e-9), name
    if slow:
        theirs = run.model.target if method == "byol" else run.model.key_encoder
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(slow.parameters(), theirs.parameters(), strict=True))
    if method == "moco":  # after six batches of a queue of two the oldest key is at the start again
        assert torch.allclose(nn.functional.normalize(torch.stack(queue), dim=1), run.model.queue, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", OPTIONS)
def test_batches_are_asked_of_the_training_images_under_view_1_and_view_2(method, monkeypatch):
    asked, compiled = [], []
    monkeypatch.setattr(pairs, "batches", lambda *a: asked.append(a) or ())
    monkeypatch.setattr(evaluate, "parallel", lambda model, compile, **_: compiled.append(compile) or model)
    run = trained(method, monkeypatch, ["--crop-min", 0.3, "--jitter", 0.1, 0.2, 0.3, 0.25, "--gray", 0.7, "--blur", 0.1, 0.2, "--solarize", 0.3, 0.4, "--seed", 1, "--compile"])
    images = pairs.scenes("train", 16, seed=1).images[: BATCH * STEPS // EPOCHS + 5]
    assert [epoch for _, epoch, *_ in asked] == [0, 1] and compiled == ["reduce-overhead"]
    for source, _, size, view1, view2, _, given in asked:
        assert (source.seed, size, view1, view2) == (1, BATCH, *run.views)
        assert torch.equal(given, images) and torch.equal(source.pool.images, images)
    view = pairs.Augmentation(crop=(0.3, 1.0), p_flip=0.5, jitter=(0.1, 0.2, 0.3, 0.25), p_jitter=0.8, p_gray=0.7, p_blur=0.1, sigma=(0.1, 2.0), p_solarize=0.3)
    assert list(run.views) == [view, pairs.replace(view, p_blur=0.2, p_solarize=0.4)]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in run.model.parameters() if p.ndim == 4)  # slower else
    torch.manual_seed(1)
    backbone, _ = evaluate.build_backbone("convnet", 16)  # the same weights for all methods
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), run.start.backbone.parameters(), strict=True))


@pytest.mark.parametrize("method", OPTIONS)
def test_options_reach_the_network(method, monkeypatch):
    """MoCo's parts of BatchNorm; SimSiam's residual blocks start as the identity, as in its official code, the others' do not."""
    monkeypatch.setattr(pairs, "batches", lambda *_: ())
    run = trained(method, monkeypatch, ["--backbone", "resnet18", *["--bn-splits", 4] * (method == "moco")])
    last = [m.bn2.weight for m in run.start.backbone.modules() if hasattr(m, "bn2")]
    assert len(last) == 8 and {w.abs().sum().item() for w in last} == ({0.0} if method == "simsiam" else {float(len(w)) for w in last})
    parts = {m.parts for m in run.start.modules() if hasattr(m, "parts")}
    assert parts == ({4} if method == "moco" else set())


@pytest.mark.parametrize("method, loss", [("simclr", "nt_xent"), ("moco", "info_nce"), ("byol", "regression_loss"), ("simsiam", "negative_cosine")])
def test_networks_compute_in_either_precision_and_losses_in_float32(method, loss, monkeypatch):
    script, got = importlib.import_module(method), set()
    of = getattr(script, loss)
    monkeypatch.setattr(script, loss, lambda *a: got.update(x.dtype for x in a if isinstance(x, torch.Tensor)) or of(*a))
    for usual, options, kind in (("bfloat16", [], torch.bfloat16), ("bfloat16", ["--precision", "float32"], torch.float32),
                                 ("float32", ["--precision", "bfloat16"], torch.bfloat16)):
        monkeypatch.setattr(evaluate, "usual_precision", lambda device: usual)
        run = trained(method, monkeypatch, options)
        assert got == {torch.float32} and {z.dtype for *_, z in run.lines} == {kind}
        assert run.slow == ({kind} if method in ("moco", "byol") else set())
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}


HEAD, LAST = ["Linear", "BatchNorm1d", "ReLU", "Linear"], "BatchNorm1d"


@pytest.mark.parametrize("method, layers, heads", [
    # projector, predictor; w the backbone's width, h hidden, d the embedding's. A BatchNorm has 2 weights a channel, without affine none
    ("simclr", ([*HEAD, LAST], []), lambda w: (w * 40 + 2 * 40 + 40 * 24 + 2 * 24, 0)),
    ("moco", (["Linear", "ReLU", "Linear"], []), lambda w: (w * 40 + 40 + 40 * 24 + 24, 0)),
    ("byol", (HEAD, HEAD), lambda w: (w * 40 + 40 + 2 * 40 + 40 * 24, 24 * 40 + 40 + 2 * 40 + 40 * 24)),
    ("simsiam", ([*HEAD, LAST], HEAD), lambda w: (w * 24 + 2 * 24 + 24 * 24, 24 * 40 + 2 * 40 + 40 * 24 + 24))])
def test_heads_have_the_papers_layers(method, layers, heads, monkeypatch):
    sizes = ["--embedding-dim", 24, "--bottleneck-dim", 40] if method == "simsiam" else ["--hidden-dim", 40, "--projection-dim", 24]
    model = trained(method, monkeypatch, sizes).model
    width = model.projector[0].in_features
    parts = model.projector, getattr(model, "predictor", nn.Sequential())
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == heads(width)
    assert tuple([type(layer).__name__ for layer in part] for part in parts) == layers


def test_heads_are_as_wide_and_deep_as_the_help_says(monkeypatch):
    for method in ("simclr", "moco"):
        first = trained(method, monkeypatch).model.projector[0]
        assert first.out_features == first.in_features == 256
    projector = trained("simsiam", monkeypatch, ["--projector-layers", 3]).model.projector
    assert [type(layer).__name__ for layer in projector] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
