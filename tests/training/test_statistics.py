"""Figures of a step, against what is known of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tcl.training.health import duplicate_share, feature_spread


def random_features(size: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(size, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("size", "width"), [(4, 512), (64, 256), (500, 16)])
def test_random_unit_vectors_spread_by_one(size: int, width: int) -> None:
    assert feature_spread(random_features(size, width)).item() == pytest.approx(1, abs=0.1)


def test_a_collapse_has_no_spread() -> None:
    same = random_features(1, 64).expand(32, -1)
    assert feature_spread(same).item() == pytest.approx(0, abs=1e-6)
    nearly = F.normalize(same + 0.05 * random_features(32, 64, seed=1), dim=-1)
    assert 0.02 < feature_spread(nearly).item() < 0.1


def test_a_batch_of_one_is_no_collapse() -> None:
    assert feature_spread(random_features(1, 64)).item() == 1


def test_low_precision_is_no_obstacle() -> None:
    features = random_features(64, 256)
    assert feature_spread(features.bfloat16()).item() == pytest.approx(feature_spread(features).item(), abs=1e-2)
    assert feature_spread(features.bfloat16()).dtype == torch.float32


def test_copies_are_counted_per_sample() -> None:
    features, others = random_features(4, 64), random_features(16, 64, seed=1)
    assert duplicate_share(features, others.T).item() == 0
    queue = torch.cat([others[:14], features[:1], features[:1]]).T  # two of sixteen, for one of four samples
    assert duplicate_share(features, queue).item() == pytest.approx(2 / 16 / 4)
    assert duplicate_share(features[:1], features[:1].T).item() == 1


def test_no_gradient_is_kept() -> None:
    features = random_features(4, 8).requires_grad_()
    assert not feature_spread(features).requires_grad and not duplicate_share(features, features.T).requires_grad
