from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.outliers_influence import variance_inflation_factor

from fairface_synth.audits import (
    anova,
    bayes_linreg,
    correlations,
    group_table,
    multinomial_logit,
    ols,
    top_bottom,
    tree_report,
)
from fairface_synth.errors import DataError

DATA = Path(__file__).parent / "data"
MEN, EXTREMES = DATA / "grissom2024_men600.csv", DATA / "grissom2024_top_bottom100.csv"
RGB = ["red_mean", "green_mean", "blue_mean"]
TRAITS = ["masculinity", "femininity", "skin tone", "Afrocentric", "Eurocentric", "Asiocentric", "hair-length"]


def _faces(n: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    """A table of the shape of the 1,190 faces: unbalanced cells, collinear colours, opposed traits, awkward names."""
    rng = np.random.default_rng(seed)
    race = rng.choice(["asian", "black", "white"], n, p=[0.2, 0.3, 0.5])
    gender, hair = rng.choice(["female", "male"], n), rng.choice(["long", "short"], n, p=[0.6, 0.4])
    red = np.clip(140 - 25 * (race == "black") + rng.normal(0, 35, n), 0, 255)
    green = np.clip(red - 20 + rng.normal(0, 12, n), 0, 255)
    blue = np.clip(red - 30 + rng.normal(0, 18, n), 0, 255)
    masculine = np.where(gender == "male", 5.5, 2) + rng.normal(0, 0.7, n)
    traits = {t: np.clip(rng.normal(4, 1.5, n), 1, 7) for t in TRAITS[2:]}
    score = 82 + 0.63 * red - 0.37 * green + 0.22 * blue - 2.6 * traits["hair-length"] + rng.normal(0, 20, n)
    score += np.where((gender == "male") & (hair == "long"), -8, 0)
    table = {"score": score, "race": race, "gender": gender, "hair": hair}
    table |= {"red_mean": red, "green_mean": green, "blue_mean": blue}
    table["luminance"] = (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
    return table | {"masculinity": masculine, "femininity": 7.5 - masculine + rng.normal(0, 0.5, n)} | traits


# --- the published figures ----------------------------------------------------------------------------------------


def test_published_cells() -> None:
    table = group_table(MEN, ["race", "hair"])
    published = {
        ("asian", "long"): (142.76, 24.5),
        ("asian", "short"): (167.28, 18.4),
        ("black", "long"): (121.56, 33.7),
        ("black", "short"): (143.68, 27.2),
        ("white", "long"): (148.16, 27.6),
        ("white", "short"): (172.01, 18.5),
    }
    for (race, hair), (mean, sd) in published.items():
        row = table.row(race=race, hair=hair)
        assert (round(row.mean, 2), round(row.sd, 1), row.n) == (mean, sd, 100)
    assert len(table.cells) == 6
    assert table.row().n == table.n == 600
    assert not any(table.missing.values())


def test_published_correlations() -> None:
    rows = correlations(MEN, ["red_mean", "luminance", "green_mean", "blue_mean"]).rows
    assert [round(r.pearson, 3) for r in rows] == [0.685, 0.633, 0.610, 0.565]


def test_published_linear_models() -> None:
    race = {"race": "White"}
    models = [
        ols(MEN, factors=["race"], reference=race),
        ols(MEN, ["luminance"], ["race"], reference=race),
        ols(MEN, factors=["race", "hair"], interactions="all", reference=race),
        ols(MEN, ["luminance"], ["race", "hair"], "all", race),
    ]
    assert [round(m.r2, 3) for m in models] == [0.154, 0.439, 0.303, 0.498]
    full = models[-1]
    assert dict(full.reference) == {"race": "white", "hair": "long"}
    published = {"race[black]": (-15.1, 3.2), "hair[short]": (16.2, 3.1), "luminance": (105.8, 7.0)}
    for term, (estimate, se) in published.items():
        got = full[term]
        assert (round(got.estimate, 1), round(got.se, 1)) == pytest.approx((estimate, se), abs=0.051)
    assert f"{full['race[black]'].p:.0e}" == "2e-06"


def test_published_anova() -> None:
    race = anova(MEN, ["race"])
    assert (race["race"].df, race.df_residual, round(race["race"].F, 1)) == (2, 597, 54.1)
    both = anova(MEN, ["race", "hair"])
    assert [(r.term, r.df) for r in both.rows] == [("race", 2), ("hair", 1), ("race:hair", 2)]
    assert both.df_residual == 594
    assert [round(r.F, 1) for r in both.rows[:2]] == [65.4, 126.8]
    assert (round(both["race:hair"].F, 2), round(both["race:hair"].p, 2)) == (0.12, 0.89)


def test_published_top_and_bottom() -> None:
    result = top_bottom(EXTREMES, k=100)
    published = [
        (result.bottom, (41.2, 9.6, 53.7), 0.260, [72.4, 64.7, 62.4]),
        (result.top, (217.2, 210.9, 266.1), 0.530, [166.3, 126.9, 125.1]),
    ]
    for side, score, luminance, colours in published:
        assert tuple(round(x, 1) for x in (side.score_mean, side.score_low, side.score_high)) == score
        assert round(side.means["luminance"], 3) == luminance
        assert [round(side.means[c], 1) for c in RGB] == colours


@pytest.mark.parametrize("path", [MEN, EXTREMES])
def test_published_luminance_is_the_formula_on_the_means(path: Path) -> None:
    table = pd.read_csv(path)
    formula = (0.2126 * table.red_mean + 0.7152 * table.green_mean + 0.0722 * table.blue_mean) / 255
    assert (formula - table.luminance).abs().max() < 3e-5


# --- group means --------------------------------------------------------------------------------------------------


def test_groups_are_those_of_pandas_and_absent_cells_are_shown() -> None:
    faces = _faces(60)
    faces["hair"] = np.where(faces["race"] == "black", "long", faces["hair"])
    table, frame = group_table(faces, ["race", "hair"]), pd.DataFrame(faces)
    assert table.row(race="black", hair="short").n == 0
    assert np.isnan(table.row(race="black", hair="short").mean)
    for labels, part in frame.groupby(["race", "hair"]).score:
        row = table.row(race=labels[0], hair=labels[1])
        assert (row.n, row.mean, row.sd, row.median) == pytest.approx(
            (len(part), part.mean(), part.std(), part.median())
        )
        interval = stats.t.interval(0.95, len(part) - 1, part.mean(), stats.sem(part))
        assert (row.low, row.high) == pytest.approx(interval)
    for race, part in frame.groupby("race").score:
        assert table.row(race=race).mean == pytest.approx(part.mean())
    assert "short" in str(table)
    assert list(table.to_frame().columns) == ["race", "hair", "n", "mean", "sd", "median", "low", "high"]


def test_missing_labels_are_counted_and_stay_in_the_margins() -> None:
    race, hair = ["a", "a", "b", "", "Unknown", "b"], ["x", "", "y", "x", "y", "x"]
    table = group_table({"score": [1.0, 2, 3, 4, 5, np.nan], "race": race, "hair": hair}, ["race", "hair"])
    assert dict(table.missing) == {"score": 1, "race": 2, "hair": 1}
    assert table.row(race="a").n == 2
    assert table.row(race="a", hair="x").n == 1
    assert table.row(hair="x").mean == 2.5
    assert (table.row().n, table.row().mean) == (5, 3)
    assert "race 2" in str(table)
    assert table.notes


def test_a_single_row_has_a_mean_but_no_spread() -> None:
    row = group_table({"score": [3.0], "g": ["a"]}, ["g"]).row(g="a")
    assert (row.n, row.mean, row.median) == (1, 3, 3)
    assert np.isnan([row.sd, row.low, row.high]).all()


# --- correlations -------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(5, 60), st.integers(0, 10_000))
def test_correlations_are_scipys(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = np.round(0.5 * x + rng.normal(size=n), 1)
    r = correlations({"score": y, "x": x}, ["x"])["x"]
    pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
    assert (r.pearson, r.pearson_p) == pytest.approx(tuple(pearson))
    assert (r.pearson_low, r.pearson_high) == pytest.approx(tuple(pearson.confidence_interval()))
    assert (r.spearman, r.spearman_p) == pytest.approx(tuple(spearman))
    assert r.spearman_low < r.spearman < r.spearman_high


def test_spearman_interval_covers() -> None:
    """Bivariate normal with Pearson .6: Spearman's population value is 6/π asin(.3)."""
    rng, truth, hits = np.random.default_rng(0), 6 / np.pi * np.arcsin(0.3), 0
    for _ in range(300):
        x = rng.normal(size=50)
        r = correlations({"score": 0.6 * x + 0.8 * rng.normal(size=50), "x": x}, ["x"])["x"]
        hits += r.spearman_low <= truth <= r.spearman_high
    assert 0.91 < hits / 300 < 0.985


def test_constant_and_short_columns_give_nan_with_a_reason() -> None:
    table = {"score": [1.0, 2, 3, 4, 5], "c": [2.0] * 5, "short": [1.0, np.nan, np.nan, 2, 3]}
    result = correlations(table, ["c", "short"])
    assert np.isnan(result["c"].pearson)
    assert "constant" in result["c"].reason
    assert (result["short"].n, result.missing["short"]) == (3, 2)
    assert "at least 4" in result["short"].reason


# --- least squares ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [False, True])
def test_ols_is_the_formula_interface_of_statsmodels(robust: bool) -> None:
    faces = _faces()
    got = ols(
        faces,
        ["hair-length"],
        ["race", "gender"],
        [("race", "gender")],
        {"race": "White", "gender": "male"},
        robust=robust,
    )
    formula = "score ~ Q('hair-length') + C(race, Treatment('white')) * C(gender, Treatment('male'))"
    fit = smf.ols(formula, pd.DataFrame(faces)).fit(cov_type="HC3" if robust else "nonrobust", use_t=True)
    same = {"hair-length": "Q('hair-length')", "intercept": "Intercept"}
    same["race[black]"] = "C(race, Treatment('white'))[T.black]"
    same["race[black]:gender[female]"] = f"{same['race[black]']}:C(gender, Treatment('male'))[T.female]"
    for ours, theirs in same.items():
        row = got[ours]
        oracle = [fit.params[theirs], fit.bse[theirs], fit.tvalues[theirs], fit.pvalues[theirs]]
        assert [row.estimate, row.se, row.t, row.p] == pytest.approx(oracle)
        assert [row.low, row.high] == pytest.approx(fit.conf_int().loc[theirs].tolist())
    assert len(got.rows) == len(fit.params)
    assert (got.r2, got.r2_adjusted, got.df_residual) == pytest.approx((fit.rsquared, fit.rsquared_adj, fit.df_resid))
    assert got.errors == ("HC3" if robust else "classical")


def test_inflation_is_the_textbook_one_and_needs_no_reference() -> None:
    faces = _faces()
    X = np.column_stack([np.ones(len(faces["score"])), *(faces[c] for c in RGB)])
    result = ols(faces, RGB)
    assert [result.vif[c] for c in RGB] == pytest.approx([variance_inflation_factor(X, j) for j in (1, 2, 3)])
    assert any("green_mean" in note for note in result.notes)
    spreads = [ols(faces, RGB, ["race"], reference={"race": r}).vif for r in ("white", "black")]
    assert spreads[0]["race"] == pytest.approx(spreads[1]["race"])
    assert spreads[0]["race"] > 1


@given(st.permutations(range(40)), st.floats(0.1, 10), st.floats(-50, 50))
def test_ols_follows_units_and_ignores_the_order_of_rows(order: list[int], scale: float, shift: float) -> None:
    faces = _faces(40)
    moved = {name: column[order] for name, column in faces.items()}
    moved["score"] = scale * moved["score"] + shift
    a, b = ols(faces, ["red_mean"], ["gender"]), ols(moved, ["red_mean"], ["gender"])
    assert [r.estimate for r in b.rows[1:]] == pytest.approx(
        [scale * r.estimate for r in a.rows[1:]], rel=1e-6, abs=1e-9
    )
    assert b.r2 == pytest.approx(a.r2)


# --- analysis of variance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [1, 2])
def test_anova_is_that_of_statsmodels(kind: Any) -> None:
    faces = _faces()
    fit = smf.ols("score ~ race * hair * gender", pd.DataFrame(faces)).fit()
    oracle = anova_lm(fit, typ=kind)
    for row in anova(faces, ["race", "hair", "gender"], type=kind).rows:
        o = oracle.loc[row.term]
        assert (row.df, row.ss, row.F, row.p) == pytest.approx((o["df"], o["sum_sq"], o["F"], o["PR(>F)"]), rel=1e-6)
        assert row.partial_eta2 == pytest.approx(o["sum_sq"] / (o["sum_sq"] + fit.ssr))


def test_type_2_with_a_covariate_and_its_interaction() -> None:
    faces = _faces()
    fit = smf.ols("score ~ race * hair + luminance + race:luminance", pd.DataFrame(faces)).fit()
    oracle = anova_lm(fit, typ=2)
    result = anova(faces, ["race", "hair"], ["luminance"], [("race", "hair"), ("race", "luminance")], type=2)
    for row in result.rows:
        assert row.p == pytest.approx(oracle.loc[row.term]["PR(>F)"], rel=1e-5)
    assert result.r2 == pytest.approx(fit.rsquared)


def test_type_1_sums_of_squares_add_up_in_the_stated_order() -> None:
    faces = _faces()
    result = anova(faces, ["race", "hair"], ["luminance"])
    assert [r.term for r in result.rows] == ["race", "hair", "luminance", "race:hair"]
    total = ((faces["score"] - faces["score"].mean()) ** 2).sum()
    assert sum(r.ss for r in result.rows) + result.ss_residual == pytest.approx(total)
    assert anova(faces, ["hair", "race"])["race"].ss != pytest.approx(anova(faces, ["race", "hair"])["race"].ss)


def test_colours_take_race_away_where_race_acts_through_them() -> None:
    faces = _faces(2000)
    without = anova(faces, ["race", "hair", "gender"], type=2)["race"]
    within = anova(faces, ["race", "hair", "gender"], RGB, type=2)["race"]
    assert without.p < 1e-10
    assert within.F < without.F / 10


def test_an_empty_cell_costs_its_degree_of_freedom() -> None:
    faces = _faces()
    faces["hair"] = np.where(faces["race"] == "black", "long", faces["hair"])
    result = anova(faces, ["race", "hair"])
    assert result["race:hair"].df == 1
    assert any("race:hair" in note for note in result.notes)
    with pytest.raises(DataError, match=r"race\[black\]:hair\[short\]"):
        ols(faces, factors=["race", "hair"], interactions="all")


# --- top and bottom -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20), min_size=4, max_size=40), st.data())
def test_extremes_are_disjoint_and_extreme(scores: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores) // 2))
    result = top_bottom({"score": scores}, k)
    top, bottom = result.top.indices, result.bottom.indices
    assert not set(top) & set(bottom)
    assert sorted(np.array(scores)[top]) == sorted(scores)[-k:]
    assert sorted(np.array(scores)[bottom]) == sorted(scores)[:k]


def test_extremes_skip_missing_scores_and_refuse_a_large_k() -> None:
    table = {"score": [np.nan, 3.0, 1, 2, 5], "x": [9.0, np.nan, 1, 2, 3]}
    result = top_bottom(table, 2)
    assert (result.top.indices.tolist(), result.bottom.indices.tolist()) == ([4, 1], [2, 3])
    assert result.top.means["x"] == 3
    assert (result.missing["score"], result.missing["x"]) == (1, 1)
    with pytest.raises(DataError, match="k"):
        top_bottom(table, 3)
    assert top_bottom({"score": [1, 1, 1, 1, 0]}, 2).notes


# --- labels of the top against the bottom --------------------------------------------------------------------------


def _published_race() -> dict[str, list[Any]]:
    """Near the published shares: no Black face in the top 100, 47 in the bottom one."""
    top = {"White": 72, "Asian": 25, "NHPI": 2, "AIAN": 1}
    bottom = {"Black": 47, "White": 24, "Asian": 15, "AIAN": 7, "NHPI": 2}
    race = [r for side in (top, bottom) for r, n in side.items() for _ in range(n)] + ["unknown"] * 5
    return {"race": race, "is_top": [1] * 100 + [0] * 100, "score": list(range(200, 0, -1))}


def test_logit_is_the_log_odds_ratio_and_separation_is_said() -> None:
    result = multinomial_logit(_published_race(), "race", is_top="is_top")
    assert result.reference == "White"
    for level, own in {"Asian": (25, 15), "NHPI": (2, 2), "AIAN": (1, 7)}.items():
        row, cells = result[level], np.array([*own, 72, 24])
        estimate = np.log(own[0] / own[1]) - np.log(72 / 24)
        se = np.sqrt((1 / cells).sum())
        assert (row.estimate, row.se, row.z) == pytest.approx((estimate, se, estimate / se), rel=1e-5)
        assert row.p == pytest.approx(2 * stats.norm.sf(abs(estimate / se)), rel=1e-4)
    black = result["Black"]
    assert (black.estimate, black.share_top) == (-np.inf, 0)
    assert np.isnan([black.se, black.z, black.p]).all()
    assert black.exact_p == pytest.approx(stats.fisher_exact([[0, 47], [72, 24]]).pvalue)
    assert "no Black in the top" in black.reason
    assert result.missing["race"] == 5
    assert any("Black" in note for note in result.notes)


def test_likelihood_ratio_is_that_of_the_fitted_model() -> None:
    from statsmodels.api import MNLogit, add_constant

    table = pd.DataFrame(_published_race())
    table = table[table.race.isin(["White", "Asian", "AIAN", "NHPI"])]
    fit = MNLogit(pd.Categorical(table.race).codes, add_constant(table.is_top)).fit(disp=0)
    result = multinomial_logit(table, "race", is_top="is_top")
    assert (result.lr, result.lr_df, result.lr_p) == pytest.approx((fit.llr, fit.df_model, fit.llr_pvalue), rel=1e-6)


def test_k_takes_the_extremes_of_the_score() -> None:
    table = _published_race()
    by_column, by_score = multinomial_logit(table, "race", is_top="is_top"), multinomial_logit(table, "race", k=100)
    assert by_column.rows == pytest.approx(by_score.rows) or str(by_column) == str(by_score)
    with pytest.raises(DataError, match="k"):
        multinomial_logit(table, "race", k=101)


def test_an_absent_reference_is_said() -> None:
    result = multinomial_logit(_published_race(), "race", is_top="is_top", reference="black")
    assert result["White"].estimate == np.inf
    assert any("reference" in note for note in result.notes)


# --- trees --------------------------------------------------------------------------------------------------------


def test_shuffled_folds_are_fair_where_sorted_ones_are_not() -> None:
    """Groups differ in level and the feature is the group: consecutive folds test on groups never seen."""
    group = np.repeat(np.arange(5), 40)
    score = 10.0 * group + np.random.default_rng(0).normal(size=200)
    table = {"score": score, "group": group.astype(float), "race": np.array(list("abcde"))[group]}
    shuffled, consecutive = tree_report(table, ["group"], stratify="race"), tree_report(table, ["group"], shuffle=False)
    assert shuffled.r2 > 0.97
    assert consecutive.r2 < 0
    assert shuffled.splits == consecutive.splits
    assert consecutive.notes


def test_unshuffled_folds_are_sklearns_default() -> None:
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeRegressor

    table = pd.read_csv(MEN)
    oracle = cross_val_score(DecisionTreeRegressor(max_depth=4, random_state=0), table[RGB], table.score, cv=5)
    assert tree_report(MEN, RGB, shuffle=False).fold_r2 == pytest.approx(oracle)


def test_a_tree_of_the_published_scores_splits_on_red_first() -> None:
    result = tree_report(MEN, [*RGB, "race"], stratify=["race", "hair"])
    assert result.rows[0].feature == "red_mean"
    assert result.rows[0].importance > 0.8
    assert result.splits.startswith("|--- red_mean")
    assert sum(r.importance for r in result.rows) == pytest.approx(1)
    assert {"race[asian]", "race[black]", "race[white]"} <= {r.feature for r in result.rows}
    assert result.depth == 4
    assert 0.3 < result.r2 < result.r2_train
    assert tree_report(MEN, RGB).fold_r2 == tree_report(MEN, RGB).fold_r2
    assert tree_report(MEN, RGB).fold_r2 != tree_report(MEN, RGB, seed=1).fold_r2


# --- Bayes --------------------------------------------------------------------------------------------------------

_Y = np.array([3.1, 4.0, 2.2, 5.9, 4.4, 6.5, 5.2, 7.3])
_ONE, _TWO = np.array([-1.2, -0.4, -0.9, 0.6, 0.1, 1.5, -0.3, 0.8]), np.array([0.5, -1, 0.3, 0.2, 1.1, -0.6, -0.8, 0.4])
_GROUP = np.array(list("aabbabba"))


def _half_t(rng: np.random.Generator, *size: int) -> np.ndarray:
    return np.abs(rng.standard_t(10, size))


def _from_the_prior(prior: str, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [draws, p] (intercept first) and σ, drawn as the paper writes its priors."""
    sd = _Y.std(ddof=1)
    if prior == "colour":
        slopes = rng.normal(size=(draws, 2)) * _half_t(rng, draws, 2)
        intercept, sigma = _Y.mean() + rng.normal(size=draws) * _half_t(rng, draws), _half_t(rng, draws)
    elif prior == "traits":
        scale, nu = _half_t(rng, draws, 1), np.abs(2 * rng.standard_cauchy((draws, 1)))  # shared: one for both
        centre = scale * rng.normal(size=(draws, 2))
        slopes = centre + scale * rng.standard_t(np.maximum(nu, 1e-3), (draws, 2))
        intercept, sigma = _Y.mean() + rng.normal(size=draws) * _half_t(rng, draws), np.abs(sd * rng.normal(size=draws))
    else:
        nu = np.abs(10 * rng.normal(size=(draws, 1)))
        spread = np.array([_Y[g == _GROUP].std(ddof=1) for g in "ab"])
        slopes = spread * rng.standard_t(np.maximum(nu, 1e-3), (draws, 2))
        intercept, sigma = _Y.mean() + sd * rng.normal(size=draws), np.abs(sd * rng.normal(size=draws))
    slopes = np.clip(np.nan_to_num(slopes, nan=1e9), -1e9, 1e9)  # ν near 0 overflows; such draws have no weight
    return np.column_stack([intercept, slopes]), sigma


@pytest.mark.parametrize(
    "prior",
    ["colour", pytest.param("traits", marks=pytest.mark.slow), pytest.param("category", marks=pytest.mark.slow)],
)
def test_posterior_is_that_of_importance_sampling_from_the_stated_prior(prior: Any) -> None:
    """An independent route: draw from the priors as written, weigh by the likelihood of eight scores."""
    beta, sigma = _from_the_prior(prior, 400_000, np.random.default_rng(1))
    columns = [_ONE, _TWO] if prior != "category" else [_GROUP == "a", _GROUP == "b"]
    X = np.column_stack([np.ones(8), *columns])
    log_w = -8 * np.log(sigma) - 0.5 * sum((_Y[i] - beta @ X[i]) ** 2 for i in range(8)) / sigma**2
    weights = np.exp(log_w - log_w.max())
    weights /= weights.sum()
    assert 1 / (weights**2).sum() > 2000

    table = {"score": _Y, "masculinity": _ONE, "femininity": _TWO, "g": _GROUP}
    names = {"factors": ["g"]} if prior == "category" else {"numeric": ["masculinity", "femininity"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a few divergences in so small a set do not matter here
        result = bayes_linreg(table, **names, prior=prior, seed=3)  # type: ignore[arg-type]
    assert result.worst_rhat < 1.02
    for row, draws in zip(result.rows, [*beta.T, sigma], strict=True):
        mean = weights @ draws
        sd = np.sqrt(weights @ (draws - mean) ** 2)
        assert row.mean == pytest.approx(mean, abs=0.08 * sd)
        inside = weights @ ((draws >= row.low) & (draws <= row.high))
        assert inside == pytest.approx(0.95, abs=0.012)


@pytest.mark.slow
def test_posterior_of_the_men_agrees_with_least_squares() -> None:
    result, fit = bayes_linreg(MEN, RGB), ols(MEN, RGB)
    assert result.converged
    assert result.divergences == 0
    for row in fit.rows:
        got = result[row.term]
        assert abs(got.mean - row.estimate) < 0.7 * row.se  # the prior shrinks a little
        assert got.sd == pytest.approx(row.se, rel=0.1)
    assert result.samples["red_mean"].shape == (4, 1000)
    assert "samples" not in result.to_dict()


@pytest.mark.slow
def test_models_of_the_paper_run_on_a_table_of_its_shape() -> None:
    faces = _faces(600)
    traits = bayes_linreg(faces, TRAITS, prior="traits", seed=1)
    assert any("masculinity and femininity share" in line for line in traits.priors)
    assert traits["hair-length"].low < -2.6 < traits["hair-length"].high
    groups = bayes_linreg(faces, factors=["race", "hair", "gender"], prior="category", draws=500)
    terms = {f"{f}[{v}]" for f in ("race", "hair", "gender") for v in np.unique(faces[f])}
    assert {r.term for r in groups.rows} == {"intercept", "sigma"} | terms
    contrast = groups.samples["race[black]"] - groups.samples["race[white]"]
    fit = ols(faces, factors=["race", "hair", "gender"])["race[black]"]
    assert contrast.mean() == pytest.approx(fit.estimate, abs=0.5 * fit.se)


def test_poor_mixing_warns_the_seed_fixes_the_draws_and_jax_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    before, table = dict(jax.config.values), {"score": _Y, "x": _ONE, "z": _TWO}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        a, c = (bayes_linreg(table, ["x", "z"], chains=1, seed=s) for s in (0, 1))
    monkeypatch.setattr("fairface_synth.audits.bayes._RHAT", 0.9)
    with pytest.warns(RuntimeWarning, match="not converged"):
        b = bayes_linreg(table, ["x", "z"], chains=1, seed=0)
    assert dict(jax.config.values) == before
    assert not b.converged
    assert any("not converged" in note for note in b.notes)
    assert (a.samples["x"] == b.samples["x"]).all()
    assert (a.samples["x"] != c.samples["x"]).any()


# --- what all have in common --------------------------------------------------------------------------------------


def test_every_result_prints_and_turns_into_dicts_and_frames() -> None:
    faces = _faces(120)
    faces["race"] = np.concatenate([["unknown"] * 4, faces["race"][4:]])
    results = [
        group_table(faces, ["race", "gender"]),
        correlations(faces, [*RGB, "luminance"]),
        ols(faces, TRAITS, ["race"]),
        anova(faces, ["race", "hair", "gender"], ["luminance"], type=2),
        top_bottom(faces, 20),
        multinomial_logit(faces, "race", k=40),
        tree_report(faces, [*RGB, *TRAITS]),
    ]
    for result in results:
        assert str(result).startswith("| ")
        assert len(result.to_frame()) == len(result.rows)
        json.dumps(result.to_dict())
    assert results[2].missing["race"] == 4
    assert "race 4" in str(results[2])
    assert results[2].n == 116


def test_frames_files_and_dicts_are_the_same_table(tmp_path: Path) -> None:
    faces = _faces(50)
    pd.DataFrame(faces).to_csv(tmp_path / "faces.csv", index=False)
    fits = [ols(t, TRAITS, ["race"]) for t in (faces, pd.DataFrame(faces), tmp_path / "faces.csv")]
    for fit in fits[1:]:
        assert [r.estimate for r in fit.rows] == pytest.approx([r.estimate for r in fits[0].rows])


def test_numbers_serve_as_labels() -> None:
    table = {"score": [1.0, 2, 3, 4, 5, 7], "age": [10.0, 2, 10, 2, np.nan, 2]}
    assert group_table(table, ["age"]).levels == {"age": ("2", "10")}
    assert [r.term for r in ols(table, factors=["age"]).rows] == ["intercept", "age[10]"]


def test_labels_are_read_as_a_person_would() -> None:
    scores = [1.0, 2, 3, 4, 5, 7]
    read = group_table({"score": scores, "race": ["a", "b ", float("nan"), " b", "NaN", "a"]}, ["race"])  # numpy: "nan"
    assert read.levels == {"race": ("a", "b")}
    assert (read.missing["race"], read.row(race="b").n) == (2, 2)
    for labels, levels in (([10.5, 2.5], ("2.5", "10.5")), (["²", "3"], ("3", "²")), (["--5", "1"], ("--5", "1"))):
        assert group_table({"score": scores, "g": labels * 3}, ["g"]).levels == {"g": levels}
    sides = multinomial_logit({"score": scores, "age": [10, 2, 10, 10, 2, 30]}, "age", k=3, reference="10")
    assert [r.level for r in sides.rows] == ["10", "2", "30"]


def test_a_constant_covariate_has_no_degree_of_freedom() -> None:
    faces = _faces(40) | {"year": np.full(40, 123456.7)}  # whose mean is not exact
    result = anova(faces, ["race"], ["year"])
    assert result["year"].df == 0
    assert pytest.approx(anova(faces, ["race"])["race"].F) == result["race"].F


def test_an_exact_fit_makes_no_f_of_rounding_errors() -> None:
    faces = _faces(40)
    faces["score"] = np.where(faces["race"] == "black", 0.1, 0.7)
    result = anova(faces, ["race", "hair"], ["red_mean"], "none", type=2)
    assert (result["race"].F, result["race"].p, result.r2) == (np.inf, 0, 1)
    assert np.isnan([result["hair"].F, result["hair"].p, result["red_mean"].p]).all()
    assert any("fits exactly" in note for note in result.notes)


def test_robust_errors_need_two_rows_for_each_coefficient() -> None:
    faces = _faces(40)
    faces["race"][7] = "other"
    assert np.isfinite(ols(faces, ["red_mean"], ["race"])["race[other]"].se)
    with pytest.raises(DataError, match=r"race\[other\]"):
        ols(faces, ["red_mean"], ["race"], robust=True)
    with pytest.raises(DataError, match="complete row 7"):
        ols(faces, ["red_mean"], ["race"], reference={"race": "other"}, robust=True)


def test_folds_without_a_difference_are_said() -> None:
    table = {"score": np.repeat([0.0, 1, 2, 3, 4], 20), "x": np.arange(100.0)}
    assert any(note.startswith("5 folds") for note in tree_report(table, ["x"], shuffle=False).notes)
    assert not tree_report(table, ["x"]).notes


_BAD: dict[str, Any] = {
    "unknown column": lambda t: correlations(t, ["brightness"]),
    "text as number": lambda t: ols(t, ["race"]),
    "a name instead of names": lambda t: group_table(t, "race"),
    "infinite": lambda t: correlations(t | {"x": np.full(40, np.inf)}, ["x"]),
    "unknown reference": lambda t: ols(t, factors=["race"], reference={"race": "green"}),
    "reference without factor": lambda t: ols(t, ["red_mean"], reference={"race": "white"}),
    "used twice": lambda t: ols(t, ["red_mean", "red_mean"]),
    "score as predictor": lambda t: ols(t, ["score"]),
    "collinear": lambda t: ols(t | {"double": 2 * t["red_mean"] + 3}, ["red_mean", "double"]),
    "constant": lambda t: ols(t | {"c": np.ones(40)}, ["c"]),
    "luminance with its colours": lambda t: ols(t, [*RGB, "luminance"]),
    "too few rows": lambda t: ols({k: v[:3] for k, v in t.items()}, RGB),
    "one level": lambda t: ols(t | {"g": np.array(["a"] * 40)}, factors=["g"]),
    "no complete row": lambda t: ols(t | {"g": np.array([""] * 40)}, factors=["g"]),
    "number as factor": lambda t: group_table({"score": np.arange(200.0), "x": np.arange(200) / 7}, ["x"]),
    "interaction of nothing": lambda t: ols(t, factors=["race"], interactions=[("race", "hair")]),
    "higher order alone": lambda t: anova(t, ["race", "hair", "gender"], interactions=[("race", "hair", "gender")]),
    "misspelt interactions": lambda t: anova(t, ["race"], interactions="al"),
    "type 3": lambda t: anova(t, ["race"], type=3),
    "nothing to test": lambda t: anova(t, []),
    "equal scores": lambda t: anova(t | {"score": np.ones(40)}, ["race"]),
    "no top": lambda t: multinomial_logit(t | {"top": np.zeros(40)}, "race", is_top="top"),
    "not a side": lambda t: multinomial_logit(t, "race", is_top="red_mean"),
    "one race": lambda t: multinomial_logit(t | {"race": np.array(["a"] * 40)}, "race", k=5),
    "unknown prior": lambda t: bayes_linreg(t, RGB, prior="flat"),
    "no predictors": lambda t: bayes_linreg(t),
    "collinear prior": lambda t: bayes_linreg(t, [*RGB, "luminance"]),
    "numbers as categories": lambda t: bayes_linreg(t, RGB, ["race"], prior="category"),
    "scales shared with nobody": lambda t: bayes_linreg(t, RGB, prior="traits", shared_scale=[("red_mean", "red")]),
    "scales shared by colours": lambda t: bayes_linreg(t, RGB, shared_scale=[RGB]),
    "reference of all factors": lambda t: ols(t, factors=["race"], reference="white"),
    "half a row": lambda t: top_bottom(t, 2.5),
    "no rows": lambda t: top_bottom(t, 0),
    "half a draw": lambda t: bayes_linreg(t, RGB, draws=10.5),
    "half a level of a tree": lambda t: tree_report(t, RGB, max_depth=2.5),
    "few draws": lambda t: bayes_linreg(t, RGB, draws=2),
    "strata unshuffled": lambda t: tree_report(t, RGB, shuffle=False, stratify="race"),
    "one fold": lambda t: tree_report(t, RGB, folds=1),
    "no features": lambda t: tree_report(t, []),
    "tiny strata": lambda t: tree_report(t | {"id": np.arange(40).astype(str)}, RGB, stratify="id"),
    "no such cell": lambda t: group_table(t, ["race"]).row(race="green"),
    "no such term": lambda t: ols(t, ["red_mean"])["green_mean"],
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_speaks_up(case: str) -> None:
    with pytest.raises(DataError):
        _BAD[case](_faces(40))


@pytest.mark.parametrize(
    ("package", "call"), [("statsmodels", lambda t: ols(t, RGB)), ("numpyro", lambda t: bayes_linreg(t, RGB))]
)
def test_a_missing_package_names_the_extra(package: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [m for m in sys.modules if m.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, name, None)  # makes the import fail
    with pytest.raises(DataError, match="audit"):
        call(_faces(40))
