"""SimCLR (Chen et al. 2020, arXiv 2002.05709), on augmented or on semantic pairs.

    python simclr.py --pairs semantic                                  # built-in scenes, minutes on two CPU cores
    python simclr.py --pairs augmented                                 # its matched baseline
    python simclr.py --pairs semantic --data cifar10 --download        # ResNet-18, 200 epochs: for a GPU

    x1, x2   two views (N, 3, S, S): of one image, or of two images of one category
    h        backbone features (N, width): what evaluation uses
    z        embeddings (N, d): what the loss compares; projector = Linear-BN-ReLU-Linear-BN

The loss asks of each embedding: which of the other 2N - 1 is your partner? To answer, z must hold what the two views share,
and the 2N - 2 negatives make "all embeddings equal" costly. A low temperature gives the negatives most like the anchor more
weight. Evaluation takes h, because z loses what the loss has no use for (Sec. 4.2).

Deviations from the paper and google-research/simclr
  1. SGD with momentum by default (--optimizer lars: the paper's, for batches of thousands; the official code's default, even
     for CIFAR-10 at 512). SGD's weight decay includes biases and BatchNorm (official: neither).
  2. The loss is the mean over the 2N anchors, as in the paper's Algorithm 1; the official code sums the means of
     the two views, which is twice that.
  3. Inputs are normalised with ImageNet's mean and standard deviation (official: [0, 1]), so that one input
     convention serves all methods and torchvision's weights. Crops are bilinear (official: bicubic), taken from a
     centre square of --image-size (paper: from the whole picture), and uniform in area, as in the paper (official code: in
     the side, which makes smaller crops). Colour jitter is torchvision's, as in the paper's PyTorch listing (App. A; official
     code: contrast is of each channel, saturation HSV's). Blur mirrors the image at its border (official: zeros beyond it).
  4. The two views go through the network one after the other, so BatchNorm sees N images at a time.
  5. Two layers in the projector (the official code's default, of SimCLR v2: three), with BatchNorm as in the official code (the
     paper's Sec. 2.1 names none); the last has a bias (official: a scale only).
  6. On photographs: ResNet-18 (App. B.9: ResNet-50; the official code's command: ResNet-18), 200 epochs (both: 1000). A
     ResNet's blocks do not start as the identity (official: the last BatchNorm of each starts at 0).
  7. On scenes: a small convnet, crops of at least half the area, colour jitter of a quarter of the paper's strength,
     no blur, no warm-up, temperature 0.2, to suit 32 px images and runs of a few minutes. With the jitter of byol.py augmented
     pairs do far better, 0.842 (results/ablations/jitter).

Measured with the default options on scenes, two CPU cores, bf16, five seeds (results/scenes): linear probe on held-out
categories 0.955 ± 0.021 with semantic pairs, 0.661 ± 0.032 with augmented pairs, 0.212 ± 0.055 untrained, chance 0.05.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

import evaluate
import pairs

# ------------------------------------------------------------------------------------------- CONFIG

# defaults: on the built-in scenes, and on photographs (augmentation and temperature: SimCLR App. B.9, CIFAR-10; lr and
# weight decay of SGD: lightly's CIFAR-10 benchmark)
RECIPES = {
    "scenes": dict(backbone="convnet", epochs=20, batch_size=128, lr=0.06, weight_decay=5e-4,
                   crop_min=0.5, jitter=[0.2, 0.2, 0.2, 0.05], temperature=0.2, warmup_epochs=0),
    "photographs": dict(backbone="resnet18", epochs=200, batch_size=512, lr=0.12, weight_decay=5e-4,
                        crop_min=0.08, jitter=[0.4, 0.4, 0.4, 0.1], temperature=0.5, warmup_epochs=10),
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
    # -- SimCLR's own
    add("--crop-min", type=pairs.fraction, help=f"smallest crop, share of the image area (App. A: 0.08) {default('crop_min')}")
    add("--jitter", type=pairs.nonnegative_float, nargs=4, help=f"brightness, contrast, saturation, hue (App. B.9: half of 0.8 0.8 0.8 0.2) {default('jitter')}")
    add("--gray", type=pairs.fraction, default=0.2, help="probability of grayscale (App. A) [0.2]")
    add("--blur", type=pairs.fraction, nargs=2, help="probability of blur in view 1 and view 2 (App. A) [0.5 0.5; 0 0 below 64 px]")
    add("--solarize", type=pairs.fraction, nargs=2, default=[0.0, 0.0], help="probability of solarisation in view 1 and view 2 [0 0]")
    add("--temperature", type=pairs.positive_float, help=f"of the loss (App. B.9: 0.5 on CIFAR-10) {default('temperature')}")
    add("--hidden-dim", type=pairs.positive_int, help="width of the projector's hidden layer (as in the official code) [the features' width]")
    add("--projection-dim", type=pairs.positive_int, default=128, help="width d of the embedding (Sec. 2.3) [128]")
    add("--warmup-epochs", type=pairs.nonnegative_float, help=f"epochs of linear warm-up (Sec. 2.3: 10); by default at most a tenth of all {default('warmup_epochs')}")
    add("--optimizer", default="sgd", choices=["sgd", "lars"], help="sgd with momentum; lars for batches of thousands (the paper's), which needs --lr and --weight-decay of its own [sgd]")
    return pairs.parse(parser, argv, RECIPES)


# -------------------------------------------------------------------------------------------- MODEL


class SimCLR(nn.Module):
    def __init__(self, backbone, width, hidden_dim, projection_dim):
        super().__init__()
        self.backbone = backbone
        self.projector = nn.Sequential(
            nn.Linear(width, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, projection_dim, bias=False),
            nn.BatchNorm1d(projection_dim),  # nearly as in the official code; without it all embeddings begin close together (README, exercise 4)
        )

    def forward(self, x):
        h = self.backbone(x)  # (N, width)
        return self.projector(h)  # (N, d)


# --------------------------------------------------------------------------------------------- LOSS


def nt_xent(z1, z2, temperature):
    """NT-Xent (normalised temperature-scaled cross entropy), the mean over all 2N anchors (SimCLR, Eq. 1 and Algorithm 1).

    z1, z2: (N, d), row i of one is the positive of row i of the other; of any norm, they are normalised here. The
    negatives of an anchor are the other 2N - 2 embeddings. If all embeddings are equal, the loss is log(2N - 1).
    """
    n = len(z1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # (2N, d)
    similarity = z @ z.T / temperature  # (2N, 2N)
    similarity.fill_diagonal_(float("-inf"))  # an embedding is no candidate for itself
    partner = torch.arange(2 * n, device=z.device).roll(n)  # i <-> i + N
    return F.cross_entropy(similarity, partner)


# ---------------------------------------------------------------------------------------- SCHEDULES


def learning_rate(step, total, peak, warmup):
    """Linear warm-up from peak / warmup (official: from 0) over `warmup` steps, then half a cosine to 0 at step = total."""
    if step < warmup:
        return peak * min(1, (step + 1) / warmup)  # above 1 only where warmup is no whole number
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


class LARS(torch.optim.SGD):
    """SGD with momentum, each layer's step in proportion to its weights (You et al. 2017), for batches of thousands:

        g <- g + decay w,  g <- g trust |w| / |g|

    for weights of two and more dimensions, as in the official code of SimCLR and BYOL (trust 1e-3; You et al. divide by
    |g| + decay |w|, of the g before decay); biases and BatchNorm are neither rescaled nor decayed. As in BYOL's, and unlike
    SimCLR's, the momentum does not contain the learning rate.
    """

    def __init__(self, params, lr, momentum, weight_decay, fused=False, trust=1e-3):
        super().__init__(params, lr, momentum, fused=fused)
        self.decay, self.trust = weight_decay, trust

    @torch.no_grad()
    def step(self):
        for w in (w for group in self.param_groups for w in group["params"] if w.ndim > 1 and w.grad is not None):
            g = w.grad + self.decay * w
            w_norm, g_norm = w.norm(), g.norm()
            w.grad = g * torch.where((w_norm > 0) & (g_norm > 0), self.trust * w_norm / g_norm, 1.0)
        super().step()


# -------------------------------------------------------------------------------------------- TRAIN


def train(model, optimizer, source, view1, view2, run, args):
    device = torch.device(args.device)
    steps_per_epoch = len(source) // args.batch_size
    total, peak = args.epochs * steps_per_epoch, args.lr * args.batch_size / 256
    warmup = args.warmup_epochs * steps_per_epoch
    images = pairs.to_device(source.pool.images, device)
    network = evaluate.parallel(model, args.compile)  # the model itself; under torchrun a wrapper that averages the gradients
    for epoch in range(run.epoch, args.epochs):  # run.epoch, run.step: 0, or where --resume goes on
        for x1, x2 in pairs.batches(source, epoch, args.batch_size, view1, view2, device, images):
            lr = learning_rate(run.step, total, peak, warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with evaluate.autocast(device, args.precision):
                z1, z2 = network(x1), network(x2)
            # gather: the rows of all processes under torchrun; with one process z itself
            loss = nt_xent(evaluate.gather(z1.float()), evaluate.gather(z2.float()), args.temperature)

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(epoch, loss, lr, z1)  # counts the step: run.step + 1
        run.save(epoch + 1)  # at most every 20 seconds, and at the end


# --------------------------------------------------------------------------------------------- main


def main():
    args = parse_args()
    device = evaluate.join(args.device, args.batch_size)
    source = pairs.load_pairs(args)
    view1, view2 = pairs.make_views(args, source.pool.image_size)

    torch.manual_seed(args.seed)  # the backbone first: equal initial weights in both arms and all methods (but for zero_init_residual in SimSiam's ResNets)
    backbone, width = evaluate.build_backbone(args.backbone, source.pool.image_size, verbose=True)
    model = SimCLR(backbone, width, args.hidden_dim or width, args.projection_dim)
    model = model.to(device, memory_format=torch.channels_last)  # the layout in which convolutions are fast
    optimizer_class = LARS if args.optimizer == "lars" else torch.optim.SGD
    optimizer = optimizer_class(model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay, fused=device.type == "cuda")

    run = evaluate.Run("simclr", args, source, view1, view2, model, optimizer)
    train(model, optimizer, source, view1, view2, run, args)
    run.finish()


if __name__ == "__main__":
    pairs.run_cli(main)
