"""What a step would do on a GPU, tried without one: nothing makes the host wait, no tensor is on the wrong device.

The tensors of an imitated GPU lie in the CPU's memory and say that they are on `cuda`. Each call of torch from Python is
watched; what torch calls inside is not. test_gpu.py asks the same of a real one.
"""

import warnings

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import bench
import evaluate
import pairs

CUDA = torch.device("cuda")
SOURCE = pairs.make_pairs("semantic", pairs.ImageSet("", bench.photographs(32, 32), torch.arange(32) % 4, list("abcd")), 0)
VIEWS = pairs.Augmentation(), pairs.Augmentation(p_gray=0.5, p_solarize=0.2)
# they need a value, or how many there are
WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "unique", "bincount", "masked_select", "equal", "allclose", "svdvals",
         "__bool__", "__int__", "__float__", "__index__"}


class OnGpu(torch.Tensor):
    device, is_cuda = CUDA, True


class ImitatedGpu(TorchFunctionMode):
    """While it is active, device="cuda" and .to("cuda") give such tensors. `waits` counts what would make the host wait."""

    waits = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim]
        there = any(isinstance(x, OnGpu) for x in tensors)
        moved = name == "to" and isinstance(args[1], (str, torch.device))
        target = args[1] if moved else kwargs.get("device")
        if target is not None:
            if moved:
                args = (args[0], "cpu", *args[2:])
            else:
                kwargs["device"] = "cpu"
            to_gpu = torch.device(target) == CUDA
            pinned = moved and getattr(tensors[0], "pinned", False) and kwargs.get("non_blocking", False)
            self.waits += to_gpu != there and bool(tensors) and not pinned or to_gpu and name == "tensor"
            return func(*args, **kwargs).as_subclass(OnGpu if to_gpu else torch.Tensor)
        if name == "pin_memory":
            copy = args[0].clone()
            copy.pinned = True
            return copy
        if there and name in ("__getitem__", "__setitem__"):  # a mask must be counted, an index on the CPU be sent
            index = [x for x in tree_leaves(args[1]) if isinstance(x, torch.Tensor)]
            self.waits += any(x.dtype == torch.bool or x.ndim and not isinstance(x, OnGpu) for x in index)
        elif there and here and name != "_has_compatible_shallow_copy_type":
            raise RuntimeError(f"{name} of tensors on two devices")
        self.waits += there and name in WAITS
        result = func(*args, **kwargs)
        if there and name in ("cpu", "__get__") and isinstance(result, torch.Tensor):  # torch would not change the type of x.grad
            result = result.as_subclass(torch.Tensor if name == "cpu" else OnGpu)
        return result


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**36, 2**36))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)  # Module.to keeps OnGpu then
    pairs.constant.cache_clear()
    with ImitatedGpu() as mode, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Disabling autocast")  # so it computes in float32
        yield mode
    pairs.constant.cache_clear()


@pytest.mark.parametrize("method", bench.METHODS)
def test_the_host_does_not_wait_between_lines_of_the_log(gpu, method):
    waits = []
    for steps in (1, 2):  # an epoch waits while it begins; batches one by one: a wait for both together would be in both epochs
        train = bench.trainer(method, "convnet", bench.photographs(16 * steps, 32), 16, "cuda", options=["--blur", "0.5", "0.5", "--solarize", "0.2", "0.2"], at_once=1)
        before = gpu.waits
        train()
        waits.append(gpu.waits - before)
    assert waits[0] == waits[1] > 0


def test_batches_of_images_that_stay_on_the_disk_are_those_of_images_on_the_gpu(gpu, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)  # in the thread that reads ahead there is no imitation
    of = lambda images: [torch.cat(batch).cpu() for batch in pairs.batches(SOURCE, 0, 8, *VIEWS, "cuda", images, at_once=3 * 16 * 3 * 32**2)]
    assert len(of(None)) == 4 and all(torch.equal(a, b) for a, b in zip(of(None), of(SOURCE.pool.images), strict=True))


@pytest.mark.parametrize("views", [VIEWS, VIEWS[:1] * 2])
@pytest.mark.parametrize("together", [1, 2, 5])  # 2: the last batch is alone, as the first always is
def test_batches_augmented_together_on_a_gpu_are_those_of_a_cpu_one_by_one(gpu, monkeypatch, together, views):
    called, apply = [], pairs.apply
    monkeypatch.setattr(pairs, "apply", lambda images, draws: called.append(len(images)) or apply(images, draws))
    here = list(pairs.batches(SOURCE, 0, 8, *views, "cpu"))
    there = list(pairs.batches(SOURCE, 0, 8, *views, "cuda", at_once=together * 16 * 3 * 32**2))
    assert called == [16] * 4 + {1: [16] * 4, 2: [16, 32, 16], 5: [16, 48]}[together]
    for batch, other in zip(here, there, strict=True):
        assert all(torch.allclose(x, y.cpu(), atol=1e-5) for x, y in zip(batch, other, strict=True))


def test_heads_run_on_a_gpu(gpu):
    x, y = torch.randn(60, 8), torch.arange(60) % 3
    x[y == 1] += 3
    for head in lambda *given: evaluate.knn(*given, k=5), lambda *given: evaluate.linear_probe(*given, 3, grid=[0.1])["accuracy"]:
        here, there = (head(x[:40], y[:40], x[40:], y[40:]) for x, y in ((x, y), (x.to(CUDA), y.to(CUDA))))
        assert 0.4 < here == there


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: bool(x.sum() > 0), lambda x: x[x > 0], lambda x: x[torch.arange(2)],
                                  lambda x: x.cpu(), lambda x: x.to("cpu"), lambda x: torch.arange(3).to(CUDA), lambda x: torch.tensor([1.0], device=CUDA),
                                  lambda x: torch.arange(3).pin_memory().to(CUDA)])
def test_the_imitation_notices_a_wait(gpu, wait):
    x = torch.ones(3, device=CUDA)
    assert gpu.waits == 0 and x.device == CUDA
    wait(x)
    assert gpu.waits == 1


def test_the_imitation_notices_what_does_not_wait_and_a_mix_of_devices(gpu):
    x = torch.ones(3, device=CUDA)
    y = (x + pairs.send(torch.ones(3), CUDA)).roll(1) / x.mean()
    assert gpu.waits == 0 and isinstance(y, OnGpu)
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(3)
