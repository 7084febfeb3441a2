"""Bad words on the command line end with one line that says what was expected, and leave no file."""

from __future__ import annotations

import pytest

from campaign.inputs import cells, embedder
from campaign.sampling import chosen
from campaign.stores import shell
from campaign.verdicts import contents, judge

ODD = (
    "",
    " ",
    "no such",
    "-1",
    "0",
    "2.5",
    "nan",
    "inf",
    "1e400",
    "true",
    "None",
    "[1]",
    "{}",
    "a/b",
    "~/no/such",
    "../..",
)
"""What may stand behind an option."""
OPTIONS = {
    "embed": "layer genes symbols aliases ignore_case duplicates mask_var modality batch_key pooling normalize length batch_size device "
    "precision attention rng key_added chunk rank processes".split(),
    "embed-genes": "genes symbols aliases ignore_case duplicates modality key_added".split(),
    "tokenize": "layer genes symbols aliases mask_var modality bins ties rng key_added".split(),
}
CASES = [f"{command} --{option}={value}" for command, options in OPTIONS.items() for option in options for value in ODD]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    adata = cells()
    adata.write_h5ad(folder / "cells.h5ad")
    embedder().save(folder / "model")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", chosen(CASES))
def test_bad_words(case: str, report, place, tmp_path, monkeypatch):
    command, _, option = case.partition(" ")
    monkeypatch.setenv("HOME", str(tmp_path))
    output = tmp_path / "out.h5ad"
    source = (place / "cells.h5ad").read_bytes()

    def run() -> dict[str, object]:
        shell(command, place / "cells.h5ad", "--model", place / "model", "-o", output, "--quiet", option)
        return contents(output.exists())

    # Some of these words are good ones for some options; what they come to is the business of other tests.
    report(judge(run, accept=lambda found: ""))
    assert (place / "cells.h5ad").read_bytes() == source
    assert {entry.name for entry in tmp_path.iterdir()} <= {output.name}
