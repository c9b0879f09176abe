"""The default trainers: a schema in, an unfitted scikit-learn estimator out. Name your own as "module:function"."""

from typing import Any

from inference.versions import Schema

SEED = 0


def classifier(schema: Schema) -> Any:
    """Logistic regression on scaled numbers and one-hot categories."""
    from sklearn.linear_model import LogisticRegression

    return _pipeline(schema, LogisticRegression(max_iter=2000, random_state=SEED))


def regressor(schema: Schema) -> Any:
    """Ridge regression on scaled numbers and one-hot categories."""
    from sklearn.linear_model import Ridge

    return _pipeline(schema, Ridge(random_state=SEED))


def _pipeline(schema: Schema, estimator: Any) -> Any:
    """scikit-learn's own classes only, so that the pickle also loads in KServe's stock scikit-learn server."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    # keep_empty_features: a feature that was never there must not change the width that the model is asked for.
    numbers = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    numeric = [i for i, feature in enumerate(schema.features) if feature.kind == "numeric"]
    categorical = [i for i, feature in enumerate(schema.features) if feature.kind == "categorical"]
    if not categorical:
        return make_pipeline(*(step for _, step in numbers.steps), estimator)
    columns = ColumnTransformer([("numbers", numbers, numeric), ("categories", OneHotEncoder(handle_unknown="ignore"), categorical)])
    return make_pipeline(columns, estimator)
