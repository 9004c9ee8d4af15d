from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fairface_synth import DataError, Detections, GroupError, Groups, ShapeError, normals, wrap_generator, wrap_labeller
from fairface_synth.evolution import Archive, Scores, evolve
from fairface_synth.fitness import (
    Faces,
    expected_value,
    face_fitness,
    face_quality,
    identity_novelty,
    log_target,
    typicality,
    yaw,
)
from fairface_synth.strategies import Proposal, Strategy, branching_walk, cem, genetic, map_elites, snes

D = 4


def _prior(index: Tensor, stream: Tensor) -> Tensor:
    return normals(7, index, D, stream=stream)


class Ball:
    """Success: inside a ball about a point, for each group a different one; counts what it is asked."""

    def __init__(self, reach: float = 1.0, centre: float = 1.5, groups: int = 3) -> None:
        self.reach = reach
        self.centres = torch.zeros(groups, D)
        self.centres[torch.arange(groups), torch.arange(groups)] = centre
        self.asked = torch.zeros(groups, dtype=torch.int64)
        self.calls: list[int] = []

    def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
        self.calls.append(len(rows))
        self.asked += torch.bincount(rows, minlength=len(self.asked))
        away = (latents - self.centres[rows]).norm(dim=1)
        return Scores(
            fitness=-away,
            success=away < self.reach,
            found=latents[:, -1] < 0.2,
            probability=(-away).exp(),
            distance=latents.norm(dim=1) / math.sqrt(D),
            measures=latents[:, :2],
            embeddings=latents,
        )


class BarrenState(NamedTuple):
    x: Tensor
    asked: Tensor
    start: Tensor


def _once(population: int = 8, rounds: int = 1) -> Strategy:
    """Proposes x0 for `rounds` generations after each init, then nothing."""

    def init(x0: Tensor, start: Tensor | int = 0) -> BarrenState:
        start = torch.as_tensor(start).expand(len(x0))
        return BarrenState(x0, torch.zeros_like(start), start)

    def ask(state: BarrenState, rng: torch.Generator | None = None) -> tuple[Proposal, BarrenState]:
        id = state.start.unsqueeze(1) + torch.arange(population) + population * state.asked.unsqueeze(1)
        valid = (state.asked < rounds).unsqueeze(1).expand_as(id)
        proposal = Proposal(state.x, valid, id, torch.full_like(id, -1), id, torch.zeros_like(id))
        return proposal, state._replace(asked=state.asked + 1)

    return Strategy("once", population, init, ask, lambda state, proposal, evaluation, rng=None: state, restarts=False)


STRATEGIES = {
    "walk": lambda: branching_walk(population=16, max_queue=128),
    "genetic": lambda: genetic(16),
    "snes": lambda: snes(16),
    "cem": lambda: cem(16),
    "map-elites": lambda: map_elites(16, low=[-2.0, -2.0], high=[2.0, 2.0], cells=[5, 5]),
    "once": lambda: _once(16),
}
COLUMNS = ("latents", "group_ids", "id", "root", "parent", "depth", "probability", "fitness", "distance", "embeddings")


def _run(strategy: Strategy, fitness: Ball | None = None, quota: tuple[int, ...] = (5, 7, 0), **options) -> Archive:
    options = {"prior": _prior, "progress": False, "seed": 1} | options
    return evolve(strategy, fitness or Ball(), torch.tensor(quota), **options)


def _same(a: Archive, b: Archive) -> None:
    for name in (*COLUMNS, "evaluations", "wanted"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


# --- the driver ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_fills_the_quota_exactly_and_counts_every_image(name: str) -> None:
    fitness = Ball()
    archive = _run(STRATEGIES[name](), fitness)
    assert archive.group_ids.tolist() == [0] * 5 + [1] * 7
    assert archive.short == {}
    assert archive.evaluations.tolist() == fitness.asked.tolist()
    assert fitness.asked[2] == 0
    again = Ball()(archive.latents, archive.group_ids, None)
    assert bool((again.success & again.found).all())
    torch.testing.assert_close(archive.fitness, again.fitness)
    for g in (0, 1):
        mine = archive.group_ids == g
        assert len(archive.id[mine].unique()) == int(mine.sum())
        assert bool((archive.root <= archive.id)[mine].all())
        assert bool(((archive.parent < 0) == (archive.depth == 0))[mine].all())


def test_filled_groups_cost_nothing_more() -> None:
    class Logged(Ball):
        def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
            scores = super().__call__(latents, rows, known)
            hits = torch.bincount(rows[scores.success & scores.found], minlength=3)
            seen.append(torch.stack((torch.bincount(rows, minlength=3), hits)))
            return scores

    seen: list[Tensor] = []
    archive = _run(genetic(16), Logged(), (60, 3, 0), batch_size=1000)
    asked, hits = torch.stack(seen, dim=1)
    before = torch.cat((torch.zeros(1, 3, dtype=torch.int64), hits.cumsum(0)[:-1]))
    assert torch.equal(asked, 16 * (before < torch.tensor([60, 3, 0])))
    assert int(asked[-1, 1]) == 0
    assert torch.equal(asked.sum(0), archive.evaluations)


def test_the_budget_is_never_exceeded_and_short_groups_are_reported() -> None:
    fitness = Ball(reach=0.0)
    archive = _run(genetic(16), fitness, (5, 2, 0), max_evaluations=100)
    assert archive.evaluations.tolist() == [48, 48, 0]  # three generations of 32
    assert len(archive) == 0
    assert archive.short == {0: 5, 1: 2}
    text = archive.report(["dark", "light", "other"])
    assert "dark by 5, light by 2" in text
    assert "96 images" in text
    assert "other by" not in text


def test_the_default_budget_is_two_hundred_images_a_face() -> None:
    archive = _run(_once(10), Ball(reach=0.0), (1, 1, 0))
    assert int(archive.evaluations.sum()) == 400


def test_a_budget_below_one_generation_says_so() -> None:
    with pytest.raises(DataError, match="smaller than one generation"):
        _run(genetic(16), max_evaluations=20)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_seed_and_nothing_else_decides(name: str) -> None:
    first = _run(STRATEGIES[name](), batch_size=256)
    _same(first, _run(STRATEGIES[name](), batch_size=7))
    other = _run(STRATEGIES[name](), seed=2, quota=(20, 20, 0))
    same = _run(STRATEGIES[name](), seed=1, quota=(20, 20, 0))
    assert torch.equal(other.latents, same.latents) == (name == "once")  # its only randomness is the prior's


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_group_s_search_does_not_depend_on_its_neighbours(name: str) -> None:
    together = _run(STRATEGIES[name](), quota=(6, 9, 4))
    alone = _run(STRATEGIES[name](), quota=(0, 9, 0))
    mine = together.group_ids == 1
    assert torch.equal(together.latents[mine], alone.latents)
    assert together.evaluations[1] == alone.evaluations[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_resuming_with_a_larger_quota_is_searching_for_it_at_once(name: str, tmp_path) -> None:
    strategy = STRATEGIES[name]()
    fitness = Ball(reach=0.8)
    small = _run(strategy, fitness, (3, 9, 0))
    small.save(tmp_path / "archive.safetensors")
    resumed = _run(strategy, fitness, (30, 12, 8), resume=Archive.load(tmp_path / "archive.safetensors"))
    at_once = _run(strategy, Ball(reach=0.8), (30, 12, 8))
    _same(resumed, at_once)
    assert fitness.asked.tolist() == at_once.evaluations.tolist()


def test_resuming_after_the_budget_was_spent_changes_nothing() -> None:
    halves = _run(genetic(16), Ball(0.5), (20, 20, 0), max_evaluations=200, threshold=0.99)
    assert halves.short
    assert torch.equal(_run(genetic(16), Ball(0.5), (20, 20, 0), max_evaluations=200, threshold=0.99).id, halves.id)
    _same(
        _run(genetic(16), Ball(0.5), (20, 20, 0), max_evaluations=900, threshold=0.99, resume=halves),
        _run(genetic(16), Ball(0.5), (20, 20, 0), max_evaluations=900, threshold=0.99),
    )


def test_another_run_s_archive_is_refused() -> None:
    archive = _run(genetic(16))
    for options in ({"seed": 3}, {"threshold": 0.5}, {"quota": (1, 1)}):
        with pytest.raises(DataError, match="another search"):
            _run(genetic(16), Ball(groups=len(options.get("quota", (1, 1, 1)))), resume=archive, **options)
    for strategy in (snes(16), genetic(8)):
        with pytest.raises(DataError, match="another search"):
            _run(strategy, resume=archive)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (genetic(16), genetic(16, scale=0.3)),
        (genetic(16, scale=torch.full((D,), 0.2)), genetic(16, scale=torch.full((D,), 0.3))),
        (branching_walk(population=16, max_queue=99), branching_walk(population=16, max_queue=99, max_pops=7)),
    ],
)
def test_an_archive_of_other_settings_is_refused(one: Strategy, other: Strategy, tmp_path) -> None:
    _run(one, Ball(reach=0.5), max_evaluations=100).save(tmp_path / "archive")
    archive = Archive.load(tmp_path / "archive")
    assert len(_run(one, Ball(reach=0.5), resume=archive, max_evaluations=3000)) > len(archive)
    with pytest.raises(DataError, match="another search") as caught:
        _run(other, Ball(reach=0.5), resume=archive, max_evaluations=3000)
    assert "settings" in str(caught.value)
    assert "seed 1" not in str(caught.value), "only what differs is named"


def test_an_archive_of_other_targets_or_another_space_is_refused(tmp_path) -> None:
    def ball(names: tuple[str, ...], space: str) -> Ball:
        fitness = Ball(reach=0.5)
        fitness.names, fitness.space = names, space
        return fitness

    strategy, mine = genetic(16, mutation="gaussian"), ball(("dark", "light", "any"), "w")
    _run(strategy, mine, max_evaluations=100).save(tmp_path / "archive")
    archive = Archive.load(tmp_path / "archive")
    assert (archive.names, archive.space) == (("dark", "light", "any"), "w")
    assert "dark by " in str(archive)
    assert "first by " in archive.report(["first", "second", "third"])
    _run(strategy, mine, resume=archive, max_evaluations=200)
    for other in (ball(("light", "dark", "any"), "w"), ball(mine.names, "w+")):
        with pytest.raises(DataError, match="another search"):
            _run(strategy, other, resume=archive, max_evaluations=200)


def test_a_strategy_for_another_space_is_refused() -> None:
    fitness = Ball()
    for strategy, fits, wrong in (
        (branching_walk("w+"), "w+", "z"),
        (branching_walk(), "z", "w"),
        (genetic(), "z", "w+"),
    ):
        fitness.space = wrong
        with pytest.raises(DataError, match=f"expected: a fitness over {fits[0]}"):
            _run(strategy, fitness)
        fitness.space = fits
        _run(strategy, fitness, (1, 0, 0))
    fitness.space = "w"
    _run(genetic(mutation="gaussian"), fitness, (1, 0, 0))
    with pytest.raises(DataError, match="not for these latents"):
        evolve(branching_walk("w+"), _fitness(["dark"]), torch.tensor([1]), progress=False)


def test_an_identity_gate_needs_a_threshold() -> None:
    strategy = branching_walk(population=16, identity_gate=True)
    with pytest.raises(DataError, match="threshold="):
        _run(strategy)
    assert len(_run(strategy, threshold=0.9999)) == 12


def test_what_is_dropped_for_want_of_room_is_reported(tmp_path) -> None:
    """Also what was dropped before a restart or a resume. A group that nothing is dropped from is not named."""

    class Hoard(Ball):
        """All of group 0 succeed; group 1 dies out and begins anew."""

        def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
            scores = super().__call__(latents, rows, known)
            return scores._replace(success=scores.success | (rows == 0), found=torch.ones_like(scores.found))

    strategy, lost = branching_walk(population=16, max_queue=20), torch.zeros(3, dtype=torch.int64)

    def tell(state, proposal, evaluation, rng=None):
        new = strategy.tell(state, proposal, evaluation, rng)
        lost.add_((new.dropped - state.dropped) * proposal.valid.any(1))
        return new

    watched = strategy._replace(tell=tell)
    archive = _run(watched, Hoard(reach=1.5), (900, 900, 0), max_evaluations=1500)
    assert torch.equal(archive.dropped, lost)
    assert int(lost[0]) > 300
    assert f"Dropped unseen, for want of room: dark {int(lost[0])}" in archive.report(["dark", "light", "other"])
    assert "other 0" not in archive.report(["dark", "light", "other"])
    archive.save(tmp_path / "archive")
    archive = _run(
        watched, Hoard(reach=1.5), (900, 900, 0), max_evaluations=3000, resume=Archive.load(tmp_path / "archive")
    )
    assert torch.equal(archive.dropped, lost)
    assert torch.equal(_run(strategy, Hoard(reach=1.5), (900, 900, 0), max_evaluations=3000).dropped, lost)
    roomy = _run(branching_walk(population=16), Hoard(reach=1.5), (900, 900, 0), max_evaluations=3000)
    assert int(roomy.dropped.sum()) == 0
    assert "Dropped" not in str(roomy)
    assert int(_run(genetic(16)).dropped.sum()) == 0


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_identities_stay_below_the_threshold(threshold: float) -> None:
    archive = _run(genetic(32), Ball(reach=1.4, centre=0.3), (12, 12, 12), threshold=threshold, max_evaluations=20_000)
    unit = archive.embeddings.double()
    cosines = (unit @ unit.T).fill_diagonal_(-1)
    assert len(archive) >= 3
    assert float(cosines.max()) < threshold + 1e-6
    if threshold == 0.9:
        assert not archive.short
        free = _run(genetic(32), Ball(reach=1.4, centre=0.3), (12, 12, 12))
        assert float((free.embeddings @ free.embeddings.T).fill_diagonal_(-1).max()) > threshold


def test_greedy_choice_within_a_batch_is_the_sequential_one() -> None:
    class Everything(Ball):
        def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
            all_ = torch.ones(len(rows), dtype=torch.bool)
            return super().__call__(latents, rows, known)._replace(success=all_, found=all_)

    archive = _run(_once(300), Everything(), (300, 0, 0), threshold=0.4, max_evaluations=300)
    x = torch.nn.functional.normalize(_prior(torch.arange(300), torch.zeros(300, dtype=torch.int64)), dim=1)
    kept: list[int] = []
    for i in range(300):
        if all(float(x[i] @ x[j]) < 0.4 for j in kept):
            kept.append(i)
    assert archive.id.tolist() == kept


def test_an_exhausted_group_gets_a_new_pool() -> None:
    seen: list[Tensor] = []

    class Recording(Ball):
        def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
            seen.append(latents)
            return super().__call__(latents, rows, known)

    archive = _run(_once(8), Recording(reach=0.0), (5, 0, 0), max_evaluations=40)
    stream = torch.zeros(40, dtype=torch.int64)
    assert torch.equal(torch.cat(seen), _prior(torch.arange(40), stream))
    assert archive.evaluations[0] == 40
    found = _run(_once(8), Ball(reach=1.2), (30, 0, 0))
    assert torch.equal(found.latents, _prior(found.id, torch.zeros_like(found.id)))  # ids keep counting


def test_a_group_that_never_proposes_anything_is_given_up() -> None:
    archive = _run(_once(8, rounds=0), quota=(3, 3, 0), patience=4)
    assert archive.short == {0: 3, 1: 3}
    assert int(archive.evaluations.sum()) == 0


def test_stale_groups_restart_from_fresh_draws() -> None:
    """Success is impossible here and fitness flat, so after `patience` generations every root must be new."""
    drawn: list[Tensor] = []

    def prior(index: Tensor, stream: Tensor) -> Tensor:
        drawn.append(index)
        return _prior(index, stream)

    class Flat(Ball):
        def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
            return super().__call__(latents, rows, known)._replace(fitness=torch.zeros(len(rows)))

    options = {"quota": (3, 0, 0), "prior": prior, "patience": 4, "max_evaluations": 16 * 17}
    _run(genetic(16), Flat(reach=0.0), **options)
    # The first generation beats no fitness at all, so the first restart comes after five, each later one likewise.
    firsts = [int(index[0]) for index in drawn]
    assert firsts == [0, 16, 32, 48]
    drawn.clear()
    _run(genetic(16)._replace(restarts=False), Flat(reach=0.0), **options)
    assert len(drawn) == 1


def test_a_group_that_still_improves_is_left_alone() -> None:
    class Rising(Ball):
        best = 0.0

        def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
            self.best += 1
            return super().__call__(latents, rows, known)._replace(fitness=torch.full((len(rows),), self.best))

    draws: list[int] = []

    def prior(index: Tensor, stream: Tensor) -> Tensor:
        draws.append(len(index))
        return _prior(index, stream)

    _run(genetic(16), Rising(reach=0.0), (3, 0, 0), prior=prior, patience=2, max_evaluations=16 * 30)
    assert len(draws) == 1


def test_a_better_fitness_does_not_keep_a_group_that_finds_nothing_new() -> None:
    class Twins(Ball):
        best = 0.0

        def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
            self.best += 1
            everything = torch.ones(len(rows), dtype=torch.bool)
            return (
                super()
                .__call__(latents, rows, known)
                ._replace(
                    fitness=torch.full((len(rows),), self.best),
                    success=everything,
                    found=everything,
                    embeddings=torch.ones(len(rows), D),
                )
            )

    draws: list[int] = []

    def prior(index: Tensor, stream: Tensor) -> Tensor:
        draws.append(len(index))
        return _prior(index, stream)

    options = {"prior": prior, "patience": 2, "threshold": 0.9, "max_evaluations": 16 * 30}
    archive = _run(genetic(16), Twins(), (3, 0, 0), **options)
    assert len(archive) == 1
    assert len(draws) > 5


@pytest.mark.parametrize("name", ["walk", "genetic", "snes", "cem", "map-elites"])
def test_ids_stay_apart_over_restarts(name: str) -> None:
    strategy, given_out, firsts = STRATEGIES[name](), [], []

    def ask(state, rng: torch.Generator | None = None):
        proposal, state = strategy.ask(state, rng)
        given_out.append(proposal.id[0][proposal.valid[0]])
        firsts.append(bool((proposal.depth[0][proposal.valid[0]] == 0).any()))
        return proposal, state

    options = {"quota": (90, 0, 0), "patience": 2, "threshold": 0.9, "max_evaluations": 600}
    _run(strategy._replace(ask=ask, restarts=True), Ball(reach=0.8), **options)
    ids = torch.cat(given_out)
    assert sum(firsts) >= 3
    assert len(ids.unique()) == len(ids)


def test_the_fitness_sees_what_was_found_before() -> None:
    sizes: list[int] = []

    class Watching(Ball):
        def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
            sizes.append(0 if known is None else len(known))
            assert known is None or known.embeddings.shape == (len(known), D)
            return super().__call__(latents, rows, known)

    archive = _run(genetic(16), Watching(), (20, 0, 0))
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    assert 0 < sizes[-1] < len(archive)


def test_an_archive_survives_the_disk(tmp_path) -> None:
    for archive in (_run(genetic(16)), _run(genetic(16), Ball(reach=0.0), max_evaluations=64)):
        archive.save(tmp_path / "a")
        back = Archive.load(tmp_path / "a")
        if len(archive):
            _same(archive, back)
            assert back.group is back.group_ids
            assert back.embedding is back.embeddings
        assert str(back) == str(archive)
        assert back.short == archive.short
        assert set(back.state) == set(archive.state)


def test_the_report_counts_roots_and_costs() -> None:
    archive = _run(genetic(16), quota=(5, 7, 2))
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in str(archive).splitlines()[2:5]]
    for g, row in enumerate(cells):
        mine = archive.group_ids == g
        made = int(archive.evaluations[g])
        assert row[:4] == [str(g), str(int(mine.sum())), str(int(mine.sum())), str(made)]
        assert float(row[4]) == pytest.approx(made / int(mine.sum()), abs=0.05)
        assert int(row[5]) == len(set(archive.root[mine].tolist()))
        assert int(row[6]) == max(archive.depth[mine].tolist())
    with pytest.raises(ShapeError):
        archive.report(["one"])


@pytest.mark.parametrize(
    "options",
    [
        {"quota": (0, 0, 0)},
        {"quota": (-1, 2, 3)},
        {"quota": ()},
        {"max_evaluations": 0},
        {"patience": 0},
        {"batch_size": 0},
        {"threshold": 1.5},
        {"seed": -1},
        {"prior": lambda index, stream: torch.full((len(index), D), math.nan)},
        {"prior": lambda index, stream: torch.zeros(3, D)},
    ],
)
def test_impossible_requests_are_refused(options: dict) -> None:
    with pytest.raises((DataError, ShapeError)):
        _run(genetic(16), **options)
    with pytest.raises(ShapeError):
        evolve(genetic(16), Ball(), torch.tensor([1.0]), prior=_prior, progress=False)


@pytest.mark.parametrize(
    "change",
    [
        {"fitness": torch.full((32,), math.nan)},
        {"fitness": torch.zeros(3)},
        {"success": torch.zeros(32)},
        {"measures": torch.zeros(32)},
        {"embeddings": torch.full((32, 2), math.nan)},
    ],
)
def test_bad_scores_are_refused(change: dict) -> None:
    with pytest.raises((DataError, ShapeError)):
        _run(genetic(16), lambda latents, rows, known: Ball()(latents, rows, known)._replace(**change))


def test_a_threshold_needs_embeddings() -> None:
    def blind(latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
        return Ball()(latents, rows, known)._replace(embeddings=latents[:, :0])

    with pytest.raises(DataError, match="cannot be compared"):
        _run(genetic(16), blind, threshold=0.5)
    assert _run(genetic(16), blind).embeddings is None


# --- the fitness of faces -----------------------------------------------------------------------------------------

GROUPS = Groups({"gender": ["female", "male"], "tone": ["light", "medium", "dark"]})


def _softmax_labels(images: Tensor) -> dict[str, Tensor]:
    """Labels read off the first pixels, so that tests can say what they will be."""
    pixels = 3 * images.flatten(1)
    return {"gender": pixels[:, :2].softmax(1), "tone": pixels[:, 2:5].softmax(1)}


def _pixel_generator(scale_free: bool = False, layers: int = 1):
    def synthesize(w: Tensor) -> Tensor:
        return (w.mean(1)[:, :12] / 4).tanh().reshape(-1, 3, 2, 2)

    def scaled(z: Tensor) -> Tensor:
        return torch.nn.functional.normalize(z, dim=1) * 4 if scale_free else z @ _MIX.T

    return wrap_generator(map=scaled, synthesize=synthesize, z_dim=16, num_ws=layers)


_MIX = 0.2 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(16)
LABELLER = wrap_labeller(_softmax_labels, GROUPS.attributes)


def _fitness(targets=None, **options):
    return face_fitness(options.pop("generator", _pixel_generator()), LABELLER, GROUPS, targets, **options)


def _draw(n: int = 400, seed: int = 5) -> tuple[Tensor, Tensor]:
    return 1.5 * normals(seed, torch.arange(n), 16), torch.zeros(n, dtype=torch.int64)


@given(st.integers(0, 5), st.floats(0, 1), st.integers(0, 100))
def test_single_groups_succeed_exactly_where_the_labeller_assigns_them(group: int, gate: float, seed: int) -> None:
    fitness = _fitness([group], min_confidence=gate)
    z, rows = _draw(60, seed)
    labels = LABELLER(fitness.generator.synthesize(fitness.generator.map(z)))
    scores = fitness(z, rows)
    assert torch.equal(scores.success, GROUPS.assign(labels, gate) == group)
    torch.testing.assert_close(scores.probability, GROUPS.joint(labels)[:, group])
    torch.testing.assert_close(scores.fitness, GROUPS.joint(labels)[:, group].log())


@given(
    st.sampled_from(["dark", "female", ["light", "medium"], "*", ["dark-female", "light-male"]]),
    st.sampled_from([0.4, 0.6, 1.0]),
    st.integers(0, 50),
)
def test_unions_by_brute_force(spec, gate: float, seed: int) -> None:
    members = set(GROUPS.parse(spec))
    fitness = _fitness([spec], min_confidence=gate)
    z, rows = _draw(40, seed)
    labels = LABELLER(fitness.generator.synthesize(fitness.generator.map(z)))
    scores = fitness(z, rows)
    joint = GROUPS.joint(labels)
    torch.testing.assert_close(scores.fitness, joint[:, sorted(members)].sum(1).log(), atol=1e-5, rtol=1e-5)
    for i in range(len(z)):
        gender, tone = int(labels["gender"][i].argmax()), int(labels["tone"][i].argmax())
        genders = [g for g in range(2) if g * 3 + tone in members]
        tones = [t for t in range(3) if gender * 3 + t in members]
        expected = gender * 3 + tone in members
        expected &= len(genders) == 2 or float(labels["gender"][i, genders].sum()) >= gate
        expected &= len(tones) == 3 or float(labels["tone"][i, tones].sum()) >= gate
        assert bool(scores.success[i]) == expected


def test_the_gate_itself_is_sure_enough() -> None:
    groups = Groups({"age": ["younger", "older"]})
    labeller = wrap_labeller(lambda images: {"age": torch.full((len(images), 2), 0.5)}, groups.attributes)
    fitness = face_fitness(_pixel_generator(), labeller, groups, min_confidence=0.5)
    assert fitness(torch.zeros(2, 16), torch.arange(2)).success.tolist() == [True, False]
    assert groups.assign({"age": torch.tensor([[0.5, 0.5]])}, 0.5).tolist() == [0]


def test_unsure_within_an_age_range_is_sure_of_the_range() -> None:
    groups = Groups({"age": ["younger", "middle", "older"]})
    labeller = wrap_labeller(
        lambda images: {"age": torch.tensor([[0.45, 0.45, 0.1]]).expand(len(images), -1)}, groups.attributes
    )
    generator = _pixel_generator()
    z = torch.zeros(3, 16)
    rows = torch.arange(3)
    fitness = face_fitness(generator, labeller, groups, ["younger", ["younger", "middle"], ["middle", "older"]])
    assert fitness(z, rows).success.tolist() == [False, True, False]
    assert fitness.names == ("younger", "younger or middle", "middle or older")


@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), st.integers(0, 50))
def test_soft_targets_by_hand(shares: list[float], seed: int) -> None:
    target = dict(enumerate(shares))
    fitness = _fitness([target], tolerance=0.3)
    z, rows = _draw(30, seed)
    scores = fitness(z, rows)
    p = GROUPS.joint(LABELLER(fitness.generator.synthesize(fitness.generator.map(z)))).double()
    t = torch.tensor(shares, dtype=torch.float64)
    t = t / t.sum()
    kl = torch.nn.functional.kl_div(p.log(), t.expand_as(p), reduction="none").sum(1)
    torch.testing.assert_close(scores.fitness.double(), -kl, atol=1e-4, rtol=1e-4)
    variation = (p - t).abs().sum(1) / 2
    torch.testing.assert_close(scores.probability.double(), 1 - variation, atol=1e-5, rtol=1e-5)
    clear = (variation - 0.3).abs() > 1e-5
    assert torch.equal(scores.success[clear], (variation < 0.3)[clear])


def test_soft_targets_share_within_a_specification() -> None:
    fitness = _fitness(["dark", {"dark": 1, "light-female": 3}, "female-dark"])
    assert fitness.soft.tolist() == [False, True, False]
    torch.testing.assert_close(fitness.targets[1], torch.tensor([0.75, 0, 0.125, 0, 0, 0.125]))
    assert fitness.targets[0].tolist() == [0, 0, 1, 0, 0, 1]
    assert _fitness().names == GROUPS.names
    assert torch.equal(_fitness().targets, torch.eye(6))


def _faces(**changes) -> Faces:
    n = 3
    nothing = torch.zeros(n, 0)
    base = {
        "latents": torch.zeros(n, 4),
        "w": torch.zeros(n, 1, 4),
        "images": torch.zeros(n, 3, 2, 2),
        "rows": torch.zeros(n, dtype=torch.int64),
        "weights": torch.tensor([[0.0, 1, 1], [0.5, 0.5, 0], [0, 1, 0]]),
        "soft": torch.tensor([False, True, True]),
        "probabilities": {"age": torch.tensor([[1.0, 0, 0], [0, 0, 1], [0.2, 0.6, 0.2]])},
        "joint": torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.9, 0.1, 0]]),
        "found": torch.ones(n, dtype=torch.bool),
        "detection": None,
        "embeddings": nothing,
        "distance": torch.tensor([1.0, 1.5, 0.8]),
        "spread": torch.tensor(0.1),
        "known": None,
    }
    return Faces(**(base | changes))


def test_terms_by_hand() -> None:
    log = math.log
    expected = [log(0.5), -(0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.5)), log(0.1)]
    torch.testing.assert_close(log_target(_faces()), torch.tensor(expected))
    torch.testing.assert_close(typicality(_faces()), torch.tensor([0.0, -5.0, -2.0]))
    torch.testing.assert_close(expected_value("age")(_faces()), torch.tensor([0.0, 1.0, 0.5]))
    points = torch.tensor([[[10.0, 10], [20, 10], [15, 15], [0, 0], [0, 0]]]).repeat(3, 1, 1)
    points[1, 2, 0] = 20
    points[2] = math.nan
    detection = Detections(torch.tensor([0.99, 0.8, 0.0]), torch.zeros(3, 4), points)
    torch.testing.assert_close(yaw(_faces(detection=detection)), torch.tensor([0.0, 0.5, 0.0]))
    assert face_quality(_faces(detection=detection)).tolist() == pytest.approx([0.99, 0.8, 0.0])
    for term in (yaw, face_quality, identity_novelty):
        with pytest.raises(DataError):
            term(_faces())


def test_novelty_against_an_archive() -> None:
    archive = _run(genetic(16), quota=(3, 0, 0))
    x = torch.nn.functional.normalize(torch.randn(3, D), dim=1)
    expected = 1 - (x @ archive.embeddings.T).max(1).values
    torch.testing.assert_close(identity_novelty(_faces(embeddings=x, known=archive)), expected)
    assert identity_novelty(_faces(embeddings=x)).tolist() == [0, 0, 0]


def test_terms_add_up_by_their_weights() -> None:
    z, rows = _draw(20)
    one = _fitness(["dark"])(z, rows).fitness
    two = _fitness(["dark"], terms={typicality: 1.0})(z, rows).fitness
    both = _fitness(["dark"], terms={log_target: 0.5, typicality: 3.0})(z, rows).fitness
    torch.testing.assert_close(both, 0.5 * one + 3 * two)
    listed = _fitness(["dark"], terms=[(0.5, log_target), (3.0, typicality)])(z, rows).fitness
    torch.testing.assert_close(listed, both)


@pytest.mark.parametrize(("space", "layers"), [("z", 1), ("w", 1), ("w", 3), ("w+", 3)])
def test_natural_draws_lie_at_distance_one(space: str, layers: int) -> None:
    fitness = _fitness(["dark"], space=space, generator=_pixel_generator(layers=layers))
    x = fitness.prior(11)(torch.arange(4000), torch.zeros(4000, dtype=torch.int64))
    assert x.shape[1:] == {"z": (16,), "w": (16,), "w+": (layers, 16)}[space]
    natural = fitness.distance(x)
    assert float(natural.square().mean().sqrt()) == pytest.approx(1, abs=0.03)
    assert float(natural.std()) == pytest.approx(float(fitness.natural.spread), rel=0.1)
    centre = x.mean(0)
    torch.testing.assert_close(fitness.distance(centre + 2 * (x - centre)), 2 * natural, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_natural_draws_lie_at_distance_one_where_w_is_nearly_flat(space: str) -> None:
    """Shrinkage drowns directions that w hardly uses, and natural draws must not look nearer for it."""
    size = torch.cat((torch.ones(8), torch.full((8,), 1e-5)))
    generator = wrap_generator(map=lambda z: z * size, synthesize=_pixel_generator().synthesize, z_dim=16, num_ws=2)
    fitness = _fitness(["dark"], space=space, generator=generator)
    natural = fitness.distance(fitness.prior(1)(torch.arange(4000), torch.zeros(4000, dtype=torch.int64)))
    assert float(natural.square().mean().sqrt()) == pytest.approx(1, abs=0.03)


def test_the_w_distance_is_the_mahalanobis_distance_of_the_map() -> None:
    """w = A z, so the squared Mahalanobis distance of w is ‖z‖², whatever A."""
    fitness = _fitness(["dark"], space="w")
    z = 3 * normals(9, torch.arange(200), 16)
    torch.testing.assert_close(fitness.distance(z @ _MIX.T), z.norm(dim=1) / 4, rtol=0.06, atol=0.0)


def test_a_map_that_ignores_lengths_is_recognised() -> None:
    fitness = _fitness(["dark"], generator=_pixel_generator(scale_free=True))
    z, rows = _draw(50)
    scores = fitness(5 * z, rows)
    torch.testing.assert_close(scores.distance, torch.ones(50))
    torch.testing.assert_close(scores.latents.norm(dim=1), torch.full((50,), 4.0))
    torch.testing.assert_close(scores.latents / 4, z / z.norm(dim=1, keepdim=True))
    torch.testing.assert_close(fitness(scores.latents, rows).fitness, scores.fitness)
    bound = _fitness(["dark"])
    assert torch.equal(bound(5 * z, rows).latents, 5 * z)
    assert float(bound(5 * z, rows).distance.mean()) > 5
    archive = evolve(genetic(16), fitness, torch.tensor([6]), prior=fitness.prior(0), progress=False)
    torch.testing.assert_close(archive.latents.norm(dim=1), torch.full((6,), 4.0))


def test_detecting_successes_alone_changes_no_success() -> None:
    looked: list[int] = []

    def detector(images: Tensor) -> Tensor:
        looked.append(len(images))
        return images.flatten(1)[:, 6] > 0

    z, rows = _draw(200)
    every = _fitness(["dark"], detector=detector)(z, rows)
    some = _fitness(["dark"], detector=detector, detect="successes")(z, rows)
    assert looked == [200, int(every.success.sum())]
    assert 0 < looked[1] < 200
    assert torch.equal(every.success, some.success)
    assert torch.equal(every.success & every.found, some.success & some.found)
    assert bool(some.found[~some.success].all())


@pytest.mark.parametrize("detect", ["all", "successes"])
def test_detectors_may_answer_in_truth_values_probabilities_or_detections(detect: str) -> None:
    def probability(images: Tensor) -> Tensor:
        return (0.95 + images.flatten(1)[:, 6]).clamp(0, 1)

    def detections(images: Tensor) -> Detections:
        n = len(images)
        return Detections(probability(images), torch.zeros(n, 4), torch.zeros(n, 5, 2))

    z, rows = _draw(200)
    answers = [
        _fitness(["dark"], detector=detector, detect=detect)(z, rows).found
        for detector in (detections, probability, lambda images: probability(images) >= 0.95)
    ]
    assert 0 < int(answers[0].sum()) < 200
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    with pytest.raises(ShapeError, match="a detector says"):
        _fitness(["dark"], detector=lambda images: torch.ones(len(images), dtype=torch.int64), detect=detect)(z, rows)


def test_measures_by_name() -> None:
    z, rows = _draw(30)
    scores = _fitness(["dark"], measures=["tone", lambda faces: faces.distance])(z, rows)
    labels = LABELLER(_pixel_generator().synthesize(_pixel_generator().map(z)))["tone"]
    torch.testing.assert_close(scores.measures[:, 0], labels[:, 1] / 2 + labels[:, 2])
    torch.testing.assert_close(scores.measures[:, 1], scores.distance)
    with pytest.raises(DataError, match="unknown measure"):
        _fitness(["dark"], measures=["height"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"targets": "dark"}, GroupError),
        ({"targets": {"dark": 1}}, GroupError),
        ({"targets": []}, GroupError),
        ({"targets": ["purple"]}, GroupError),
        ({"targets": [{"dark": -1.0}]}, GroupError),
        ({"targets": [{"dark": 0.0}]}, GroupError),
        ({"space": "s"}, DataError),
        ({"detect": "some"}, DataError),
        ({"min_confidence": 1.5}, DataError),
        ({"terms": {}}, DataError),
        ({"terms": {log_target: math.nan}}, DataError),
        ({"generator": object()}, DataError),
    ],
)
def test_bad_settings_are_refused(options: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        _fitness(**options)


def test_a_quota_needs_an_entry_for_each_target() -> None:
    fitness = _fitness(["dark", "light"])
    with pytest.raises(ShapeError, match="each target"):
        evolve(genetic(16), fitness, torch.tensor([1]), prior=fitness.prior(), progress=False)


def test_images_out_of_range_are_refused() -> None:
    generator = wrap_generator(synthesize=lambda w: 255 * torch.ones(len(w), 3, 2, 2), z_dim=16, resolution=2)
    with pytest.raises(DataError, match=r"not in \[-1, 1\]"):
        _fitness(["dark"], generator=generator)(*_draw(2))


def test_the_prior_s_rows_stand_alone() -> None:
    draw = _fitness(["dark"]).prior(3)
    index, stream = torch.arange(10), torch.arange(10) % 3
    assert torch.equal(draw(index, stream)[4:7], draw(index[4:7], stream[4:7]))
    assert not torch.equal(draw(index, stream), draw(index, stream + 1))
    bank = normals(3, index, 16)
    assert not torch.equal(draw(index, torch.zeros(10, dtype=torch.int64)), bank)


def test_a_factory_is_not_a_strategy_and_a_list_is_a_quota() -> None:
    fitness = _fitness(["dark"])
    with pytest.raises(DataError, match="mind the brackets"):
        evolve(genetic, fitness, torch.tensor([4]), progress=False)
    assert len(evolve(genetic(16), fitness, [4], progress=False)) == 4


def test_faces_bring_their_own_prior() -> None:
    fitness, quota = _fitness(["dark"]), torch.tensor([4])
    own, given = (
        evolve(genetic(16), fitness, quota, prior=prior, seed=2, progress=False) for prior in (None, fitness.prior(2))
    )
    assert torch.equal(own.latents, given.latents)
    with pytest.raises(DataError, match="a search needs a prior"):
        evolve(genetic(16), lambda latents, rows, known: None, quota, progress=False)


RARE = [
    ("z", branching_walk(population=32), "female-light"),
    ("w+", genetic(32, mutation="gaussian"), "female-light-older"),
]


@pytest.mark.parametrize(("space", "strategy", "name"), RARE)
def test_faces_of_rare_groups_of_the_demo_world(world, space: str, strategy: Strategy, name: str) -> None:
    attributes = ("gender", "skin_tone", "age")[: name.count("-") + 1]
    groups = Groups({a: world.labeller.attributes[a] for a in attributes})
    fitness = face_fitness(world.generator, world.labeller, groups, [name], embedder=world.embedder, space=space)
    archive = evolve(strategy, fitness, torch.tensor([10]), prior=fitness.prior(0), threshold=0.99, progress=False)
    assert len(archive) == 10
    labels = world.labeller(world.generator.synthesize(fitness.w(archive.latents)))
    torch.testing.assert_close(groups.joint(labels)[:, groups.id(name)], archive.probability, rtol=1e-3, atol=1e-4)
    sure = groups.assign(labels, 0.599) == groups.id(name)  # 0.6 up to rounding, which depends on the batch size
    assert bool(sure.all())
    assert float((archive.embeddings @ archive.embeddings.T).fill_diagonal_(-1).max()) < 0.99 + 1e-6
