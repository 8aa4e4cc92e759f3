"""``python -m sdebias.cli``."""

import sys

from . import main

sys.exit(main())
