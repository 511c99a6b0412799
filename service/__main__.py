"""`python -m service`, the same as `tcm serve`."""

import sys

from service.command import run

sys.exit(run(sys.argv[1:]))
