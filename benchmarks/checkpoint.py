"""Write a full-size scGPT checkpoint with random weights, in the format of the released ones.

    python benchmarks/checkpoint.py FOLDER [--genes-of FILE.h5ad]

12 layers, 512 wide, 60,697 tokens, fused attention names; about 200 MB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scgpt_tools.models import CellModel
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.vocabulary import Vocabulary

N_GENES = 60_694


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--genes-of", type=Path, help="h5ad file whose genes the vocabulary should know")
    arguments = parser.parse_args()
    genes: list[str] = []
    if arguments.genes_of is not None:
        import anndata

        genes = list(anndata.read_h5ad(arguments.genes_of, backed="r").var_names)
    genes += [f"GENE{number}" for number in range(N_GENES - len(genes))]
    vocabulary = Vocabulary([*genes, "<pad>", "<cls>", "<eoc>"])
    torch.manual_seed(0)
    CellModel(scgpt(vocabulary), vocabulary).export(arguments.folder, attention_names="fused")


if __name__ == "__main__":
    main()
