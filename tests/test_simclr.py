"""SimCLR: the loss against the paper's Algorithm 1 in loops, closed forms, the schedule."""

import math
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import pairs
import simclr

sys.path.insert(0, str(Path(__file__).parents[1] / "results" / "transfer"))
import negatives
import supcon


def algorithm_1(z1, z2, temperature):
    """NT-Xent as the paper's Algorithm 1 writes it: interleaved rows, loops, no masking tricks."""
    z = [row for both in zip(z1, z2) for row in both]
    s = [[(a @ b) / (a.norm() * b.norm()) for b in z] for a in z]

    def ell(i, j):
        return -torch.log(torch.exp(s[i][j] / temperature) / sum(torch.exp(s[i][k] / temperature) for k in range(len(z)) if k != i))

    return sum(ell(2 * k, 2 * k + 1) + ell(2 * k + 1, 2 * k) for k in range(len(z1))) / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_loss_and_gradient_equal_algorithm_1(temperature):
    torch.manual_seed(0)
    z1, z2 = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours, naive = simclr.nt_xent(z1, z2, temperature), algorithm_1(z1, z2, temperature)
    assert torch.allclose(ours, naive, rtol=0, atol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, [z1, z2]), torch.autograd.grad(naive, [z1, z2])):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_the_loss_of_the_study_of_negatives_leaves_out_the_anchors_class():
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 6, 4, dtype=torch.float64)
    labels, similarity = torch.tensor([0, 1, 0, 2, 1, 0]), lambda a, b: torch.exp(torch.cosine_similarity(a, b, dim=0) / 0.5)
    loss = 0
    for i in range(12):
        anchor, positive = torch.cat([z1, z2])[[i, (i + 6) % 12]]
        others = [z for v in (z1, z2) for z, label in zip(v, labels) if label != labels[i % 6]]
        loss -= torch.log(similarity(anchor, positive) / (similarity(anchor, positive) + sum(similarity(anchor, z) for z in others))) / 12
    assert torch.allclose(negatives.nt_xent(z1, z2, 0.5, labels), loss, rtol=0, atol=1e-10)
    assert torch.equal(negatives.nt_xent(z1, z2, 0.5, torch.arange(6)), simclr.nt_xent(z1, z2, 0.5))


def test_the_supervised_contrastive_loss_equals_its_papers_formula_in_loops():
    torch.manual_seed(0)
    z1, z2 = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    z, loss = torch.nn.functional.normalize(torch.cat([z1, z2])), 0
    for i in range(12):
        others = [a for a in range(12) if a != i]
        log_p = [(p, z[i] @ z[p] / 0.5 - torch.log(sum(torch.exp(z[i] @ z[a] / 0.5) for a in others))) for p in others]
        of_class = [log for p, log in log_p if labels[p % 6] == labels[i % 6]]
        loss -= sum(of_class) / len(of_class) / 12
    ours = supcon.sup_con(z1, z2, 0.5, labels)
    assert torch.allclose(ours, loss, rtol=0, atol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, [z1, z2]), torch.autograd.grad(loss, [z1, z2])):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    assert torch.allclose(supcon.sup_con(z1, z2, 0.5, torch.arange(6)), simclr.nt_xent(z1, z2, 0.5), rtol=0, atol=1e-10)


def test_the_losses_of_these_studies_are_told_the_labels_of_their_batch(monkeypatch):
    labels, off, seen = torch.arange(40) % 4, pairs.Augmentation().without(pairs.Augmentation.SWITCHES), []
    images = (60 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)  # whose shade is their class
    source = pairs.make_pairs("semantic", pairs.ImageSet("", images, labels, list("abcd")), 0)

    def train():
        for x1, x2 in pairs.batches(source, 3, 8, off, off, "cpu", images):
            simclr.nt_xent(x1, x2, 0.5)

    def loss(x1, x2, temperature, given):
        for x in x1, x2:
            assert torch.equal(((x[:, 0, 0, 0] * pairs.IMAGENET_STD[0] + pairs.IMAGENET_MEAN[0]) * 255 / 60).round().long(), given)
        seen.append(given)

    for module, name in (pairs, "batches"), (evaluate, "Run"), (simclr, "nt_xent"):  # which negatives.main replaces
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(simclr, "main", train)
    negatives.main("a method", loss)
    assert len(seen) == 5 and torch.cat(seen).bincount().tolist() == [10] * 4


def test_closed_forms():
    n, t = 6, 0.3
    same = torch.ones(n, 4, dtype=torch.float64)
    assert simclr.nt_xent(same, same, t).item() == pytest.approx(math.log(2 * n - 1))
    # orthogonal pairs, equal within the pair: the positive has similarity 1, all negatives 0
    eye = torch.eye(n, dtype=torch.float64)
    expected = -math.log(math.exp(1 / t) / (math.exp(1 / t) + 2 * n - 2))
    assert simclr.nt_xent(eye, 5 * eye, t).item() == pytest.approx(expected)


def test_symmetric_in_the_views_and_in_the_batch():
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 6, 5, dtype=torch.float64)
    loss, order = simclr.nt_xent(z1, z2, 0.2), torch.randperm(6)
    assert torch.allclose(loss, simclr.nt_xent(z2, z1, 0.2))
    assert torch.allclose(loss, simclr.nt_xent(z1[order], z2[order], 0.2))
    assert not torch.allclose(loss, simclr.nt_xent(z1, z2[order], 0.2))  # the pairing matters


def test_learning_rate_warms_up_and_ends_at_zero():
    lr = [simclr.learning_rate(step, 100, 2.0, 10) for step in range(101)]
    assert lr[0] == pytest.approx(0.2) and lr[9] == pytest.approx(2.0) and lr[10] == pytest.approx(2.0)
    assert lr[55] == pytest.approx(1.0) and lr[100] == pytest.approx(0.0)
    assert lr[10:] == sorted(lr[10:], reverse=True)
    assert max(simclr.learning_rate(step, 100, 2.0, 0.6) for step in range(100)) == 2.0  # less than a step of warm-up


def test_head_ends_in_batchnorm():
    model = simclr.SimCLR(torch.nn.Flatten(), 12, 8, 4)
    z = model(torch.randn(64, 3, 2, 2))
    assert z.mean(0).abs().max() < 1e-5 and (z.std(0, unbiased=False) - 1).abs().max() < 1e-2


def test_lars_by_hand():
    """Two steps: |w| = 5, g + decay w = (-4, 3); one dimension is plain SGD without decay."""
    w, b = torch.nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = simclr.LARS([w, b], lr=2.0, momentum=0.9, weight_decay=0.1, trust=0.01)
    w.grad, b.grad = torch.tensor([[-4.3, 2.6]]), torch.tensor([0.25])
    optimizer.step()
    step = 0.01 * 5 * torch.tensor([[-0.8, 0.6]])  # trust |w| in that direction, whatever its length
    assert torch.allclose(w, torch.tensor([[3.0, 4.0]]) - 2 * step) and b.item() == 0.5
    w.grad, b.grad = 100 * w.detach(), torch.zeros(1)
    before = w.detach().clone()
    optimizer.step()
    assert torch.allclose(w, before - 2 * (0.9 * step + 0.01 * before))
    assert torch.allclose(b, torch.tensor([0.5 - 2 * 0.9 * 0.25]))
    z = torch.nn.Parameter(torch.zeros(2, 2))  # weights of zero move as in SGD, instead of never
    z.grad = torch.ones(2, 2)
    simclr.LARS([z], 1.0, 0.0, 0.0).step()
    assert (z == -1).all()
    w = torch.nn.Parameter(torch.ones(2, 2))  # without a gradient, and without decay, they stay
    w.grad = torch.zeros(2, 2)
    simclr.LARS([w], 1.0, 0.9, 0.0).step()
    assert (w == 1).all()
