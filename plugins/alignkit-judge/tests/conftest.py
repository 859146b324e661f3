"""Makes the test helper `scripted_judge` importable: a server that plays a judge by a script."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
