"""`python -m qhdm` is the command line."""

import sys

from qhdm.cli import main

sys.exit(main())
