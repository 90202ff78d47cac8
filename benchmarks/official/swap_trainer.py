"""A plugin of pytest that puts a trainer of this project in the place of the one under test.

`-p official.swap_trainer --swap Trainer` does it for transformers' own `Trainer`, with the mean
squared error that the regression models of its tests compute themselves; `--swap SFTTrainer` for
TRL's, with cross-entropy. It runs before the test files import the name, and changes none of them.
"""

import sys
from functools import partialmethod


def pytest_addoption(parser):
    parser.addoption("--swap", choices=("Trainer", "SFTTrainer"))


def pytest_configure(config):
    if config.option.swap == "Trainer":
        from hf_losses import LossTrainer

        start = partialmethod(LossTrainer.__init__, loss="mse")
        # By then another module is in the place of the one that was imported first.
        sys.modules["transformers"].Trainer = type("Trainer", (LossTrainer,), {"__init__": start})
    if config.option.swap == "SFTTrainer":
        import trl

        from hf_losses import LossMixin

        trl.SFTTrainer = type("SFTTrainer", (LossMixin, trl.SFTTrainer), {})
