"""BYOL (Grill et al. 2020, arXiv 2006.07733), on augmented or on semantic pairs.

    python byol.py --pairs semantic                                    # built-in scenes, minutes on two CPU cores
    python byol.py --pairs augmented                                   # its matched baseline
    python byol.py --pairs semantic --data cifar10 --download          # ResNet-18, 200 epochs: for a GPU

    x1, x2   two views (N, 3, S, S): of one image, or of two images of one category
    h        backbone features (N, width): what evaluation uses
    z        projections (N, d) of the online network
    t        projections (N, d) of the target network, a constant to the loss
    p        predictions (N, d), from z, of the other view's t

What changes relative to simsiam.py: the target t comes from a slowly moving copy of the network, the exponential moving
average (EMA) of its weights, steadier than the network of the moment; its decay rises to 1, so the copy gets slower still.
(SimSiam shows that collapse can be prevented without it; in BYOL's own setting a target that is the network of the moment
fails, Table 5a.) The projector does not end in a BatchNorm. The predictor's hidden layer is wider than its output (there: at
most as wide). A ResNet's blocks do not start as the identity. On photographs the learning rate warms up; the predictor's falls
too (there: constant). The loss is the sum, not the mean, of both directions, in squared distances: its gradient is four times
SimSiam's. On photographs the two views are augmented differently: only view 2 is at times solarised and, from 64 px, view 1 is
always blurred, view 2 seldom.

Deviations from the paper and its official code
  1. SGD with momentum by default: batches here are 64-512, LARS (--optimizer lars) is for thousands. SGD's weight
     decay includes biases and BatchNorm (official: neither).
  2. Crops are bilinear (official: bicubic), taken from a centre square of --image-size (paper: from the whole
     picture), and a box that does not fit is drawn again, as in torchvision (official: cut to the picture, which makes
     larger crops); colour jitter is torchvision's (official: brightness adds, contrast is of each channel, saturation HSV's).
     Blur mirrors the image at its border (official: zeros beyond it). The target starts as a copy of the online network
     (official: from weights of its own).
  3. Heads of 1024 and 256 (paper: 4096 and 256). On scenes 256 and 128 would do for augmented pairs, but with semantic
     pairs the loss then left its plateau late or, with some seeds, not at all (results/scenes/byol-recipe.txt).
  4. On photographs: ResNet-18, batch 512, 200 epochs, EMA decay from 0.99, no blur below 64 px (paper: ResNet-50, 4096;
     1000 epochs, 0.996). A ResNet's blocks do not start as the identity, as for the paper's results (the released
     code, for ResNet-50: the last BatchNorm of each starts at 0).
  5. On scenes: a small convnet, small batches (more steps in a few minutes), lr 0.25, crops of at least half the
     area, no blur, no solarisation, no warm-up; colour jitter weak in brightness and contrast, strong in
     saturation and hue, so that colour is no shortcut for augmented pairs: with SimCLR's jitter they teach nothing, 0.180
     (results/ablations/jitter).

For semantic pairs of photographs trained for long use --lr 0.03: on CIFAR-10, 180 epochs of the small convnet, the loss rises at
0.12, and a linear probe has 0.656, at 0.03 0.690; augmented pairs are better at 0.12 with both seeds, 0.677 beside 0.650
(results/transfer/epochs180-slower).

Measured with the default options on scenes, two CPU cores, bf16, five seeds (results/scenes): linear probe on held-out
categories 0.713 ± 0.049 with semantic pairs, 0.540 ± 0.053 with augmented pairs, 0.212 ± 0.055 untrained, chance 0.05.
"""

import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

import evaluate
import pairs

# ------------------------------------------------------------------------------------------- CONFIG

# defaults: on the built-in scenes, and on photographs (no official CIFAR recipe: lightly's lr and weight decay, the official EMA
# decay for 100 and 300 epochs; lightly's loss is a quarter of the paper's: results/transfer/byol-recipe.txt)
RECIPES = {
    "scenes": dict(backbone="convnet", epochs=30, batch_size=64, lr=0.25, weight_decay=5e-4,
                   crop_min=0.5, jitter=[0.2, 0.2, 0.8, 0.5], solarize=[0.0, 0.0], hidden_dim=1024, projection_dim=256, ema_decay=0.99, warmup_epochs=0),
    "photographs": dict(backbone="resnet18", epochs=200, batch_size=512, lr=0.12, weight_decay=5e-4,
                        crop_min=0.08, jitter=[0.4, 0.4, 0.2, 0.1], solarize=[0.0, 0.2], hidden_dim=1024, projection_dim=256, ema_decay=0.99, warmup_epochs=10),
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
    # -- BYOL's own
    add("--crop-min", type=pairs.fraction, help=f"smallest crop, share of the image area (App. B: 0.08) {default('crop_min')}")
    add("--jitter", type=pairs.nonnegative_float, nargs=4, help=f"brightness, contrast, saturation, hue (App. B: 0.4 0.4 0.2 0.1) {default('jitter')}")
    add("--gray", type=pairs.fraction, default=0.2, help="probability of grayscale (App. B) [0.2]")
    add("--blur", type=pairs.fraction, nargs=2, help="probability of blur in view 1 and view 2 (App. B) [1 0.1; 0 0 below 64 px]")
    add("--solarize", type=pairs.fraction, nargs=2, help=f"probability of solarisation in view 1 and view 2 (App. B: 0 0.2) {default('solarize')}")
    add("--hidden-dim", type=pairs.positive_int, help=f"hidden width of projector and predictor (Sec. 3.3: 4096) {default('hidden_dim')}")
    add("--projection-dim", type=pairs.positive_int, help=f"width d of projections and predictions (Sec. 3.3: 256) {default('projection_dim')}")
    add("--ema-decay", type=pairs.fraction, help=f"the target's decay at step 0; from there it rises along a cosine to 1 (Sec. 3.3: 0.996 for 1000 epochs) {default('ema_decay')}")
    add("--warmup-epochs", type=pairs.nonnegative_float, help=f"epochs of linear warm-up (Sec. 3.3: 10); by default at most a tenth of all {default('warmup_epochs')}")
    add("--optimizer", default="sgd", choices=["sgd", "lars"], help="sgd with momentum; lars for batches of thousands (the paper's), which needs --lr and --weight-decay of its own [sgd]")
    parser.set_defaults(usual_blur=[1.0, 0.1])  # what pairs.make_views takes without --blur, from 64 px
    return pairs.parse(parser, argv, RECIPES)


# -------------------------------------------------------------------------------------------- MODEL


def head(width, hidden_dim, out_dim):
    """Projector and predictor have one shape: Linear-BN-ReLU-Linear, no BatchNorm at the end."""
    return nn.Sequential(
        nn.Linear(width, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )


class BYOL(nn.Module):
    def __init__(self, backbone, width, hidden_dim, projection_dim):
        super().__init__()
        self.backbone = backbone
        self.projector = head(width, hidden_dim, projection_dim)
        self.predictor = head(projection_dim, hidden_dim, projection_dim)
        self.target = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)

    def forward(self, x):
        h = self.backbone(x)  # (N, width)
        z = self.projector(h)  # (N, d)
        return z, self.predictor(z)

    @torch.no_grad()
    def update_target(self, decay):
        """target <- decay target + (1 - decay) online, for parameters; BatchNorm's statistics are its own (BYOL, Eq. 1; decay is its tau)."""
        online = [*self.backbone.parameters(), *self.projector.parameters()]
        for slow, fast in zip(self.target.parameters(), online, strict=True):
            slow.lerp_(fast, 1 - decay)


# --------------------------------------------------------------------------------------------- LOSS


def regression_loss(p, t):
    """Squared distance of the unit vectors, 2 - 2 cos(p, t), the mean over the batch (BYOL, Eq. 2).

    p, t: (N, d), of any norm: predictions, and the target network's projections, which are constants: no gradient goes to them.
    Between 0 and 4; the log has the sum of both directions.
    """
    return (2 - 2 * F.cosine_similarity(p, t.detach(), dim=1)).mean()


# ---------------------------------------------------------------------------------------- SCHEDULES


def learning_rate(step, total, peak, warmup):
    """Linear warm-up from peak / warmup (official: from 0) over `warmup` steps, then half a cosine to 0 at step = total."""
    if step < warmup:
        return peak * min(1, (step + 1) / warmup)  # above 1 only where warmup is no whole number
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def target_decay(step, total, base):
    """The target's decay: 1 - (1 - base) (1 + cos(pi step / total)) / 2, from base to 1 (BYOL, Sec. 3.3)."""
    return 1 - (1 - base) * (1 + math.cos(math.pi * step / total)) / 2


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
                (z1, p1), (z2, p2) = network(x1), network(x2)
                with torch.no_grad():  # the target's BatchNorm uses the statistics of this batch too, as in the official code
                    t1, t2 = model.target(x1), model.target(x2)
            loss = regression_loss(p1.float(), t2.float()) + regression_loss(p2.float(), t1.float())

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.update_target(target_decay(run.step, total, args.ema_decay))  # as in the paper; moco.py does it before its next keys, which is the same
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
    model = BYOL(backbone, width, args.hidden_dim, args.projection_dim)
    model = model.to(device, memory_format=torch.channels_last)  # the layout in which convolutions are fast
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer_class = LARS if args.optimizer == "lars" else torch.optim.SGD
    optimizer = optimizer_class(trained, args.lr, momentum=0.9, weight_decay=args.weight_decay, fused=device.type == "cuda")

    run = evaluate.Run("byol", args, source, view1, view2, model, optimizer)
    train(model, optimizer, source, view1, view2, run, args)
    run.finish()


if __name__ == "__main__":
    pairs.run_cli(main)
