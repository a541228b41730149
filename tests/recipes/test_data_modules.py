"""The recipes' data, read by the real loaders from files these tests write."""

from __future__ import annotations

from pathlib import Path

import torch


class TestDigits:
    def test_every_image_is_either_trained_on_or_validated(self):
        from data_modules import DigitsData

        data = DigitsData(n_validation=360)
        data.setup("fit")
        assert (len(data.train_set), len(data.val_set)) == (1437, 360)
        images = torch.cat([data.train_set.tensors[0], data.val_set.tensors[0]])
        labels = torch.cat([data.train_set.tensors[1], data.val_set.tensors[1]])
        assert images.shape == (1797, 64) and images.min() == 0 and images.max() == 1
        # Images a class, as the description of UCI's "Optical Recognition of Handwritten Digits" counts its test set.
        assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    def test_the_split_is_the_same_in_every_trial(self):
        from data_modules import DigitsData

        first, second = DigitsData(), DigitsData()
        first.setup("fit")
        torch.manual_seed(123)
        second.setup("fit")
        assert torch.equal(first.val_set.tensors[0], second.val_set.tensors[0])

    def test_the_validation_images_are_no_tail_of_the_file(self):
        from data_modules import DigitsData
        from sklearn.datasets import load_digits

        data = DigitsData(n_validation=360)
        data.setup("fit")
        tail = torch.as_tensor(load_digits().target[-360:])
        assert not torch.equal(data.val_set.tensors[1], tail)


class TestFashionMNIST:
    def test_the_last_images_are_validated_and_pixels_are_only_scaled(self, fashion_mnist: Path):
        from data_modules import FashionMNISTData

        data = FashionMNISTData(str(fashion_mnist), batch_size=8, n_validation=10)
        data.prepare_data()
        data.setup("fit")
        images, labels = data.train_set.tensors
        assert images.shape == (40, 1, 28, 28) and images[39, 0, 5, 7] == torch.tensor(39) / 255
        assert labels.tolist() == [i % 10 for i in range(40)]
        assert data.val_set.tensors[0][:, 0, 0, 0].mul(255).round().tolist() == list(range(40, 50))

    def test_both_loaders_shuffle_and_drop_the_incomplete_last_batch(self, fashion_mnist: Path):
        from data_modules import FashionMNISTData

        data = FashionMNISTData(str(fashion_mnist), batch_size=7, n_validation=17)
        data.setup("fit")
        torch.manual_seed(0)
        trained = [labels for _, labels in data.train_dataloader()]
        validated = [labels for _, labels in data.val_dataloader()]
        assert [len(batch) for batch in trained] == [7] * 4  # 33 images: 5 are left over
        assert [len(batch) for batch in validated] == [7] * 2  # 17 images: 3 are left over
        assert torch.cat(trained).tolist() != [i % 10 for i in range(28)]
        assert torch.cat(validated).tolist() != [i % 10 for i in range(33, 47)]


class TestCIFAR10:
    def test_the_last_images_are_validated_without_augmentation(self, cifar10: Path):
        from data_modules import CIFAR10Data

        data = CIFAR10Data(str(cifar10), batch_size=4, n_validation=8)
        data.prepare_data()
        data.setup("fit")
        assert (len(data.train_set), len(data.val_set)) == (32, 8)
        image, label = data.val_set[3]  # the 36th of 40
        assert label == 35 % 10
        expected = (35 / 255 - torch.tensor(CIFAR10Data.MEAN)) / torch.tensor(CIFAR10Data.STD)
        assert torch.allclose(image, expected[:, None, None].expand(3, 32, 32), atol=1e-6)

    def test_training_images_are_cropped_from_a_black_frame(self, cifar10: Path):
        from data_modules import CIFAR10Data

        data = CIFAR10Data(str(cifar10), n_validation=8)
        data.setup("fit")
        torch.manual_seed(0)
        black = -torch.tensor(CIFAR10Data.MEAN) / torch.tensor(CIFAR10Data.STD)
        crops = [data.train_set[31][0] for _ in range(20)]
        framed = [torch.isclose(crop, black[:, None, None], atol=1e-6).all(dim=0).any().item() for crop in crops]
        assert all(crop.shape == (3, 32, 32) for crop in crops)
        assert any(framed)

    def test_all_images_of_an_epoch_are_used(self, cifar10: Path):
        from data_modules import CIFAR10Data

        data = CIFAR10Data(str(cifar10), batch_size=5, n_validation=8)
        data.setup("fit")
        assert sum(len(labels) for _, labels in data.train_dataloader()) == 32
        assert [labels.tolist() for _, labels in data.val_dataloader()] == [[2, 3, 4, 5, 6], [7, 8, 9]]
