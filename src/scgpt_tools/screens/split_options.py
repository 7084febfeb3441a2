"""Settings of a split of conditions, however it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from scgpt_tools._validate import check_flag, check_fraction, check_integer, check_texts


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Settings of a split of conditions; the names that GEARS uses stand in brackets."""

    rng: int = 1
    train_genes: float = 0.75
    """Share of genes to train on in simulations (``train_gene_set_size``)."""
    train_seen2: float = 0.75
    """Share to train on of combinations whose genes are all trained on (``combo_seen2_train_frac``)."""
    test_fraction: float = 0.1
    """Share to test in the other methods (``combo_single_split_test_set_fraction``)."""
    val_fraction: float = 0.1
    """Share of what is left to validate on; in simulations the share of genes."""
    test_genes: tuple[str, ...] | None = None
    """Genes to hold out instead of drawn ones (``test_pert_genes``; ``test_perts`` in simulations)."""
    test_conditions: tuple[str, ...] | None = None
    """Combinations to hold out instead of drawn ones (``test_perts`` in ``combo_seen2``)."""
    only_test_genes: bool = False
    """In simulations as GEARS draws them: hold out no gene but ``test_genes`` (``only_test_set_perts``)."""

    def __post_init__(self) -> None:
        for name in ("train_genes", "train_seen2", "test_fraction", "val_fraction"):
            check_fraction(name, getattr(self, name))
        check_integer("rng", self.rng, least=0)
        check_flag("only_test_genes", self.only_test_genes)
        for name in ("test_genes", "test_conditions"):
            if getattr(self, name) is not None:
                check_texts(name, getattr(self, name), least=0)
