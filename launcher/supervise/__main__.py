"""``python -I -m launcher.supervise FD``: see ``main``."""

import sys

from launcher.supervise.main import main

sys.exit(main())
