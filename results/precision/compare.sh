#!/usr/bin/env bash
# Is bf16 as accurate as float32 where the comparisons use it? Cross-entropy, and on WNUT-17 the loss
# that was ahead of it, with the rows, epochs and learning rate of results/which_loss; 8 seeds.
#   results/precision/compare.sh DATA [NAME ...]
# DATA holds glue/ (laid out like nyu-mll/glue), and banking77/ and wnut_17/ as parquet files. Runs
# JOBS trainings at a time (default: 2). Interrupted, the same command continues.
set -euo pipefail
source=$(cd "${1:?usage: compare.sh DATA [NAME ...]}" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data=runs/data
mkdir -p runs
ln -sfn "$source" "$data"

losses=(cross_entropy 'cross_entropy --bf16')
# Measured on a processor without instructions for bfloat16, so with its rounding alone.
glue=(results/precision/rounded.py recipes/glue.py)

compare() {  # NAME, then what follows --
  local name=$1
  shift
  hf-losses compare --jobs "${JOBS:-2}" --output_dir "results/precision/$name" --seeds 8 \
    --losses "${losses[@]}" -- "$@" \
    --train_sampling_strategy group_by_length --eval_strategy no \
    --use_cpu --save_strategy no --disable_tqdm true
}

wnut_17() {
  losses+=(strict_m 'strict_m --bf16')
  compare wnut_17 recipes/token_classification.py --dataset_name "$data/wnut_17" \
    --learning_rate 4e-4 --max_train_samples 800 --max_eval_samples 600 --num_train_epochs 3
}
banking77() {
  compare banking77 "${glue[@]}" --train_file "$data"/banking77/train-*.parquet \
    --test_file "$data"/banking77/test-*.parquet --train_val_split 0.03 --max_train_samples 770 \
    --max_eval_samples 2000 --learning_rate 1.265e-3 --num_train_epochs 5 --max_length 64
}
cola() {
  compare cola "${glue[@]}" --task_name cola --dataset_name "$data/glue" \
    --train_val_split 0.06 --learning_rate 1e-4 --num_train_epochs 2 \
    --per_device_train_batch_size 64 --max_length 64
}

everything=(wnut_17 banking77 cola)
names=("${@:-${everything[@]}}")
for name in "${names[@]}"; do
  case " ${everything[*]} " in
    *" $name "*) ;;
    *) echo "unknown comparison $name; choose from: ${everything[*]}" >&2; exit 2 ;;
  esac
done
for name in "${names[@]}"; do ("$name"); done
