"""`python -m hf_losses`: the command `hf-losses`."""

import sys

from hf_losses.cli.main import main

sys.exit(main())
