"""Networks, optimizers and logged metrics of the recipes."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def fit(model: LightningModule, images: Tensor, labels: Tensor, epochs: int = 1) -> dict[str, float]:
    loader = DataLoader(TensorDataset(images, labels), batch_size=len(images))
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class TestMLP:
    def test_has_the_hidden_layer_the_config_names(self):
        from mlp import MLP

        model = MLP(in_features=64, n_classes=10, units=17, act="gelu", dropout=0.3, lr=0.02)
        layers = list(model.network)
        assert [(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)] == [(64, 17), (17, 10)]
        assert [type(m) for m in layers] == [nn.Flatten, nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
        assert layers[3].p == 0.3
        assert model.configure_optimizers().param_groups[0]["lr"] == 0.02

    def test_an_unknown_activation_is_refused(self):
        from mlp import MLP

        with pytest.raises(KeyError, match="swish"):
            MLP(act="swish")

    def test_logs_loss_accuracy_and_error_of_the_validation_images(self):
        from mlp import MLP

        model = MLP(in_features=2, n_classes=3, units=4, dropout=0.0, lr=0.0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        # All logits are 0: class 0 is predicted, the loss is ln 3. Two of five labels are 0.
        logged = fit(model, torch.rand(5, 2), torch.tensor([0, 1, 2, 0, 1]))
        assert logged["val_acc"] == pytest.approx(0.4)
        assert logged["val_error"] == pytest.approx(0.6)
        assert logged["val_loss"] == pytest.approx(1.0986123, abs=1e-6)
        assert logged["train_loss"] == pytest.approx(1.0986123, abs=1e-6)

    def test_learns(self):
        from mlp import MLP

        torch.manual_seed(0)
        labels = torch.arange(60) % 3
        images = nn.functional.one_hot(labels).float()
        logged = fit(MLP(in_features=3, n_classes=3, dropout=0.0, lr=0.05), images, labels, epochs=30)
        assert logged["val_acc"] == 1.0


class TestTwoLayerMLP:
    def test_drops_units_before_each_relu(self):
        from mlp import TwoLayerMLP

        model = TwoLayerMLP(n_units_1=5, n_units_2=9, dropout_1=0.1, dropout_2=0.7)
        layers = list(model.network)
        assert [type(m) for m in layers] == [
            nn.Flatten, nn.Linear, nn.Dropout, nn.ReLU, nn.Linear, nn.Dropout, nn.ReLU, nn.Linear,
        ]  # fmt: skip
        sizes = [(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)]
        assert sizes == [(784, 5), (5, 9), (9, 10)]
        assert (layers[2].p, layers[5].p) == (0.1, 0.7)

    def test_adam_gets_both_its_hyperparameters(self):
        from mlp import TwoLayerMLP

        optimizer = TwoLayerMLP(learning_rate=0.3, weight_decay=0.02).configure_optimizers()
        assert isinstance(optimizer, torch.optim.Adam)
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.3, 0.02)


class TestResNet18:
    def test_keeps_all_pixels_until_the_second_stage(self):
        from resnet import cifar_resnet18

        network = cifar_resnet18(n_classes=7).eval()
        shapes = {}
        for name in ("layer1", "layer2", "layer4"):
            getattr(network, name).register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.shape}))
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 7)
        assert shapes == {"layer1": (2, 64, 32, 32), "layer2": (2, 128, 16, 16), "layer4": (2, 512, 4, 4)}

    def test_the_learning_rate_falls_to_a_tenth_at_epochs_25_and_40(self):
        from resnet import ResNet18

        configured = ResNet18(lr=0.04, momentum=0.6, weight_decay=3e-4).configure_optimizers()
        optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]
        assert isinstance(optimizer, torch.optim.SGD)
        assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["weight_decay"]) == (0.6, 3e-4)
        rates = []
        for _ in range(42):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates[24] == pytest.approx(0.04) and rates[25] == pytest.approx(0.004)
        assert rates[39] == pytest.approx(0.004) and rates[40] == pytest.approx(0.0004)
