"""Score the demo model on cells that it has not seen, and write its card.

The numbers depend on the weights and the data only: all seeds are fixed.  Run after training, from the root of the
repository, with the data in the folder that the first argument names::

    python scripts/evaluate_demo.py data
"""

from __future__ import annotations

import argparse
import hashlib
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

import scgpt_tools as sct
from scgpt_tools.metrics.embedding import score_clusters
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.train.collection import find_files, open_collection
from scgpt_tools.train.pretrain import PretrainConfig, new_model, read_config

FOLDER = Path(__file__).parents[1] / "src" / "scgpt_tools" / "models" / "demo"
LABELS = "cell_type"
TITLES = {"pbmc_demo": "PBMC 68k, the part that scanpy ships", "pbmc3k_annotated": "PBMC 3k"}
SEEDS, NEIGHBOURS, COMPONENTS = range(10), 10, 50


def main() -> None:
    """Read the arguments, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the files that the configuration names")
    parser.add_argument("--model", type=Path, default=FOLDER, help="folder of the trained model; its card is written")
    parser.add_argument("--history", type=Path, help="history.csv of the training, for its length")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    sct.settings.show_progress = False
    config = read_config(arguments.model / "pretrain.yaml")
    model = CellModel.from_pretrained(arguments.model, device="cpu")
    untrained = new_model(config, model.vocabulary).eval()
    tables = {path.stem: ad.read_h5ad(path) for path in find_files(config.data.paths, arguments.data)}
    with open_collection(config.data, arguments.data) as collection:
        parts = dict(zip(tables, (collection.of_source(i) for i in range(len(tables))), strict=True))
    scores = pd.concat({name: score(tables[name], parts[name], model, untrained) for name in tables})
    seconds = None if arguments.history is None else float(pd.read_csv(arguments.history)["seconds"].sum())
    card = write_card(config, model, tables, parts, scores, seconds)
    (arguments.model / "README.md").write_text(card, encoding="utf-8")
    print(scores.round(3).to_string())


def score(adata: ad.AnnData, parts: np.ndarray, model: CellModel, untrained: CellModel) -> pd.DataFrame:
    """Scores of held-out cells, one row an embedding."""
    held, train = parts == "test", parts == "train"
    labels = adata.obs[LABELS].astype(str).to_numpy()
    X = adata.X.toarray()
    embeddings = {
        "scgpt-demo": embedded(adata, model),
        "untrained, same size": embedded(adata, untrained),
        f"PCA, {COMPONENTS} components": PCA(COMPONENTS, svd_solver="full").fit(X[train]).transform(X),
    }
    rows = {}
    for name, embedding in embeddings.items():
        clusters = [score_clusters(embedding[held], labels[held], rng=seed) for seed in SEEDS]
        neighbours = KNeighborsClassifier(NEIGHBOURS).fit(embedding[train], labels[train])
        rows[name] = {
            "NMI": np.mean([one.nmi for one in clusters]),
            "ARI": np.mean([one.ari for one in clusters]),
            "ASW": clusters[0].asw,
            "k-NN accuracy": neighbours.score(embedding[held], labels[held]),
        }
    return pd.DataFrame(rows).T


def embedded(adata: ad.AnnData, model: CellModel) -> np.ndarray:
    """The embedding that users get."""
    copy = sct.tl.embed(adata, model, copy=True, rng=0)
    return copy.obsm["X_scGPT"]


def hash_of(names: pd.Index) -> str:
    """SHA-256 of sorted names, one a line."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def write_card(
    config: PretrainConfig,
    model: CellModel,
    tables: dict[str, ad.AnnData],
    parts: dict[str, np.ndarray],
    scores: pd.DataFrame,
    seconds: float | None,
) -> str:
    """The card as Markdown."""
    size = ", ".join(f"{name} {value}" for name, value in asdict(config.family).items())
    weights = sum(parameter.numel() for parameter in model.parameters())
    duration = "" if seconds is None else f" took {seconds / 60:.0f} minutes on one thread of a shared machine and"
    tested = "".join(
        f"| {TITLES[name]} | {int((parts[name] == 'train').sum())} | {int((parts[name] == 'test').sum())} | "
        f"`{hash_of(tables[name].obs_names[parts[name] == 'test'])}` |\n"
        for name in tables
    )
    blocks = "\n".join(block(TITLES[name], scores.loc[name], tables[name], parts[name]) for name in tables)
    return CARD.format(
        size=size,
        weights=f"{weights:,}",
        genes=f"{len(model.vocabulary) - len(model.vocabulary.specials):,}",
        checksum=model.checksum,
        duration=duration,
        tested=tested,
        blocks=blocks,
        machine=f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, "
        f"numpy {version('numpy')}, scikit-learn {version('scikit-learn')}",
        seeds=len(SEEDS),
        neighbours=NEIGHBOURS,
    )


def block(title: str, scores: pd.DataFrame, adata: ad.AnnData, parts: np.ndarray) -> str:
    """Scores of one data set as a table."""
    held = adata.obs[LABELS][parts == "test"]
    head = "| | " + " | ".join(scores.columns) + " |\n" + "|---|" + "--:|" * scores.shape[1] + "\n"
    rows = "".join(
        f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |\n" for name, row in scores.iterrows()
    )
    return f"### {title}: {len(held)} held-out cells, {held.nunique()} cell types\n\n{head}{rows}"


CARD = """\
# scgpt-demo

A small scGPT for tests and tutorials, pre-trained from scratch by this package.  **Not for research**: it has seen two
thousand blood cells of two people and knows nothing else.

## The model

{size}; {weights} parameters, {genes} genes, 51 bins.  Checksum `{checksum}`.

## How it was trained

`pretrain.yaml` beside this file is all there is to it.  Some expressed genes of a cell are shown; the network predicts the
bins of other genes, expressed and silent ones, once from their tokens and once from the cell embedding alone.  No label
was used.  Training{duration} starts from the same seeds.  Another number of threads differs by rounding,
which grows with the steps:

```console
$ mkdir -p data    # and put pbmc3k_annotated.h5ad there
$ python -c "import scgpt_tools as sct; sct.datasets.pbmc_demo().write_h5ad('data/pbmc_demo.h5ad')"
$ OMP_NUM_THREADS=1 scgpt-tools pretrain --config src/scgpt_tools/models/demo/pretrain.yaml --data data --output model
$ python scripts/evaluate_demo.py data    # writes this card
```

Data: 700 cells of 10x Genomics' "Fresh 68k PBMCs (Donor A)" with 765 genes, as scanpy ships them, and 1,847 annotated
cells of 10x Genomics' "3k PBMCs from a Healthy Donor" with 13,714 genes (both CC BY 4.0).  A fifth of the cells of each
was put aside by a hash of seed and name; the sums are SHA-256 of their sorted names, one a line.

| data | trained on | held out | names of those held out |
|---|--:|--:|---|
{tested}
## What it can and cannot do

Held-out cells only, embedded by `sct.tl.embed`.  NMI and ARI compare k-means clusters, as many as there are types, with the
authors' cell types (means over {seeds} seeds); ASW is the silhouette width of the types, 0.5 where they overlap; the
last column is the accuracy of {neighbours} nearest neighbours among the training cells.  PCA was fitted on the
log-normalised training cells of the same data set; it sees all of its genes.

{blocks}
The model separates cell types that an untrained one of its size mixes.  Where PCA scores higher, it is the better
choice: two thousand cells are no corpus to pre-train on.

Scored on {machine}.
"""


if __name__ == "__main__":
    main()
