"""A helper of these tests lies beside them: `scripted_judge`, a server that plays a judge by a script."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
