"""Several processes: two of them (gloo, CPU) against one on the joined batch, for each method; shares of a batch."""

import importlib
import os
import types
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

import evaluate
import pairs
from pairs import UserError
from test_scripts import METHODS

STEPS, BATCH = 3, 8


def build(method):
    """A small model of a method, in eval mode: torch synchronises BatchNorm on GPUs only, so its statistics are fixed."""
    module = importlib.import_module(method)
    torch.manual_seed(0)
    backbone, width = evaluate.build_backbone("convnet", 16)
    model = {"simclr": lambda: module.SimCLR(backbone, width, 16, 8), "moco": lambda: module.MoCo(backbone, width, 16, 8, 16, 2),
             "byol": lambda: module.BYOL(backbone, width, 16, 8), "simsiam": lambda: module.SimSiam(backbone, width, 16, 8, 2)}[method]()
    return module, model.eval()


def train(method, folder):
    """Trains on fixed batches, or this process's half of them, with the method's own loop; saves weights and losses."""
    module, model = build(method)
    rank, world = pairs.rank_and_world()
    torch.manual_seed(rank)  # what all must draw alike is sent, and not left to equal random states
    generator = torch.Generator().manual_seed(1)
    joined = [torch.randn(2, BATCH, 3, 16, 16, generator=generator) for _ in range(STEPS)]
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    args = module.parse_args(["--epochs", "1", "--batch-size", str(BATCH), "--device", "cpu", "--lr", "3"])
    predictor = [p for name, p in model.named_parameters() if name.startswith("predictor")] if method == "simsiam" else []
    others = [p for p in model.parameters() if p.requires_grad and not any(p is q for q in predictor)]
    optimizer = torch.optim.SGD([{"params": params} for params in (others, predictor) if params], 1.0)
    losses = []
    run = types.SimpleNamespace(epoch=0, step=0, save=lambda epoch: None)

    def log(epoch, loss, lr, z):
        run.step += 1
        losses.append(loss.detach())

    run.log, batches, precision = log, pairs.batches, evaluate.usual_precision
    evaluate.usual_precision = lambda device: "float32"  # rounding would hide what is compared
    pairs.batches = lambda *_: ((x1[share], x2[share]) for x1, x2 in joined)
    source = pairs.Pairs(pairs.ImageSet("", torch.zeros(STEPS * BATCH, 1), torch.zeros(STEPS * BATCH), []), "augmented", 0)
    try:
        module.train(model, optimizer, source, None, None, run, args)
    finally:
        pairs.batches, evaluate.usual_precision = batches, precision
    losses = torch.stack(losses)
    if world > 1:
        dist.all_reduce(losses)
    torch.save({"model": model.state_dict(), "losses": losses / world}, folder / f"{method}-{rank}-of-{world}.pt")


def worker(rank, folder, methods):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for method in methods:
        train(method, folder)
    z = torch.full((2, 3), float(rank))
    assert evaluate.gather(z).tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert evaluate.same_on_all(torch.tensor([rank + 7])).item() == 7
    layer = torch.nn.Linear(1, 1)
    torch.manual_seed(5)
    evaluate.parallel(layer)
    first, second = evaluate.gather(torch.rand(1))  # as dropout draws them
    assert first != second and first == torch.rand(1, generator=torch.Generator().manual_seed(5))
    for call, message in ((lambda: None, None), (refuse, "no")):
        try:
            evaluate.on_first(call)
            assert message is None
        except UserError as error:
            assert str(error) == message  # in both processes, though the first alone called
    dist.destroy_process_group()


def refuse():
    assert dist.get_rank() == 0
    raise UserError("no")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(worker, (folder, METHODS), nprocs=2)
    for method in METHODS:
        train(method, folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_of_two_processes_equal_one_on_the_joined_batch(method, trained):
    """Three steps of plain SGD: equal weights after each mean equal gradients; queue and target are compared too."""
    one, a, b = (torch.load(trained / f"{method}-{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    _, start = build(method)
    assert torch.allclose(one["losses"], a["losses"], rtol=1e-4, atol=1e-5) and torch.equal(a["losses"], b["losses"])
    moved = 0
    for key, value in one["model"].items():
        assert torch.equal(a["model"][key], b["model"][key]), key  # the processes stay in step, to the bit
        change = (value - start.state_dict()[key]).float()
        moved += change.norm() > 1e-3
        assert (a["model"][key] - value).float().norm() <= 1e-4 * change.norm() + 1e-6, key
    assert moved >= 8


def test_processes_share_every_batch_without_overlap(monkeypatch):
    labels = torch.arange(48) % 4
    images = torch.arange(48, dtype=torch.uint8)[:, None, None, None].expand(48, 3, 8, 8).contiguous()
    source = pairs.make_pairs("semantic", pairs.ImageSet("p", images, labels, list("abcd")), 0)
    plain = pairs.Augmentation(crop=(1.0, 1.0), p_flip=0, p_jitter=0, p_gray=0)
    mean, std = (torch.tensor(v)[:, None, None] for v in (pairs.IMAGENET_MEAN, pairs.IMAGENET_STD))
    shown = lambda x: ((x * std + mean) * 255).round()[:, 0, 0, 0].int().tolist()

    def seen(rank, world):
        monkeypatch.setattr(pairs, "rank_and_world", lambda: (rank, world))
        return [list(zip(shown(x1), shown(x2))) for x1, x2 in pairs.batches(source, 0, 16, plain, plain, "cpu")]

    joined, parts = seen(0, 1), [seen(rank, 4) for rank in range(4)]
    assert len(joined) == 3 and all(len(batch) == 4 for part in parts for batch in part)
    assert [sum((part[i] for part in parts), []) for i in range(3)] == joined

    brightness, draw = [], pairs.draw
    monkeypatch.setattr(pairs, "draw", lambda *a: brightness.append((drawn := draw(*a))["factors"][0, 0].item()) or drawn)
    for rank, world in (0, 1), (0, 4), (1, 4), (2, 4), (3, 4):
        seen(rank, world)
    assert len(brightness) == len(set(brightness)) == 5 * 3  # every process augments by draws of its own


class Wrapped(Exception):
    """In place of DistributedDataParallel: the model is ready."""


@pytest.mark.parametrize("method", METHODS)
def test_on_gpus_batchnorm_sees_all_processes_but_moco_keeps_its_parts(method, monkeypatch):
    def wrap(*_, **options):
        raise Wrapped(options)

    module, model = build(method)
    layers = {name: type(m) for name, m in model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", wrap)
    source = pairs.Pairs(pairs.ImageSet("", torch.zeros(BATCH, 1), torch.zeros(BATCH), []), "augmented", 0)
    with pytest.raises(Wrapped, match="{'broadcast_buffers': False}"):
        module.train(model, None, source, None, None, types.SimpleNamespace(epoch=0), module.parse_args(["--device", "cpu"]))
    for name, kind in layers.items():
        assert type(model.get_submodule(name)) is (kind if method == "moco" else torch.nn.SyncBatchNorm)


def test_the_batch_is_that_of_all_processes(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)  # which the machine's own launcher may have set
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="WORLD_SIZE is 3 in the environment, but torchrun did not start this program"):
        evaluate.join("cpu", 6)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="--batch-size 64 must be a multiple of the 3 processes"):
        evaluate.join("cpu", 64)
    with pytest.raises(UserError, match="BatchNorm needs 2 pairs or more in each process"):
        evaluate.join("cpu", 3)
    assert not dist.is_initialized() and "RANK" not in os.environ


def test_processes_wait_while_the_first_reads_a_large_data_set(monkeypatch):
    asked = []
    for name, value in (("WORLD_SIZE", "3"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *given, **options: asked.append((given, options)))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    evaluate.join("cpu", 6)
    assert asked == [(("gloo",), {"timeout": timedelta(hours=12)})]


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    for here, device in ((1, "cuda"), (2, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
        with pytest.raises(UserError, match=f"--device {device} under torchrun: use cuda, and as many processes as GPUs, {here} here"):
            evaluate.join(device, 64)
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(evaluate, "pick_device", torch.device)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: taken.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    evaluate.join("cuda", 64)
    assert taken == [1, "nccl"]
    monkeypatch.delenv("WORLD_SIZE")
    evaluate.join("cuda:1", 64)  # one process, which names its GPU
    assert taken[2:] == [torch.device("cuda:1")]
