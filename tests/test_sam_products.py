"""The choice between MKL and oneDNN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amg.sam import products
from amg.sam.config import VIT_T
from amg.sam.model import build_sam
from amg.sam.products import OneDnnLinear, Products, measure_products, use_fastest_products
from tests.sam_reference import assert_near, pixels


def test_both_libraries_are_measured() -> None:
    threads = torch.get_num_threads()
    found = measure_products()
    assert found.mkl > 1
    assert found.onednn > 1
    assert "on one core" in str(found)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("mkl", "onednn", "words"), [(100, 230, "oneDNN: 230"), (100, 140, "MKL: 100"), (100, 0, "MKL")]
)
def test_onednn_is_taken_where_it_is_clearly_faster(
    mkl: float, onednn: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "measure_products", lambda: Products(mkl, onednn))
    encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert words in use_fastest_products(encoder)
    assert [type(layer) for layer in encoder] == [t := OneDnnLinear if "oneDNN:" in words else nn.Linear, nn.ReLU, t]


def test_an_encoder_by_onednn_gives_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_sam(VIT_T).image_encoder
    image = pixels(1, 3, 1024, 1024)
    with torch.no_grad():
        before = encoder(image)
        monkeypatch.setattr(products, "measure_products", lambda: Products(1, 2))
        use_fastest_products(encoder)
        assert_near(encoder(image), before)
    assert any(type(module) is OneDnnLinear for module in encoder.modules())


def test_gradients_flow_through_a_layer_by_onednn() -> None:
    layer = nn.Linear(8, 3)
    layer.__class__ = OneDnnLinear
    layer(torch.ones(2, 8)).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 8)).dtype == torch.bfloat16
