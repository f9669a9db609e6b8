"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297; MoCo: He et al. 2019, arXiv 1911.05722), on augmented or on semantic pairs.

    python moco.py --pairs semantic                                    # built-in scenes, minutes on two CPU cores
    python moco.py --pairs augmented                                   # its matched baseline
    python moco.py --pairs semantic --data cifar10 --download --temperature 0.5     # ResNet-18, 200 epochs: for a GPU

    x1, x2   two views (N, 3, S, S): of one image, or of two images of one category
    h        backbone features (N, width): what evaluation uses
    q, k     query and key (N, d): embeddings of x1 by the encoder, of x2 by its slow copy; the loss normalises them
    queue    (K, d), the K latest keys: the negatives

What changes relative to simclr.py: a key encoder that slowly follows the query encoder, a queue of negatives, a loss in one
direction, from x1 to x2, a head without BatchNorm, BatchNorm statistics over parts of the batch, and no warm-up.

SimCLR's negatives are limited by its batch; a queue offers K of them, of which a step encodes only N. Its oldest keys were
encoded K / N steps ago; their encoder changes slowly, so that old and new keys stay comparable (MoCo, Sec. 3.2).

BatchNorm must not mark the right key. Of a query's K + 1 candidates only its own key comes from the same batch, and if both
were normalised over the same images, their shared statistics could give it away, with no need to look at the image (MoCo,
Sec. 3.3). The paper spreads a batch over 8 GPUs, each with its own statistics, and shuffles the keys among them.
Here one device does the same: BatchNorm takes its statistics over --bn-splits separate parts of the batch; the images of the
keys are shuffled before that, and the keys put back in order after.

Deviations from the papers and facebookresearch/moco
  1. The learning rate falls along a cosine by step, not by epoch. Crops are taken from a centre square of
     --image-size (paper: from the whole picture). Blur's kernel is SimCLR's, a Gaussian at most a tenth of the side wide,
     and the image is mirrored at its border (official: Pillow's, three passes of a box, and the edge repeated).
  2. On photographs: batch 512, weight decay 5e-4, queue 4096, EMA decay 0.99, temperature 0.1, crops of at least
     0.08 of the area, no blur below 64 px, as in the authors' CIFAR-10 demo, whose head, unlike this one, is a single
     layer, and whose input is normalised with CIFAR's mean and standard deviation.
  3. On scenes: a small convnet, a queue of 1024, a quarter of the images; EMA decay 0.99; small batches (more steps
     in a few minutes), 2 parts of 32 for BatchNorm (paper: 8 of 32), lr 0.06 (v2: 0.03), crops of at least half the
     area, colour jitter of half strength, no blur. With the jitter of byol.py augmented pairs come close to semantic
     ones, 0.841 beside 0.871 (results/ablations/jitter).

For semantic pairs of photographs use --temperature 0.5: on CIFAR-10 at 0.1 the embeddings stayed close together to the end,
perhaps because MoCo's head has no BatchNorm to keep them apart; after 60 epochs of the small convnet a linear probe had 0.538,
at 0.5 0.579 (results/transfer/sharper). Augmented pairs are better at 0.1, and then ahead of semantic pairs at 0.5 with every
seed, 0.602 beside 0.579 (results/transfer/temperature). So compare with the baseline at both. And train long: after 180 epochs
semantic pairs at 0.5 had 0.712, augmented ones 0.657 at 0.1 and 0.643 at 0.5 (three seeds;
results/transfer/epochs180-baseline).

Measured with the default options on scenes, two CPU cores, bf16, five seeds (results/scenes): linear probe on held-out
categories 0.885 ± 0.040 with semantic pairs, 0.549 ± 0.073 with augmented pairs, 0.212 ± 0.055 untrained, chance 0.05.
"""

import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

import evaluate
import pairs

# ------------------------------------------------------------------------------------------- CONFIG

# defaults: on the built-in scenes, and on photographs (MoCo's CIFAR-10 demo)
RECIPES = {
    "scenes": dict(backbone="convnet", epochs=40, batch_size=64, lr=0.06, weight_decay=1e-4,
                   crop_min=0.5, jitter=[0.2, 0.2, 0.2, 0.05], temperature=0.2, queue_size=1024, bn_splits=2),
    "photographs": dict(backbone="resnet18", epochs=200, batch_size=512, lr=0.03, weight_decay=5e-4,
                        crop_min=0.08, jitter=[0.4, 0.4, 0.4, 0.1], temperature=0.1, queue_size=4096, bn_splits=8),
}


def parse_args(argv=None):
    parser = pairs.Parser(description=__doc__.splitlines()[0])
    add, default = parser.add_argument, pairs.default_help(RECIPES)
    # -- shared by the four methods, word for word
    add("--pairs", default="augmented", help="augmented: two views of one image; semantic: two images of one class; FILE.csv: a curated list with columns image_a,image_b [augmented]")
    add("--arm", default="semantic", choices=["semantic", "augmented"], help="for FILE.csv only: semantic, its pairs, or augmented, each image_a with itself, the matched baseline [semantic]")
    add("--semantic-share", type=pairs.fraction, default=1.0, help="share of the semantic (or the list's) pairs kept, redrawn every epoch; the rest become augmented: how few suffice? [1]")
    add("--false-pairs", type=pairs.fraction, default=0.0, help="share of the semantic (or the list's) partners drawn from another category, redrawn every epoch: what does curation buy? [0]")
    add("--data", type=pairs.named, help=f"scenes; a folder of class folders, with train/ and test/ or without; or {', '.join(pairs.TORCHVISION_SETS)}; with FILE.csv the folder that its paths are relative to, by default the list's own, and then the run is not judged [scenes]")
    add("--root", type=pairs.named, default="data", help="folder of torchvision's data sets [data]")
    add("--download", action="store_true", help="let torchvision download the data set into --root")
    add("--image-size", type=pairs.positive_int, help="side of the images in pixels [scenes 32, else the set's own, at most 224]")
    add("--limit", type=pairs.positive_int, help="only the first N training images, classes in turn; with FILE.csv, the first N rows [all]")
    add("--skip-bad", action="store_true", help="leave out images that cannot be read, and say which, instead of stopping")
    add("--cache", type=pairs.named, default="cache", help="folder for decoded image files, kept for later runs [cache]")
    add("--backbone", type=evaluate.architecture, help=f"convnet, or a classification model of torchvision such as resnet18, resnet50 {default('backbone')}")
    add("--epochs", type=pairs.positive_int, help=f"passes over the anchors {default('epochs')}")
    add("--batch-size", type=pairs.positive_int, help=f"pairs in a step {default('batch_size')}")
    add("--lr", type=pairs.positive_float, help=f"peak learning rate per 256 pairs: a step uses lr * batch / 256 (Goyal et al. 2017) {default('lr')}")
    add("--weight-decay", type=pairs.nonnegative_float, help=f"coefficient of the L2 penalty {default('weight_decay')}")
    add("--seed", type=pairs.seed_int, default=0, help="seed of the scenes, the weights, the order, the partners and the augmentation [0]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ... [cuda if there is one]")
    add("--precision", choices=["bfloat16", "float32"], help="number format of the networks (losses: always float32); float32 is the same on every machine but for rounding [bfloat16 where that is faster]")
    add("--compile", nargs="?", default=False, const="reduce-overhead", choices=["default", "reduce-overhead", "max-autotune"], help="torch.compile the networks, in this mode or, if none is named, reduce-overhead; all but default use CUDA graphs, without which it did not pay on a GPU. Costs time at the start, and gains little on a CPU (README, Speed) [off]")
    add("--out", type=pairs.named, help="run folder [runs/<method>-<pairs>-<data>-seed<seed>]")
    add("--resume", action="store_true", help="go on from the run folder's checkpoint, with the same options")
    add("--without", default="", help="transforms to switch off, comma-separated: crop, flip, jitter, gray, blur, solarize [none]")
    # -- MoCo's own
    add("--crop-min", type=pairs.fraction, help=f"smallest crop, share of the image area (v2: 0.2) {default('crop_min')}")
    add("--jitter", type=pairs.nonnegative_float, nargs=4, help=f"brightness, contrast, saturation, hue (v2: 0.4 0.4 0.4 0.1) {default('jitter')}")
    add("--gray", type=pairs.fraction, default=0.2, help="probability of grayscale (v2) [0.2]")
    add("--blur", type=pairs.fraction, nargs=2, help="probability of blur in view 1 and view 2 (v2) [0.5 0.5; 0 0 below 64 px]")
    add("--solarize", type=pairs.fraction, nargs=2, default=[0.0, 0.0], help="probability of solarisation in view 1 and view 2 [0 0]")
    add("--temperature", type=pairs.positive_float, help=f"of the loss (v2: 0.2; CIFAR-10 demo: 0.1; for semantic pairs of photographs 0.5) {default('temperature')}")
    add("--hidden-dim", type=pairs.positive_int, help="width of the projector's hidden layer (v2) [the features' width]")
    add("--projection-dim", type=pairs.positive_int, default=128, help="width d of queries and keys (v1, Sec. 3.3) [128]")
    add("--queue-size", type=pairs.positive_int, help=f"negatives K, a multiple of the batch (v1, Sec. 4.1: 65536) {default('queue_size')}")
    add("--ema-decay", type=pairs.fraction, default=0.99, help="of the key encoder, per step (v1, Sec. 3.2: 0.999; CIFAR-10 demo: 0.99) [0.99]")
    add("--bn-splits", type=pairs.positive_int, help=f"parts of the batch (of several GPUs: of each one's share) with BatchNorm statistics of their own (paper: 8 GPUs, 1 part each; with a single part the statistics give the right key away) {default('bn_splits')}")
    return pairs.parse(parser, argv, RECIPES)


# -------------------------------------------------------------------------------------------- MODEL


class SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm that in training takes its statistics over `parts` parts of a batch, as if each were on a GPU of its own.

    (N, C) or (N, C, H, W) to the same. The convolutions in between take the batch whole, which is faster.
    """

    @classmethod
    def convert(cls, network, parts):
        """Turns each BatchNorm of a network into a SplitBatchNorm, in place; parameters and their names stay the same."""
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.__class__, layer.parts = cls, parts

    def forward(self, x):
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        self.num_batches_tracked.add_(self.parts)
        return self.at_once(x) if x.is_cuda and self.parts > 1 else self.in_turn(x)

    def in_turn(self, x):
        momentum = 1 - (1 - self.momentum) ** (1 / self.parts)  # all parts together move the running statistics as one batch would
        normalize = lambda part: F.batch_norm(part, self.running_mean, self.running_var, self.weight, self.bias, True, momentum, self.eps)
        return torch.cat([normalize(part) for part in x.chunk(self.parts)])

    def at_once(self, x):
        """The same in one operation, as each costs a launch on a GPU: an instance norm takes each part for an instance. Equal but for
        rounding and the running statistics: here all parts count equally, in `in_turn` later ones slightly more."""
        x = x.unflatten(0, (self.parts, -1)).transpose(1, 2)  # (parts, C, N / parts, ...)
        x = F.instance_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps)
        x = x.movedim(1, -1).contiguous().movedim(-1, 2).flatten(0, 1)  # channels last in memory, as it came
        return x.clone()  # what follows in place (ReLU) would cost more in the backward pass of a view


class MoCo(nn.Module):
    def __init__(self, backbone, width, hidden_dim, projection_dim, queue_size, bn_splits):
        super().__init__()
        SplitBatchNorm.convert(backbone, bn_splits)
        self.backbone = backbone
        self.projector = nn.Sequential(
            nn.Linear(width, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, projection_dim),  # no BatchNorm in MoCo's head
        )
        self.key_encoder = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)
        # buffers, so that a checkpoint holds them
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, projection_dim), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        h = self.backbone(x)  # (N, width)
        return self.projector(h)  # (N, d)

    @torch.no_grad()
    def keys(self, x):
        """Keys (N, d) of x (N, 3, S, S), encoded in shuffled order: a key's BatchNorm part says nothing about its query."""
        rank, world = pairs.rank_and_world()  # (0, 1) on a single GPU
        x = evaluate.gather(x)  # the images of all processes
        shuffle = evaluate.same_on_all(pairs.send(torch.randperm(len(x)), x.device))  # drawn on the CPU, as all else
        k = self.key_encoder(x[shuffle.chunk(world)[rank]])  # of this process's share of the shuffled images
        k = evaluate.gather(k)[shuffle.argsort()]  # all keys, in the order of x again
        return k.chunk(world)[rank]

    @torch.no_grad()
    def update_key_encoder(self, decay):
        """key <- decay key + (1 - decay) query, for parameters; BatchNorm's statistics are its own (MoCo, Eq. 2; decay is its m)."""
        query = [*self.backbone.parameters(), *self.projector.parameters()]
        for slow, fast in zip(self.key_encoder.parameters(), query, strict=True):
            slow.lerp_(fast, 1 - decay)

    @torch.no_grad()
    def enqueue(self, k):
        """Overwrites the oldest len(k) keys of the queue, whose size is a multiple of len(k)."""
        rows = self.pointer + torch.arange(len(k), device=k.device)
        self.queue[rows] = F.normalize(k, dim=1)
        self.pointer.copy_((self.pointer + len(k)) % len(self.queue))


# --------------------------------------------------------------------------------------------- LOSS


def info_nce(q, k, queue, temperature):
    """InfoNCE (van den Oord et al. 2018) of queries, keys and a queue of negatives, the mean over the batch (MoCo, Eq. 1).

    q, k: (N, d), row i of k is the positive of row i of q; queue: (K, d). Of any norm, they are normalised here. No
    gradient goes to k and queue. If all embeddings are equal, the loss is log(K + 1).
    """
    q, k, queue = (F.normalize(v, dim=1) for v in (q, k.detach(), queue.detach()))
    positive = (q * k).sum(dim=1, keepdim=True)  # (N, 1)
    negative = q @ queue.T  # (N, K)
    logits = torch.cat([positive, negative], dim=1) / temperature  # (N, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))  # the positive is column 0


# ---------------------------------------------------------------------------------------- SCHEDULES


def learning_rate(step, total, peak):
    """Half a cosine from peak at step 0 to 0 at step = total."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / total))


# -------------------------------------------------------------------------------------------- TRAIN


def train(model, optimizer, source, view1, view2, run, args):
    device = torch.device(args.device)
    steps_per_epoch = len(source) // args.batch_size
    total, peak = args.epochs * steps_per_epoch, args.lr * args.batch_size / 256
    images = pairs.to_device(source.pool.images, device)
    network = evaluate.parallel(model, args.compile, sync_batchnorm=False)  # the model itself; under torchrun a wrapper that averages the gradients
    for epoch in range(run.epoch, args.epochs):  # run.epoch, run.step: 0, or where --resume goes on
        for x1, x2 in pairs.batches(source, epoch, args.batch_size, view1, view2, device, images):
            lr = learning_rate(run.step, total, peak)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with evaluate.autocast(device, args.precision):
                q = network(x1)
                model.update_key_encoder(args.ema_decay)  # before the keys, as in the official code
                k = model.keys(x2)
            loss = info_nce(q.float(), k.float(), model.queue, args.temperature)

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.enqueue(evaluate.gather(k.float()))  # only now: a key must not be its own query's negative
            run.log(epoch, loss, lr, q)  # counts the step: run.step + 1
        run.save(epoch + 1)  # at most every 20 seconds, and at the end


# --------------------------------------------------------------------------------------------- main


def main():
    args = parse_args()
    device = evaluate.join(args.device, args.batch_size)
    processes = pairs.rank_and_world()[1]
    parts = args.bn_splits * processes
    if args.batch_size % parts or args.batch_size < 2 * parts:
        raise pairs.UserError(f"--batch-size {args.batch_size} must be a multiple, twice or more, of --bn-splits {args.bn_splits}"
                              + (f" times {processes} processes" if processes > 1 else "") + "; change one of the two")
    if parts == 1:
        print("note: with --bn-splits 1 BatchNorm's statistics give the right key away")
    if args.queue_size % args.batch_size:
        raise pairs.UserError(f"--queue-size {args.queue_size} must be a multiple of --batch-size {args.batch_size}")
    source = pairs.load_pairs(args)
    view1, view2 = pairs.make_views(args, source.pool.image_size)

    torch.manual_seed(args.seed)  # the backbone first: equal initial weights in both arms and all methods (but for zero_init_residual in SimSiam's ResNets)
    backbone, width = evaluate.build_backbone(args.backbone, source.pool.image_size, verbose=True)
    model = MoCo(backbone, width, args.hidden_dim or width, args.projection_dim, args.queue_size, args.bn_splits)
    model = model.to(device, memory_format=torch.channels_last)  # the layout in which convolutions are fast
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, args.lr, momentum=0.9, weight_decay=args.weight_decay, fused=device.type == "cuda")

    run = evaluate.Run("moco", args, source, view1, view2, model, optimizer)
    train(model, optimizer, source, view1, view2, run, args)
    run.finish()


if __name__ == "__main__":
    pairs.run_cli(main)
