"""The context network in training: means move towards what other frames tell, as an encoder would tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sunzip.nn.context import _mean
from sunzip.nn.planes import CROSS, GATES, MEANS, TRUST_MOST, WIDE

SHAPE = (2, 3, 6, 8)
EVERYWHERE = torch.ones(SHAPE[2:], dtype=torch.bool)
BOARD = (torch.arange(6)[:, None] + torch.arange(8)) % 2 == 0


def eighths(seed: int, most: int = 40) -> Tensor:
    """Return numbers that rounding leaves as they are."""
    drawn = torch.randint(-most, most, SHAPE, generator=torch.Generator().manual_seed(seed))
    return drawn.float() / 8


def outputs(own: Tensor, cross_gate: float = 0.0, past_gate: float = 0.0) -> Tensor:
    """Return what a network puts out that foretells so much itself, and takes so much of others."""
    out = torch.zeros(SHAPE[0], 12, *SHAPE[2:])
    out[:, MEANS], out[:, CROSS], out[:, GATES] = own, cross_gate, past_gate
    return out


NONE = torch.zeros(SHAPE)


def test_means_move_to_others_where_these_are_right_and_stay_where_the_network_is() -> None:
    past, cross = eighths(0), eighths(1)
    for cross_gate, past_gate in ((0.0, 0.0), (0.5, 1.0)):
        out = outputs(eighths(2), cross_gate, past_gate)
        told = out[:, MEANS] + cross_gate * cross + past_gate * past
        assert (told - past).abs().mean() > 1
        torch.testing.assert_close(_mean(out, cross, past, past, EVERYWHERE), past)
        stays = _mean(out, cross, past, told, EVERYWHERE)
        torch.testing.assert_close(stays, (told * 8).round() / 8)


def test_without_other_frames_they_are_the_networks() -> None:
    cross = eighths(1)
    found = _mean(outputs(eighths(2), 0.5), cross, None, cross, EVERYWHERE)
    told = eighths(2) + 0.5 * cross
    torch.testing.assert_close(found, (told * 8).round() / 8)


@pytest.mark.parametrize(
    ("way", "share"), [(-1, 0), (0.05, 0), (0.07, 1), (0.5, 4), (1.13, 9), (1.25, 10), (3, TRUST_MOST)]
)
def test_they_go_so_many_eighths_of_the_way(way: float, share: int) -> None:
    own, told = eighths(0), eighths(1)
    values = own + way * (told - own)
    expected = own + share / 8 * (told - own)
    found = _mean(outputs(own), NONE, told, values, EVERYWHERE)
    torch.testing.assert_close(found, (expected * 8).round() / 8)


def test_channels_and_halves_go_each_their_way() -> None:
    own, told = eighths(0), eighths(1)
    values = torch.where(BOARD, told, own)
    values[1] = torch.where(BOARD, own[1], told[1])
    first, second = (_mean(outputs(own), NONE, told, values, here) for here in (BOARD, ~BOARD))
    # All places move by what those of the half ask for.
    torch.testing.assert_close(first, torch.stack([told[0], own[1]]))
    torch.testing.assert_close(second, torch.stack([own[0], told[1]]))


def test_the_surest_ask_the_most() -> None:
    own, told = eighths(0), eighths(1)
    values = torch.where(BOARD, told, own)
    for sure, expected in ((BOARD, told), (~BOARD, own)):
        out = outputs(own)
        out[:, WIDE] = torch.where(sure, -5.0, 10.0)
        torch.testing.assert_close(_mean(out, NONE, told, values, EVERYWHERE), expected)


def test_where_others_tell_what_the_network_does_nothing_moves() -> None:
    own = eighths(0)
    torch.testing.assert_close(_mean(outputs(own), own, own, eighths(1), EVERYWHERE), own)


def test_gradients_pass_as_far_as_the_network_is_followed() -> None:
    own, told = eighths(0), eighths(1)
    for way in (0, 0.5, 1):
        out = outputs(own).requires_grad_(True)
        _mean(out, NONE, told, own + way * (told - own), EVERYWHERE).sum().backward()
        assert out.grad is not None
        torch.testing.assert_close(out.grad[:, MEANS], torch.full(SHAPE, 1.0 - way))
        assert not out.grad[:, WIDE].any()
