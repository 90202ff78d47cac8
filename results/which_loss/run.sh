#!/usr/bin/env bash
# Does another loss help? Every classification loss with a learning rate tuned for it, by the same
# trials on a validation set; all on 2 seeds; then the best three against cross_entropy on 12 fresh
# seeds. The test set has no part in the tuning; on the 2 seeds it says which three are the best.
#   results/which_loss/run.sh DATA [NAME ...]
# DATA holds glue/ (laid out like nyu-mll/glue), banking77/, wnut_17/ and cifar10/ as parquet
# files. Without names all comparisons are made. Interrupted, the same command continues.
set -euo pipefail
source=$(cd "${1:?usage: run.sh DATA [NAME ...]}" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data=runs/data  # The same name everywhere, as the flags of a comparison that continues must be.
mkdir -p runs
ln -sfn "$source" "$data"
quiet=(--use_cpu --save_strategy no --disable_tqdm true)
# MiniLM on 2,000 texts, evaluated ten times for the speed of learning on some 500 that are split
# off the training set.
small=(--max_train_samples 2000 --num_train_epochs 3 --max_length 64 --bf16)
small+=(--eval_strategy steps --eval_steps 0.1)
# These do not learn from a cold start without a warm-up (see docs/results.md).
bounded=()
for loss in liberal_parabolic liberal_circle liberal_cosine; do
  bounded+=("$loss --loss_warmup_ratio 0.3")
done
losses=(cross_entropy 'strict_*' liberal_exp focal gce dft poly1 "${bounded[@]}")
output=results/which_loss

# Ten messages of each class on average, as few-shot studies of intents take; tested on 2,000.
messages() {  # Number of epochs
  flags=(--train_file "$data"/banking77/train-*.parquet --test_file "$data"/banking77/test-*.parquet)
  flags+=(--train_val_split 0.03 --max_train_samples 770 --max_eval_samples 2000)
  flags+=(--num_train_epochs "$1" --max_length 64 --bf16 --train_sampling_strategy group_by_length)
  flags+=(--eval_strategy steps --eval_steps 0.2)
}

tweets() {  # Number of epochs
  flags=(--dataset_name "$data/wnut_17" --max_train_samples 800 --max_eval_samples 600)
  flags+=(--num_train_epochs "$1" --bf16 --train_sampling_strategy group_by_length)
  flags+=(--eval_strategy steps --eval_steps 0.25)
}

# Was it the loss, or the learning rate that one tuning seed chose? Without a tuning, 8 seeds.
same_rate() {
  hf-losses compare --jobs 2 --output_dir results/same_rate/sst2 --seeds 8 \
    --losses cross_entropy strict_l -- recipes/glue.py --task_name sst2 --learning_rate 2e-4 \
    --dataset_name "$data/glue" --train_val_split 0.0075 "${small[@]}" "${quiet[@]}"
}
# Does what was found on these last in a training of twice the length?
twice_as_long() {
  tweets 6
  hf-losses compare --jobs 2 --output_dir results/same_rate/wnut_17_6_epochs --seeds 8 \
    --losses cross_entropy focal strict_m -- recipes/token_classification.py \
    --learning_rate 4e-4 "${flags[@]}" "${quiet[@]}"
  messages 10
  hf-losses compare --jobs 2 --output_dir results/same_rate/banking77_10_epochs --seeds 8 \
    --losses cross_entropy focal -- recipes/glue.py --learning_rate 1.265e-3 \
    "${flags[@]}" "${quiet[@]}"
}

compare() {  # NAME, range of the learning rate, then what follows --
  local name=$1 range=$2
  shift 2
  hf-losses compare --jobs 2 --output_dir "$output/$name" --losses "${losses[@]}" \
    --tune "learning_rate=$range" --trials 5 --screen 2 --top 3 --confirm 12 \
    -- "$@" "${quiet[@]}"
}

sst2() {
  compare sst2 2e-5:2e-3 recipes/glue.py "${small[@]}" --task_name sst2 \
    --dataset_name "$data/glue" --train_val_split 0.0075
}
cola() {  # All texts: in one epoch Matthews correlation stays at 0
  compare cola 1e-5:1e-3 recipes/glue.py --task_name cola --dataset_name "$data/glue" \
    --train_val_split 0.06 --num_train_epochs 2 --per_device_train_batch_size 64 \
    --max_length 64 --bf16 --train_sampling_strategy group_by_length \
    --eval_strategy steps --eval_steps 0.2
}
banking77() {
  messages 5
  compare banking77 4e-5:4e-3 recipes/glue.py "${flags[@]}"
}
# SST-2 with a share of the training labels exchanged, of those losses that differ in how they take
# a wrong label. Tuned on 2,000 phrases with right labels, at smaller learning rates than above.
noise() {  # SHARE of the labels that are exchanged
  local rows=runs/noise_$1
  python results/which_loss/noise.py "$data/glue" "$1" "$rows"
  local losses=(cross_entropy strict_l focal liberal_exp gce dft "${bounded[@]}")
  output=results/label_noise compare "sst2_$1" 5e-6:5e-4 recipes/glue.py "${small[@]}" \
    --train_file "$rows/train.parquet" --validation_file "$rows/validation.parquet" \
    --test_file "$rows/test.parquet" --eval_strategy no
}
noise_0.2() { noise 0.2; }
noise_0.4() { noise 0.4; }
wnut_17() {
  tweets 3
  compare wnut_17 4e-5:4e-3 recipes/token_classification.py "${flags[@]}"
}
cifar10() {  # A small ResNet from scratch on a subset; parts of less than a half show too little
  compare cifar10 2e-4:3e-2 recipes/image_classification.py --dataset_name "$data/cifar10" \
    --max_train_samples 10000 --max_eval_samples 5000 --augmentation crop_flip --min_crop 0.5 \
    --model_type resnet \
    --config_overrides 'embedding_size=16,hidden_sizes=[16,32,64],depths=[1,1,1],layer_type=basic' \
    --num_train_epochs 8 --per_device_train_batch_size 64 --per_device_eval_batch_size 250 \
    --eval_strategy steps --eval_steps 0.1 --dataloader_num_workers 0
}

everything=(sst2 same_rate wnut_17 banking77 twice_as_long noise_0.2 noise_0.4 cifar10 cola)
names=("${@:-${everything[@]}}")
for name in "${names[@]}"; do
  case " ${everything[*]} " in
    *" $name "*) ;;
    *) echo "unknown comparison $name; choose from: ${everything[*]}" >&2; exit 2 ;;
  esac
done
for name in "${names[@]}"; do ("$name"); done
python results/which_loss/overall.py
