"""Train the model that the config names; with ``-m hydra/launcher=hpo``, tune it.

    python recipes/train.py                                    # train once, with the recipe's defaults
    python recipes/train.py -m hydra/launcher=hpo              # tune: 20 trials of the MLP on handwritten digits
    python recipes/train.py recipe=mlp_fashionmnist --cfg job  # show what another recipe would do

Nothing in this file knows of tuning: the Trainer's list of callbacks (conf/trainer) holds ``HPOCallback``, that is all.
"""

from __future__ import annotations

import hydra
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> float:
    """Fit the model and return the metric the config names, as it was after the last epoch."""
    if config.seed is not None:
        seed_everything(config.seed, workers=True)
    data: LightningDataModule = instantiate(config.data)
    model: LightningModule = instantiate(config.model)
    trainer: Trainer = instantiate(config.trainer)
    trainer.fit(model, datamodule=data)
    score = float(trainer.callback_metrics[config.metric])
    trainer.print(f"{config.metric}={score:.4f} at epoch {trainer.current_epoch}")
    return score


if __name__ == "__main__":
    main()
