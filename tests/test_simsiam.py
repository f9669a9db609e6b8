"""SimSiam: the loss against loops, the stop-gradient, and that without it the method collapses."""

import pytest
import torch
import torch.nn as nn

import evaluate
import simsiam


def test_loss_and_gradient_equal_loops():
    """Eq. 1, one pair at a time; the stop-gradient of Eq. 3 on z."""
    torch.manual_seed(0)
    p, z = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    naive = sum(-(a / a.norm()) @ (b.detach() / b.detach().norm()) for a, b in zip(p, z)) / len(p)
    ours = simsiam.negative_cosine(p, z)
    assert torch.allclose(ours, naive, rtol=0, atol=1e-10)
    (expected,) = torch.autograd.grad(naive, p)
    ours.backward()
    assert torch.allclose(p.grad, expected, rtol=0, atol=1e-10) and z.grad is None


def test_closed_forms():
    p = torch.eye(4, dtype=torch.float64)
    assert simsiam.negative_cosine(p, 2 * p).item() == pytest.approx(-1)
    assert simsiam.negative_cosine(p, p.roll(1, 0)).item() == pytest.approx(0)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_only_the_stop_gradient_prevents_collapse(stop_gradient):
    """On random data, 300 steps: with it embeddings span many directions, without it few (cf. Sec. 4.1)."""
    torch.manual_seed(0)
    model = simsiam.SimSiam(nn.Flatten(), 48, 32, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9)
    loss_of = simsiam.negative_cosine if stop_gradient else lambda p, z: -nn.functional.cosine_similarity(p, z).mean()
    images = torch.randn(256, 3, 4, 4)
    for _ in range(300):
        x = images[torch.randperm(256)[:64]]
        (z1, p1), (z2, p2) = (model(x + 0.3 * torch.randn_like(x)) for _ in range(2))
        loss = 0.5 * loss_of(p1, z2) + 0.5 * loss_of(p2, z1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, rank = evaluate.collapse_signals(z1)
    assert rank > 9 if stop_gradient else rank < 6


def test_residual_blocks_start_as_the_identity():
    assert simsiam.parse_args([]).zero_init_residual
    backbone, _ = evaluate.build_backbone("resnet18", 32, zero_init_residual=True)
    block = backbone.layer1[0]
    x = torch.rand(2, 64, 8, 8)
    assert torch.equal(block(x), x)
