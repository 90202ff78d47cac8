"""Copies SST-2 with training labels exchanged at random, once.

    python results/which_loss/noise.py GLUE SHARE FOLDER

GLUE holds sst2/ as parquet. FOLDER gets train.parquet, in which a SHARE of the labels (0.2, 0.4) is
that of the other class; validation.parquet, 2,000 other rows of the training set as they are; and
test.parquet, the validation set of SST-2 as it is.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("glue", type=Path)
parser.add_argument("share", type=float)
parser.add_argument("folder", type=Path)
arguments = parser.parse_args()
source, share, folder = arguments.glue / "sst2", arguments.share, arguments.folder
if not 0 <= share <= 1:
    parser.error(f"SHARE must lie in [0, 1], got {share:g}")
if not source.is_dir():
    parser.error(f"{arguments.glue} is not laid out like nyu-mll/glue: no sst2/")
folder.mkdir(parents=True, exist_ok=True)
rows = pq.read_table(next(source.glob("train*.parquet")), columns=["sentence", "label"])
random = np.random.default_rng(0)
order = random.permutation(len(rows))
train = rows.take(order[2000:])
labels = train["label"].to_numpy().copy()
exchanged = random.permutation(len(labels))[: round(share * len(labels))]
labels[exchanged] = 1 - labels[exchanged]
field = train.schema.field("label")
noisy = train.set_column(1, field, pa.array(labels, field.type))
pq.write_table(noisy, folder / "train.parquet")
pq.write_table(rows.take(order[:2000]), folder / "validation.parquet")
test = pq.read_table(next(source.glob("validation*.parquet")), columns=["sentence", "label"])
pq.write_table(test, folder / "test.parquet")
print(f"{len(exchanged):,} of {len(labels):,} labels exchanged")
