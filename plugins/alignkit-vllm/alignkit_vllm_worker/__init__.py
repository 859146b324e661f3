"""What alignkit adds to a vLLM server: engines that get weights. Imports neither alignkit nor vLLM."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from threading import Thread

ENGINES = {
    "alignkit-file": ("engine", "FileEngine"),
    "alignkit-nccl": ("devices", "NCCLEngine"),
    "alignkit-ipc": ("devices", "IPCEngine"),
}
"""Name -> the module and the class."""
OWNER = "ALIGNKIT_VLLM_OWNER"
"""Environment variable: the process whose engine this is, where vLLM runs in the training process."""
CHECK_SECONDS = 0.2


def register() -> None:
    """Called by vLLM in each of its processes (`vllm.general_plugins`)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for name, (module, engine) in ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, f"{__name__}.{module}", engine)
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process soon after the one that started it, if it belongs to an owner.

    vLLM's engine waits for requests for ever, with its memory on the device, when the training process is killed.
    """
    parent, owner = multiprocessing.parent_process(), os.environ.get(OWNER)
    if owner and parent is not None and owner != str(os.getpid()):
        Thread(target=_watch, args=(parent.pid,), name="alignkit-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
