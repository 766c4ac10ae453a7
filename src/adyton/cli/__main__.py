"""`python -m adyton.cli`."""

import sys

from adyton.cli.main import main

sys.exit(main())
