"""MoCo: the loss against loops, the queue, the key encoder, and that batch statistics do not leak."""

import copy
import math

import pytest
import torch
import torch.nn as nn

import evaluate
import moco
import pairs


def encoder():
    """A backbone with BatchNorm, so that what is in the batch matters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def make(queue_size=24, splits=2):
    return moco.MoCo(encoder(), 8, 16, 4, queue_size, splits)


def loops(q, k, queue, temperature):
    """Eq. 1 of the paper, a query at a time."""
    unit = lambda v: v / v.norm()
    total = 0
    for a, b in zip(q, k):
        scores = [unit(a) @ unit(v) / temperature for v in [b, *queue]]
        total = total - torch.log(torch.exp(scores[0]) / sum(torch.exp(s) for s in scores))
    return total / len(q)


def test_loss_and_gradient_equal_loops_and_keys_get_no_gradient():
    torch.manual_seed(0)
    q, k, queue = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (5, 5, 9))
    ours, naive = moco.info_nce(q, k, queue, 0.2), loops(q, k.detach(), queue.detach(), 0.2)
    assert torch.allclose(ours, naive, rtol=0, atol=1e-10)
    (expected,) = torch.autograd.grad(naive, q)
    ours.backward()
    assert torch.allclose(q.grad, expected, rtol=0, atol=1e-10)
    assert k.grad is None and queue.grad is None


def test_closed_form():
    ones = torch.ones(3, 4, dtype=torch.float64)
    assert moco.info_nce(ones, ones, torch.ones(7, 4, dtype=torch.float64), 0.1).item() == pytest.approx(math.log(8))


def test_queue_takes_turns_and_wraps_round():
    model = make(queue_size=6)
    batches = [(i + 1) * torch.eye(4)[[i, i]] for i in range(4)]
    for k in batches:
        model.enqueue(k)
    assert model.pointer.item() == 2
    assert torch.allclose(model.queue, torch.eye(4)[[3, 3, 1, 1, 2, 2]])  # unit vectors; the fourth batch replaced the first
    assert {"queue", "pointer"} <= set(model.state_dict())


def test_key_encoder_after_three_steps_by_hand():
    model = make()
    slow = [p.clone() for p in model.key_encoder.parameters()]
    for step in range(3):
        for p in [*model.backbone.parameters(), *model.projector.parameters()]:
            p.data += 0.1 * (step + 1)
        fast = [p.clone() for p in [*model.backbone.parameters(), *model.projector.parameters()]]
        slow = [0.9 * a + 0.1 * b for a, b in zip(slow, fast)]
        model.update_key_encoder(0.9)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(slow, model.key_encoder.parameters()))
    assert not any(p.requires_grad for p in model.key_encoder.parameters())


def test_shuffling_separates_the_statistics_of_a_query_from_those_of_its_key():
    """Equal images and equal weights: without shuffling a key is its query; with it, statistics differ."""
    model, x = make(splits=2), torch.randn(16, 3, 8, 8) * torch.linspace(0.1, 3, 16)[:, None, None, None]
    q = model(x)
    assert torch.allclose(model.key_encoder(x), q, atol=1e-6)
    torch.manual_seed(1)
    k = model.keys(x)
    assert (k - q).abs().max() > 1e-2
    # and the keys are back in the order of their images
    model.eval()
    assert torch.allclose(model.keys(x), model.key_encoder(x), atol=1e-6)


def test_training_takes_its_keys_in_shuffled_order(monkeypatch):
    pool = pairs.ImageSet("t", torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.zeros(8, dtype=torch.long), ["a"])
    model, asked, view = make(queue_size=8), [], pairs.Augmentation()
    monkeypatch.setattr(model, "keys", lambda x, keys=model.keys: asked.append(x) or keys(x))

    class Run:
        epoch = step = 0
        log = save = lambda self, *given: None

    args = moco.parse_args(["--epochs", "1", "--batch-size", "4", "--device", "cpu"])
    moco.train(model, torch.optim.SGD(model.backbone.parameters(), 0.1), pairs.make_pairs("augmented", pool, 0), view, view, Run(), args)
    assert len(asked) == 2


def test_keys_of_several_processes_are_shuffled_among_them(monkeypatch):
    """With one part in each process, as on the paper's 8 GPUs, shuffling within each would leak."""
    model, seen = make(splits=1), []
    monkeypatch.setattr(pairs, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(evaluate, "gather", lambda v: torch.cat([v, v + 100]))
    monkeypatch.setattr(evaluate, "same_on_all", lambda v: v)
    model.key_encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.manual_seed(0)
    assert len(model.keys(torch.randn(8, 3, 8, 8))) == 8
    assert 0 < (seen[0].mean((1, 2, 3)) > 50).sum() < 8  # some of the images are the other process's


def test_split_batchnorm_is_a_pass_for_each_part():
    """Values, gradients and running statistics equal those of an ordinary network that sees one part after the other, but
    that all parts together move the running statistics as much as a batch does."""
    ordinary, x = encoder(), torch.randn(12, 3, 8, 8)
    ordinary[1].eps = 0.1  # of some backbones of torchvision it is not the usual one
    split = copy.deepcopy(ordinary)
    moco.SplitBatchNorm.convert(split, 3)
    for layer in ordinary.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1 - 0.9 ** (1 / 3)
    h = split(x)
    assert torch.allclose(h, torch.cat([ordinary(part) for part in x.split(4)]), atol=1e-6)
    for network in (ordinary, split):
        sum(network(part).square().sum() for part in ([x] if network is split else x.split(4))).backward()
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-4) for a, b in zip(ordinary.parameters(), split.parameters(), strict=True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ordinary.buffers(), split.buffers(), strict=True))
    assert list(ordinary.state_dict()) == list(split.state_dict())
    split.eval(), ordinary.eval()
    assert torch.allclose(split(x[:5]), ordinary(x[:5]), atol=1e-6)  # any number of images, running statistics
    layer = torch.nn.BatchNorm1d(1)
    moco.SplitBatchNorm.convert(layer, 4)
    layer(torch.randn(8, 1))
    layer.running_mean.zero_(), layer(1000 + torch.randn(8, 1))
    assert abs(layer.running_mean.item() - 100) < 1  # a tenth of the way, as with one part


@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (12, 5)])
def test_split_batchnorm_at_once_is_that_in_turn(shape):
    """On a GPU all parts are normalised in one operation. The running statistics move a tenth of the way to the parts' mean."""
    one = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(shape[1], eps=0.1)
    moco.SplitBatchNorm.convert(one, 3)
    x = (torch.randn(shape) * torch.linspace(0.1, 3, 12).view(-1, *[1] * (len(shape) - 1)))
    x = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x
    with torch.no_grad():
        one.weight.uniform_(0.5, 2), one.bias.normal_()
    two = copy.deepcopy(one)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = one.in_turn(a), two.at_once(b)
    assert torch.allclose(y, z, atol=1e-5) and z.stride() == x.stride()
    up = torch.randn(shape)
    y.relu_().backward(up), z.relu_().backward(up)  # in place, as in a ResNet
    for u, v in ((a.grad, b.grad), (one.weight.grad, two.weight.grad), (one.bias.grad, two.bias.grad)):
        assert torch.allclose(u, v, rtol=1e-4, atol=1e-5)
    parts = x.view(3, 4, shape[1], -1).transpose(1, 2).flatten(2)  # (parts, C, values)
    assert torch.allclose(two.running_mean, 0.1 * parts.mean(2).mean(0), atol=1e-6)
    assert torch.allclose(two.running_var, 0.9 + 0.1 * parts.var(2).mean(0), atol=1e-5)


def test_each_part_has_statistics_of_its_own():
    model = make(splits=2)
    x = torch.randn(8, 3, 8, 8)
    one_part, changed = copy.deepcopy(model), torch.cat([x[:4], 100 + x[4:]])
    moco.SplitBatchNorm.convert(one_part, 1)
    expected = one_part(x[:4])
    assert torch.allclose(model(changed)[:4], expected, atol=1e-5)  # the other part does not matter
    assert not torch.allclose(one_part(changed)[:4], expected, atol=1e-2)  # without parts it does


def test_logits_come_before_the_queue(monkeypatch):
    """The keys of a step must not be among its negatives: the queue that the loss sees is the old one."""
    pool = pairs.ImageSet("t", torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.zeros(8, dtype=torch.long), ["a"])
    model, seen = make(queue_size=8), []
    before = model.queue.clone()
    monkeypatch.setattr(moco, "info_nce", lambda q, k, queue, t, f=moco.info_nce: (seen.append((k.clone(), queue.clone())), f(q, k, queue, t))[1])

    class Run:
        epoch = step = 0
        log = save = lambda self, *a: None

    args = moco.parse_args(["--epochs", "1", "--batch-size", "4", "--device", "cpu"])
    view = pairs.Augmentation()
    moco.train(model, torch.optim.SGD(model.backbone.parameters(), 0.1), pairs.make_pairs("augmented", pool, 0), view, view, Run(), args)
    (k1, queue1), (_, queue2) = seen
    assert torch.equal(queue1, before)
    assert torch.allclose(queue2[:4], torch.nn.functional.normalize(k1, dim=1)) and torch.equal(queue2[4:], before[4:])
