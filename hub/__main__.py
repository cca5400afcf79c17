"""Django's command line: what manage.py runs, and `python -m hub` where only the package is installed."""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line


def main() -> None:
    """Run the management command that the arguments of this process name."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hub.settings")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
