#!/usr/bin/env bash
# Transfer from CIFAR-10 to clothes: four methods on 20,000 CIFAR-10 images with either kind of pairs, five seeds, then a
# linear probe on another data set. Two runs at a time, one thread each, 3 to 10 minutes a run: two and a half hours. Then the
# same for three times as many epochs, 8 to 29 minutes a run: six hours; then SimCLR without kinds of augmentation, 12 minutes
# a run: two hours; then with few or false semantic pairs, 6 runs: two and a half hours in float32; then with another
# architecture, 6 runs, about an hour and a half a pair in float32; then fine-tuning, 10 runs: five hours; then without the
# anchor's class among the negatives, 6 runs: two hours and a half in float32; then MoCo at two temperatures, 6 runs: two hours in
# float32; then SimCLR at another temperature, 6 runs: three hours in float32; then SimCLR with stronger colour jitter, 10 runs:
# two hours in bf16; then MoCo's semantic arm at its default temperature, 3 runs, an hour, and all four methods for 180 epochs,
# 23 runs: fourteen hours in bf16; then what the features of two methods ignore, 2 runs: half an hour in bf16; then BYOL at a quarter of
# its learning rate, 6 runs: four hours and a half in bf16; then supervised contrastive learning, 10 runs: two hours in bf16.
# From the repository's root, with the two folders of class folders:
#     bash results/transfer/run.sh cifar10-jpeg clothing-160 [python]
# SimCLR's runs here come from commit a3cbafd (output.txt), the others' from a later one (output-others.txt, with the trials of moco-recipe.txt).
# Since then all 8 parts of MoCo's batch together move BatchNorm's running statistics as much as one batch does.
set -e
cifar=$1 clothes=$2 python=${3:-.venv/bin/python}
export OMP_NUM_THREADS=1
case $cifar$clothes in *[[:space:]]*) echo "give the two folders names without blanks, at which xargs would split them" >&2; exit 2;; esac
for run in runs/{simclr,moco,byol,simsiam}-*-"$(basename "$cifar")"-seed[0-4]; do
  [ ! -e "$run" ] || { echo "$run is there already: move it away first, a run is never overwritten" >&2; exit 2; }
done
commands() {  # of 40 runs: epochs, and a folder for the runs if not the usual one
  for seed in 0 1 2 3 4; do
    for method in simclr moco byol simsiam; do
      for pairs in augmented semantic; do
        case $method in
          moco) options="--temperature 0.5" ;;  # moco-recipe.txt says why
          simclr | byol) options="--warmup-epochs 10" ;;  # the default when the first were run; now a tenth of the epochs at most
          *) options= ;;
        esac
        # what may be empty is not last: xargs takes a line that ends in a blank and the next one for one command
        echo "$method.py --pairs $pairs --seed $seed --data $cifar $options ${2:+--out $2/$method-$pairs-seed$seed} --backbone convnet --epochs $1 --limit 20000"
      done
    done
  done
}
without() {  # of 18 runs: SimCLR with transforms switched off, seeds 0 to 2, else as the 60 epochs of `commands`
  for seed in 0 1 2; do
    for off in jitter,gray crop,flip,jitter,gray crop; do
      for pairs in augmented semantic; do
        echo "simclr.py --pairs $pairs --seed $seed --data $cifar --backbone convnet --epochs 60 --limit 20000 --warmup-epochs 10 --without $off --out runs/epochs60-without/simclr-$pairs-without-${off//,/-}-seed$seed"
      done
    done
  done
}
curation() {  # of 6 runs: SimCLR with a quarter of the semantic pairs or with two fifths of them false, seeds 0 to 2
  row() { echo "simclr.py --data $cifar --backbone convnet --epochs 60 --limit 20000 --warmup-epochs 10 --precision float32 --out runs/epochs60-curation/simclr-$*"; }
  for seed in 0 1 2; do
    row "share0.25-seed$seed --pairs semantic --semantic-share 0.25 --seed $seed"
    row "false0.4-seed$seed --pairs semantic --false-pairs 0.4 --seed $seed"
  done
}
architecture() {  # of 6 runs: SimCLR with ShuffleNetV2 (x0.5) instead of the convnet, seeds 0 to 2, else as the 60 epochs of `commands`
  for seed in 0 1 2; do
    for pairs in augmented semantic; do
      echo "simclr.py --pairs $pairs --seed $seed --data $cifar --backbone shufflenet_v2_x0_5 --epochs 60 --limit 20000 --warmup-epochs 10 --precision float32 --out runs/epochs60-shufflenet/simclr-$pairs-shufflenet_v2_x0_5-seed$seed"
    done
  done
}
tuned() {  # of 10 runs: SimCLR's 60 epochs of `commands` once more, in float32, and for fine-tuning
  for seed in 0 1 2 3 4; do
    for pairs in augmented semantic; do
      echo "simclr.py --pairs $pairs --seed $seed --data $cifar --backbone convnet --epochs 60 --limit 20000 --warmup-epochs 10 --precision float32 --out runs/epochs60-finetune/simclr-$pairs-seed$seed"
    done
  done
}
negatives() {  # of 6 runs: `tuned`, seeds 0 to 2, without the anchor's class among its negatives
  for seed in 0 1 2; do
    for pairs in augmented semantic; do
      echo "results/transfer/negatives.py --pairs $pairs --seed $seed --data $cifar --backbone convnet --epochs 60 --limit 20000 --warmup-epochs 10 --precision float32 --out runs/epochs60-negatives/simclr-$pairs-seed$seed"
    done
  done
}
temperature() {  # of 6 runs: MoCo's 60 epochs of `commands`, seeds 0 to 2, in float32, each arm at the temperature that suits it
  for seed in 0 1 2; do
    for arm in "augmented 0.1" "semantic 0.5"; do
      set -- $arm
      echo "moco.py --pairs $1 --temperature $2 --seed $seed --data $cifar --backbone convnet --epochs 60 --limit 20000 --precision float32 --out runs/epochs60-temperature/moco-$1-temperature$2-seed$seed"
    done
  done
}
cooler() {  # of 6 runs: `tuned`, seeds 0 to 2, at temperature 0.2 (the scenes' default, and MoCo v2's) instead of 0.5, both arms
  for seed in 0 1 2; do
    for pairs in augmented semantic; do
      echo "simclr.py --pairs $pairs --temperature 0.2 --seed $seed --data $cifar --backbone convnet --epochs 60 --limit 20000 --warmup-epochs 10 --precision float32 --out runs/epochs60-cooler/simclr-$pairs-temperature0.2-seed$seed"
    done
  done
}
jitter() {  # of 10 runs: SimCLR's 60 epochs of `commands` with the colour jitter of its paper's ImageNet (App. A), twice as strong, in bf16
  for seed in 0 1 2 3 4; do
    for pairs in augmented semantic; do
      echo "simclr.py --pairs $pairs --jitter 0.8 0.8 0.8 0.2 --seed $seed --data $cifar --backbone convnet --epochs 60 --limit 20000 --warmup-epochs 10 --precision bfloat16 --out runs/epochs60-jitter/simclr-$pairs-jitter0.8-seed$seed"
    done
  done
}
sharper() {  # of 3 runs: MoCo's semantic arm of `commands`, 60 epochs, seeds 0 to 2, at its default temperature, 0.1, in bf16
  for seed in 0 1 2; do
    echo "moco.py --pairs semantic --temperature 0.1 --seed $seed --data $cifar --backbone convnet --epochs 60 --limit 20000 --precision bfloat16 --out runs/epochs60-sharper/moco-semantic-temperature0.1-seed$seed"
  done
}
longer() {  # those of `commands` that fit a pattern, for 180 epochs, in bf16
  commands 180 runs/epochs180 | grep -E "$1" | sed 's/$/ --precision bfloat16/'
}
baseline() {  # of 3 runs: MoCo's augmented arm for 180 epochs at its default temperature, 0.1, seeds 0 to 2, in bf16
  for seed in 0 1 2; do
    echo "moco.py --pairs augmented --temperature 0.1 --seed $seed --data $cifar --backbone convnet --epochs 180 --limit 20000 --precision bfloat16 --out runs/epochs180-baseline/moco-augmented-temperature0.1-seed$seed"
  done
}
ignored() {  # of 2 runs: SimCLR's 60 epochs of `commands` once more, seed 0, in bf16, for evaluate.py invariance
  commands 60 runs/epochs60-invariance | grep "^simclr.* --seed 0 " | sed 's/$/ --precision bfloat16/'
}
slower() {  # of 6 runs: BYOL's seeds 0 to 2, both arms, as `longer` but at a quarter of the learning rate
  longer "^byol.* --seed [0-2] " | sed 's/$/ --lr 0.03/; s#epochs180/byol-[a-z]*#&-lr0.03#; s#epochs180/#epochs180-slower/#'
}
supcon() {  # of 10 runs: SimCLR's 60 epochs of `commands` with all images of the anchor's class as positives, in bf16
  commands 60 runs/epochs60-supcon | grep "^simclr" | sed 's/$/ --precision bfloat16/; s#^simclr#results/transfer/supcon#; s#/simclr-#/supcon-#'
}
kept=runs/kept  # what goes to results, at the end: a changed file there would mark the commit of later runs as dirty
judge() {  # a folder of results, then runs
  to=$kept/$1
  shift
  for run in "$@"; do
    "$python" evaluate.py transfer "$run" --data "$clothes" >> runs-output.txt
  done
  for run in "$@"; do
    mkdir -p "$to/$(basename "$run")"
    cp "$run"/{config.json,result.json,log.jsonl} "$to/$(basename "$run")/"
  done
  # lines of the training log are in log.jsonl
  grep -vE '^epoch |^reading |features of|L2 strengths|^fine-tuning |^classifying' runs-output.txt > "$to/output.txt"
}
compare() {  # a folder of results, then runs and options
  "$python" evaluate.py compare "${@:2}" --out "$1"
}
both=(--measure "transfer $(basename "$clothes")" "linear $(basename "$cifar")")
here=results/transfer long=results/transfer/epochs60 off=results/transfer/without few=results/transfer/curation arch=results/transfer/architecture tune=results/transfer/finetune negatives=results/transfer/negatives temperature=results/transfer/temperature cooler=results/transfer/cooler jitter=results/transfer/jitter sharper=results/transfer/sharper longer=results/transfer/epochs180 baseline=results/transfer/epochs180-baseline invariance=results/transfer/invariance slower=results/transfer/epochs180-slower supcon=results/transfer/supcon
commands 20 | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $here runs/{simclr,moco,byol,simsiam}-*-"$(basename "$cifar")"-seed[0-4]

# Three times as long. Three seeds were planned; SimCLR was given five after its seed 0 had been seen, the others after their
# seeds 0 to 2. SimCLR's runs come from commit ae35256, the others from e70865e; MoCo's seeds 0 to 2 were made by both, with
# accuracies equal to the last digit (the first values: commit 31dffa0).
commands 60 runs/epochs60 | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $long runs/epochs60/*

# Without colour, without crops and without any augmentation: planned before their results were known, and not added to. Commit 009aa69,
# which also made seed 0 of the 60 epochs again (again.txt, with --out runs/again/...): accuracies equal to the three digits printed.
without | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $off runs/epochs60-without/*

# How few semantic pairs, and how clean? Planned before the first was run, and not added to. These runs, of commit b205906, were made
# on a machine that computes in float32 (43 to 48 minutes each), those of the 60 epochs in bf16: so
# they are compared with the runs of `tuned`.
curation | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $few runs/epochs60-curation/*

# With another architecture. Planned before the first was run, and not added to. These runs computed in float32; seed 0 is of commit
# 57f7f63, the others of 6b52506; seed 1 was stopped after 53 (semantic) and 54 epochs, and went on with --resume.
architecture | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $arch runs/epochs60-shufflenet/*

# Fine-tuning of all layers on clothes, with a tenth of their labels and with all; 300 steps each. Seeds 0 to 2 were planned before the
# first was run; seeds 3 and 4 of both arms were added when those were known, to be kept whatever they show, so that float32 has the
# five seeds of bf16. In float32; the runs of seed 0 are of commit dc1590c (made with those of `curation`), those of seeds 1 and 2, and
# the fine-tunings of seeds 0 to 2, of 67e9264, the others of 1af1065.
tuned | xargs -P 2 -L 1 "$python" > runs-output.txt
for fraction in 0.1 1; do
  for run in runs/epochs60-finetune/*; do
    echo "evaluate.py finetune $run --data $clothes --fraction $fraction --steps 300"
  done
done | xargs -P 2 -L 1 "$python" >> runs-output.txt
judge $tune runs/epochs60-finetune/*

# Without the anchor's class among the negatives, in float32. Three seeds of both arms were planned before the first was run; commit
# 928bdb6, 43 to 57 minutes each.
negatives | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $negatives runs/epochs60-negatives/*

# MoCo, augmented pairs at its default temperature, semantic pairs at the one chosen for them, in float32. Three seeds of both arms were
# planned before the first was run, and none was added; commit e25b5c2, 35 to 46 minutes each, beside other work.
temperature | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $temperature runs/epochs60-temperature/*

# SimCLR, both arms at temperature 0.2 instead of 0.5, in float32. Three seeds of both arms were planned before the first was run, and
# none was added; commit 89b791f, 56 to 66 minutes each beside other work. Seed 2 was stopped in epoch 20, and went on with --resume.
cooler | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $cooler runs/epochs60-cooler/*

# SimCLR, both arms with twice the colour jitter, in bf16, for comparison with the five seeds of the 60 epochs. Five seeds of both arms
# were planned before the first was run, and none was added; commit a78893c, 20 to 28 minutes a pair, beside other work. The first
# four epochs of seed 0 with the usual jitter, made again by that commit (again-*.jsonl), are those of the 60 epochs: at each of the
# 58 steps that both logs have a line for, embedding_std is the same to the last digit.
jitter | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $jitter runs/epochs60-jitter/*

# MoCo's semantic arm at its default temperature, in bf16, for comparison with that arm in the 60 epochs, at 0.5. Three seeds were
# planned before the first was run, and none was added; commit 7d76844, 15 to 19 minutes each. That commit also made the semantic seed 0
# at 0.5 again: embedding_std, where both logs have a line (105 steps), and all accuracies are those of the 60 epochs to the last digit.
sharper | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $sharper runs/epochs60-sharper/*

# Does the gain grow with training? One seed of both arms of BYOL, planned as one; commit 7d76844, 80 minutes. When that was known,
# SimCLR and MoCo were planned, one seed of both arms each too, in this order, to be kept whatever they show: commit 26d592a, 64 and
# 51 minutes a pair with their evaluations.
# When that and `baseline` were known: seed 1 of MoCo's semantic arm, planned as one run, to be kept whatever it shows, commit 998a421, 49
# minutes; then seeds 1 and 2 of SimCLR, both arms, to be kept too: commit e362777, seed 1 took 74 minutes, seed 2, of commit 03af811,
# 64 (a first try was stopped after a minute, for want of time); when SimCLR's seed 1 was known, seed 1 of MoCo's augmented arm, planned
# as one run, to be kept too, commit 95422de, 44 minutes. When these were known: seed 1 of BYOL, both arms, to be kept too,
# commit 4328314, 88 minutes. When these were known: SimSiam, one seed of both arms, planned as one, to be kept too,
# commit 64f41c2, 90 minutes. When that was known: SimSiam's seed 1, both arms, planned as one, to be kept too, commit 2951692,
# 97 minutes. When that was known: seed 2 of MoCo's both arms and of `baseline`, planned as one, to be kept too,
# commit d9ac87f, 48 and 44 minutes. All of these beside other work.
longer '^((byol|simclr|moco|simsiam).* --seed [01]|(simclr|moco).* --seed 2) ' | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $longer runs/epochs180/*

# MoCo's augmented arm for as long at the temperature that suits it: is its semantic arm, seed 0 of the above, still ahead? Two seeds were
# planned before the first was run, to be kept whatever they show: commit 1b5ce96, 49 minutes each. Seed 2: see above.
baseline | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $baseline runs/epochs180-baseline/*

# What do the features ignore? Planned before the first was run, as one seed of both arms of SimCLR, and with it SimSiam's runs of 180
# epochs, to be kept whatever it shows; none was added. Transformations are of CIFAR-10's test images. Commit d331145, 22 minutes; all
# accuracies of SimCLR's runs are those of the 60 epochs to the last digit.
ignored | xargs -P 2 -L 1 "$python" > runs-output.txt
"$python" evaluate.py invariance runs/epochs60-invariance/* runs/epochs180/simsiam-*-seed0 --picture $kept/results/transfer/invariance/invariance.png >> runs-output.txt
judge $invariance runs/epochs60-invariance/*

# BYOL's semantic arm trains badly for 180 epochs: is the learning rate too high? A quarter of it, one seed of both arms, planned before
# the first was run, to be kept whatever it shows: commit edcb499, 82 minutes beside other work. When that was known: seed 1 of both
# arms, to be kept too, commit 6a4db12, 80 minutes beside other work. When that was known: seed 2 of both arms, planned as one, to be
# kept too, commit 73cd889, 87 minutes beside other work.
slower | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $slower runs/epochs180-slower/*

# Supervised contrastive learning. Planned before the first was run, as one seed of both arms, to be kept whatever it shows:
# commit 5eeb291, 22 minutes. When that was known: seeds 1 to 4 of both arms, so that there are five as of SimCLR, to be kept
# too: commit ca714ae, 85 minutes beside other work.
supcon | xargs -P 2 -L 1 "$python" > runs-output.txt
judge $supcon runs/epochs60-supcon/*

cp -r $kept/results .
compare $here $here/{simclr,moco,byol,simsiam}-*-seed[0-4]
compare $long $long/{simclr,moco,byol,simsiam}-*
compare $off $long/simclr-*-seed[0-2] $off/simclr-*-without-{crop,jitter-gray,crop-flip-jitter-gray}-seed[0-2] --by without "${both[@]}"
compare $few $tune/simclr-*-seed[0-2] $few/simclr-{share,false}*-seed[0-2] "${both[@]}"  # all in float32, and the next
compare $arch $tune/simclr-*-seed[0-2] $arch/simclr-*-seed[0-2] --by backbone "${both[@]}"
compare $tune $tune/simclr-*-seed[0-4] --measure "finetune $(basename "$clothes"), 0.1 of the labels" "finetune $(basename "$clothes"), 1 of the labels" "${both[@]:1}"
compare $negatives $tune/simclr-*-seed[0-2] $negatives/simclr-*-seed[0-2] "${both[@]}"
compare $temperature $temperature/moco-*-seed[0-2] --by temperature
compare $cooler $tune/simclr-*-seed[0-2] $cooler/simclr-*-seed[0-2] --by temperature "${both[@]}"
compare $jitter $long/simclr-*-seed[0-4] $jitter/simclr-*-seed[0-4] --by jitter "${both[@]}"
compare $longer $longer/{byol,simclr,moco,simsiam}-*
compare $baseline $longer/moco-* $baseline/moco-* --by temperature
compare $slower $longer/byol-* $slower/byol-* --by lr
compare $supcon $long/simclr-*-seed[0-4] $supcon/supcon-*
"$python" results/transfer/differences.py curation > $few/summary.txt
"$python" results/transfer/differences.py negatives > $negatives/summary.txt
"$python" results/transfer/differences.py temperature > $temperature/summary.txt
"$python" results/transfer/differences.py cooler > $cooler/summary.txt
"$python" results/transfer/differences.py jitter > $jitter/summary.txt
"$python" results/transfer/differences.py sharper > $sharper/summary.txt
"$python" results/transfer/differences.py epochs180-baseline > $baseline/summary.txt
"$python" results/transfer/differences.py epochs180-slower > $slower/summary.txt
"$python" results/transfer/differences.py supcon > $supcon/summary.txt
"$python" results/transfer/validation.py > $here/validation.txt
