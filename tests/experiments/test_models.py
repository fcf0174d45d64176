"""The models of the experiments are the standard ones: their size, and the names and shapes of their tensors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from experiments.models import MODELS, DenseNet161, MobileNetV2, ResNet18, ResNet50, load_pretrained
from torch import nn

from evergrad.errors import ConfigError

SIZES = {
    "lenet5": (61_706, 10),
    "mobilenetv2": (2_236_682, 314),
    "resnet18": (11_181_642, 122),
    "resnet50": (23_528_522, 320),
    "densenet161": (26_494_090, 967),
}
FOR_IMAGENET = {MobileNetV2: 3_504_872, ResNet18: 11_689_512, ResNet50: 25_557_032, DenseNet161: 28_681_000}
SHAPES = {
    MobileNetV2: {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.2.running_mean": (16,),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.18.1.num_batches_tracked": (),
        "classifier.1.weight": (10, 1280),
    },
    ResNet18: {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.1.bn2.bias": (64,),
        "layer2.0.downsample.1.running_var": (128,),
        "fc.weight": (10, 512),
    },
    ResNet50: {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.bn3.weight": (2048,),
        "fc.weight": (10, 2048),
    },
    DenseNet161: {
        "features.conv0.weight": (96, 3, 7, 7),
        "features.denseblock1.denselayer1.norm1.weight": (96,),
        "features.denseblock3.denselayer36.conv2.weight": (48, 192, 3, 3),
        "features.transition3.conv.weight": (1056, 2112, 1, 1),
        "features.norm5.running_mean": (2208,),
        "classifier.weight": (10, 2208),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_its_parameters_and_tensors_and_ten_outputs(name: str) -> None:
    model = MODELS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name][0]
    assert len(model.state_dict()) == SIZES[name][1]
    images = torch.zeros(2, 1, 28, 28) if name == "lenet5" else torch.zeros(2, 3, 32, 32)
    assert model.eval()(images).shape == (2, 10)


@pytest.mark.parametrize("make", FOR_IMAGENET)
def test_for_1000_classes_it_has_the_published_number_of_parameters(make: type[nn.Module]) -> None:
    assert sum(parameter.numel() for parameter in make(1000).parameters()) == FOR_IMAGENET[make]


@pytest.mark.parametrize("make", SHAPES)
def test_tensors_have_their_standard_names_and_shapes(make: type[nn.Module]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    assert {name: found.get(name) for name in SHAPES[make]} == SHAPES[make]


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet18", "resnet50", "densenet161"])
def test_it_is_torchvisions_model_where_that_is_installed(name: str) -> None:
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    own, theirs = MODELS[name](), getattr(models, name.replace("v2", "_v2"))(num_classes=10)
    own.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(own.eval()(x), theirs.eval()(x))


def test_mobilenet_halves_an_image_five_times() -> None:
    assert MobileNetV2().eval().features(torch.zeros(1, 3, 64, 96)).shape == (1, 1280, 2, 3)


def saved(path: Path, model: nn.Module, **changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Writes a state dict, with some tensors changed or left out; gives it."""
    found = {**model.state_dict(), **{name.replace("__", "."): tensor for name, tensor in changed.items()}}
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(kept, path)
    else:
        torch.save(kept, path)
    return kept


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_pretrained_weights_are_taken_but_for_a_head_of_other_classes(tmp_path: Path, file: str) -> None:
    theirs, own = saved(tmp_path / file, ResNet18(1000)), ResNet18()
    head = own.fc.weight.detach().clone()
    load_pretrained(own, tmp_path / file)
    assert torch.equal(own.conv1.weight, theirs["conv1.weight"])
    assert torch.equal(own.layer4[1].bn2.running_var, theirs["layer4.1.bn2.running_var"])
    assert torch.equal(own.fc.weight, head)


def test_a_file_from_before_batch_counts_and_with_old_names_is_understood(tmp_path: Path) -> None:
    theirs = DenseNet161().state_dict()
    old = {
        re.sub(r"(denselayer\d+\.[a-z]+)([12])", r"\1.\2", name): tensor
        for name, tensor in theirs.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock4.denselayer24.norm.2.weight" in old
    torch.save(old, tmp_path / "old.pth")
    own = DenseNet161()
    load_pretrained(own, tmp_path / "old.pth")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"conv1__weight": torch.zeros(64, 3, 3, 3)}, "conv1.weight"),
        ({"layer1__0__bn1__weight": None}, "layer1.0.bn1.weight"),
        ({"more__weight": torch.zeros(1)}, "more.weight"),
    ],
    ids=["another shape", "one missing", "one more"],
)
def test_weights_of_another_model_are_refused_and_change_nothing(
    tmp_path: Path, changed: dict[str, torch.Tensor | None], named: str
) -> None:
    saved(tmp_path / "weights.pth", ResNet18(), **changed)
    own = ResNet18()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    with pytest.raises(ConfigError, match=f"of another model: {named}"):
        load_pretrained(own, tmp_path / "weights.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_none_is_named(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=file):
        load_pretrained(ResNet18(), tmp_path / file)
    with pytest.raises(ConfigError, match="absent"):
        load_pretrained(ResNet18(), tmp_path / f"absent-{file}")


def test_a_file_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds no state dict: a list"):
        load_pretrained(ResNet18(), tmp_path / "list.pth")
