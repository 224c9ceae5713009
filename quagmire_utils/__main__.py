"""Run the command line: `python -m quagmire_utils` is the command `quagmire`."""

import sys

from quagmire_utils.cli import main

sys.exit(main())
