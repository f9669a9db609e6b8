"""BYOL: the loss against loops, no gradient to the target, the target's average and its decay."""

import pytest
import torch
import torch.nn as nn

import byol


def make():
    torch.manual_seed(0)
    return byol.BYOL(nn.Sequential(nn.Flatten(), nn.Linear(12, 6)), 6, 8, 4)


def test_loss_and_gradient_equal_loops():
    """Eq. 2: the squared distance of unit vectors, one at a time."""
    torch.manual_seed(0)
    p, z = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    naive = sum(((a / a.norm() - b.detach() / b.norm().detach()) ** 2).sum() for a, b in zip(p, z)) / len(p)
    ours = byol.regression_loss(p, z)
    assert torch.allclose(ours, naive, rtol=0, atol=1e-10)
    (expected,) = torch.autograd.grad(naive, p)
    ours.backward()
    assert torch.allclose(p.grad, expected, rtol=0, atol=1e-10) and z.grad is None


def test_closed_forms():
    p = torch.eye(4, dtype=torch.float64)
    assert byol.regression_loss(p, 3 * p).item() == pytest.approx(0)
    assert byol.regression_loss(p, -p).item() == pytest.approx(4)
    assert byol.regression_loss(p, p.roll(1, 0)).item() == pytest.approx(2)


def test_target_follows_by_hand_and_gets_no_gradient():
    model = make()
    slow = [p.clone() for p in model.target.parameters()]
    for step in range(3):
        for p in [*model.backbone.parameters(), *model.projector.parameters()]:
            p.data += 0.1 * (step + 1)
        fast = [*model.backbone.parameters(), *model.projector.parameters()]
        slow = [0.8 * a + 0.2 * b.detach() for a, b in zip(slow, fast)]
        model.update_target(0.8)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(slow, model.target.parameters()))

    assert all(p.is_leaf for p in model.target.parameters())  # else each update would lengthen a graph that nobody frees

    x1, x2 = torch.randn(2, 8, 3, 2, 2)
    byol.regression_loss(model(x1)[1], model.target(x2)).backward()
    assert all(p.grad is None for p in model.target.parameters())
    assert all(p.grad is not None for p in [*model.backbone.parameters(), *model.predictor.parameters()])


def test_decay_rises_from_its_base_to_one():
    decay = [byol.target_decay(step, 100, 0.97) for step in range(101)]
    assert decay[0] == pytest.approx(0.97) and decay[50] == pytest.approx(0.985) and decay[100] == pytest.approx(1)
    assert decay == sorted(decay)
