"""Files of a trial's earlier attempts, where Lightning thinks of them as another run's.

Every attempt runs the script in the same folder. What one attempt has written there the next one may find, and it is
neither to be kept from the next nor to be lost.
"""

from __future__ import annotations

import sys

from lightning.pytorch import Trainer


def let_config_be_saved_again(trainer: Trainer) -> None:
    """Let ``LightningCLI`` replace the configuration that an earlier attempt has saved, which is the trial's too.

    It refuses to, unless it is told to overwrite. All ranks must call it, before the callbacks that come after
    ``HPOCallback`` are set up: ``LightningCLI`` puts its own last.
    """
    # Importing it takes long, and who has made such a callback has imported it.
    cli = sys.modules.get("lightning.pytorch.cli")
    for callback in trainer.callbacks:
        if cli is not None and isinstance(callback, cli.SaveConfigCallback):
            callback.overwrite = True
