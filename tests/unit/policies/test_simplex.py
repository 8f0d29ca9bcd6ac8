"""The bounded simplex."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.weighting.simplex import project


@st.composite
def bounded(draw):
    size = draw(st.integers(1, 8))
    numbers = st.floats(0, 1, allow_nan=False)
    weights = draw(st.lists(st.floats(-2, 2), min_size=size, max_size=size))
    floors = [value / size for value in draw(st.lists(numbers, min_size=size, max_size=size))]
    ceilings = [floor + (1 - floor) * draw(numbers) for floor in floors]
    return [torch.tensor(values, dtype=torch.float64) for values in (weights, floors, ceilings)]


class TestSimplex:
    @settings(max_examples=200, deadline=None)
    @given(bounded(), st.integers(0, 2**31))
    def test_projection_is_feasible_and_nearest(self, case, seed):
        weights, floors, ceilings = case
        if float(ceilings.sum()) < 1 - 1e-9:
            with pytest.raises(ValueError, match="no weights that sum to 1"):
                project(weights, floors, ceilings)
            return
        point = project(weights, floors, ceilings)
        assert abs(float(point.sum()) - 1) < 1e-9
        assert (point >= floors - 1e-12).all()
        assert (point <= ceilings + 1e-12).all()
        # Nearest: no feasible direction, found by moving mass between two coordinates, comes closer.
        distance = float((point - weights).norm())
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            i, j = torch.randint(len(point), (2,), generator=generator).tolist()
            step = min(float(ceilings[i] - point[i]), float(point[j] - floors[j])) * 0.5
            other = point.clone()
            other[i] += step
            other[j] -= step
            assert float((other - weights).norm()) >= distance - 1e-9

    def test_pinned(self):
        floors, ceilings = torch.tensor([0.2, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.3])
        point = project(torch.tensor([0.0, 0.5, 0.5]), floors, ceilings)
        assert point.tolist() == pytest.approx([0.2, 0.5, 0.3])

    def test_a_feasible_point_stays(self):
        point = torch.tensor([0.25, 0.75], dtype=torch.float64)
        assert torch.equal(project(point, torch.zeros(2), torch.ones(2)), point)
