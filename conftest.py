"""For every test, notebooks included: the learner's progress is none of theirs."""

from __future__ import annotations

import os
import tempfile

_home = tempfile.TemporaryDirectory(prefix="labkit-home-")
os.environ["LABKIT_HOME"] = _home.name  # notebooks' kernels inherit it
