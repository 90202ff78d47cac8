"""Copies SST-2 with training labels exchanged at random, once, in the layout of nyu-mll/glue.

    python results/which_loss/noise.py GLUE SHARE FOLDER

GLUE holds sst2/ as parquet. FOLDER gets sst2/train.parquet, in which a SHARE of the labels (0.2,
0.4) is that of the other class, and the clean validation set.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

source, share, folder = Path(sys.argv[1]) / "sst2", float(sys.argv[2]), Path(sys.argv[3]) / "sst2"
folder.mkdir(parents=True, exist_ok=True)
train = pq.read_table(next(source.glob("train*.parquet")))
labels = train["label"].to_numpy().copy()
exchanged = np.random.default_rng(0).permutation(len(labels))[: round(share * len(labels))]
labels[exchanged] = 1 - labels[exchanged]
position = train.schema.get_field_index("label")
column = pa.array(labels, train.schema.field(position).type)
pq.write_table(train.set_column(position, "label", column), folder / "train.parquet")
validation = pq.read_table(next(source.glob("validation*.parquet")))
pq.write_table(validation, folder / "validation.parquet")
print(f"{len(exchanged):,} of {len(labels):,} labels exchanged")
