"""Makes the test helper `scripted_vllm` importable: a server that plays vLLM with the tiny policy."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
