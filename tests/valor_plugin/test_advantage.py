from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from valor_plugin.host import advantage  # noqa: E402
from valor_plugin.host.advantage import group_advantages, rank_normalise  # noqa: E402
from valor_plugin.recipe import Advantage  # noqa: E402

# Quarters are exact in float32, so ties are real ties and anything else is far from one.
groups = st.lists(st.integers(-40, 40), min_size=1, max_size=12).map(
    lambda values: torch.tensor([values]) / 4
)
distinct = st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True).map(
    lambda values: torch.tensor([values]) / 4
)
scales = st.sampled_from(["linear", "zscore"])
TOLERANCE = 1e-6


@given(groups, scales)
def test_the_advantages_of_a_group_sum_to_0(rewards, scale):
    assert rank_normalise(rewards, scale, TOLERANCE).sum().item() == pytest.approx(0, abs=1e-5)


@given(groups, scales, st.sampled_from([0.5, 1, 4, 64]), st.integers(-100, 100))
def test_the_scale_and_offset_of_rewards_do_not_matter(rewards, scale, factor, offset):
    moved = rank_normalise(rewards * factor + offset, scale, TOLERANCE)
    assert torch.equal(moved, rank_normalise(rewards, scale, TOLERANCE))


@given(groups, scales)
def test_reversed_rewards_give_reversed_advantages(rewards, scale):
    expected = -rank_normalise(rewards, scale, TOLERANCE)
    assert torch.allclose(rank_normalise(-rewards, scale, TOLERANCE), expected, atol=1e-6)


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 16), scales)
def test_a_group_of_equals_gives_exact_zeros(reward, n, scale):
    assert not rank_normalise(torch.full((2, n), reward), scale, TOLERANCE).any()


@given(groups, scales)
def test_equal_rewards_share_an_advantage(rewards, scale):
    row = rank_normalise(rewards, scale, TOLERANCE)[0].tolist()
    shared = dict(zip(rewards[0].tolist(), row, strict=True))
    assert [shared[reward] for reward in rewards[0].tolist()] == row


@given(groups, scales)
def test_more_reward_gives_more_advantage(rewards, scale):
    row = rank_normalise(rewards, scale, TOLERANCE)[0]
    more = rewards[0][:, None] > rewards[0][None, :]
    assert bool((row[:, None] > row[None, :])[more].all())


@given(distinct)
def test_linear_spreads_distinct_rewards_evenly_over_minus_1_to_1(rewards):
    row = rank_normalise(rewards, "linear", TOLERANCE)[0].sort().values
    assert torch.allclose(row, torch.linspace(-1, 1, len(row)), atol=1e-6)


@given(groups)
def test_linear_never_leaves_minus_1_to_1(rewards):
    assert rank_normalise(rewards, "linear", TOLERANCE).abs().max() <= 1


@given(distinct)
def test_zscore_has_a_standard_deviation_of_1(rewards):
    spread = rank_normalise(rewards, "zscore", TOLERANCE).std(correction=0).item()
    assert spread == pytest.approx(1, abs=1e-5)


@given(groups)
def test_ranks_agree_with_scipy(rewards):
    stats = pytest.importorskip("scipy.stats")
    ranks = torch.tensor(stats.rankdata(rewards[0].numpy(), "average"), dtype=torch.float32)
    half = (len(ranks) - 1) / 2
    expected = (ranks - 1 - half) / (half or 1)
    assert torch.allclose(rank_normalise(rewards, "linear", TOLERANCE)[0], expected, atol=1e-6)


@given(groups, scales, st.data())
def test_the_unscored_get_0_and_do_not_influence_the_others(rewards, scale, data):
    scored = torch.tensor([data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
                           for n in [rewards.shape[1]]])  # fmt: skip
    result = rank_normalise(rewards, scale, TOLERANCE, scored)
    assert not result[~scored].any()
    alone = rank_normalise(rewards[scored][None], scale, TOLERANCE)
    assert torch.equal(result[scored], alone[0])


@given(distinct, scales, st.randoms())
def test_the_order_within_a_group_does_not_matter(rewards, scale, random):
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    shuffled = rank_normalise(rewards[:, order], scale, TOLERANCE)
    assert torch.equal(shuffled, rank_normalise(rewards, scale, TOLERANCE)[:, order])


def test_groups_do_not_see_each_other():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [300.0, 100.0, 200.0]])
    expected = torch.tensor([[-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    assert torch.equal(rank_normalise(rewards, "linear", TOLERANCE), expected)


def test_differences_within_the_tolerance_are_ties():
    rewards = torch.tensor([[0.5, 0.5 + 4e-7, 0.5 - 4e-7, 0.9]])
    assert rank_normalise(rewards, "linear", TOLERANCE).tolist() == [
        pytest.approx([-1 / 3, -1 / 3, -1 / 3, 1])
    ]


def test_a_chain_of_small_differences_is_no_tie_of_its_ends():
    rewards = torch.tensor([[0.0, 0.75, 1.5]])
    assert rank_normalise(rewards, "linear", 1.0).tolist() == [[-0.5, -0.5, 1.0]]


class Maker:
    """The host's experience maker, cut down to the method that the seam wraps: it notes the rewards
    that reach it, sample by sample."""

    def __init__(self, size: int, rank: str = "linear") -> None:
        rollout = SimpleNamespace(n_samples_per_prompt=size)
        self.strategy = SimpleNamespace(args=SimpleNamespace(rollout=rollout))
        settings = Advantage(rank=rank, tie_tolerance=TOLERANCE)
        self._wrapped = advantage.rank_groups(Maker._compute, SimpleNamespace(advantage=settings))

    def compute_advantages_and_returns(self, experiences):
        return self._wrapped(self, experiences)

    def _compute(self, experiences):
        self.reached = {
            i: reward.item()
            for experience in experiences
            for i, reward in zip(experience.index, experience.rewards, strict=True)
        }
        return experiences


def experiences(rewards: list[float], parts: list[list[int]], unscored: tuple[int, ...] = ()):
    """Samples spread over micro-batches, as the host does to balance their lengths."""
    return [
        SimpleNamespace(
            index=part,
            rewards=torch.tensor([rewards[i] for i in part]),
            info={advantage.UNSCORED: torch.tensor([float(i in unscored) for i in part])},
        )
        for part in parts
    ]


REWARDS = [1.0, 2.0, 3.0, 9.0, 7.0, 8.0]


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4, 5]], [[5, 0], [2, 4, 1], [3]]])
def test_the_host_gets_each_sample_its_rank_in_its_own_group(parts):
    host = Maker(size=3)
    host.compute_advantages_and_returns(experiences(REWARDS, parts))
    assert host.reached == {0: -1, 1: 0, 2: 1, 3: 1, 4: -1, 5: 0}


def test_without_ranks_the_host_gets_the_rewards_themselves():
    host = Maker(size=3, rank="off")
    host.compute_advantages_and_returns(experiences(REWARDS, [[3, 1], [0, 2, 5, 4]]))
    assert host.reached == dict(enumerate(REWARDS))


def test_without_ranks_an_unscored_sample_gets_the_mean_of_its_group():
    host = Maker(size=3, rank="off")
    host.compute_advantages_and_returns(experiences(REWARDS, [[0, 1, 2, 3, 4, 5]], unscored=(3,)))
    assert host.reached == dict(enumerate([1, 2, 3, 7.5, 7, 8]))


@pytest.mark.parametrize("rank", ["linear", "off"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_gets_no_rank(rank, bad):
    host = Maker(size=3, rank=rank)
    with pytest.raises(ValueError, match="rewards that are no numbers"):
        host.compute_advantages_and_returns(experiences([1.0, bad, 2.0], [[0, 1, 2]]))
    host.compute_advantages_and_returns(experiences([1.0, bad, 2.0], [[0, 1, 2]], unscored=(1,)))
    assert host.reached == {0: -1, 1: 0, 2: 1} if rank == "linear" else {0: 1, 1: 1.5, 2: 2}


def test_with_ranks_an_unscored_sample_gets_0_and_takes_no_rank():
    host = Maker(size=4)
    made = experiences([1.0, 2.0, 9.0, 5.0], [[3, 1], [0, 2]], unscored=(3,))
    host.compute_advantages_and_returns(made)
    assert host.reached == {0: -1, 1: 0, 2: 1, 3: 0}


def test_a_step_in_which_everything_failed_ends_the_run_and_names_what():
    made = experiences([1.0, 2.0, 3.0], [[0, 1], [2]], unscored=(0, 1, 2))
    for part, failed in zip(made, (0.0, 1.0), strict=True):
        n = len(part.index)
        part.info |= {
            "image_text/failed": torch.full((n,), failed),
            "format/failed": torch.zeros(n),
        }
    with pytest.raises(RuntimeError, match=r"could be scored \(failed: image_text\)"):
        Maker(size=3).compute_advantages_and_returns(made)


def test_a_step_in_which_no_reward_was_due_goes_on_without_advantages():
    host = Maker(size=3)
    host.compute_advantages_and_returns(experiences([0.0] * 3, [[0, 1, 2]], unscored=(0, 1, 2)))
    assert host.reached == {0: 0, 1: 0, 2: 0}


def test_without_ranks_a_group_that_no_reward_could_score_gets_the_mean_of_the_step():
    host = Maker(size=2, rank="off")
    host.compute_advantages_and_returns(
        experiences([0.7, 0.9, 5.0, 6.0], [[0, 1, 2, 3]], unscored=(2, 3))
    )
    assert list(host.reached.values()) == pytest.approx([0.7, 0.9, 0.8, 0.8])


def test_the_log_tells_tied_groups_and_the_spread_of_the_rewards():
    made = Maker(size=2).compute_advantages_and_returns(
        experiences([5.0, 5.0, 1.0, 4.0], [[3, 0], [1, 2]])
    )
    assert [e.info[advantage.TIED].tolist() for e in made] == [[0, 1], [1, 0]]
    spread = torch.tensor([1.0, 4.0]).std().item()
    assert [e.info["group_reward_std"].tolist() for e in made] == [[spread, 0], [0, spread]]


@given(groups, scales)
def test_where_everything_is_scored_the_advantages_are_the_ranks_of_the_rewards(rewards, scale):
    found = group_advantages(rewards, torch.ones_like(rewards, dtype=torch.bool), scale, TOLERANCE)
    assert torch.equal(found.rewards, rewards)
    assert torch.equal(found.ranked, rank_normalise(rewards, scale, TOLERANCE))


@given(groups, st.data())
def test_a_sample_that_was_not_scored_never_leaves_the_range_of_those_that_were(rewards, data):
    drawn = st.lists(st.booleans(), min_size=rewards.shape[1], max_size=rewards.shape[1])
    scored = torch.tensor([data.draw(drawn)])
    found = group_advantages(rewards, scored, "off", TOLERANCE)
    if scored.any():
        low, high = rewards[scored].min(), rewards[scored].max()
        assert bool(((found.rewards >= low - 1e-5) & (found.rewards <= high + 1e-5)).all())
    else:
        assert not found.rewards.any()
