"""`python -m qhdm` is the command line."""

from qhdm.cli import main
from qhdm.distributed import leave

leave(main())
