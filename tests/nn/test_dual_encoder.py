"""The network of two encoders: unit vectors, logits, the temperature and where it is held, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.nn import DualEncoder
from scoresde.train.draws import seeded

SMALL: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_levels": (), "size": 6}
TEXT: dict[str, dict[str, int]] = {"text": {"vocabulary": 9, "length": 4, "width": 8, "layers": 1}}
TOKENS = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [0, 0, 0, 0], [9, 9, 9, 9]])


def net(channels: int = 2, event_dims: int = 2, **options: Any) -> DualEncoder:
    with seeded(torch.device("cpu"), 0):
        own = DualEncoder(channels, event_dims, captions=TEXT, **{**SMALL, **options})
        for parameter in own.parameters():  # blocks start at zero, which hides what they are told
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
    return own.eval()


def events(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


C = torch.tensor([-1.0, 0.0, 1.0, 3.0])


@pytest.mark.parametrize("shape", [(2, 9), (2, 6, 5), (2, 4, 5, 4)])
@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_vectors_are_of_length_one_and_logits_are_scaled_cosines(shape: tuple[int, ...], pool: str) -> None:
    own, x = net(event_dims=len(shape) - 1, pool=pool), events(4, *shape)
    u, v = own(x, C), own.caption(TOKENS)
    assert u.shape == v.shape == (4, 6)
    for vectors in (u, v):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    logits = own(x, C, text=TOKENS)
    # 1/0.07 at first, Radford et al. 2021, section 2.5
    torch.testing.assert_close(logits, u @ v.T / 0.07, rtol=1e-4, atol=1e-4)  # float32
    # an event has its vector alone, whoever else is there
    torch.testing.assert_close(own(x[1:2], C[1:2]), u[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.caption(TOKENS[:1]), v[:1])


def test_it_is_told_the_noise_level_and_the_order_of_words_but_no_padding() -> None:
    own, x = net(), events(4, 2, 6, 6)
    assert (own(x, C) - own(x, C + 0.5)).abs().max() > 1e-4
    swapped = own.caption(torch.tensor([[1, 2, 3], [2, 1, 3]]))
    assert (swapped[0] - swapped[1]).abs().max() > 1e-4
    torch.testing.assert_close(own.caption(TOKENS[:2, :3]), own.caption(TOKENS[:2]))


def test_the_scale_is_held_at_a_hundred() -> None:
    own = net()
    assert own.scale.item() == pytest.approx(1 / 0.07)
    own.after_step()
    assert own.scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        own.log_scale.fill_(7.0)
    own.after_step()
    assert own.scale.item() == pytest.approx(100, rel=1e-5)  # float32
    # from there it can come back: the gradient is not cut off
    own.scale.backward()  # type: ignore[no-untyped-call]
    assert own.log_scale.grad is not None and own.log_scale.grad.item() == pytest.approx(100, rel=1e-5)


def test_it_is_rebuilt_from_its_config() -> None:
    own = net()
    twin = DualEncoder(**own.config)
    twin.load_state_dict(own.state_dict())
    x = events(4, 2, 6, 6)
    assert torch.equal(twin.eval()(x, C, text=TOKENS), own(x, C, text=TOKENS))
    assert own.null_conditions == {"text": 0} and own.caption_name == "text"


def test_bfloat16_weights_give_vectors_of_length_one() -> None:
    own, x = net().bfloat16(), events(4, 2, 6, 6)
    u = own(x, C)
    assert u.dtype == torch.float32
    torch.testing.assert_close(u.norm(dim=1), torch.ones(4))
    assert math.isfinite(own(x, C, text=TOKENS).sum().item())


def test_logits_are_not_rounded_by_autocast() -> None:
    own, x = net(), events(4, 2, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u, v, logits = own(x, C), own.caption(TOKENS), own(x, C, text=TOKENS)
    # float32 of numbers up to 14; in bfloat16 they would be off by up to 14 * 2^-9 = 0.03
    torch.testing.assert_close(logits, own.scale * (u @ v.T), rtol=1e-5, atol=1e-5)


def test_bad_input_is_refused_before_any_work() -> None:
    own, x = net(), events(4, 2, 6, 6)
    for captions in ({}, {**TEXT, "more": TEXT["text"]}):
        with pytest.raises(ValueError, match="expected the one caption"):
            DualEncoder(2, captions=captions, **SMALL)
    with pytest.raises(ValueError, match=r"text has shape .* at most length=4"):
        own(x, C, text=torch.ones(4, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="tokens of text run from 1 to 10; expected 1 to 9"):
        own.caption(torch.tensor([[1, 10]]))
    with pytest.raises(ValueError, match="at most length=4"):
        own.caption(torch.ones(2, 5, dtype=torch.long))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        own.caption(torch.ones(2, 3))
    with pytest.raises(ValueError, match="a row for each caption"):
        own.caption(torch.ones(3, dtype=torch.long))
    with pytest.raises(TypeError, match="must be a dense tensor"):
        own.caption([[1, 2]])  # type: ignore[arg-type]
