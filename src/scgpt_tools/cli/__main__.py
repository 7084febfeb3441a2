"""``python -m scgpt_tools.cli`` is ``scgpt-tools``."""

import sys

from scgpt_tools.cli import main

sys.exit(main())
