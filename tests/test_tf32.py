"""Our products on a GPU are float32 whatever a process allows, and what it allows is as it was afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

from amg.geometry import Box, Crop, Size
from amg.sam.model import Sam
from amg.sam.tf32 import exact_float32, in_exact_float32
from amg.tensors import Batch
from tests.sam_reference import mobile_pair

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MATMUL, CONVOLUTION = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn).conv


def allowed() -> tuple[bool, bool]:
    """Whether matrix products and convolutions may be TF32."""
    return MATMUL.fp32_precision == "tf32", CONVOLUTION.fp32_precision == "tf32"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The switches are this process's: other tests find them as PyTorch has them."""
    before = MATMUL.fp32_precision, CONVOLUTION.fp32_precision, torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before[2])
    MATMUL.fp32_precision, CONVOLUTION.fp32_precision = before[:2]


def test_pytorch_lets_convolutions_be_tf32_unless_it_is_told() -> None:
    assert allowed() == (False, True)


@pytest.mark.parametrize("user", ["highest", "high"])
def test_within_it_nothing_is_tf32_and_then_all_is_as_it_was(user: str) -> None:
    torch.set_float32_matmul_precision(user)
    before = MATMUL.fp32_precision, CONVOLUTION.fp32_precision
    with exact_float32(CUDA):
        assert allowed() == (False, False)
        torch.nn.functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))  # asks for its own switch alone
    assert (MATMUL.fp32_precision, CONVOLUTION.fp32_precision) == before
    assert torch.get_float32_matmul_precision() == user


def test_what_a_user_has_switched_off_stays_off() -> None:
    CONVOLUTION.fp32_precision = "ieee"
    with exact_float32(CUDA):
        assert allowed() == (False, False)
    assert allowed() == (False, False)


def test_it_is_put_back_after_an_error_and_left_alone_on_a_cpu() -> None:
    with pytest.raises(MemoryError), exact_float32(CUDA):
        raise MemoryError
    assert allowed() == (False, True)
    with exact_float32(CPU):
        assert allowed() == (False, True)


def test_threads_side_by_side_stay_exact_until_the_last_is_done() -> None:
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen: list[tuple[bool, bool]] = []

    def first() -> None:
        with exact_float32(CUDA):
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    def second() -> None:
        first_is_in.wait(10)
        with exact_float32(CUDA):
            second_is_in.set()
            first_is_out.wait(10)
            seen.append(allowed())

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == [(False, False)]
    assert allowed() == (False, True)


def test_all_that_a_model_multiplies_is_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts are asked on a CPU, where it says of itself that it is on a GPU."""
    _, sam = mobile_pair()
    seen: list[str] = []

    def note(name: str) -> Any:
        def look(*_: object) -> None:
            assert allowed() == (False, False), f"{name} may be TF32"
            seen.append(name)

        return look

    hooks = [part.register_forward_pre_hook(note(name)) for name, part in sam.named_children()]
    monkeypatch.setattr(Sam, "device", property(lambda _: CUDA))

    crop = Crop(Box(0, 0, 1024, 1024), 0, 0)
    embedding = sam.encode(Batch(torch.zeros(1, 3, 1024, 1024), (crop,), (Size(1024, 1024),)))
    sam.predict(embedding, xy_PK2=torch.full((1, 1, 2), 500.0), labels_PK=torch.ones(1, 1, dtype=torch.int64))
    sam.prepare(embedding)
    for hook in hooks:
        hook.remove()  # others have this model too
    assert seen == ["image_encoder", "prompt_encoder", "mask_decoder", "prompt_encoder"]


def test_a_method_keeps_its_name_and_its_result() -> None:
    class Model:
        device = CUDA

        @in_exact_float32
        def twice(self, x: int) -> tuple[int, tuple[bool, bool]]:
            return 2 * x, allowed()

    assert Model().twice(4) == (8, (False, False))
    assert Model.twice.__name__ == "twice"
