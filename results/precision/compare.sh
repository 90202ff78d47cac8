#!/usr/bin/env bash
# Is bf16 as accurate as float32 where names are found in tweets, and does a loss gain in both?
#   results/precision/wnut_17.sh DATA
# DATA/wnut_17 holds parquet files. 800 tweets, 3 epochs and the learning rate of
# results/which_loss/wnut_17; 8 seeds. Interrupted, the same command continues.
set -euo pipefail
source=$(cd "${1:?usage: wnut_17.sh DATA}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p runs
ln -sfn "$source" runs/data
hf-losses compare --jobs 2 --output_dir results/precision/wnut_17 --seeds 8 \
  --losses cross_entropy 'cross_entropy --bf16' strict_m 'strict_m --bf16' \
  -- recipes/token_classification.py --dataset_name runs/data/wnut_17 --learning_rate 4e-4 \
  --max_train_samples 800 --max_eval_samples 600 --num_train_epochs 3 \
  --train_sampling_strategy group_by_length --eval_strategy no \
  --use_cpu --save_strategy no --disable_tqdm true
