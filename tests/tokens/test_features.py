from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from scgpt_tools.tokens.coverage import Coverage

VOCABULARY = Vocabulary.from_genes(["TP53", "ACTB", "MARCHF8", "CD3D", "C1orf112", "HTR7", "GZMK"])
TP53, ACTB, CD3D = "ENSG00000141510", "ENSG00000075624", "ENSG00000167286"
SYMBOLS = {TP53: "TP53", ACTB: "ACTB", CD3D: "CD3D"}


def frame(*names: object, **columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object))


def match(var: pd.DataFrame, **options: object) -> FeatureTable:
    return FeatureTable.from_var(var, VOCABULARY, **{"min_coverage": 0, **options})


def outcomes(features: FeatureTable) -> list[str]:
    return features.coverage.to_frame()["outcome"].tolist()


def test_known_columns_get_their_ids_in_the_order_of_the_matrix():
    features = match(frame("CD3D", "nope", "ACTB", "TP53"))
    assert features.columns.tolist() == [0, 2, 3]
    assert features.names.tolist() == ["CD3D", "ACTB", "TP53"]
    assert features.ids.tolist() == [VOCABULARY[name] for name in ("CD3D", "ACTB", "TP53")]
    assert features.columns.dtype == features.ids.dtype == np.int64
    assert features.n_columns == 4
    assert len(features) == 3
    assert features.modality is None


def test_special_tokens_are_no_genes():
    features = match(frame("<pad>", "TP53", "<cls>"))
    assert features.names.tolist() == ["TP53"]
    assert features.coverage.n_vocabulary == 7


@pytest.mark.parametrize("kind", ["object", "category", "string"])
def test_names_from_a_column_of_any_text_type(kind):
    var = frame("a", "b", "c", symbol=pd.array(["TP53", None, "ACTB"], dtype=kind))
    features = match(var, column="symbol")
    assert features.columns.tolist() == [0, 2]
    assert outcomes(features) == ["exact", "unnamed", "exact"]


def test_nan_and_empty_names_are_no_names():
    var = frame("a", "b", "c", symbol=np.array([np.nan, "", "ACTB"], dtype=object))
    assert outcomes(match(var, column="symbol")) == ["unnamed", "unnamed", "exact"]


def test_numbers_as_names_match_their_digits():
    vocabulary = Vocabulary(["7157", "60"])
    features = FeatureTable.from_var(frame("a", "b", entrez=[60, 7157]), vocabulary, column="entrez")
    assert features.ids.tolist() == [1, 0]


def test_an_absent_column_names_the_nearest():
    with pytest.raises(KeyError, match="Did you mean 'gene_symbol'"):
        match(frame("TP53", gene_symbol=["TP53"]), column="gene_symbols")
    with pytest.raises(KeyError, match="Did you mean 'gene_symbol'"):
        match(frame("TP53", gene_symbol=["TP53"]), symbols="gene_symbols")


@pytest.mark.parametrize(
    "table",
    [
        SYMBOLS,
        {f"{name}.3": symbol for name, symbol in SYMBOLS.items()},
        pd.Series(SYMBOLS),
        pd.Series(SYMBOLS).to_frame("symbol"),
        pd.DataFrame({"id": list(SYMBOLS), "symbol": list(SYMBOLS.values())}),
        pd.DataFrame({"id": [*SYMBOLS, None, "x"], "symbol": [*SYMBOLS.values(), "TP53", np.nan]}),
    ],
    ids=["dict", "versioned", "series", "one column", "two columns", "holes"],
)
@pytest.mark.parametrize("version", ["", ".18", ".7_PAR_Y"])
def test_ensembl_ids_match_through_a_table_whatever_their_version(table, version):
    features = match(frame(f"{CD3D}{version}", "ENSG00000000001", f"{TP53}{version}"), symbols=table)
    assert features.names.tolist() == ["CD3D", "TP53"]
    assert outcomes(features) == ["ensembl", "missing", "ensembl"]


def test_symbols_may_stand_in_another_column():
    var = frame(TP53, "ACTB", "ENSG00000000001", symbol=["TP53", "not used", None])
    features = match(var, symbols="symbol")
    assert features.names.tolist() == ["TP53", "ACTB"]
    assert outcomes(features) == ["ensembl", "exact", "missing"]


def test_a_vocabulary_of_ensembl_ids_ignores_versions():
    features = FeatureTable.from_var(frame(f"{TP53}.18", ACTB), Vocabulary([ACTB, TP53]))
    assert features.ids.tolist() == [1, 0]


def test_dots_in_symbols_are_no_versions():
    with pytest.raises(ValueError, match="found none among 1 features"):
        FeatureTable.from_var(frame("RP11-34P13.7"), Vocabulary(["RP11-34P13"]))


def test_outdated_symbols_match_through_aliases():
    features = match(frame("MARCH8", "ACTB", "SEPT2"), aliases={"MARCH8": "MARCHF8", "SEPT2": "SEPTIN2"})
    assert features.names.tolist() == ["MARCHF8", "ACTB"]
    assert outcomes(features) == ["alias", "exact", "missing"]


def test_a_table_may_hold_an_outdated_symbol():
    features = match(frame("ENSG00000165406"), symbols={"ENSG00000165406": "MARCH8"}, aliases={"MARCH8": "MARCHF8"})
    assert features.names.tolist() == ["MARCHF8"]


@pytest.mark.parametrize("spelling", ["tp53", "Tp53", "C1ORF112"])
def test_case_counts_unless_told_otherwise(spelling):
    with pytest.raises(ValueError, match="ignore_case=True"):
        match(frame(spelling))
    assert outcomes(match(frame(spelling), ignore_case=True)) == ["case"]


def test_case_is_ignored_in_tables_too():
    options = {"symbols": {TP53.lower(): "tp53"}, "aliases": {"march8": "marchf8"}, "ignore_case": True}
    assert match(frame(TP53, "MARCH8"), **options).names.tolist() == ["TP53", "MARCHF8"]


def test_several_candidates_are_no_match():
    vocabulary = Vocabulary(["Abc", "ABC", "D", "E"])
    by_case = FeatureTable.from_var(frame("abc", "ABC", "D"), vocabulary, ignore_case=True)
    assert outcomes(by_case) == ["ambiguous", "exact", "exact"]
    by_alias = FeatureTable.from_var(
        frame("OLD", "ABC"), vocabulary, aliases=pd.Series(["D", "E"], index=["OLD", "OLD"])
    )
    assert outcomes(by_alias) == ["ambiguous", "exact"]
    assert by_alias.coverage.missing == ("OLD",)


def test_of_several_candidates_only_known_ones_count():
    table = pd.Series(["not in it", "TP53"], index=[TP53, TP53])
    assert match(frame(TP53), symbols=table).names.tolist() == ["TP53"]


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (["a"], TypeError, "found list"),
        ({"a": 1}, TypeError, "found 'a' to 1"),
        (pd.DataFrame({"a": ["x"], "b": ["y"], "c": ["z"]}), ValueError, r"columns \['a', 'b', 'c'\]"),
    ],
)
def test_tables_of_another_shape_are_refused(table, error, message):
    with pytest.raises(error, match=message):
        match(frame("TP53"), aliases=table)


# Duplicates -----------------------------------------------------------------------------------------------------------


def test_the_first_of_equal_columns_is_read_with_a_warning():
    with pytest.warns(
        UserWarning, match="2 columns match a gene that another column has.*TP53 from column 0 .*ACTB from"
    ):
        features = match(frame("TP53", "ACTB", "TP53", "ACTB"))
    assert features.columns.tolist() == [0, 1]
    assert features.coverage.n_duplicates == 2
    assert features.coverage.duplicates == ("TP53", "ACTB")


@pytest.mark.parametrize("order", [("MARCH8", "MARCHF8"), ("MARCHF8", "MARCH8")])
def test_exact_names_win_over_aliases(order):
    with pytest.warns(UserWarning, match="MARCHF8"):
        features = match(frame(*order), aliases={"MARCH8": "MARCHF8"})
    assert features.columns.tolist() == [order.index("MARCHF8")]


def test_exact_names_win_over_case():
    with pytest.warns(UserWarning, match="TP53"):
        features = match(frame("tp53", "Tp53", "TP53"), ignore_case=True)
    assert features.columns.tolist() == [2]


def test_aliases_win_over_case():
    with pytest.warns(UserWarning, match="MARCHF8"):
        features = match(frame("marchf8", "MARCH8"), aliases={"MARCH8": "MARCHF8"}, ignore_case=True)
    assert features.columns.tolist() == [1]


def test_duplicates_can_be_refused():
    with pytest.raises(ValueError, match="one column per gene, found 1 more: TP53"):
        match(frame("TP53", "ACTB", "TP53"), duplicates="error")


def test_duplicates_can_all_be_read():
    features = match(frame("TP53", "ACTB", "TP53"), duplicates="all")
    assert features.columns.tolist() == [0, 1, 2]
    assert features.ids.tolist() == [VOCABULARY["TP53"], VOCABULARY["ACTB"], VOCABULARY["TP53"]]
    assert "1 read too: TP53" in repr(features.coverage)


def test_unknown_policies_are_refused():
    with pytest.raises(
        ValueError, match="`duplicates` to be one of 'most_counts', 'first', 'error', 'all', found 'last'"
    ):
        match(frame("TP53"), duplicates="last")


# What the user is told ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("var", "message"),
    [
        (frame(TP53, ACTB), r"human Ensembl ids \(such as 'ENSG00000141510'\).*`symbols=` a table"),
        (frame("ENSMUSG00000059552.14"), "mouse Ensembl ids"),
        (
            frame("x1", TP53, ACTB, name=["q", "TP53", "ACTB"]),
            "The column 'name' of `var` matches 67 %: pass genes='name'",
        ),
        (frame("Htr7", "Gzmk", "Arhgap36"), "mouse symbols are. 2 of them .* ignore_case=True"),
        (frame("0", "1"), r"numbers \(such as '0'\), as row numbers or Entrez ids are"),
        (frame("AAA", "BBB"), r"gene symbols \(such as 'AAA', 'BBB'\). No column of `var` matches better"),
        (frame(None, np.nan), "The names are missing"),
        (frame(), "no row in `var`"),
    ],
)
def test_no_match_says_what_was_seen_and_what_to_do(var, message):
    with pytest.raises(ValueError, match=message):
        match(var)


def test_orthologues_are_advised_where_the_letters_are_others():
    var = frame("Gzmk", *(f"Arhgap{number}" for number in range(9)))
    with pytest.warns(UserWarning, match="knows no orthologue of these .*pass `aliases=` a table"):
        match(var, ignore_case=True, min_coverage=0.5)
    with pytest.warns(UserWarning, match="by the names it was given: take a larger model"):
        match(var, aliases={"Gzmk": "GZMK"}, min_coverage=0.5)


def test_no_match_says_what_the_vocabulary_holds():
    with pytest.raises(ValueError, match=r"which holds gene symbols \(such as 'ACTB', 'C1orf112', 'CD3D'\)"):
        match(frame(TP53))
    with pytest.raises(ValueError, match="which holds human Ensembl ids"):
        FeatureTable.from_var(frame("TP53"), Vocabulary([TP53]))


def test_the_index_is_suggested_when_it_is_better():
    with pytest.raises(ValueError, match="The index of `var` matches 100 %"):
        match(frame("TP53", "ACTB", id=[TP53, ACTB]), column="id")


def test_right_names_that_a_small_vocabulary_lacks_are_no_fault_of_the_table():
    with pytest.warns(
        UserWarning, match=r"Such names are right: the model knows \d+ genes .* a panel .* 'scgpt-human'"
    ):
        match(frame("TP53", "AAA", "BBB"), min_coverage=0.5)


def test_low_coverage_warns_under_the_threshold_only():
    var = frame("TP53", "AAA", "BBB")
    with pytest.warns(
        UserWarning, match=r"Only 1 of 3 features \(33.3 %\).*at least 50 %.*such as 'AAA', 'BBB'"
    ) as seen:
        match(var, min_coverage=0.5)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        match(var, min_coverage=0.3)


def test_bad_thresholds_are_refused():
    with pytest.raises(ValueError, match="min_coverage"):
        match(frame("TP53"), min_coverage=1.5)


def test_var_is_left_alone():
    var = frame(TP53, None, "Tp53", symbol=pd.Categorical(["TP53", None, "x"]))
    before = var.copy(deep=True)
    match(var, column="symbol", symbols="symbol", ignore_case=True)
    pd.testing.assert_frame_equal(var, before)


def test_var_may_still_be_on_disk():
    class Lazy:
        def to_memory(self) -> pd.DataFrame:
            return frame("TP53", "nope")

    assert match(Lazy()).columns.tolist() == [0]


def test_var_must_be_a_frame():
    with pytest.raises(TypeError, match="`var` to be DataFrame, found list"):
        match(["TP53"])


# The report -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def coverage() -> Coverage:
    var = frame("TP53", "TP53", "MARCH8", "gzmk", TP53, "A<b>", None)
    options = {"aliases": {"MARCH8": "MARCHF8"}, "symbols": {TP53: "CD3D"}, "ignore_case": True}
    with pytest.warns(UserWarning, match="1 column matches"):
        return match(var, **options).coverage


def test_counts_add_up(coverage):
    expected = {"exact": 2, "ensembl": 1, "alias": 1, "case": 1, "missing": 1, "ambiguous": 0, "unnamed": 1}
    assert coverage.counts == expected
    assert sum(coverage.counts.values()) == coverage.n_features == 7
    assert (coverage.n_matched, coverage.n_genes, coverage.n_duplicates) == (5, 4, 1)
    assert coverage.share == pytest.approx(5 / 7)
    assert coverage.missing == ("A<b>",)
    assert coverage.used.sum() == coverage.n_genes


def test_frame_has_one_row_per_column(coverage):
    table = coverage.to_frame()
    # Pandas 3 has NaN for the None of earlier ones.
    table = table.astype(object).where(table.notna(), None)
    assert table["name"].tolist() == ["TP53", "TP53", "MARCH8", "gzmk", TP53, "A<b>", None]
    assert table["token"].tolist() == ["TP53", "TP53", "MARCHF8", "GZMK", "CD3D", None, None]
    assert table["outcome"].tolist() == ["exact", "exact", "alias", "case", "ensembl", "missing", "unnamed"]
    assert table["used"].tolist() == [True, False, True, True, True, False, False]


def test_repr_shows_what_happened(coverage):
    assert repr(coverage).splitlines() == [
        "Coverage: 5 of 7 features (71.4 %) match one of 7 genes of the vocabulary",
        "  exact       2",
        "  ensembl     1",
        "  alias       1",
        "  case        1",
        "  missing     1: A<b>",
        "  unnamed     1",
        "  duplicates  1 not read: TP53",
    ]


def test_html_escapes_names(coverage):
    page = coverage._repr_html_()
    assert "A&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<tr>") == 7


def test_long_lists_are_cut():
    report = repr(match(frame("TP53", *(f"G{number}" for number in range(9)))).coverage)
    assert "missing     9: G0, G1, G2, G3, G4, ..." in report


def test_the_summary_survives_a_file(tmp_path, coverage):
    adata = ad.AnnData(np.zeros((1, 1), dtype=np.float32), uns={"coverage": coverage.to_dict()})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert ad.read_h5ad(tmp_path / "cells.h5ad").uns["coverage"] == coverage.to_dict()
    assert {type(value) for value in coverage.to_dict().values()} == {int, float, str}


def test_fields_of_different_length_are_refused(coverage):
    one, two = np.array([0]), np.array([0, 1])
    with pytest.raises(ValueError, match="'columns': 2, 'ids': 1"):
        FeatureTable(two, one, np.array(["a"], dtype=object), 3, coverage)
    with pytest.raises(ValueError, match="'modality': 2"):
        FeatureTable(one, one, np.array(["a"], dtype=object), 3, coverage, modality=two)
    with pytest.raises(ValueError, match="with 1 of them, found 0 to 1"):
        FeatureTable(two, two, np.array(["a", "b"], dtype=object), 1, coverage)
