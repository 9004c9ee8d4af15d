"""Audits: the published figures come out end to end, what a table lacks is named, and figures show their numbers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from scipy.stats import f as f_distribution

from fairface_synth import plotting
from fairface_synth.audits import AuditReport, audit
from fairface_synth.errors import DataError, ShapeError
from fairface_synth.tables import read_table, write_table

MEN = Path(__file__).parent / "data" / "grissom2024_men600.csv"
COLOUR = ("red_mean", "green_mean", "blue_mean")
PARTS = ("groups", "correlations", "ols", "anova", "held", "logit", "trees", "extremes")


def _table(n: int = 90, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores that rise with luminance and fall for one of three kinds; two sexes."""
    rng = np.random.default_rng(seed)
    rgb = rng.uniform(20, 235, (n, 3))
    light = rgb @ [0.2126, 0.7152, 0.0722] / 255
    kind, sex = np.array(["a", "b", "c"])[np.arange(n) % 3], np.array(["f", "m"])[np.arange(n) // 3 % 2]
    score = 3 * light - (kind == "b") + rng.normal(size=n)
    columns = dict(zip(COLOUR, rgb.T, strict=True))
    return {"score": score, **columns, "luminance": light, "kind": kind, "sex": sex, "skin": rng.integers(1, 8, n)}


def _quick(table: object, *args, **options) -> AuditReport:
    return audit(table, *args, **{"bayes": False, "tree": False, **options})


@pytest.fixture(scope="module")
def men() -> AuditReport:
    return audit(MEN, bayes=False)


# --- the published figures ---------------------------------------------------------------------------------------


def test_published_group_means_and_correlations(men: AuditReport) -> None:
    s = men["score"]
    cells = {"asian": (142.76, 24.5, 167.28, 18.4), "black": (121.56, 33.7, 143.68, 27.2)}
    for race, (long, long_sd, short, short_sd) in (cells | {"white": (148.16, 27.6, 172.01, 18.5)}).items():
        for hair, mean, sd in (("long", long, long_sd), ("short", short, short_sd)):
            row = s.groups["race × hair"].row(race=race, hair=hair)
            assert (row.n, round(row.mean, 2), round(row.sd, 1)) == (100, mean, sd)
    published = {"red_mean": 0.685, "luminance": 0.633, "green_mean": 0.610, "blue_mean": 0.565}
    assert {c: round(s.correlations[c].pearson, 3) for c in published} == published


def test_published_models(men: AuditReport) -> None:
    s = men["score"]
    race, both = s.anova["race, Type II"], s.anova["race × hair, Type I"]
    assert (race["race"].df, race.df_residual, round(race["race"].F, 1)) == (2, 597, 54.1)
    assert [round(both[t].F, d) for t, d in (("race", 1), ("hair", 1), ("race:hair", 2))] == [65.4, 126.8, 0.12]
    assert round(both["race:hair"].p, 2) == 0.89
    r2 = [s.anova[f"{m}, Type II"].r2 for m in ("race", "race + luminance", "race × hair", "race × hair + luminance")]
    assert [round(x, 3) for x in r2] == [0.154, 0.439, 0.303, 0.498]
    held = s.ols["categories with interactions + luminance"]
    found = [(round(held[t].estimate, 1), round(held[t].se, 1)) for t in ("race[black]", "hair[short]", "luminance")]
    assert found == [(-15.1, 3.2), (16.2, 3.1), (105.8, 7.0)]
    assert f"{held['race[black]'].p:.0e}" == "2e-06"


def test_published_extremes() -> None:
    """The 100 highest and lowest of FFHQ: a table without labels."""
    report = _quick(MEN.with_name("grissom2024_top_bottom100.csv"))
    top, bottom = report["score"].extremes.rows
    found = [round(e.score_mean, 1) for e in (top, bottom)] + [round(e.means["luminance"], 3) for e in (top, bottom)]
    assert found == [217.2, 41.2, 0.530, 0.260]
    assert [round(top.means[c], 1) for c in COLOUR] == [166.3, 126.9, 125.1]
    assert [round(x, 1) for x in (top.score_low, top.score_high, bottom.score_low)] == [210.9, 266.1, 9.6]
    assert "no column of labels" in str(report)


def test_summary_of_the_men(men: AuditReport) -> None:
    text = str(men)
    assert len(text.splitlines()) < 60
    for part in ("0.685", "54.1 (2.5e-22)", "black × long 121.6 (n = 100)", "gender: the same everywhere (male)"):
        assert part in text
    assert men.columns.factors == {"race": ("asian", "black", "white"), "hair": ("long", "short")}
    full = men.to_markdown()
    assert full.startswith(text)
    for heading in ("Correlations", "luminance is held", "Least squares", "Analysis of variance", "Decision trees"):
        assert heading in full
    assert len(re.findall(r"^```$", full, re.MULTILINE)) % 2 == 0


# --- what is held ------------------------------------------------------------------------------------------------


def _rss(y: np.ndarray, *columns: np.ndarray) -> float:
    X = np.column_stack([np.ones(len(y)), *columns])
    return float(((y - X @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2).sum())


def test_held_terms_are_partial_f_tests_on_the_same_rows() -> None:
    table = _table()
    table["luminance"][:20] = np.nan
    table["sex"] = np.where(np.isin(np.arange(90), [30, 31, 32]), "unknown", table["sex"])
    report = _quick(table)
    known = ~np.isnan(table["luminance"])  # a factor alone keeps the rows that lack another one
    y, light = table["score"][known], table["luminance"][known]
    dummies = [(table["kind"][known] == level).astype(float) for level in ("b", "c")]
    row = next(r for r in report["score"].held.rows if r.model == "kind")
    for F, p, share, base in ((row.F, row.p, row.share, ()), (row.F_held, row.p_held, row.share_held, (light,))):
        without, full = _rss(y, *base), _rss(y, *base, *dummies)
        df = known.sum() - 3 - len(base)
        assert pytest.approx((without - full) / 2 / (full / df)) == F
        assert p == pytest.approx(f_distribution.sf(F, 2, df))
        assert share == pytest.approx((without - full) / _rss(y))
    assert report.collinearity["kind"].r2 == pytest.approx(1 - _rss(light, *dummies) / _rss(light))
    assert report.columns.missing == {"luminance": 20, "sex": 3}
    models, both = report["score"].ols, known & (table["sex"] != "unknown")
    assert report["score"].anova["kind × sex, Type II"].n == both.sum()
    assert models["categories"].n == models["categories + luminance"].n == models["categories + colour"].n == both.sum()
    assert models["colour"].n == 90


def test_scores_stand_side_by_side() -> None:
    table = _table()
    table["score_raw"] = 50 * table["score"] + np.random.default_rng(1).normal(size=90)
    report = _quick(table)
    assert list(report.scores) == ["score", "score_raw"]
    expected = np.corrcoef(table["score"], table["score_raw"])[0, 1]
    assert report.agreement["score"]["score_raw"].pearson == pytest.approx(expected)
    assert "score_raw comes from 0–255 input" in str(report)
    assert re.search(r"^\| +\| score +\| score_raw +\|$", str(report), re.MULTILINE)
    alone = _quick(table, "score")
    assert alone.agreement == {}
    assert alone["score"].ols["colour"] == report["score"].ols["colour"]
    assert alone.columns.traits == ("skin",)  # the score is not regressed on itself
    assert alone.columns.left_out == {"score_raw": "another score, not asked for"}
    assert _quick(table, "score", traits=["score_raw"]).columns.traits == ("score_raw",)


# --- columns -----------------------------------------------------------------------------------------------------


def test_columns_are_found_and_what_is_not_used_is_named() -> None:
    table = _table() | {
        "path": np.array([f"{i}.png" for i in range(90)]),
        "id": np.arange(90),
        "one": np.full(90, 3.0),
        "wall": np.array(["x"] * 90),
        "glasses": np.arange(90) % 2 == 0,
        "contrast": np.linspace(0, 0.5, 90),
        "face/red_mean": np.linspace(0, 255, 90) ** 0.9,
    }
    columns = _quick(pd.DataFrame(table)).columns
    assert columns.scores == ("score",)
    assert list(columns.factors) == ["kind", "sex", "glasses"]
    assert columns.traits == ("skin",)
    assert columns.covariates == ("contrast", "face/red_mean")
    assert set(columns.left_out) == {"path", "id", "one", "wall"}
    assert "90 different values" in columns.left_out["path"]
    chosen = _quick(table, factors="skin", traits=["contrast"]).columns
    assert chosen.factors == {"skin": tuple("1234567")}
    assert chosen.left_out["kind"] == "not asked for"


def test_labels_and_scores_of_every_type() -> None:
    table = _table() | {"score_b": np.array(["0.5", "n/a"] * 45), "glasses": np.arange(90) % 2 == 0}
    columns = _quick(table | {"sex": np.arange(90) % 2, "luminance": table["luminance"] > 0.5}, factors="sex").columns
    assert columns.factors == {"sex": ("0", "1")}
    assert columns.luminance == "luminance"
    assert columns.left_out["glasses"] == "true or false, not asked for"
    frame = pd.DataFrame(table).astype({"kind": "category"})
    frame.loc[:9, "kind"] = np.nan
    columns = _quick(frame).columns
    assert columns.scores == ("score",)
    assert columns.left_out.keys() == {"score_b"}  # no factor, though it has few values
    assert columns.factors == {"kind": ("a", "b", "c"), "sex": ("f", "m"), "glasses": ("False", "True")}
    assert columns.missing == {"kind": 10}
    table["kind"] = np.where(table["kind"] == "a", "a", "unknown")
    assert _quick(table).columns.left_out["kind"] == "the same everywhere (a)"


def test_factors_that_determine_one_another_have_no_share_of_their_own() -> None:
    table = _table()
    table |= {"copy": table["kind"], "light": np.where(table["sex"] == "f", "dim", "bright")}
    table["luminance"] = np.where(table["sex"] == "f", 0.2, 0.8)
    report = _quick(table)
    rows = {(r.model, r.term): r for r in report["score"].held.rows}
    assert rows["kind × sex × copy × light", "kind"].df == 0
    assert np.isnan(rows["sex", "sex"].share_held)
    assert "it has no share of its own" in str(report["score"].held)
    assert not re.search(r"\bnan", report.to_markdown())


def test_a_factor_that_another_one_determines_keeps_the_regressions() -> None:
    table = _table()
    fine = np.where(np.arange(90) % 4 < 2, "1", "2")
    table["tribe"] = np.char.add(table["kind"], fine)  # kind is nested in it
    report = _quick(table)
    assert "kind follows from tribe" in str(report)
    fit = report["score"].ols["categories"]
    y = table["score"]
    dummies = [(table["tribe"] == level).astype(float) for level in np.unique(table["tribe"])[1:]]
    expected = 1 - _rss(y, *dummies, (table["sex"] == "m").astype(float)) / _rss(y)
    assert fit.r2 == pytest.approx(expected)
    assert "follows from" not in str(_quick(table, factors=["kind", "sex"]))


def test_the_sources_own_words_are_no_second_factor() -> None:
    table = _table()
    table["kind_original"] = np.char.add(table["kind"], np.where(np.arange(90) % 2 == 0, "1", "2"))
    report = _quick(table)
    assert list(report.columns.factors) == ["kind", "sex"]
    assert "own values of 'kind'" in report.columns.left_out["kind_original"]
    assert "categories" in report["score"].ols
    assert list(_quick(table, factors=["kind_original", "sex"]).columns.factors) == ["kind_original", "sex"]
    del table["kind"]
    assert list(_quick(table).columns.factors) == ["sex", "kind_original"]


def test_numbers_that_are_text_are_what_a_csv_file_makes_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    table = _table() | {
        "age": rng.integers(20, 60, 90).astype(str),
        "rating": np.array(["1", "2.5", "", "4"])[rng.integers(0, 4, 90)],
        "range": np.array(["3-9", "10-19"])[np.arange(90) % 2],
    }
    again = read_table(write_table(table, tmp_path / "t.csv"))
    assert again["age"].dtype.kind == "i"
    here, there = _quick(table).columns, _quick(again).columns
    assert here == there
    assert here.traits == ("skin", "age", "rating")
    assert list(here.factors) == ["kind", "sex", "range"]
    assert _quick(table, traits=["age"]).columns.traits == ("age",)
    assert list(_quick(table, factors=["rating"]).columns.factors["rating"]) == ["1", "2.5", "4"]
    texts = table | {"score": table["score"].astype(str), "age": np.where(table["age"] > "50", "unknown", table["age"])}
    columns = _quick(texts).columns
    assert columns.traits == ("skin", "age", "rating")
    assert columns.missing["age"] == (table["age"] > "50").sum()


def test_small_scores_keep_their_digits() -> None:
    table = _table()
    table["score"] = 1e-4 * table["score"]
    s = _quick(table, tree=True, k=20)["score"]
    top = np.sort(table["score"])[-20:]
    assert f"| top 20    | {top.mean():.4g} ({top.min():.4g}–{top.max():.4g})" in str(s.extremes)
    leaves = re.findall(r"value: \[(.*)\]", s.trees["colour"].splits)
    assert len(set(leaves)) == len(leaves) == s.trees["colour"].leaves


def test_unknown_parts_are_answered_with_the_known_ones() -> None:
    report = _quick(_table(), k=20)
    with pytest.raises(KeyError, match="no part 'race'; there are: 'colour', 'luminance', 'traits'"):
        report["score"].ols["race"]
    with pytest.raises(KeyError, match="'kind', 'sex', 'kind × sex'"):
        report.collinearity["race"]


def test_repeated_rows_are_said() -> None:
    table = _table()
    assert "rows repeat" not in str(_quick(table))
    twice = {name: np.concatenate([x, x[:5]]) for name, x in table.items()}
    assert "5 rows repeat another in every column used" in str(_quick(twice))


def test_reference_reaches_every_part() -> None:
    s = _quick(_table(), reference={"kind": "c"}, k=20)["score"]
    assert s.ols["categories"].reference == {"kind": "c", "sex": "f"}
    assert s.logit["kind"].reference == "c"


@pytest.mark.parametrize(
    ("drop", "absent", "reason"),
    [
        (("kind", "sex"), ("groups", "anova", "logit", "held"), "no column of labels"),
        (COLOUR, (), "No colour: the table has no red_mean, green_mean, blue_mean"),
        (("red_mean",), (), "No colour: the table has no red_mean; colour="),
        (("luminance",), ("held",), 'luminance="lum" names a column'),
        (("kind", "sex", "luminance", "skin", *COLOUR), tuple(PARTS[:-1]), "no colour and no"),
    ],
)
def test_what_a_table_lacks_is_said_and_the_rest_is_there(drop: tuple, absent: tuple, reason: str) -> None:
    report = _quick({name: x for name, x in _table().items() if name not in drop}, tree=True, k=20)
    s = report["score"]
    for part in PARTS:
        assert bool(getattr(s, part)) == (part not in absent), part
    assert reason in str(report)
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.figures().keys() <= {"score_histogram", "score_ridges", "score_luminance_kind", "score_luminance_sex"}


def test_small_tables_get_a_smaller_k_and_no_regressions() -> None:
    report = _quick({name: x[:6] for name, x in _table().items()}, tree=True)
    s = report["score"]
    assert report.k == 1
    assert "6 rows have no 100 highest and 100 lowest" in str(report)
    assert "too few rows" in s.skipped["least squares: categories + colour"]
    assert "10 rows" in s.skipped["decision tree: colour"]
    assert s.correlations["luminance"].n == s.groups["kind × sex"].n == 6


def test_empty_cells_leave_out_the_interactions() -> None:
    table = _table()
    table["sex"][table["kind"] == "a"] = "f"
    report = _quick(table)
    assert "1 of 6 cells of kind × sex have fewer than 2 rows: no interactions" in str(report)
    assert "categories with interactions" not in report["score"].ols
    assert [r.term for r in report["score"].anova["kind × sex, Type II"].rows] == ["kind", "sex"]
    assert report["score"].groups["kind × sex"].row(kind="a", sex="m").n == 0
    asked = _quick(table, interactions="all")["score"]
    assert "least squares: categories with interactions" in asked.skipped
    assert "categories + luminance" in asked.ols


def test_columns_that_are_never_known_together() -> None:
    table, half = _table(), np.arange(90) < 45
    table["kind"], table["sex"] = np.where(half, table["kind"], ""), np.where(half, "", table["sex"])
    table["luminance"][half] = np.nan
    table["red_mean"][~half] = np.nan
    table["green_mean"][half] = np.nan
    report = _quick(table, tree=True, k=20)
    assert report.figures().keys() == {"score_luminance_sex"}
    s = report["score"]
    assert [s.groups["kind × sex"].row(**margin).n for margin in ({"kind": "a"}, {"sex": "f"})] == [15, 21]
    assert s.groups["kind × sex"].row(kind="a", sex="f").n == 0
    assert s.anova.keys() == {"sex, Type II", "sex + luminance, Type I", "sex + luminance, Type II"}
    assert [(r.model, r.term) for r in s.held.rows] == [("sex", "sex")]
    assert "luminance by kind" in report.skipped
    assert {"least squares: colour", "analysis of variance: kind × sex, Type II"} <= s.skipped.keys()
    assert s.ols.keys() == {"luminance", "traits"}
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.to_markdown().startswith(str(report))


def test_many_cells_are_shown_by_factor() -> None:
    rng = np.random.default_rng(0)
    table = {"score": rng.normal(size=400)} | {
        f"f{i}": np.array(list("abcde"))[rng.integers(0, 5, 400)] for i in range(3)
    }
    s = _quick(table)["score"]
    assert list(s.groups) == ["f0", "f1", "f2"]
    assert "125 cells" in s.skipped["groups of f0 × f1 × f2"]
    assert "categories with interactions" not in s.ols


def test_without_the_extra_the_rest_is_there(monkeypatch) -> None:
    for package in ("statsmodels", "numpyro"):
        monkeypatch.setitem(sys.modules, package, None)
    report = audit(_table(), k=20)
    s = report["score"]
    assert s.ols == s.bayes == {}
    assert s.anova and s.trees and s.correlations  # noqa: PT018
    for part in ("least squares: colour", "Bayesian regression: traits"):
        assert "pip install 'fairface_synth[audit]'" in s.skipped[part]
    assert "statsmodels is not installed" in str(report)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: audit({"x": [1.0, 2, 3]}), "no scores"),
        (lambda t: audit({"score": ["1.5", "2", "n/a", "b"]}), r"'score' is text\n.*no number: 'n/a', row 3"),
        (lambda t: audit({"score;race": ["1.5;white", "2;black"]}), "is it separated by ';'?"),
        (lambda t: audit(t | {"luminance": 255 * t["luminance"]}), "is no luminance"),
        (lambda t: audit(t, scores="kind"), "is text"),
        (lambda t: audit(t | {"score": np.array(["0.5", "n/a"] * 45)}, scores="score"), "'n/a', row 2"),
        (lambda t: audit(t | {"score": np.where(np.arange(90) < 2, np.nan, t["score"])}), "2 of 90 values"),
        (lambda t: audit(t | {"score": np.where(np.arange(90) < 1, np.inf, t["score"])}), "infinite"),
        (lambda t: audit(t | {"score": np.ones(90)}), "same in every row"),
        (lambda t: audit({n: x[:2] for n, x in t.items()}), "too few rows"),
        (lambda t: audit({n: x[:0] for n, x in t.items()}), "too few rows"),
        (lambda t: audit(t, factors=["kind", "race"]), "no such column"),
        (lambda t: audit(t, factors="score"), "used as something else"),
        (lambda t: audit(t, traits=["kind"]), "used as something else"),
        (lambda t: audit(t, factors="sex", traits=["kind"]), "is text"),
        (lambda t: audit(t, colour=("r", "g", "b")), "no such column"),
        (lambda t: audit(t, colour=("red_mean",)), "three columns"),
        (lambda t: audit(t | {"red_mean": t["red_mean"] / 255}), "no mean colour"),
        (lambda t: audit(t | {"luminance": t["luminance"] / 0}), "infinite"),
        (lambda t: audit(t, luminance="Y"), "no such column"),
        (lambda t: audit(t, reference={"race": "white"}), "no factor"),
        (lambda t: audit(t, reference={"kind": "white"}), "no level 'white'"),
        (lambda t: audit(t, reference="a"), "no mapping"),
        (lambda t: audit(t, k=0), "k is out of range"),
        (lambda t: audit(t, k=2.5), "k is out of range"),
        (lambda t: audit(t, bayes=["colours"]), "unknown Bayesian"),
        (lambda t: audit("nowhere.csv"), "no such table"),
        (lambda t: audit(t, bayes=False)["raw"], "no such score"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(DataError, match=message), np.errstate(divide="ignore"):
        call(_table())


# --- the Bayesian part, once -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # so few draws need not converge
def test_posterior_under_the_published_prior_is_near_least_squares() -> None:
    report = audit(MEN, bayes="colour", draws=150, tree=False)
    s = report["score"]
    for column in COLOUR:
        row, fit = s.bayes["colour"][column], s.ols["colour"][column]
        assert abs(row.mean - fit.estimate) < 1.5 * fit.se
        assert row.low < row.mean < row.high
    assert list(s.bayes) == ["colour"]
    assert "posterior red_mean [95 %]" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


# --- what is written ---------------------------------------------------------------------------------------------


def test_to_dict_is_json_with_infinities_and_gaps_as_it_has_them() -> None:
    table = _table()
    table["kind"] = np.where(table["score"] >= np.sort(table["score"])[45], "a", "b")  # separated
    report = _quick(table, k=20)
    numbers = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    row = next(r for r in numbers["scores"]["score"]["logit"]["kind"]["rows"] if r["reason"].startswith("separated"))
    assert row["estimate"] in ("inf", "-inf")
    assert row["se"] is None
    assert numbers["columns"]["rows"] == 90
    assert numbers["scores"]["score"]["mean"] == pytest.approx(table["score"].mean())


def test_saved_reports_are_complete_and_not_overwritten(tmp_path: Path, monkeypatch) -> None:
    report = _quick(_table(), k=20)
    folder = tmp_path / "a" / "report"
    path = report.save(folder, dpi=30)
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert sorted(links) == sorted(p.name for p in folder.glob("*.png"))
    assert len(links) == len(report.figures()) == 4
    assert all((folder / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert json.loads((folder / "audit.json").read_text()) == report.to_dict()
    with pytest.raises(DataError, match="holds a report already"):
        report.save(folder)
    (folder / "notes.txt").write_text("mine")
    report.save(folder, overwrite=True, dpi=30)
    assert (folder / "notes.txt").read_text() == "mine"
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.save(folder, overwrite=True, dpi=30)
    assert not path.exists()  # half a report does not pass for one
    assert not list(folder.glob(".*"))
    with pytest.raises(DataError, match="this is a file"):
        report.save(folder / "notes.txt")


def test_file_names_are_safe(tmp_path: Path) -> None:
    table = _table()
    table["score, ../raw"] = table.pop("score")
    _quick(table, k=20).save(tmp_path, dpi=30)
    assert "score_.._raw_histogram.png" in {p.name for p in tmp_path.iterdir()}


# --- figures -----------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.integers(1, 12), st.integers(1, 100), st.integers(0, 100))
def test_bars_have_the_mean_colour_and_number_of_their_images(bins: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, rgb = rng.normal(size=n).round(1), rng.uniform(0, 255, (n, 3))
    (ax,) = plotting.score_histogram(scores, rgb, bins=bins).axes
    edges = np.histogram_bin_edges(scores, bins)
    bars = iter(ax.patches)
    for i in range(bins):
        own = (scores >= edges[i]) & ((scores <= edges[i + 1]) if i == bins - 1 else (scores < edges[i + 1]))
        if own.any():
            bar = next(bars)
            assert (bar.get_x(), bar.get_height()) == (edges[i], own.sum())
            np.testing.assert_allclose(bar.get_facecolor()[:3], rgb[own].mean(0) / 255)
            assert sum(to_rgb(bar.get_edgecolor())) < 1  # dark edges: a pale bar is seen
    assert not list(bars)
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 1  # one image is a bar too


def test_ridges_are_densities_and_few_scores_are_ticks() -> None:
    rng = np.random.default_rng(0)
    groups = ["many"] * 200 + ["few"] * 4 + ["same"] * 6 + [""]
    scores = np.concatenate([rng.normal(5, 1, 200), [0, 1, 2, 3], [4] * 6, [100]])
    (ax,) = plotting.score_ridges(scores, groups).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["same (n = 6)", "many (n = 200)", "few (n = 4)"]
    curves = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert len(curves) == 1
    x, height = curves[0].get_data()
    assert abs(x[np.argmax(height)] - 5) < 0.5
    dots = [(float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in ax.lines if len(line.get_xdata()) == 1]
    assert dots == [(4.0, 0), (pytest.approx(scores[:200].mean()), 1), (1.5, 2)]
    ticks = [segment[0][0] for c in ax.collections if hasattr(c, "get_segments") for segment in c.get_segments()]
    assert sorted(ticks) == [0, 1, 2, 3, *[4] * 6]


def test_scatters_show_each_group_over_the_common_line() -> None:
    table = _table()
    figure = plotting.score_scatter(table["score"], table["luminance"], table["kind"].tolist())
    slope, intercept = np.polyfit(table["luminance"], table["score"], 1)
    for ax, kind in zip(figure.axes, "abc", strict=True):
        assert ax.get_title() == f"{kind} (n = 30)"
        own = np.column_stack([table["luminance"], table["score"]])[table["kind"] == kind]
        np.testing.assert_allclose(ax.collections[1].get_offsets(), own)
        x, y = ax.lines[0].get_data()
        np.testing.assert_allclose(y, intercept + slope * x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plotting.score_histogram([1.0], [[0, 0]]), ShapeError, "one colour per score"),
        (lambda: plotting.score_histogram([], np.zeros((0, 3))), ShapeError, "cannot be drawn"),
        (lambda: plotting.score_histogram([np.nan], [[0, 0, 0]]), DataError, "not finite"),
        (lambda: plotting.score_histogram([1.0], [[0, 0, 256]]), DataError, "colours 0–256"),
        (lambda: plotting.score_histogram([1.0], [[0, 0, 0]], bins=0), DataError, "bins=0"),
        (lambda: plotting.score_ridges([1.0, 2.0], ["a"]), ShapeError, "one group per score"),
        (lambda: plotting.score_ridges([1.0], [""]), DataError, "no score belongs"),
        (lambda: plotting.score_scatter([1.0, 2.0], [1.0], ["a", "b"]), ShapeError, "one score, covariate"),
        (lambda: plotting.score_scatter([1.0, 2.0], [1.0, 1.0], ["a", "b"]), DataError, "constant 1"),
        (lambda: plotting.score_scatter([1.0, 2.0], [1.0, 2.0], ["", ""]), DataError, "only ''"),
    ],
)
def test_bad_figures(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_men_can_be_read_as_every_kind_of_table(men: AuditReport) -> None:
    frame = pd.read_csv(MEN)
    for table in (frame, read_table(MEN)):
        assert _quick(table)["score"].anova == men["score"].anova
    frame = men["score"].groups["race × hair"].to_frame()
    assert frame.query("race == 'black' and hair == 'long'")["mean"].item() == pytest.approx(121.557, abs=1e-3)
    assert list(men["score"].held.to_frame()["term"]) == ["race", "hair", "race", "hair", "race:hair"]
