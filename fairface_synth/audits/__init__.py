"""What a discriminator's scores go with, on a table of scores, image covariates and labels.

After Grissom II et al. 2024 (arXiv 2402.09786). `audit` runs everything on one table; each statistic can also be had
alone. They take a table (whatever `read_table` reads) and names of columns, and leave the table alone. A label "",
"unknown" or "nan" and a number NaN are missing: such rows are left out of the statistic that needs them, counted in
the result's `missing`, and shown when it is printed. docs/audits.md says how to read the results and what not to
conclude.

- report.py: `audit` and its `AuditReport`: text, figures, files.
- scores.py: everything about one score column, `ScoreAudit`; what is left when luminance is held.
- roles.py: which columns of the table are used, and as what.
- descriptive.py: `group_table`, `correlations`, `top_bottom`.
- linear.py: `ols`, `anova`. logit.py: `multinomial_logit`. bayes.py: `bayes_linreg`. trees.py: `tree_report`.
- columns.py reads columns, labels and levels; design.py makes design matrices; results.py is what results share.
"""

from .bayes import BayesLinreg, Posterior, Prior, bayes_linreg
from .descriptive import (
    Correlation,
    Correlations,
    Extreme,
    GroupRow,
    GroupTable,
    TopBottom,
    correlations,
    group_table,
    top_bottom,
)
from .design import Interactions
from .linear import OLS, Anova, AnovaTerm, Coefficient, anova, ols
from .logit import LevelOdds, MultinomialLogit, multinomial_logit
from .report import AuditReport, audit
from .results import Result
from .roles import Columns
from .scores import HeldTerm, LuminanceHeld, ScoreAudit
from .trees import Importance, TreeReport, tree_report

__all__ = [
    "OLS",
    "Anova",
    "AnovaTerm",
    "AuditReport",
    "BayesLinreg",
    "Coefficient",
    "Columns",
    "Correlation",
    "Correlations",
    "Extreme",
    "GroupRow",
    "GroupTable",
    "HeldTerm",
    "Importance",
    "Interactions",
    "LevelOdds",
    "LuminanceHeld",
    "MultinomialLogit",
    "Posterior",
    "Prior",
    "Result",
    "ScoreAudit",
    "TopBottom",
    "TreeReport",
    "anova",
    "audit",
    "bayes_linreg",
    "correlations",
    "group_table",
    "multinomial_logit",
    "ols",
    "top_bottom",
    "tree_report",
]
