"""``python -m pyrodgm.cli``."""

import sys

from pyrodgm.cli.main import main

__all__: list[str] = []

sys.exit(main())
