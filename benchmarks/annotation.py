"""Cell types by fine-tuning `scgpt-demo`, beside plain methods on the same cells: known types, and types that are new.

Each call is one arm of one data set with one seed and prints a line of JSON; one process each.

    python benchmarks/annotation.py shared/data --case tian --recipe converged --seed 0
    python benchmarks/annotation.py shared/data --case pbmc_3_chemistries --leave-out NK --seed 0

A case is a reference and a query of one file or two; `kang` is the one that settings were chosen on.  `--recipe`: `ten` epochs
at scGPT's rate, as the originals do, `converged`, our default, or
`expression`, which is asked of the embedding too.  With `--leave-out` the reference loses a class, and the line has AUROCs of
several scores that tell its cells in the query from others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter

import anndata as ad
import numpy as np
import torch

import scgpt_tools as sct
from scgpt_tools.models.gene_classifier import N_GENES, GeneClassifier, log_normalised, variable_columns
from scgpt_tools.objectives import CellType, MaskedExpressionFromCell
from scgpt_tools.tokens.corruptions import GenerateExpression

RECIPES: dict[str, dict[str, object]] = {
    "ten": {"epochs": 10, "lr": 1e-4, "validation": 0.1},
    "converged": {},
    # That of tutorials/annotation.ipynb, with cells to validate on.
    "expression": {
        "objectives": [CellType(), MaskedExpressionFromCell(weight=0.005)],
        "corruption": GenerateExpression(visible=200, expressed=32, unexpressed=32),
        "epochs": 12, "lr": 1e-3, "schedule": "cosine", "weight_decay": 0.05,
    },
}  # fmt: skip


def read(folder: Path, name: str) -> ad.AnnData:
    """A file, with its classes in the column `type`."""
    cells = ad.read_h5ad(next(folder.glob(f"{name}*.h5ad")))
    key = "cell_type_harmonised" if "cell_type_harmonised" in cells.obs else "cell_type"
    cells.obs["type"] = cells.obs[key].astype(str)
    return cells


def divided(folder: Path, case: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Reference and query."""
    if case == "tian":  # two plates of five cell lines, 120 cells, name the third and other methods
        cells = read(folder, "tian2019")
        cells.var_names = cells.var["gene_symbol"].astype(str)
        cells.var_names_make_unique()
        known = cells.obs["batch"].isin(["CEL-seq2 plate 1", "CEL-seq2 plate 2"])
    elif case == "baron_donors":
        cells = read(folder, "baron2016")
        cells = cells[cells.obs["organism"] == "Homo sapiens"].copy()
        known = cells.obs["batch"].isin(["human1", "human3", "human4"])
    elif case == "baron_mouse":
        cells = read(folder, "baron2016")
        known = cells.obs["organism"] == "Homo sapiens"
    elif case == "pbmc3k_to_chemistries":
        return read(folder, "pbmc3k"), read(folder, "pbmc_3_chem")
    elif case == "pbmc_3_chemistries":
        cells = read(folder, "pbmc_3_chem")
        known = cells.obs["batch"] != "5p"
    elif case == "pbmc3k":
        cells, others = read(folder, "pbmc3k"), read(folder, "pbmc_3_chem")
        cells = cells[::2, cells.var_names.isin(others.var_names)].copy()
        sct.pp.cell_split(cells, test=0.4, val=0.0)
        known = cells.obs["split"] == "train"
    else:
        cells = read(folder, "kang2018_ifnb_annotated")
        known = cells.obs["condition"] == "control"
    known = known.to_numpy()
    return cells[known].copy(), cells[~known].copy()


def plain(reference: ad.AnnData, query: ad.AnnData) -> dict[str, np.ndarray]:
    """What plain methods say, fitted to the whole reference."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    genes = reference.var_names.intersection(query.var_names)
    known, asked = (log_normalised(cells[:, genes].X.tocsr()) for cells in (reference, query))
    chosen = variable_columns(known, N_GENES)
    known, asked, genes = known[:, chosen], asked[:, chosen], genes[chosen]
    classes, codes = np.unique(reference.obs["type"], return_inverse=True)
    linear = GeneClassifier.fit(known, codes, genes=genes, classes=classes)
    pca = PCA(min(50, *known.shape), random_state=0).fit(known.toarray())
    nearest = KNeighborsClassifier(10).fit(pca.transform(known.toarray()), codes)
    return {
        "linear": linear.probabilities(asked, linear.vocabulary.ids(genes)),
        "kNN on PCA": nearest.predict_proba(pca.transform(asked.toarray())),
    }


def scores(query: ad.AnnData, answers: np.ndarray) -> dict[str, float]:
    """Accuracy and macro F1."""
    found = sct.metrics.score_annotation(query.obs["type"], answers)
    return {"accuracy": round(found.accuracy, 4), "macro_f1": round(found.macro_f1, 4)}


def nearest_distances(known: np.ndarray, asked: np.ndarray, k: int, *, itself: bool = False) -> np.ndarray:
    """Mean squared distance to the k nearest known cells."""
    apart = (asked**2).sum(1)[:, None] - 2 * asked @ known.T + (known**2).sum(1)[None]
    if itself:
        np.fill_diagonal(apart, np.inf)
    return np.sort(apart.clip(0), axis=1)[:, :k].mean(axis=1)


def strangeness(known: np.ndarray, codes: np.ndarray, asked: np.ndarray, winner: np.ndarray) -> dict[str, np.ndarray]:
    """Scores that grow with how little a cell is like the reference, from one embedding."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (known, asked)]
    found = {f"{k} nearest": nearest_distances(known, asked, k) for k in (1, 5, 10)}
    found |= {f"{k} nearest, cosine": nearest_distances(*unit, k) for k in (1, 5, 10)}
    own = nearest_distances(known, known, 5, itself=True)
    typical = np.array(
        [np.median(own[codes == code]) if (codes == code).any() else np.median(own) for code in range(codes.max() + 1)]
    )
    found["5 nearest, by class"] = found["5 nearest"] / typical[winner]
    centred = np.concatenate([known[codes == code] - known[codes == code].mean(0) for code in np.unique(codes)])
    covariance = centred.T @ centred / len(centred)
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    root = np.linalg.cholesky(np.linalg.inv(covariance))
    means = np.stack([known[codes == code].mean(0) for code in np.unique(codes)])
    whole = known - known.mean(0)
    around = np.cov(whole.T) + 1e-3 * np.trace(np.cov(whole.T)) / known.shape[1] * np.eye(known.shape[1])
    background = (((asked - known.mean(0)) @ np.linalg.cholesky(np.linalg.inv(around))) ** 2).sum(1)
    found["Mahalanobis"] = (((asked[:, None] - means) @ root) ** 2).sum(-1).min(1)
    found["Mahalanobis, relative"] = found["Mahalanobis"] - background
    found["5 nearest, whitened"] = nearest_distances(known @ root, asked @ root, 5)
    return found


def auroc(new: np.ndarray, score: np.ndarray) -> float:
    """Chance that a cell of the new class looks stranger than another."""
    from sklearn.metrics import roc_auc_score

    return round(float(roc_auc_score(new, score)), 3)


def embeddings(model: sct.CellModel, cells: ad.AnnData) -> dict[str, np.ndarray]:
    """Cell token, and mean of the tokens, not normalised."""
    found = {}
    for pooling in ("cls", "mean"):
        sct.tl.embed(cells, model, pooling=pooling, normalize=False, key_added=f"X_{pooling}")
        found[pooling] = np.asarray(cells.obsm[f"X_{pooling}"], dtype=np.float64)
    with torch.inference_mode():
        hidden = model.heads["cell_type"].hidden if "cell_type" in model.heads else None
        if hidden is not None:
            found["hidden"] = hidden(torch.from_numpy(found["cls"]).float()).double().numpy()
    return found


def open_set(model: sct.CellModel, reference: ad.AnnData, query: ad.AnnData, new: np.ndarray) -> dict[str, float]:
    """AUROC of every score."""
    classes = list(model.config.heads["cell_type"].names)
    codes = np.array([classes.index(name) for name in reference.obs["type"]])
    probabilities = query.obsm["scgpt_cell_type_probabilities"].astype(np.float64)
    winner = probabilities.argmax(1)
    found = {
        "confidence": 1 - probabilities.max(1),
        "entropy": -(probabilities * np.log(probabilities.clip(1e-12))).sum(1),
        "distance": query.obs["scgpt_cell_type_distance"].to_numpy(),
        "p-value": 1 - query.obs["scgpt_cell_type_p_value"].to_numpy(),
    }
    base = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    for name, used in (("tuned", model), ("zero-shot", base)):
        known, asked = embeddings(used, reference), embeddings(used, query)
        for layer in known:
            found |= {
                f"{name} {layer}: {score}": value
                for score, value in strangeness(known[layer], codes, asked[layer], winner).items()
            }
    return {name: auroc(new, value) for name, value in found.items()} | plain_open_set(reference, query, new)


def plain_open_set(reference: ad.AnnData, query: ad.AnnData, new: np.ndarray) -> dict[str, float]:
    """AUROC of scores that need no network: distances on principal components, and what logistic regression says."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    genes = reference.var_names.intersection(query.var_names)
    known, asked = (log_normalised(cells[:, genes].X.tocsr()) for cells in (reference, query))
    chosen = variable_columns(known, N_GENES)
    known, asked = known[:, chosen], asked[:, chosen]
    codes = np.unique(reference.obs["type"], return_inverse=True)[1]
    linear = LogisticRegression(max_iter=200).fit(known, codes)
    probabilities = linear.predict_proba(asked)
    pca = PCA(50, random_state=0).fit(known.toarray())
    near, far = (pca.transform(values.toarray()) for values in (known, asked))
    found = {f"PCA: {score}": value for score, value in strangeness(near, codes, far, probabilities.argmax(1)).items()}
    found["linear: confidence"] = 1 - probabilities.max(1)
    found["linear: largest logit"] = -linear.decision_function(asked).max(1)
    return {name: auroc(new, value) for name, value in found.items()}


def arm(options: argparse.Namespace) -> dict[str, object]:
    """One training, and what it and plain methods say of the query."""
    start = perf_counter()
    reference, query = divided(options.folder, options.case)
    if options.leave_out is not None:
        reference = reference[reference.obs["type"] != options.leave_out].copy()
    genes = reference.var_names.intersection(query.var_names)
    reference, query = reference[:, genes].copy(), query[:, genes].copy()
    if options.plain:
        new = (query.obs["type"] == options.leave_out).to_numpy()
        return {
            "left out": options.leave_out,
            "new cells": int(new.sum()),
            "auroc": plain_open_set(reference, query, new),
        }
    settings: dict[str, object] = dict(RECIPES[options.recipe])
    if options.validation is not None:
        settings["validation"] = options.validation
    model = sct.train.finetune(
        reference, "scgpt-demo", task="annotate", label_key="type", rng=options.seed, accelerator="cpu",
        extend=options.extend, **settings,
    )  # fmt: skip
    steps, seconds = int(model.history["step"].iloc[-1]), perf_counter() - start
    sct.tl.annotate(query, model)
    line: dict[str, object] = {
        "case": options.case, "recipe": options.recipe, "seed": options.seed, "extend": options.extend,
        "reference": reference.n_obs, "query": query.n_obs, "steps": steps, "seconds": round(seconds),
        "left out": options.leave_out, "check": model.comparison["accuracy"].round(3).to_dict(),
    }  # fmt: skip
    if options.leave_out is not None:
        new = (query.obs["type"] == options.leave_out).to_numpy()
        rejected = (query.obs["scgpt_cell_type_p_value"] <= 0.05).to_numpy()
        at_5 = {"known": round(float(rejected[~new].mean()), 3), "new": round(float(rejected[new].mean()), 3)}
        scored = open_set(model, reference, query, new)
        return line | {"new cells": int(new.sum()), "rejected at 0.05": at_5, "auroc": scored}
    probabilities = query.obsm["scgpt_cell_type_probabilities"]
    classes = np.array(model.config.heads["cell_type"].names)
    others = plain(reference, query)
    every = {"fine-tuned": probabilities, **others, "fine-tuned and linear": probabilities + others["linear"]}
    largest = reference.obs["type"].mode()[0]
    line["scores"] = {name: scores(query, classes[found.argmax(1)]) for name, found in every.items()}
    line["scores"]["majority"] = scores(query, np.full(query.n_obs, largest))
    return line


def main() -> None:
    """Run one arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", required=True)
    parser.add_argument("--recipe", choices=list(RECIPES), default="converged")
    parser.add_argument("--extend", choices=["auto", "all"], default="auto")
    parser.add_argument("--leave-out")
    parser.add_argument(
        "--plain", action="store_true", help="with --leave-out: scores that need no network, and nothing else"
    )
    parser.add_argument("--validation", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.plain and options.leave_out is None:
        parser.error("--plain scores cells of a class that is left out: name it with --leave-out")
    torch.set_num_threads(1)
    sct.settings.show_progress = False
    print(json.dumps(arm(options)), flush=True)


if __name__ == "__main__":
    main()
