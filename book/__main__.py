"""``python -m book``."""

from book.cli import main

raise SystemExit(main())
