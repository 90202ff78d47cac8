"""A plugin of pytest that puts a trainer of this project in the place of the one under test.

`-p official.swap_trainer --swap Trainer` does it for transformers' own `Trainer`: the regression
models of its tests get the mean squared error that they compute themselves, and what else there is,
classifiers and language models, its baseline. `--swap SFTTrainer` does it for TRL's, with
cross-entropy. It happens before the test files import the name, and changes none of them.
"""

import sys


def pytest_addoption(parser):
    parser.addoption("--swap", choices=("Trainer", "SFTTrainer"))


def pytest_configure(config):
    if config.option.swap == "Trainer":
        from hf_losses import LossTrainer

        class Trainer(LossTrainer):
            def __init__(self, model=None, *args, **keywords):
                regression = model is None or type(model).__name__.startswith("Regression")
                super().__init__(model, *args, loss="mse" if regression else None, **keywords)

        # By then another module is in the place of the one that was imported first.
        sys.modules["transformers"].Trainer = Trainer
    if config.option.swap == "SFTTrainer":
        import trl

        from hf_losses import LossMixin

        trl.SFTTrainer = type("SFTTrainer", (LossMixin, trl.SFTTrainer), {})
